"""Bad inputs of every kind against every command: what became of each, counted and listed.

python tests/campaign.py --cases 1000 --seed 1 --jobs 2 --json out.json
python tests/campaign.py --only "predict valid.json: GBK"      # one case as a process of its own; its folder stays

A case is a command that works, in a folder of its own, with one damage, or two, to its files, flags or surroundings.
It ends in
    clear error      one message "error: …" on stderr that names what is wrong, exit status 2, nothing written
    right result     exit status 0, and the result of the undamaged command, or one that is whole
    poor error       no traceback, but not that one message; or a clear error where the right result was possible
    traceback        or an end by a signal of its own
    wrong in silence exit status 0 with a wrong result, or an input spoilt
    hang             60 seconds, or processes left behind
The exit status is 1 when there is any of the last three. Python and torch start once; a case is a fork.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import runpy
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
HOME = Path(tempfile.mkdtemp(prefix="campaign-"))  # of all that the cases leave
os.environ.update(
    OMP_NUM_THREADS="1",
    CUDA_VISIBLE_DEVICES="",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    DS_ACCELERATOR="cpu",
    HF_HOME=str(HOME / "hf"),
    HF_DATASETS_CACHE=str(HOME / "rows"),
    MPLCONFIGDIR=str(HOME / "mpl"),
    PYTHONDONTWRITEBYTECODE="1",
)
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from campaign_inputs import COMMANDS, Around, Case, all_cases

LONGEST = 60  # seconds of a run
NOBODY = 65534
FAULTS = ("traceback", "wrong in silence", "hang")
VERDICTS = ("clear error", "right result", "poor error", *FAULTS)
MOST_SAID = 1500  # characters of an error
NAMED = ("files", "flags", "paths", "records")  # kinds of which an error must name what is damaged


class Run(NamedTuple):
    """What became of one process."""

    code: int | None  # None: it was stopped after LONGEST
    text: str  # stdout and stderr
    error: str  # stderr
    seconds: float
    alone: bool  # it left no process behind


class Verdict(NamedTuple):
    what: str  # of VERDICTS
    why: str = ""


# ---- one process

def start(command, argv: list[str], place: Path, around: Around, real: bool) -> int:
    """The id of a process that runs a command in a folder: a fork that has torch already, or a new Python."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    code = 70
    try:
        os.setsid()
        os.chdir(place)
        redirect(place, around.stdout)
        os.environ.update(around.env)
        if around.stranger and os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        if around.limit:
            around.limit()
        script = str(ROOT / command.script)
        for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGPIPE, signal.SIG_IGN)):
            signal.signal(number, signal.SIG_DFL if real else handler)
        if real:
            os.execv(sys.executable, [sys.executable, script, *map(os.fsencode, argv)])
        code = run_script_here(script, argv)
    except BaseException:  # noqa: BLE001 - a traceback is what is looked for
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stderr.flush()
        os._exit(code)


def run_script_here(script: str, argv: list[str]) -> int:
    """The exit status of a script as Python would run it."""
    sys.argv, sys.path[0] = [script, *argv], str(Path(script).parent)
    try:
        runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    return code


