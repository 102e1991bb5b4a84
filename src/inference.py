"""Predict the triples of a file of records; interrupted, the same command goes on where it stopped.

python src/inference.py --lora_weights lora/sample --input_file data/sample/valid.json \
    --output_file results/sample.json
"""

import os
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from tqdm import tqdm

from utils import manifest, memory, partial
from utils.args import parse_inference
from utils.errors import UserError, run_script, say
from utils.families import find_family, may_run_code
from utils.generating import choose_batch_size, generate, plan_batches
from utils.loading import check_fits, find_adapter, limit_memory, load_adapter, load_base, weight_files
from utils.precision import FLAGS, Precision, asked_dtype, choose_bits, choose_dtype, has_cuda
from utils.prompter import load_template, prompt
from utils.records import load
from utils.shards import whole_files
from utils.tokens import load_codec


def main(argv=None) -> None:
    started = time.time()
    model_args, args = parse_inference(argv)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("src/inference.py runs as one process: start it with python instead of torchrun")

    # Everything that can be wrong is found before the base is loaded.
    adapter = find_adapter(args.lora_weights) if args.lora_weights else None
    source = adapter or model_args.model_name_or_path
    run = manifest.read(source) if source else {}
    if not adapter:
        run.pop("base", None)  # a fully fine-tuned model is its own base
    base = manifest.prefer("model_name_or_path", _resolved(model_args.model_name_or_path), run.get("base"))
    if base is None:
        raise UserError(
            "--model_name_or_path is missing, and no run.json beside --lora_weights names the base; give its folder"
        )
    name = manifest.prefer("model_name", model_args.model_name, run.get("model_name"))
    family, name, why = find_family(base, name)
    say(f"family: {family.name}, as {name} ({'run.json' if run.get('model_name') == name else why})")
    model_args.trust_remote_code = may_run_code(family, model_args.trust_remote_code)
    template_name = manifest.prefer("prompt_template_name", args.prompt_template_name, run.get("template_name"))
    same = template_name is not None and template_name == run.get("template_name")
    template = run["template"] if same else load_template(template_name or family.templates[name])
    records = load(args.input_file, needs=("instruction", "input"))
    device = choose_device(args.device)
    precision = choose_precision(model_args, args, run.get("precision", {}), device.type == "cpu")
    whole_files(base, "model_name_or_path")
    codec = load_codec(base, family, model_args.trust_remote_code)
    prompts = [codec.encode(prompt(template, record["instruction"], record["input"])) for record in records]

    settings = {
        "input": manifest.fingerprint(args.input_file),
        "base": base,
        "base_files": [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in weight_files(base)],
        "adapter": manifest.fingerprint(*weight_files(adapter), adapter / "adapter_config.json") if adapter else None,
        "family": family.name,
        "template": template,
        "precision": list(precision),
        "max_new_tokens": args.max_new_tokens,
        "num_beams": args.num_beams,
        "merge_lora": args.merge_lora,
    }
    # Batches must be cut alike after a restart: the partial file's size wins over what memory allows now.
    settings["batch_size"] = args.batch_size or (partial.recorded_settings(args.output_file) or {}).get("batch_size")
    partial.check(args.output_file, settings)

    longest = max(map(len, prompts)) + args.max_new_tokens
    shape = memory.read_shape(base, model_args.trust_remote_code)
    memory.check_vocabulary(shape, prompts)
    if adapter and shape:
        check_fits(adapter, shape.sizes)
    kept = longest * args.num_beams * (args.batch_size or 1)
    memory.check_prediction(shape, kept, precision, device, model_args.max_memory_MB)
    limit_memory(model_args.max_memory_MB, device)
    model = load_base(base, precision, device, codec, model_args.trust_remote_code)
    if adapter:
        model = load_adapter(model, adapter, args.merge_lora)
    model.eval()
    warn_context(model, prompts, records, args.max_new_tokens)
    if settings["batch_size"] is None:
        lengths = [len(ids) for ids in prompts]
        cap = model_args.max_memory_MB
        settings["batch_size"] = choose_batch_size(
            model.config, lengths, args.max_new_tokens, args.num_beams, device, cap
        )
        say(f"batch_size: {settings['batch_size']} (what the memory holds)")

    rows, seconds, tokens = predict(model, codec, records, prompts, settings, args)
    partial.finish(args.output_file, [rows[index] for index in range(len(records))])
    stopped = sum(row["finish_reason"] == "length" for row in rows.values())
    say(
        f"\n{args.output_file}: {len(records)} records, {len(records) - stopped} ended by the model, "
        f"{stopped} stopped at --max_new_tokens {args.max_new_tokens}"
        + (f"\n{tokens / seconds:.1f} new tokens/s while predicting" if tokens else "\nnothing was left to predict")
        + f", {time.time() - started:.0f} s in all"
    )


