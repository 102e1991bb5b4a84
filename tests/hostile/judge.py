"""What became of a case of tests/campaign.py: one of VERDICTS, and why."""

import json
import re
import signal
import subprocess
from pathlib import Path
from typing import NamedTuple

from hostile.commands import COMMANDS, Case
from hostile.files import read_tensors
from hostile.process import Run, words_of

FAULTS = ("traceback", "wrong in silence", "hang")
VERDICTS = ("clear error", "right result", "poor error", *FAULTS)
LONGEST_SAID = 1500  # characters of an error
NAMED = ("files", "flags", "paths", "records", "leftovers")  # kinds of which an error must name what is damaged
MARKER = "code-ran"  # what the code in a damaged file would leave
STEPS = re.compile(r"global_step-\d+")


class Verdict(NamedTuple):
    what: str  # of VERDICTS
    why: str = ""


def judge(case: Case, argv: list[str], done: Run, written: list[str], spoilt: list[str], wrong: str) -> Verdict:
    """What a run was.

    `written`: new files, `spoilt`: inputs that have changed or are gone, `wrong`: what is wrong with the result.
    """
    if done.code is None:
        return Verdict("hang", f"still running after {done.seconds:.0f} s")
    if "Traceback (most recent call last)" in done.text or "Exception ignored in" in done.text:
        return Verdict("traceback", last_line(done.text))
    if done.code < 0:
        return Verdict("traceback", f"ended by signal {-done.code}")
    if not done.alone:
        return Verdict("hang", "a process was left behind")
    if MARKER in written:
        return Verdict("wrong in silence", "another's code ran")
    if spoilt:
        return Verdict("wrong in silence", f"changed {', '.join(spoilt)[:200]}")
    if done.code == 0:
        if case.expected == "error":
            return Verdict("wrong in silence", "exit status 0" + (f", {wrong}" if wrong else ""))
        return Verdict("wrong in silence", wrong) if wrong else Verdict("right result")
    if case.around.stdout == "gone" and done.code == 1 and not done.error.count("error: "):
        return Verdict("clear error", "| head has read enough")
    if (poor := why_poor(case, done, argv)) or case.expected == "right":
        return Verdict("poor error", poor or f"refused: {said(done)[:200]}")
    begun = any(name.endswith("log.jsonl") for name in written)  # a training that fails leaves what it has
    if left := [name for name in written if not begun and ".partial" not in name]:
        return Verdict("wrong in silence", f"an error, and yet {', '.join(left)[:200]} was written")
    return Verdict("clear error", said(done)[:300])


def last_line(text: str) -> str:
    """The first line of the error that a traceback ends with."""
    behind = text[text.rfind("Traceback (most recent call last)") :].splitlines()[1:]
    return next((line for line in behind if line and not line.startswith((" ", "["))), text.strip()[-100:])[:200]


def said(done: Run) -> str:
    """The message itself; bash scripts write it into a log, too, by stdout."""
    text = done.error if "error: " in done.error else done.text
    return text[text.rfind("error: ") :].strip() if "error: " in text else text.strip()[-300:]


def why_poor(case: Case, done: Run, argv: list[str]) -> str:
    """Why an error is not clear; "" when it is. It must name the flag, its value, or the damaged file or its folder."""
    lines = (done.text if case.kind == "scripts" else done.error).splitlines()
    text, count = said(done), sum(line.startswith("error: ") for line in lines)
    if done.code != 2 or count != 1:
        return f"exit status {done.code}, {count} messages: {text[-200:]}"
    if len(text) > LONGEST_SAID:
        return f"an error of {len(text)} characters: {text[:200]}"
    if "weights_only=False" in text or "weights_only` to `False" in text:
        return "advises to load pickles without care"
    names = [part for word in case.target.split() for part in (word, Path(word).name, Path(word).parent.name) if part]
    usual = words_of(COMMANDS[case.command], COMMANDS[case.command].flags)
    names += [one for word in argv if word not in usual for one in (word.strip(), repr(word), shown(word)) if one]
    if case.kind in NAMED and not any(name in text for name in names):
        return f"does not name {case.target}: {text[:200]}"
    return ""


