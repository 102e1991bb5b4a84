"""Answer a file of records so that an interruption loses nothing: every group of answers is on disk before the next."""

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from common import manifest
from common.decisions import Decision, decide
from common.errors import UserError, keeping, say
from common.machine import Ranks, join
from common.startup import quick_startup
from data.records import name_of
from decoding.answers import NOT_FINITE, Answer, Failure, Rules, blame, plan_batches
from decoding.constrained import Limits
from decoding.engines import ENGINES
from decoding.laid import takes_more
from kg.schema import read_schema
from kg.triples import parse
from kg.votes import mean_probabilities
from prediction import partial
from prediction.earlier import place_results
from prediction.opening import Opening, describe_plan, open_model
from prediction.questions import Question, ask_all, make_rows, permit
from prediction.settings import settings_of

FAILED_SHOWN = 20  # records that failed, of which the reason is printed


@dataclass(frozen=True)
class Task:
    """A file of records to answer."""

    plan: Opening
    records: list[dict]
    questions: list[Question]
    input_file: str
    output_file: str
    window: int | None  # --window
    skip_failed: bool  # write the file although some records failed
    overwrite: bool = False  # --overwrite_output_file


class Share(NamedTuple):
    """What one process did of the work."""

    failed: dict[int, str]  # number of a question -> reason
    count: int  # questions answered
    tokens: int  # new ones
    seconds: float
    peak: float  # GiB of a card


NOTHING_DONE = Share({}, 0, 0, 0.0, 0.0)


def predict_file(make_plan: Callable, model_args, args, input_file: str, records: list[dict], started: float) -> None:
    """Answer the records of a file as flags say; `make_plan`: prediction.opening.plan_adapter, or plan_prefix."""
    with quick_startup():
        ranks = join()
        # Everything that can be wrong is found before the base is loaded.
        plan = make_plan(model_args, args, ranks.count)
    answer_file(make_task(plan, records, args, input_file), ranks, started)


def make_task(plan: Opening, records: list[dict], args, input_file: str) -> Task:
    """The task of a command with these flags."""
    questions, how = ask_all(plan, records, args.window), (args.skip_failed, args.overwrite_output_file)
    return Task(plan, records, questions, input_file, args.output_file, args.window, *how)


def answer_file(task: Task, ranks: Ranks, started: float) -> None:
    """Open the model, answer all questions, write the file, and say what it holds.

    UserError before any weight is read when another process writes the file, or it belongs to other settings; and
    without a file when some record failed: what was answered stays in the partial file.
    """
    plan = task.plan
    prompts = [question.ids for question in task.questions]
    asked = sum(map(bool, prompts))
    with hold_partial(task, ranks.rank) as settings, keeping(lambda: partial.kept_answers(task.output_file, asked)):
        if not asked:  # every record has failed before a model was needed
            if ranks.rank == 0:
                finish_file(task, settings, [NOTHING_DONE], plan.decided, started)
            return
        model = open_model(plan, prompts)
        warn_context(task)
        batch_size = choose_batch_size(model, task, settings, ranks)
        drafts = say_drafts(choose_drafts(model, plan, min(batch_size.value or 1, asked)), plan)
        rules = plan.serving.rules._replace(batch_size=batch_size.value or 1, drafts=drafts.value)
        share = answer_share(model, task, settings | {"batch_size": batch_size.value}, rules, ranks)
        shares = ranks.gather(share)
        if ranks.rank == 0:
            finish_file(task, settings, shares, {**plan.decided, "batch_size": batch_size, "drafts": drafts}, started)


@contextmanager
def hold_partial(task: Task, rank: int):
    """Hold the partial file until the block ends; the settings it belongs to, with the batch size that was asked for,
    else that file's. UserError when another process has the file, or it belongs to other settings.
    """
    plan = task.plan
    settings = settings_of(plan.serving, plan.template, task.input_file, task.window, plan.asking)
    if plan.max_src_len is not None:
        settings["max_src_len"] = plan.max_src_len
    with partial.hold_partial(task.output_file, rank):
        recorded = partial.recorded_settings(task.output_file) or {}
        settings["batch_size"] = plan.serving.batch_size or recorded.get("batch_size")
        partial.check_partial(task.output_file, settings)
        yield settings


