"""What both prediction scripts do: choose device and numbers, answer so that an interruption loses nothing."""

import os
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from utils import manifest, partial
from utils.answering import ENGINES
from utils.args_predict import DRAWING
from utils.errors import UserError, say
from utils.generating import Failure, Rules, plan_batches
from utils.loading import weight_files
from utils.precision import FLAGS, Precision, asked_dtype, choose_bits, choose_dtype, has_cuda
from utils.prompter import load_template
from utils.questions import Question, make_rows, name_of
from utils.ranks import Ranks

FAILED_SHOWN = 20  # records that failed, of which the reason is printed


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
        "retry_length": args.retry_length,
        "window": args.window,
        **{name: value for name, value in rules_of(args)._asdict().items() if name != "batch_size"},
    }


@contextmanager
def begin(args, settings: dict, rank: int):
    """Hold the partial file until the block ends, and put the batch size into `settings`: the one asked for, else that
    file's. UserError when another process has the file, or it belongs to other settings.
    """
    with partial.held(args.output_file, rank):
        recorded = partial.recorded_settings(args.output_file) or {}
        settings["batch_size"] = args.batch_size or recorded.get("batch_size")
        partial.check(args.output_file, settings)
        yield


def answer_records(model, codec, records, questions, settings, args, ranks: Ranks, started) -> None:
    """Answer all questions, write the file, and say what it holds.

    UserError, and no file, when some record failed: what was answered stays in the partial file.
    """
    asked = {number: question.ids for number, question in enumerate(questions) if question.ids}
    choose = ENGINES[args.engine].batch_size
    if settings["batch_size"] is None and choose:
        lengths = [len(ids) for ids in asked.values()] or [1]
        size = choose(model.config, lengths, args.max_new_tokens, args.num_beams, model.device)
        settings["batch_size"] = min(ranks.gather(size))
        some = settings["batch_size"] < len(asked)
        why = "what the memory holds, or the most that the engine takes" if some else "all of them"
        say(f"batch_size: {settings['batch_size']} ({why})")

    failed, count, tokens, seconds = predict(model, codec, asked, settings, args, ranks)
    device = getattr(model, "device", torch.device("cpu"))  # vLLM keeps its own accounts
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0
    parts = ranks.gather((failed, count, tokens, seconds, peak))
    if ranks.rank > 0:
        return
    failed = {n: question.reason for n, question in enumerate(questions) if not question.ids}
    failed |= {number: reason for part in parts for number, reason in part[0].items()}
    if failed:
        report_failed(records, questions, failed, args)
    answers = partial.finished(args.output_file)
    if lost := set(asked) - set(answers) - set(failed):
        raise UserError(
            f"{partial.partial_path(args.output_file)}: {len(lost)} answers that were made are not in it; something "
            "else changed it. Repeat the command, which makes them again"
        )
    rows = make_rows(records, questions, answers)
    partial.finish(args.output_file, rows)
    counts = {reason: sum(row["finish_reason"] == reason for row in rows) for reason in ("eos", "length", "loop")}
    most = f"--max_new_tokens {args.max_new_tokens}" + (" and again at twice as many" if args.retry_length else "")
    count, tokens = (sum(part[place] for part in parts) for place in (1, 2))
    seconds, peak = (max(part[place] for part in parts) for place in (3, 4))
    say(
        f"\n{args.output_file}: {len(records)} records, {counts['eos']} ended by the model, "
        f"{counts['length']} stopped at {most}, {counts['loop']} repeating a triple (--max_repeats)"
        + (
            f"\n{count / seconds:.2f} answers/s, {tokens / seconds:.1f} new tokens/s while predicting"
            if tokens
            else "\nnothing was left to predict"
        )
        + (f", peak {peak:.1f} GiB of a card" if peak else "")
        + f", {time.time() - started:.0f} s in all"
    )


