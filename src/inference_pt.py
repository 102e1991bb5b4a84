"""Predict with a prefix of P-Tuning v2; interrupted, the same command goes on where it stopped.

python src/inference_pt.py --test_path data/sample/valid.json --device 0 \
    --model_dir output_dir_pt/global_step-100
"""

import os
import time

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from utils import manifest, memory
from utils.answering import choose_engine
from utils.args_pt import MAX_LEN, MAX_SRC_LEN, check_lengths, parse_ptuning_inference
from utils.errors import UserError, run_script
from utils.families import choose_family
from utils.loading import limit_memory, weight_files
from utils.predicting import (
    answer_records,
    begin,
    check_apart,
    choose_device,
    choose_precision,
    choose_template,
    common_settings,
    resolved,
    warn_context,
)
from utils.prefix import check_supported, find_prefix, load_trained, nearby_steps
from utils.ptuning_rows import ask
from utils.ranks import join
from utils.records import load
from utils.shards import whole_files
from utils.tokens import check_context, load_codec


def main(argv=None) -> None:
    started = time.time()
    model_args, args = parse_ptuning_inference(argv)
    ranks = join()

    # Everything that can be wrong is found before the base is loaded.
    if not os.path.isdir(args.model_dir):
        raise UserError(f"--model_dir {args.model_dir}: no such folder; {nearby_steps(args.model_dir)}")
    run = manifest.read(args.model_dir)
    base = manifest.prefer("ori_model_dir", resolved(model_args.model_name_or_path), run.get("base"))
    if base is None:
        raise UserError(
            f"--ori_model_dir is missing, and no run.json in --model_dir {args.model_dir} names the base "
            f"({nearby_steps(args.model_dir)}); give the base's folder"
        )
    check_apart(args.output_file, base, args.model_dir)
    family, name = choose_family(base, model_args, run)
    check_supported(family, base)
    template = choose_template(args, run, family.templates[name])
    trained = run.get("training", {})
    args.max_len = manifest.prefer("max_len", args.max_len, trained.get("max_len"), MAX_LEN)
    args.max_src_len = manifest.prefer("max_src_len", args.max_src_len, trained.get("max_src_len"), MAX_SRC_LEN)
    check_lengths(args)
    args.max_new_tokens = args.max_new_tokens or args.max_len - args.max_src_len
    shape = memory.read_shape(base, model_args.trust_remote_code)
    kind = find_prefix(args.model_dir, family, shape)
    records = load(args.test_path, needs=("instruction", "input"))
    device = choose_device(args.device, fall_back=True)
    precision = choose_precision(model_args, args, run.get("precision", {}), device.type == "cpu")
    whole_files(base, "ori_model_dir")
    codec = load_codec(base, family, model_args.trust_remote_code)
    args.engine = choose_engine(args.engine, family, args, lambda: "it does not know prefixes")
    questions = ask(codec, template, records, args.max_src_len, args.window is not None)
    prompts, about = [one.ids for one in questions], [records[one.record] for one in questions]
    check_context(codec, prompts, about)

    settings = common_settings(args, base, family, template, precision) | {
        "prefix": manifest.fingerprint(*weight_files(args.model_dir)),
        "max_src_len": args.max_src_len,
    }
    with begin(args, settings, ranks.rank):
        memory.check_vocabulary(shape, prompts)
        longest = kind.length + max(map(len, prompts)) + args.max_new_tokens
        memory.check_prediction(shape, longest * (args.batch_size or 1), precision, device, model_args.max_memory_MB)
        limit_memory(model_args.max_memory_MB, device)
        trust = model_args.trust_remote_code
        model = load_trained(base, family, kind, args.model_dir, precision, device, codec, trust).eval()
        warn_context(model, codec, prompts, about, args)
        answer_records(model, codec, records, questions, settings, args, ranks, started)


if __name__ == "__main__":
    run_script(main)
