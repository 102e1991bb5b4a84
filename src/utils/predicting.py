"""What both prediction scripts do: choose device and numbers, answer in batches that an interruption cannot lose."""

import os
import time
from pathlib import Path

import torch
from tqdm import tqdm

from utils import manifest, partial
from utils.errors import UserError, say
from utils.generating import choose_batch_size, plan_batches
from utils.loading import weight_files
from utils.precision import FLAGS, Precision, asked_dtype, choose_bits, choose_dtype, has_cuda
from utils.prompter import load_template


def one_process(script: str) -> None:
    """UserError under torchrun or deepspeed with several processes, which would all write the same file."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"{script} runs as one process: start it with python instead of torchrun")


def check_apart(output: str, *folders) -> None:
    """UserError for an output within a folder of weights, where it could replace one of their files."""
    for folder in filter(None, folders):
        if Path(output).resolve().parent == Path(folder).resolve():
            raise UserError(f"--output_file {output}: {folder} holds what is read here; give a file elsewhere")


def choose_template(args, run: dict, default: str) -> dict:
    """The template that is typed, else the one recorded in run.json, as it was then, else `default`."""
    name = manifest.prefer("prompt_template_name", args.prompt_template_name, run.get("template_name"))
    if name is not None and name == run.get("template_name"):
        return run["template"]
    return load_template(name or default)


def common_settings(args, base: str, family, template: dict, precision: Precision) -> dict:
    """What every prediction's answers depend on, so that those of another command are not mixed with them."""
    return {
        "input": manifest.fingerprint(args.input_file),
        "base": base,
        "base_files": [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in weight_files(base)],
        "family": family.name,
        "template": template,
        "precision": list(precision),
        "max_new_tokens": args.max_new_tokens,
    }


def begin(args, settings: dict) -> None:
    """Put the batch size into `settings`; UserError when the partial file belongs to other settings.

    Batches must be cut alike after a restart: the partial file's size wins over what memory allows now.
    """
    settings["batch_size"] = args.batch_size or (partial.recorded_settings(args.output_file) or {}).get("batch_size")
    partial.check(args.output_file, settings)


def answer_records(model, codec, records, prompts, settings, args, cap: int | None, started: float) -> None:
    """Predict all records, write the file, and say what it holds; `cap`: --max_memory_MB."""
    if settings["batch_size"] is None:
        lengths = [len(ids) for ids in prompts]
        settings["batch_size"] = choose_batch_size(
            model.config, lengths, args.max_new_tokens, args.num_beams, model.device, cap
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
            answers = codec.answer(model, [prompts[i] for i in batch], args.max_new_tokens, args.num_beams)
            made = {
                index: {**records[index], "output": answer.text, "finish_reason": answer.finish_reason}
                for index, answer in zip(batch, answers, strict=True)
            }
            for row in made.values():
                row.pop("kg", None)  # the right triples of a labelled record: scored, they would pass as predicted
            partial.append(args.output_file, made)
            rows |= made
            tokens += sum(answer.tokens for answer in answers)
            bar.update(len(batch))
    return rows, time.time() - start, tokens


def warn_context(model, codec, prompts, records, max_new_tokens) -> None:
    """Name the records whose prompt and answer may not fit into the positions the base was trained on."""
    most = getattr(model.config, "max_position_embeddings", None)
    long = [i for i, ids in enumerate(prompts) if most and len(ids) + max_new_tokens > most]
    if long:
        what = "their answers end there" if codec.context else "nothing is cut, but answers beyond it degrade"
        ids = ", ".join(str(records[i].get("id", f"number {i}")) for i in long[:5])
        say(
            f"warning: with --max_new_tokens {max_new_tokens}, {len(long)} records (the first: id {ids}) "
            f"may pass the base's context of {most} tokens; {what}"
        )


def choose_precision(model_args, args, recorded: dict, on_cpu: bool) -> Precision:
    """What the flags say, else what the adapter was trained with (run.json), else what the machine does best."""
    typed = asked_dtype(args)
    flag = next((flag for flag, dtype in FLAGS.items() if dtype == typed), "")
    dtype = manifest.prefer(flag, typed, recorded.get("name"))
    bits = manifest.prefer("bits", model_args.bits, recorded.get("bits"), 16)
    return Precision(choose_dtype(dtype, on_cpu), choose_bits(bits, on_cpu))


def choose_device(asked: str | None, fall_back: bool = False) -> torch.device:
    """`cpu`, `cuda`, `cuda:1` or `1`; by default the first card, else the CPU.

    A card on a machine without any is an error or, with `fall_back`, the CPU, which is said.
    """
    if asked is None:
        return torch.device("cuda:0" if has_cuda() else "cpu")
    try:
        device = torch.device(f"cuda:{asked}" if asked.isdigit() else asked)
    except RuntimeError:
        raise UserError(f"--device {asked}: expected cpu, cuda, cuda:N or N") from None
    if fall_back and device.type == "cuda" and not has_cuda():
        say(f"device: cpu (--device {asked}: no GPU)")
        return torch.device("cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {asked}: this machine shows {torch.cuda.device_count()} cards; drop it, or use --device cpu"
        )
    return device


def resolved(path: str | None) -> str | None:
    return str(Path(path).resolve()) if path else None