def redirect(place: Path, stdout: str) -> None:
    """stdin from nowhere, stdout and stderr into files beside the folder; or what `stdout` says."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(f"{place}.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), 2)
    out = os.open(f"{place}.out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    if stdout == "full":
        out = os.open("/dev/full", os.O_WRONLY)
    elif stdout == "gone":
        end, out = os.pipe()
        os.close(end)
    os.dup2(out, 1)
    if stdout == "closed":
        os.close(1)
    if stdout == "closed folder":
        place.chmod(0o555)
    if stdout == "lost":
        shutil.rmtree(place)


def run(command, argv: list[str], place: Path, around: Around = Around(), real: bool = False, stop_at: float = 0) -> Run:
    """Run a command to its end, to `stop_at` seconds (then `around.stop` is sent to it), or to LONGEST."""
    began, code, sent = time.time(), None, not stop_at
    pid = start(command, argv, place, around, real or around.real)
    while time.time() - began < LONGEST:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            break
        if not sent and time.time() - began >= stop_at:
            os.kill(pid, around.stop)
            sent = True
        time.sleep(0.005)
    seconds, alone = time.time() - began, end_group(pid, code is None)
    if code is None:
        os.waitpid(pid, 0)
    out, err = (Path(f"{place}.{end}").read_text(encoding="utf-8", errors="replace") for end in ("out", "err"))
    return Run(code, out + err, err, seconds, alone)


def end_group(pid: int, at_once: bool) -> bool:
    """End what a process has left behind; whether that was nothing. Half a second is for what is about to end."""
    for _ in range(1 if at_once else 50):
        try:
            os.killpg(pid, 0)
        except (ProcessLookupError, PermissionError):
            return True
        time.sleep(0 if at_once else 0.01)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    return at_once


def words_of(command, flags: dict) -> list[str]:
    """A command line."""
    words = list(command.words)
    for flag, value in flags.items():
        for one in value if isinstance(value, list) else [value]:
            if one is not None:
                words += ([f"--{flag}"] if flag else []) + ([] if one is True else [str(one)])
    return words


# ---- folders

def furnish(name: str, place: Path, left: Path) -> None:
    """Put the files of a command into a new folder; `left`: the folders that undamaged commands have left."""
    place.mkdir()
    for target, source in COMMANDS[name].files.items():
        if source.startswith("@"):
            origin = left / source[1:]
        else:
            origin = ROOT / source[1:] if source.startswith("/") else ROOT / "tests" / "golden" / source
        copy = shutil.copytree if origin.is_dir() else shutil.copyfile
        copy(origin, place / target)
        if source.startswith("@") and origin.is_dir():  # run.json says where its base was
            for file in (place / target).rglob("*.json"):
                text = file.read_text(encoding="utf-8")
                file.write_text(text.replace(str(origin.parent), str(place)), encoding="utf-8")


def look(place: Path) -> dict[str, str]:
    """Every file of a folder -> its content's hash, where its link points to, or what else it is."""
    found = {}
    for folder, folders, files in os.walk(place):
        for name in (*folders, *files):
            path = Path(folder, name)
            if path.is_symlink():
                found[str(path.relative_to(place))] = os.readlink(path)
            elif path.is_file():
                found[str(path.relative_to(place))] = hashlib.sha1(path.read_bytes()).hexdigest()
            elif not path.is_dir():
                found[str(path.relative_to(place))] = "special"
    return found


def why_not_whole(file: Path, empty_is_right: bool = False) -> str:
    """What is wrong with a result by itself; "" when nothing is."""
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return "" if all(tensor.isfinite().all() for tensor in load_file(file).values()) else "holds NaN or infinity"

    def refuse(name):
        raise ValueError(f"{name} is no JSON")

    text = file.read_text(encoding="utf-8")
    try:
        rows = [json.loads(text, parse_constant=refuse)] if text.startswith("{\n") else None
        rows = rows or [json.loads(line, parse_constant=refuse) for line in text.split("\n") if line]
    except ValueError as error:
        return f"is no strict JSON ({error})"
    if not rows:
        return "is empty"
    outputs = [row["output"] for row in rows if isinstance(row, dict) and "output" in row]
    if "finish_reason" in rows[0] and not any(outputs):
        return "holds empty answers only"
    return ""


def why_not_right(case: Case, place: Path, reference: Path) -> str:
    """What is wrong with the result of a case that ended well; "" when nothing is."""
    result = COMMANDS[case.command].result
    mine, right = place / result, reference / result
    if case.compare == "whole" and not mine.exists():  # a damage to flags may give it another name
        same_kind = sorted(place.rglob(f"*/{right.name}")) if "/" in result else []
        mine = same_kind[-1] if same_kind else mine
    if not mine.is_file():
        return f"exit status 0 and no {result}"
    if case.compare == "equal":
        return "" if mine.read_bytes() == right.read_bytes() else f"{result} differs from the undamaged command's"
    if case.compare == "others":
        theirs = right.read_bytes().split(b"\n")
        ours = set(mine.read_bytes().split(b"\n"))
        if (lost := sum(line not in ours for line in theirs)) > 2:
            return f"{result}: {lost} of {len(theirs)} lines differ, one record was damaged"
    return why_not_whole(mine)


# ---- verdicts