def predict(model, codec, asked: dict[int, list[int]], settings, args, ranks: Ranks):
    """Answer this process's share of the questions `asked` (number -> prompt) that no earlier run has answered.

    Each group of answers is in a partial file before the engine is asked for the next. What failed (number -> reason),
    how many were answered, and the new tokens and seconds it took.
    """
    done = partial.resume(args.output_file, settings, ranks.rank)
    if done:
        say(f"resume: {len(done)} of {len(asked)} answers are in {partial.partial_path(args.output_file)}")
    numbers, lengths = list(asked), [len(ids) for ids in asked.values()]
    # Shares depend on the questions alone: processes that see each other's answers early or late agree about them.
    mine = [numbers[at] for batch in plan_batches(lengths, 1) for at in batch][ranks.rank :: ranks.count]
    rules = rules_of(args, settings["batch_size"] or 1)
    count, tokens, start = 0, 0, time.time()

    def ask(waiting: list[int], rules: Rules, what: str) -> dict[int, str]:
        nonlocal count, tokens
        if not waiting:
            return {}
        failed, begun, hidden = {}, len(mine) - len(waiting), ranks.rank > 0
        with tqdm(total=len(mine), initial=begun, unit="record", desc=what, disable=hidden) as bar:
            prompts = {number: asked[number] for number in waiting}
            for made in ENGINES[args.engine].answers(model, codec, prompts, rules):
                failed.update({number: answer.reason for number, answer in made.items() if isinstance(answer, Failure)})
                answers = {number: answer for number, answer in made.items() if not isinstance(answer, Failure)}
                if answers:
                    rows = {number: row_of(answer, rules) for number, answer in answers.items()}
                    partial.append(args.output_file, rows, ranks.rank)
                    done.update(rows)
                count += len(answers)
                tokens += sum(answer.tokens for answer in answers.values())
                bar.update(len(made))
        return failed

    failed = ask([number for number in mine if number not in done], rules, "predicting")
    if args.retry_length:
        longer = rules._replace(max_new_tokens=2 * rules.max_new_tokens, batch_size=max(1, rules.batch_size // 2))
        vain = ask([n for n in mine if cut_short(done.get(n), asked[n], codec, rules)], longer, "asking again")
        if vain:
            reason, cut = next(iter(vain.values())), f"{len(vain)} answers stay cut at {rules.max_new_tokens} tokens"
            say(f"warning: {cut}: asked again, it failed ({reason})")
    return failed, count, tokens, time.time() - start


def rules_of(args, batch_size: int = 1) -> Rules:
    """How to answer, as the flags say it."""
    drawing = {name: getattr(args, name) for name in DRAWING if getattr(args, name) is not None}
    return Rules(
        max_new_tokens=args.max_new_tokens,
        batch_size=batch_size,
        num_beams=args.num_beams,
        repetition_penalty=args.repetition_penalty,
        do_sample=args.do_sample,
        max_repeats=args.max_repeats,
        **drawing,
    )


def row_of(answer, rules: Rules) -> dict:
    """An answer in the partial file; `budget`: the most tokens that it might have had."""
    return {"output": answer.text, "finish_reason": answer.finish_reason, "budget": rules.max_new_tokens}


def cut_short(row: dict | None, ids: list[int], codec, rules: Rules) -> bool:
    """Whether an answer was stopped at its budget, and a larger one that has not been tried may change that."""
    room = codec.context is None or len(ids) + rules.max_new_tokens < codec.context
    return bool(row) and row["finish_reason"] == "length" and row["budget"] == rules.max_new_tokens and room


def report_failed(records, questions: list[Question], failed: dict[int, str], args) -> None:
    """Name the records that failed; UserError unless --skip_failed."""
    for number, reason in sorted(failed.items())[:FAILED_SHOWN]:
        index = questions[number].record
        say(f"failed: {name_of(records[index], index)}: {reason}")
    if len(failed) > FAILED_SHOWN:
        say(f"failed: {len(failed) - FAILED_SHOWN} more")
    count = len({questions[number].record for number in failed})
    what = f"{count} of {len(records)} records failed, for the reasons above"
    if args.skip_failed:
        say(f"warning: {what}; their output is empty or lacks the failed windows, their finish_reason is error")
        return
    raise UserError(
        f"{what}; {args.output_file} is not written. The answers of the others are kept in "
        f"{partial.partial_path(args.output_file)}: the same command asks only the failed ones again, with "
        "--skip_failed it writes the file without their answers"
    )


def warn_context(model, codec, prompts, records, args) -> None:
    """Name the records whose prompt and answer may not fit into the positions the base was trained on."""
    most, budget = getattr(model.config, "max_position_embeddings", None), args.max_new_tokens
    long = [i for i, ids in enumerate(prompts) if most and len(ids) + budget * (1 + args.retry_length) > most]
    if long:
        what = "their answers end there" if codec.context else "nothing is cut, but answers beyond it degrade"
        ids = ", ".join(str(records[i].get("id", f"number {i}")) for i in long[:5])
        say(
            f"warning: with --max_new_tokens {budget}{' and --retry_length' if args.retry_length else ''}, {len(long)} "
            f"records (the first: id {ids}) may pass the base's context of {most} tokens; {what}; --window splits texts"
        )


def choose_precision(model_args, args, recorded: dict, on_cpu: bool) -> Precision:
    """What the flags say, else what the adapter was trained with (run.json), else what the machine does best."""
    typed = asked_dtype(args)
    flag = next((flag for flag, dtype in FLAGS.items() if dtype == typed), "")
    dtype = manifest.prefer(flag, typed, recorded.get("name"))
    bits = manifest.prefer("bits", model_args.bits, recorded.get("bits"), 16)
    return Precision(choose_dtype(dtype, on_cpu), choose_bits(bits, on_cpu))


def choose_device(asked: str | None, fall_back: bool = False) -> torch.device:
    """`cpu`, `cuda`, `cuda:1` or `1`; by default the first card (under torchrun this process's one), else the CPU.

    A card on a machine without any is an error or, with `fall_back`, the CPU, which is said.
    """
    processes, rank = (
        int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
    )
    if asked is None:
        return torch.device(f"cuda:{rank if processes > 1 else 0}" if has_cuda() else "cpu")
    if processes > 1 and asked != "cpu" and has_cuda():
        raise UserError(f"--device {asked} and torchrun: each process takes the card of its number; drop --device")
    try:
        device = torch.device({"cuda": "cuda:0"}.get(asked, f"cuda:{asked}" if asked.isdigit() else asked))
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {asked}: expected cpu, cuda, cuda:N or N")
    if fall_back and device.type == "cuda" and not has_cuda():
        say(f"device: cpu (--device {asked}: no GPU)")
        return torch.device("cpu")
    if device.type == "cuda" and device.index >= torch.cuda.device_count():
        raise UserError(
            f"--device {asked}: this machine shows {torch.cuda.device_count()} cards; drop it, or use --device cpu"
        )
    return device


def resolved(path: str | None) -> str | None:
    return str(Path(path).resolve()) if path else None