def shown(word: str) -> str:
    return word.encode(errors="backslashreplace").decode()


def judge_stopped(done: Run, stop: int) -> Verdict | None:
    """What a run was to which a signal came; None when it ended as it should, or before."""
    if done.code is None:
        return Verdict("hang", "still running after the signal")
    if done.code == 0 or (stop == signal.SIGKILL and done.code == -stop):
        return None
    if "Traceback" in done.text:
        return Verdict("traceback", f"exit status {done.code}, {last_line(done.text)}")
    if done.code != 128 + stop:
        return Verdict("traceback" if done.code < 0 else "poor error", f"exit status {done.code}, not {128 + stop}")
    return None if done.alone else Verdict("hang", "a process was left behind")


# ---- results


def why_not_right(case: Case, done: Run, place: Path, reference: Path) -> str:
    """What is wrong with the result of a run that ended well; "" when nothing is.

    `case.compare`: it must be equal to the undamaged run's ("equal"), or but for one record ("others"), or only be
    sound by itself ("whole"); "elsewhere": it may have any other name.
    """
    result = COMMANDS[case.command].result
    if result is None or case.compare == "elsewhere":
        return ""
    if not result or case.around.env.get("DRY_RUN"):
        return why_no_command(done.out, case.around.env.get("MODEL", "").replace("{here}", str(place)))
    mine, right = place / result, reference / result
    if case.compare == "whole" and not mine.exists():  # other flags may make another number of steps
        there = sorted(place.rglob(right.name))
        there = [one for one in there if STEPS.sub("", str(one)) == STEPS.sub("", str(mine))]
        mine = there[-1] if there else mine
    if not mine.is_file():
        return f"exit status 0 and no {result}"
    if case.compare == "equal":
        return "" if mine.read_bytes() == right.read_bytes() else f"{result} differs from the undamaged command's"
    if case.compare == "others":
        theirs, ours = right.read_bytes().split(b"\n"), set(mine.read_bytes().split(b"\n"))
        if (lost := sum(line not in ours for line in theirs)) > 2:
            return f"{result}: {lost} of {len(theirs)} lines differ, one record was damaged"
    return why_not_whole(mine)


def why_not_whole(file: Path) -> str:
    """What is wrong with a result by itself; "" when nothing is."""
    if file.suffix in (".safetensors", ".bin"):
        tensors = read_tensors(file).values()
        return "" if all(tensor.isfinite().all() for tensor in tensors) else f"{file.name} holds NaN or infinity"

    def refuse(name):
        raise ValueError(f"{name} is no JSON")

    text = file.read_text(encoding="utf-8")
    texts = [text] if text.startswith("{\n") else [line for line in text.split("\n") if line]
    try:
        rows = [json.loads(one, parse_constant=refuse) for one in texts]
    except ValueError as error:
        return f"{file.name} is no strict JSON ({error})" if "digits" not in str(error) else ""
    if not rows:
        return f"{file.name} is empty"
    if "finish_reason" in rows[0] and not any(row["output"] for row in rows):
        return f"{file.name} holds empty answers only"
    return ""


def why_no_command(printed: str, model: str) -> str:
    """What is wrong with the command that DRY_RUN prints; "" when it is one, with the model's path as it was given."""
    line = printed.strip().splitlines()[0] if printed.strip() else ""
    read = ["bash", "-c", 'eval "set -- $0" && printf "%s\\0" "$@"', line]
    words = subprocess.run(read, capture_output=True, text=True, timeout=600).stdout.split("\0")
    if words[0] not in ("python", "torchrun", "deepspeed"):
        return f"no command was printed: {printed[:100]!r}"
    return "" if not model or model in words else f"{model} is no word of the command {line[:200]}"