def judge(case: Case, argv: list[str], done: Run, written: list[str], spoilt: list[str], wrong: str) -> Verdict:
    """What a run was.

    `written`: new files, `spoilt`: inputs that have changed or are gone, `wrong`: what is wrong with the result.
    """
    if done.code is None:
        return Verdict("hang", f"still running after {LONGEST} s")
    if "Traceback (most recent call last)" in done.text or "Exception ignored in" in done.text:
        last = [line for line in done.text.splitlines() if line.strip() and not line.startswith(" ")]
        return Verdict("traceback", (last or [""])[-1][:200])
    if done.code < 0:
        return Verdict("traceback", f"ended by signal {-done.code}")
    if not done.alone:
        return Verdict("hang", "a process was left behind")
    if spoilt:
        return Verdict("wrong in silence", f"changed {', '.join(spoilt)[:200]}")
    if "code-ran" in written:
        return Verdict("wrong in silence", "another's code ran")
    if done.code == 0:
        if case.expected == "error":
            return Verdict("wrong in silence", "exit status 0" + (f", {wrong}" if wrong else ""))
        return Verdict("wrong in silence", wrong) if wrong else Verdict("right result")
    if (poor := why_poor(case, done, argv)) or case.expected == "right":
        return Verdict("poor error", poor or f"refused: {said(done)[:200]}")
    if left := [name for name in written if not may_stay(name)]:
        return Verdict("wrong in silence", f"an error, but {', '.join(left)[:200]} was written")
    return Verdict("clear error", said(done)[:300])


def said(done: Run) -> str:
    return done.error[done.error.rfind("error: ") :].strip() if "error: " in done.error else done.error.strip()[-300:]


def why_poor(case: Case, done: Run, argv: list[str]) -> str:
    """Why an error is not clear; "" when it is. It must name the flag, its value or the file that is damaged."""
    count = sum(line.startswith("error: ") for line in done.error.splitlines())
    if done.code != 2 or count != 1:
        return f"exit status {done.code}, {count} messages: {said(done)[-200:]}"
    if len(said(done)) > MOST_SAID:
        return f"an error of {len(said(done))} characters: {said(done)[:200]}"
    if "weights_only=False" in done.error or "weights_only` to `False" in done.error:
        return "advises to load pickles"
    text = said(done)
    names = [part for word in case.target.split() for part in (word, Path(word).name) if len(part) > 1]
    usual = words_of(COMMANDS[case.command], COMMANDS[case.command].flags)
    names += [word for word in argv if word.strip() and word not in usual]
    if case.kind in NAMED and not any(name in text for name in names):
        return f"does not name {case.target}: {text[:200]}"
    return ""


def may_stay(name: str) -> bool:
    """Whether a file may be left by a run that failed: finished answers, the log of a training, its checkpoints."""
    return ".partial" in name or name.endswith(("log.jsonl", "train.log")) or "checkpoint-" in name


def judge_stopped(case: Case, done: Run, stop: int) -> Verdict | None:
    """What a run was to which a signal came; None when it ended as it should, or before."""
    if done.code == 0 or (stop == signal.SIGKILL and done.code == -stop):
        return None
    code, lines = 128 + stop, [line for line in done.error.splitlines() if line.strip()]
    if done.code is None:
        return Verdict("hang", "still running after the signal")
    if "Traceback" in done.text:
        return Verdict("traceback", f"{len(lines)} lines, exit status {done.code}, {lines[-1][:100]}")
    if done.code != code:
        return Verdict("traceback" if done.code < 0 else "poor error", f"exit status {done.code}, expected {code}")
    return None if done.alone else Verdict("hang", "a process was left behind")


# ---- cases

class Undamaged(NamedTuple):
    """The folders that undamaged commands have left, and how long they took."""

    folder: Path
    seconds: dict[str, float]


def prepare(names) -> Undamaged:
    """Run the commands undamaged, and those that they need the results of."""
    made = Undamaged(HOME / "undamaged", {})
    made.folder.mkdir()
    wanted = list(names)
    while wanted:
        name = wanted[-1]
        needs = [source[1:].split("/")[0] for source in COMMANDS[name].files.values() if source.startswith("@")]
        if lacking := [need for need in needs if need not in made.seconds]:
            wanted += lacking
            continue
        wanted.pop()
        if name in made.seconds:
            continue
        place = made.folder / name
        furnish(name, place, made.folder)
        done = run(COMMANDS[name], words_of(COMMANDS[name], COMMANDS[name].flags), place)
        if done.code or not (place / COMMANDS[name].result).is_file():
            sys.exit(f"{name} does not work undamaged:\n{done.text[-3000:]}")
        made.seconds[name] = done.seconds
    return made


