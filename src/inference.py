"""Predict the triples of a file of records; interrupted, the same command goes on where it stopped.

python src/inference.py --lora_weights lora/sample --input_file data/sample/valid.json \
    --output_file results/sample.json
"""

import os
import time

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from utils import decoding, manifest, memory, vllm_engine
from utils.answering import choose_engine
from utils.args_predict import parse_inference
from utils.errors import UserError, run_script
from utils.families import choose_family
from utils.loading import check_fits, find_adapter, limit_memory, load_adapter, load_base, weight_files
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
from utils.prompter import prompt
from utils.questions import choose_window, context_of, make_questions
from utils.ranks import join
from utils.records import load
from utils.shards import whole_files
from utils.tokens import check_context, load_codec


def main(argv=None) -> None:
    started = time.time()
    model_args, args = parse_inference(argv)
    ranks = join()

    # Everything that can be wrong is found before the base is loaded.
    adapter = find_adapter(args.lora_weights) if args.lora_weights else None
    source = adapter or model_args.model_name_or_path
    run = manifest.read(source) if source else {}
    if not adapter:
        run.pop("base", None)  # a fully fine-tuned model is its own base
    base = manifest.prefer("model_name_or_path", resolved(model_args.model_name_or_path), run.get("base"))
    if base is None:
        raise UserError(
            "--model_name_or_path is missing, and no run.json beside --lora_weights names the base; give its folder"
        )
    check_apart(args.output_file, base, adapter)
    family, name = choose_family(base, model_args, run)
    template = choose_template(args, run, family.templates[name])
    records = load(args.input_file, needs=("instruction", "input"))
    device = choose_device(args.device)
    precision = choose_precision(model_args, args, run.get("precision", {}), device.type == "cpu")
    given = base, adapter, precision, device, model_args.trust_remote_code
    args.engine = choose_engine(args.engine, family, args, lambda: decoding.why_not(args, *given))
    if args.engine == "vllm":
        vllm_engine.check(args, precision.bits, device, ranks.count)
    whole_files(base, "model_name_or_path")
    codec = load_codec(base, family, model_args.trust_remote_code)
    window = choose_window(args, base, codec)

    def encode(record: dict) -> list[int]:
        return codec.encode(prompt(template, record["instruction"], record["input"]))

    questions = make_questions(records, encode, window and (lambda record: len(encode(record)) <= window))
    prompts, about = [one.ids for one in questions], [records[one.record] for one in questions]
    check_context(codec, prompts, about)

    settings = common_settings(args, base, family, template, precision) | {
        "adapter": manifest.fingerprint(*weight_files(adapter), adapter / "adapter_config.json") if adapter else None,
        "merge_lora": args.merge_lora,
    }
    with begin(args, settings, ranks.rank):
        longest = max(map(len, prompts)) + args.max_new_tokens
        shape = memory.read_shape(base, model_args.trust_remote_code)
        memory.check_vocabulary(shape, prompts)
        if adapter and shape:
            check_fits(adapter, shape.sizes)
        if args.engine == "vllm":
            room = longest + args.max_new_tokens * args.retry_length
            context = context_of(base, codec)
            model = vllm_engine.load(base, adapter, precision, device, room, context, args, model_args)
        else:
            # The engine fast makes of --batch_size what fits.
            kept = longest * args.num_beams * ((args.batch_size or 1) if args.engine == "batch" else 1)
            kept = max(kept, longest + args.max_new_tokens * args.retry_length)
            if not args.device_map:
                memory.check_prediction(shape, kept, precision, device, model_args.max_memory_MB)
            limit_memory(model_args.max_memory_MB, device)
            model = load_base(base, precision, args.device_map or device, codec, model_args.trust_remote_code)
            if adapter:
                model = load_adapter(model, adapter, args.merge_lora)
            model.eval()
            if args.engine == "fast":
                decoding.use_kernels(model)
            warn_context(model, codec, prompts, about, args)
        answer_records(model, codec, records, questions, settings, args, ranks, started)


if __name__ == "__main__":
    run_script(main)