def choose_batch_size(model, task: Task, settings: dict, ranks: Ranks) -> Decision:
    """Records at a time: those asked for or begun with, else what the engine would take; None: it decides itself."""
    if settings["batch_size"] is not None:
        return Decision(settings["batch_size"], "as asked" if task.plan.serving.batch_size else "as the run began")
    prompts = [question.ids for question in task.questions if question.ids]
    size = size_for_engine(model, task.plan, list(map(len, prompts)), prompts)
    if size is None:
        return Decision(None, f"{task.plan.engine} decides it")
    size = min(ranks.gather(size))
    some = size < len(prompts)
    return decide(
        "batch_size", size, "what the memory holds, or the most that the engine takes" if some else "all of them"
    )


def size_for_engine(model, plan: Opening, lengths: list[int], prompts=()) -> int | None:
    """Prompts of so many tokens each that the engine would take at a time; None: it decides itself. `prompts`: they
    themselves, where none will come later: what all begin with may be kept once.
    """
    engine, rules = ENGINES[plan.engine], plan.serving.rules
    if engine.batch_size is None:
        return None
    common = engine.common(model, plan.codec, prompts, plan.serving.drafts or 0) if engine.common and prompts else 0
    how = rules.max_new_tokens, rules.num_beams, model.device, rules.fp8, common
    return engine.batch_size(model.config, lengths or [1], *how)


def choose_drafts(model, plan: Opening, rows: int) -> Decision:
    """Most tokens of a draft: those asked for, else what pays on the device with `rows` records at a time; nothing is
    said.
    """
    choose, asked = ENGINES[plan.engine].drafts, plan.serving.drafts
    if choose is None:
        return Decision(0, f"{plan.engine} has none")
    if not takes_more(model, plan.codec):
        return Decision(0, "what this base is told beside its tokens cannot be looked up")
    if plan.serving.rules.fp8:
        return Decision(0, "they were not tried with --fp8")
    return Decision(*((asked, "as asked") if asked is not None else choose(model.device, rows)))


def say_drafts(drafts: Decision, plan: Opening) -> Decision:
    """Say it where the engine has drafts, or where some were asked for; the decision again."""
    if ENGINES[plan.engine].drafts is None and not plan.serving.drafts:
        return drafts
    return decide("drafts", *drafts, f"{drafts.value} tokens at most" if drafts.value else "none")


def answer_share(model, task: Task, settings: dict, rules: Rules, ranks: Ranks) -> Share:
    """Answer this process's share of the questions that no earlier run has answered.

    Each group of answers is in a partial file before the engine is asked for the next.
    """
    plan = task.plan
    asked = {number: question for number, question in enumerate(task.questions) if question.ids}
    done = resume_answers(task, settings, len(asked), ranks.rank)
    # Shares depend on the questions alone: processes that see each other's answers early or late agree about them.
    mine = in_order(asked)[ranks.rank :: ranks.count]
    limits = limit(plan, dict(enumerate(task.questions))) if plan.serving.rules.constrain else None

    def keep(rows: dict[int, dict]) -> None:
        partial.append_answers(task.output_file, rows, ranks.rank)

    questions = {number: asked[number] for number in mine}
    return answer_questions(model, plan, task.records, questions, done, rules, keep, limits, ranks.rank > 0)


def resume_answers(task: Task, settings: dict, asked: int, rank: int = 0) -> dict[int, dict]:
    """The rows of the partial file by the numbers of their questions, of which there are `asked`; says how many."""
    done = partial.resume_partial(task.output_file, settings, rank)
    if done:
        say(f"resume: {len(done)} of {asked} answers are in {partial.partial_path(task.output_file)}")
    return done


def in_order(asked: dict[int, Question]) -> list[int]:
    """The numbers of questions in the order in which they are best asked: the longest first."""
    numbers = list(asked)
    lengths = [len(question.ids) for question in asked.values()]
    return [numbers[at] for batch in plan_batches(lengths, 1) for at in batch]