def play(case: Case, more: Case | None, place: Path, undamaged: Undamaged, real: bool) -> tuple[Verdict, list[str], str]:
    """The verdict of a case, its command line, and what it printed."""
    command = COMMANDS[case.command]
    flags = dict(command.flags)
    furnish(case.command, place, undamaged.folder)
    for one in filter(None, (case, more)):
        one.damage(place, flags)
    argv, before = words_of(command, flags), look(place)
    if case.around.stranger and os.geteuid() == 0:
        for path in (place, *place.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    reference = undamaged.folder / case.command
    if case.around.stop:
        stop_at = undamaged.seconds[case.command] * case.around.at
        first = run(command, argv, place, case.around, real, stop_at)
        if verdict := judge_stopped(case, first, case.around.stop):
            return verdict, argv, first.text
        again = run(command, argv, place)
        if again.code == 0 and (wrong := why_not_right(case, place, reference)):
            return Verdict("wrong in silence", f"the second run: {wrong}"), argv, again.text
        after = judge(case._replace(expected="right"), argv, again, [], [], "")
        if after.what != "right result" and first.code == 0:  # the first one was done: the second may say so
            after = Verdict("right result") if after.what == "poor error" else after
        return after, argv, first.text + again.text
    done = run(command, argv, place, case.around, real)
    place.chmod(0o755) if place.exists() else None
    after = look(place) if place.exists() else before
    written = [name for name in after if name not in before]
    ran = ["code-ran"] if (place / "code-ran").exists() else []
    spoilt = [name for name in before if after.get(name) != before[name] and name != command.result and not own(name)]
    wrong = ""
    if done.code == 0 and case.around.stdout != "lost":
        wrong = why_not_right(case, place, reference)
    return judge(case, argv, done, written + ran, spoilt, wrong), argv, done.text


def own(name: str) -> bool:
    """Whether a command may rewrite it: what an earlier run of it left."""
    return name.startswith(("lora/", "pt/"))


def choose(cases: list[Case], count: int, seed: int) -> list[tuple[Case, Case | None]]:
    """`count` cases: of every kind and command alike, and a fifth of them pairs of damages."""
    chance, groups = random.Random(seed), {}
    for case in cases:
        groups.setdefault((case.kind, case.command), []).append(case)
    for group in groups.values():
        chance.shuffle(group)
    queue = [group for _, group in sorted(groups.items())]
    chance.shuffle(queue)
    alone = count - count // 5
    singles = [group[turn] for turn in range(max(map(len, queue))) for group in queue if turn < len(group)][:alone]
    pairs = []
    usable = [case for case in cases if case.kind not in ("interruptions", "surroundings")]
    while len(pairs) < count - len(singles) and len(usable) > 1:
        one = chance.choice(usable)
        other = chance.choice([case for case in usable if case.command == one.command])
        if one.target.split()[0] != other.target.split()[0] and not {one.kind, other.kind} == {"paths"}:
            pairs.append((one, other))
    return [(case, None) for case in singles] + pairs


def joined(one: Case, other: Case | None) -> Case:
    """What is expected of two damages together."""
    if other is None:
        return one
    expected = {one.expected, other.expected}
    said = "error" if "error" in expected else "either" if "either" in expected else "right"
    order = ("whole", "others", "equal")
    return one._replace(
        kind="pairs",
        target=f"{one.target} {other.target}",
        expected=said,
        compare=order[min(order.index(one.compare), order.index(other.compare))],
        around=one.around if one.around.stranger else other.around,
    )


def name_of(one: Case, other: Case | None) -> str:
    return one.name if other is None else f"{one.name} + {other.name}"


# ---- all of it

def warm(names) -> None:
    """Import what the commands import, once, before the forks."""
    import torch  # noqa: F401
    import transformers.models.llama.modeling_llama

    import inference  # noqa: F401

    for name in names:
        if name in ("finetune", "evaluate", "resume"):
            import test_finetune  # noqa: F401
        elif name in ("ptuning", "resume_pt", "predict_pt"):
            import deepspeed  # noqa: F401

            import finetuning_pt
            import inference_pt  # noqa: F401
        elif "diff" in COMMANDS[name].script:
            import fire  # noqa: F401
    from checkpoints import merging  # noqa: F401


def play_all(chosen, undamaged: Undamaged, jobs: int, real_every: int):
    """Yield (number, what became of it) of every case as it ends, `jobs` at a time."""
    running, waiting = {}, list(enumerate(chosen))[::-1]
    while waiting or running:
        while waiting and len(running) < jobs:
            number, (one, other) = waiting.pop()
            sys.stdout.flush()
            if not (pid := os.fork()):
                write_verdict(number, one, other, undamaged, number % real_every == real_every - 1)
            running[pid] = number
        pid, _ = os.wait()
        if pid in running:
            number = running.pop(pid)
            yield number, json.loads((HOME / f"{number}.json").read_text(encoding="utf-8"))
            clear(number)


def write_verdict(number: int, one: Case, other: Case | None, undamaged: Undamaged, real: bool):
    """Play a case in this process, which ends with it."""
    argv, text = [], ""
    try:
        verdict, argv, text = play(joined(one, other), other, HOME / str(number), undamaged, real)
    except BaseException:  # noqa: BLE001 - a fault of the campaign itself is shown as one
        verdict, text = Verdict("traceback", "in tests/campaign.py itself"), traceback.format_exc()
    finally:
        found = {"verdict": verdict.what, "why": verdict.why, "argv": argv, "tail": text[-3000:]}
        (HOME / f"{number}.json").write_text(json.dumps(found), encoding="utf-8")
        os._exit(0)


def clear(number: int) -> None:
    place = HOME / str(number)
    shutil.rmtree(place, ignore_errors=True)
    for end in (".out", ".err", ".json"):
        Path(f"{place}{end}").unlink(missing_ok=True)


def table(rows: list[dict]) -> str:
    """Kind x verdict, as text."""
    counts = Counter((row["kind"], row["verdict"]) for row in rows)
    kinds = [*dict.fromkeys(row["kind"] for row in rows)]
    lines = [f"{'':14}" + "".join(f"{verdict:>18}" for verdict in VERDICTS)]
    for kind in kinds:
        lines.append(f"{kind:14}" + "".join(f"{counts[kind, verdict]:18}" for verdict in VERDICTS))
    sums = [sum(counts[kind, verdict] for kind in kinds) for verdict in VERDICTS]
    return "\n".join([*lines, f"{'all':14}" + "".join(f"{number:18}" for number in sums)])


def find(cases: list[Case], name: str) -> tuple[Case, Case | None]:
    named = {case.name: case for case in cases}
    parts = name.split(" + ")
    if lacking := [part for part in parts if part not in named]:
        sys.exit(f"no case is called {lacking[0]!r}")
    return (*(named[part] for part in parts), None)[:2]


def show_one(one: Case, other: Case | None, undamaged: Undamaged) -> None:
    """Play one case as a process of its own, and keep its folder."""
    place = HOME / "one"
    verdict, argv, text = play(joined(one, other), other, place, undamaged, True)
    script = shlex.join(["python", str(ROOT / COMMANDS[one.command].script), *argv])
    print(f"{text}\n\ncd {place}\n{script}\n\n{verdict.what}: {verdict.why} (expected: {joined(one, other).expected})")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument("--seed", type=int, default=1, help="of the choice")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    parser.add_argument("--json", help="file for all verdicts")
    parser.add_argument("--commands", help=f"only these, of {','.join(COMMANDS)}")
    parser.add_argument("--kinds", help="only these")
    parser.add_argument("--real_every", type=int, default=50, help="each so manieth case is a process of its own")
    parser.add_argument("--only", help="the name of one case")
    parser.add_argument("--list", action="store_true", help="print the names of all cases")
    arguments = parser.parse_args()
    began, names = time.time(), arguments.commands.split(",") if arguments.commands else list(COMMANDS)
    HOME.chmod(0o777)
    warm(names)
    undamaged = prepare(names)
    print(f"{time.time() - began:.0f} s to prepare", file=sys.stderr)

    def source_of(name: str, part: str) -> Path | None:
        file = undamaged.folder / name / part
        return file if name in names and file.is_file() else None

    kinds = arguments.kinds and arguments.kinds.split(",")
    cases = [case for case in all_cases(source_of) if case.command in names and (not kinds or case.kind in kinds)]
    if arguments.list:
        print("\n".join(case.name for case in cases))
        return 0
    if arguments.only:
        show_one(*find(cases, arguments.only), undamaged)
        return 0
    chosen, rows = choose(cases, arguments.cases, arguments.seed), []
    for number, found in play_all(chosen, undamaged, arguments.jobs, arguments.real_every):
        one, other = chosen[number]
        case = joined(one, other)
        rows.append({"name": name_of(one, other), "kind": case.kind, "expected": case.expected, **found})
        if found["verdict"] in VERDICTS[2:]:
            print(f"{found['verdict']}: {rows[-1]['name']}\n    {found['why']}", flush=True)
    print(f"\n{table(rows)}\n{len(rows)} of {len(cases)} cases and their pairs, {time.time() - began:.0f} s")
    bad = [row for row in rows if row["verdict"] in FAULTS]
    for row in bad:
        print(f"python tests/campaign.py --only {shlex.quote(row['name'])}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    shutil.rmtree(HOME, ignore_errors=True)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