def predict(model, codec, records, prompts, settings, args):
    """All rows by index, and the seconds and new tokens it took; each batch is on disk before the next begins."""
    rows = partial.resume(args.output_file, settings)
    if rows:
        say(f"resume: {len(rows)} of {len(records)} records are in {partial.partial_path(args.output_file)}")
    start, tokens = time.time(), 0
    with tqdm(total=len(records), initial=len(rows), unit="record", desc="predicting") as bar:
        for batch in plan_batches([len(ids) for ids in prompts], settings["batch_size"]):
            if all(index in rows for index in batch):
                continue
            answers = generate(model, codec, [prompts[i] for i in batch], args.max_new_tokens, args.num_beams)
            made = {
                index: {**records[index], "output": answer.text, "finish_reason": answer.finish_reason}
                for index, answer in zip(batch, answers, strict=True)
            }
            partial.append(args.output_file, made)
            rows |= made
            tokens += sum(answer.tokens for answer in answers)
            bar.update(len(batch))
    return rows, time.time() - start, tokens


def warn_context(model, prompts, records, max_new_tokens) -> None:
    """Name the records whose prompt and answer may not fit into the positions the base was trained on."""
    most = getattr(model.config, "max_position_embeddings", None)
    long = [i for i, ids in enumerate(prompts) if most and len(ids) + max_new_tokens > most]
    if long:
        ids = ", ".join(str(records[i].get("id", f"number {i}")) for i in long[:5])
        say(
            f"warning: with --max_new_tokens {max_new_tokens}, {len(long)} records (the first: id {ids}) "
            f"may pass the base's context of {most} tokens; nothing is cut, but answers beyond it degrade"
        )


def choose_precision(model_args, args, recorded: dict, on_cpu: bool) -> Precision:
    """What the flags say, else what the adapter was trained with (run.json), else what the machine does best."""
    typed = asked_dtype(args)
    flag = next((flag for flag, dtype in FLAGS.items() if dtype == typed), "")
    dtype = manifest.prefer(flag, typed, recorded.get("name"))
    bits = manifest.prefer("bits", model_args.bits, recorded.get("bits"), 16)
    return Precision(choose_dtype(dtype, on_cpu), choose_bits(bits, on_cpu))


def choose_device(asked: str | None) -> torch.device:
    """`cpu`, `cuda`, `cuda:1` or `1`; by default the first card, else the CPU."""
    if asked is None:
        return torch.device("cuda:0" if has_cuda() else "cpu")
    try:
        device = torch.device(f"cuda:{asked}" if asked.isdigit() else asked)
    except RuntimeError:
        raise UserError(f"--device {asked}: expected cpu, cuda, cuda:N or N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {asked}: this machine shows {torch.cuda.device_count()} cards; drop it, or use --device cpu"
        )
    return device


def _resolved(path: str | None) -> str | None:
    return str(Path(path).resolve()) if path else None


if __name__ == "__main__":
    run_script(main)