def answer_questions(
    model,
    plan: Opening,
    records,
    questions: dict[int, Question],
    done: dict[int, dict],
    rules: Rules,
    keep: Callable,
    limits: Limits | None = None,
    hidden: bool = False,
    answers: Callable | None = None,
) -> Share:
    """Answer `questions`, in their order, but for those that are `done`, where the new rows are added.

    `records`: the record of each question by its index; `keep(rows)` is called with each group of rows before the
    engine is asked for the next; `rules`: with how many at a time; `limits`: with --constrain (`limit`); `hidden`:
    without a bar; `answers`: in the engine's place.
    """
    answers, codec, retry = answers or ENGINES[plan.engine].answers, plan.codec, plan.serving.retry_length
    more = {"limits": limits} if limits else {}
    count, tokens, start = 0, 0, time.monotonic()

    def ask(waiting: list[int], rules: Rules, what: str) -> dict[int, str]:
        nonlocal count, tokens
        if not waiting:
            return {}
        failed, begun = {}, len(questions) - len(waiting)
        with tqdm(total=len(questions), initial=begun, unit="record", desc=what, disable=hidden) as bar:
            prompts = {number: questions[number].ids for number in waiting}
            for made in answers(model, codec, prompts, rules, **more):
                failed.update({number: answer.reason for number, answer in made.items() if isinstance(answer, Failure)})
                good = {number: answer for number, answer in made.items() if not isinstance(answer, Failure)}
                if good:
                    rows = {n: row_of(records, questions[n], answer, rules) for n, answer in good.items()}
                    keep(rows)
                    done.update(rows)
                count += len(good)
                tokens += sum(answer.tokens for answer in good.values())
                bar.update(len(made))
        return failed

    failed = ask([number for number in questions if number not in done], rules, "predicting")
    if retry:
        longer = rules._replace(max_new_tokens=2 * rules.max_new_tokens, batch_size=max(1, rules.batch_size // 2))
        short = [n for n, question in questions.items() if cut_short(done.get(n), question.ids, codec, rules)]
        vain = ask(short, longer, "asking again")
        if vain:
            reason, cut = next(iter(vain.values())), f"{len(vain)} answers stay cut at {rules.max_new_tokens} tokens"
            say(f"warning: {cut}: asked again, it failed ({reason})")
    if NOT_FINITE in failed.values():
        say(f"warning: {NOT_FINITE}: {blame(model)}")
    device = getattr(model, "device", torch.device("cpu"))  # vLLM keeps its own accounts
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0
    return Share(failed, count, tokens, time.monotonic() - start, peak)


def limit(plan: Opening, questions: dict[int, Question], silent: bool = False) -> Limits:
    """What the answers to the questions may hold (--constrain); `silent`: as of prediction.questions.permit."""
    return plan.limits._replace(asked=permit(plan, questions, silent))


def row_of(records, question: Question, answer: Answer, rules: Rules) -> dict:
    """An answer in the partial file; `budget`: the most tokens that it might have had. With --confidence, how likely
    each of its triples is.
    """
    row = {"output": answer.text, "finish_reason": answer.finish_reason, "budget": rules.max_new_tokens}
    return row | confidence_of(answer, records[question.record]["instruction"], question.text)


def confidence_of(answer: Answer, instruction: str, text: str) -> dict:
    """How likely each triple of an answer is, as the field of a row; nothing where nobody asked for it."""
    if answer.sure is None:
        return {}
    chances = mean_probabilities(parse(answer.text, read_schema(instruction), text), answer.text, answer.sure)
    return {"confidence": [round(chance, 4) for chance in chances]}


def cut_short(row: dict | None, ids: list[int], codec, rules: Rules) -> bool:
    """Whether an answer was stopped at its budget, and a larger one that has not been tried may change that."""
    room = codec.context is None or len(ids) + rules.max_new_tokens < codec.context
    return bool(row) and row["finish_reason"] == "length" and row["budget"] == rules.max_new_tokens and room


def finish_file(task: Task, settings: dict, shares: list[Share], decided: dict[str, Decision], started: float) -> None:
    """Write the answered records, and beside them how they were made; say what the file holds. `settings`: as
    `hold_partial` gives them.

    UserError when some record failed (unless it may), or answers that were made are gone.
    """
    failed = {number: question.reason for number, question in enumerate(task.questions) if not question.ids}
    failed |= {number: reason for share in shares for number, reason in share.failed.items()}
    if failed:
        report_failed(task, failed)
    answers = partial.read_finished(task.output_file)
    asked = {number for number, question in enumerate(task.questions) if question.ids}
    if lost := asked - set(answers) - set(failed):
        raise UserError(
            f"{partial.partial_path(task.output_file)}: {len(lost)} answers that were made are not in it; something "
            "else changed it. Repeat the command, which makes them again"
        )
    rows = make_rows(task.records, task.questions, answers, task.plan.asking)
    run = describe_run(task, settings, rows, shares, decided, time.time() - started)
    place_results(task.output_file, rows, run, task.overwrite)
    say_result(task, run["results"])


def describe_run(
    task: Task, settings: dict, rows: list[dict], shares: list[Share], decided: dict, seconds: float
) -> dict:
    """What run.json of a results file says: with what it was made, and what came of it."""
    reasons = ("eos", "length", "loop", "error")
    count, tokens, busy = sum(s.count for s in shares), sum(s.tokens for s in shares), max(s.seconds for s in shares)
    return {
        **describe_plan(task.plan, decided),
        "input": str(task.input_file),
        "output": Path(task.output_file).name,
        "settings": settings,
        "results": {
            "records": len(rows),
            **{reason: sum(row["finish_reason"] == reason for row in rows) for reason in reasons},
            "answers": count,  # made by this run; those before an interruption are not counted
            "new_tokens": tokens,
            "answers_per_second": round(count / busy, 2) if tokens else None,
            "tokens_per_second": round(tokens / busy, 1) if tokens else None,
            "peak_gib": round(max(share.peak for share in shares), 1) or None,
            "seconds": round(seconds, 1),
        },
        "versions": manifest.versions(),
    }


def say_result(task: Task, results: dict) -> None:
    """The block at the end."""
    serving = task.plan.serving
    most = f"--max_new_tokens {serving.rules.max_new_tokens}"
    most += " and again at twice as many" if serving.retry_length else ""
    pace = "nothing was left to predict"
    if results["new_tokens"]:
        pace = f"{results['answers_per_second']:.2f} answers/s, "
        pace += f"{results['tokens_per_second']:.1f} new tokens/s while predicting"
    peak = f", peak {results['peak_gib']:.1f} GiB of a GPU" if results["peak_gib"] else ""
    say(
        f"\n{task.output_file}: {results['records']} records, {results['eos']} ended by the model, "
        f"{results['length']} stopped at {most}, {results['loop']} repeating a triple (--max_repeats)"
        f"\n{pace}{peak}, {results['seconds']:.0f} s in all"
    )


def report_failed(task: Task, failed: dict[int, str]) -> None:
    """Name the records that failed; UserError unless they may."""
    about = ((task.questions[number].record, reason) for number, reason in sorted(failed.items()))
    different = list(dict.fromkeys(about))  # of many windows or votes the reason is mostly the same
    for index, reason in different[:FAILED_SHOWN]:
        say(f"failed: {name_of(task.records[index], index)}: {reason}")
    if len(different) > FAILED_SHOWN:
        say(f"failed: {len(different) - FAILED_SHOWN} more")
    count = len({task.questions[number].record for number in failed})
    what = f"{count} of {len(task.records)} records failed, for the reasons above"
    if task.skip_failed:
        say(f"warning: {what}; their output is empty or lacks the failed windows, their finish_reason is error")
        return
    if len(failed) == len(task.questions):
        raise UserError(f"{what}; {task.output_file} is not written (--skip_failed would write it without answers)")
    raise UserError(
        f"{what}; {task.output_file} is not written. The answers of the others are kept in "
        f"{partial.partial_path(task.output_file)}: the same command asks only the failed ones again, with "
        "--skip_failed it writes the file without their answers"
    )


def warn_context(task: Task) -> None:
    """Name the records whose prompt and answer may not fit into the positions the base was trained on."""
    plan, serving, most = task.plan, task.plan.serving, task.plan.context
    asked = [question for question in task.questions if question.ids]
    long = [question.record for question in asked if most and serving.budget(len(question.ids)) > most]
    long = list(dict.fromkeys(long))  # a record may be asked in several questions
    if long:
        what = "their answers end there" if plan.codec.context else "nothing is cut, but answers beyond it degrade"
        ids = ", ".join(name_of(task.records[index], index) for index in long[:5])
        say(
            f"warning: with --max_new_tokens {serving.rules.max_new_tokens}"
            f"{' and --retry_length' if serving.retry_length else ''}, {len(long)} records (the first: {ids}) may pass "
            f"the base's context of {most} tokens; {what}; --window splits texts"
        )
