"""Bad inputs of every kind against every command: what became of each, counted and listed.

python tests/campaign.py --cases 1000 --seed 1 --jobs 2 --json out.json
python tests/campaign.py --only "predict valid.json: GBK"    # one case as a process of its own; its folder stays

A case is a command that works (tests/hostile/commands.py), in a folder of its own, with a damage to its files, flags or
surroundings (the other files there); every fifth case has two. It ends in
    clear error       one message "error: …" that names what is wrong, exit status 2, nothing written
    right result      exit status 0, and the result of the undamaged command, or one that is whole
    poor error        no traceback, but not that one message; or a clear error where a right result was possible
    traceback         or an end by a signal
    wrong in silence  exit status 0 with a wrong result, or an input spoilt
    hang              a minute, or a process left behind
Of the last three, the exit status is 1. Python and torch start once: a case is a fork (Linux, macOS).
"""

import argparse
import importlib
import json
import os
import random
import shlex
import shutil
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from hostile import files, flags, records
from hostile.commands import COMMANDS, Case, Command, make_gguf
from hostile.judge import FAULTS, MARKER, VERDICTS, Verdict, judge, judge_stopped, why_not_right
from hostile.process import EMPTY, ROOT, furnish, look, run, set_up, words_of

LONGEST = 60.0  # seconds of a run
ALONE = ("interruptions", "surroundings", "leftovers", "scripts")  # kinds that are not paired with another damage
STRICT = ("elsewhere", "whole", "others", "equal")  # ways to compare, the strictest last


class Undamaged(NamedTuple):
    """The folders that undamaged commands have left, and how long they took."""

    home: Path  # for the cases
    folder: Path
    seconds: dict[str, float]
    start: float  # seconds until Python and torch are there


PREDICTION = ("prediction.opening", "prediction.predicting", "prediction.questions")
IMPORTS = {  # script -> modules that it needs, itself among them
    "src/inference.py": ("inference", *PREDICTION, "transformers.models.llama.modeling_llama"),
    "src/inference_pt.py": ("inference_pt", *PREDICTION, "transformers.models.llama.modeling_llama"),
    "src/test_finetune.py": ("test_finetune", "transformers.models.llama.modeling_llama"),
    "src/finetuning_pt.py": ("deepspeed", "finetuning_pt", "transformers.models.llama.modeling_llama"),
    "src/utils/convert.py": ("utils.convert",),
    "src/utils/score.py": ("utils.score", "numpy"),
    "src/utils/weight_diff.py": ("utils.weight_diff", "loading.merging"),
    "src/utils/gguf_to_hf.py": ("utils.gguf_to_hf", "gguf", "transformers.models.llama.modeling_llama"),
}


def warm(names) -> float:
    """Import what the commands import, once, before the forks; how many seconds that took."""
    began = time.time()
    sys.path.insert(0, str(ROOT / "src"))
    for module in dict.fromkeys(module for name in names for module in IMPORTS.get(COMMANDS[name].script, ())):
        importlib.import_module(module)
    return time.time() - began


def prepare(names, home: Path) -> Undamaged:
    """Run the commands undamaged, and those whose results they need."""
    made, wanted = Undamaged(home, home / "undamaged", {}, warm(names)), list(names)
    made.folder.mkdir()
    while wanted:
        name = wanted[-1]
        command = COMMANDS[name]
        needs = {source[1:].split("/")[0] for source in command.files.values() if source[0] == "@"}
        if "gguf.gguf" in needs and not (made.folder / "gguf.gguf").exists():
            make_gguf(made.folder / "gguf.gguf")
        if lacking := sorted(needs - {*made.seconds, "gguf.gguf"}):
            wanted += lacking
            continue
        wanted.pop()
        if name in made.seconds:
            continue
        place = made.folder / name
        furnish(name, place, made.folder)
        done = run(command, words_of(command, command.flags), place, 4 * LONGEST)
        if done.code or not (place / (command.result or "")).exists():
            sys.exit(f"{name} does not work undamaged:\n{done.text[-3000:]}")
        made.seconds[name] = done.seconds
    return made


def play(
    case: Case, more: Case | None, place: Path, undamaged: Undamaged, real: bool
) -> tuple[Verdict, list[str], str]:
    """The verdict of a case with its second damage, its command line, and what it printed."""
    command = COMMANDS[case.command]
    changed = dict(command.flags)
    furnish(case.command, place, undamaged.folder)
    for one in filter(None, (case, more)):
        one.damage(place, changed)
    argv, reference = words_of(command, changed), undamaged.folder / case.command
    if case.around.stop:
        return play_stopped(case, argv, place, undamaged, real)
    before = look(place)
    done = run(command, argv, place, LONGEST, case.around, real)
    for folder in (place, *place.rglob("*/")) if case.around.folder == "closed" else ():
        folder.chmod(0o755)
    after = look(place) if place.exists() else before
    written = [name for name in after if name not in before]
    written += [MARKER] if (place / MARKER).exists() or (ROOT / MARKER).exists() else []
    spoilt = [
        name for name, was in before.items() if after.get(name) != was and was != EMPTY and not own(command, name)
    ]
    wrong = why_not_right(case, done, place, reference) if done.code == 0 else ""
    return judge(case, argv, done, written, spoilt, wrong), argv, done.text


def own(command: Command, name: str) -> bool:
    """Whether a command may rewrite a file: its result, and what an earlier run of it left."""
    return name == command.result or name.startswith(("lora/", "pt/")) or ".partial" in name or name.endswith(".tmp")


def play_stopped(case: Case, argv: list[str], place: Path, undamaged: Undamaged, real: bool):
    """The same of a command that a signal stops, and that is then given again."""
    command, seconds = COMMANDS[case.command], undamaged.seconds[case.command]
    stop_at = case.around.at * (seconds + (undamaged.start if real else 0))
    first = run(command, argv, place, LONGEST, case.around, real, stop_at)
    if first.code == -case.around.stop and (place / (command.result or "")).exists():
        first = first._replace(code=0)  # the signal came between the command's last line and the end of its process
    if verdict := judge_stopped(first, case.around.stop):
        return verdict, argv, first.text
    again = run(command, argv, place, LONGEST)
    wrong = why_not_right(case, again, place, undamaged.folder / case.command) if again.code == 0 else ""
    verdict = judge(case._replace(expected="right"), argv, again, [], [], wrong)
    if (
        verdict.what == "poor error" and (place / (command.result or "")).exists()
    ):  # the first one was done, the second says so
        wrong = why_not_right(case, again, place, undamaged.folder / case.command)
        verdict = Verdict("wrong in silence", wrong) if wrong else Verdict("right result")
    return verdict, argv, first.text + again.text


# ---- many cases


def all_cases(source_of) -> list[Case]:
    """The whole table; `source_of(command, part)`: an undamaged file, None when there is none."""
    tables = (files.of_files(), files.of_keys(source_of), files.of_weights(), records.of_records())
    tables += (records.of_leftovers(), flags.of_numbers(), flags.of_words(), flags.of_paths(), flags.of_combinations())
    tables += (flags.of_surroundings(), flags.of_interruptions(), flags.of_scripts())
    return [case for table in tables for case in table]


def choose(cases: list[Case], count: int, seed: int) -> list[tuple[Case, Case | None]]:
    """`count` cases: of every kind and command alike, and a fifth of them pairs of damages."""
    chance, groups = random.Random(seed), {}
    for case in cases:
        groups.setdefault((case.kind, case.command), []).append(case)
    for group in groups.values():
        chance.shuffle(group)
    queue = [group for _, group in sorted(groups.items())]
    chance.shuffle(queue)
    singles = [group[turn] for turn in range(max(map(len, queue))) for group in queue if turn < len(group)]
    singles, pairs, of_command = singles[: count - count // 5], [], {}
    for case in cases:
        if case.kind not in ALONE:
            of_command.setdefault(case.command, []).append(case)
    for _ in range(10 * count if of_command else 0):
        one, other = chance.choices(of_command[chance.choice(list(of_command))], k=2)
        if len(singles) + len(pairs) < count and one.target.split()[0] != other.target.split()[0]:
            pairs.append((one, other))
    return [(case, None) for case in singles] + pairs


def joined(one: Case, other: Case | None) -> Case:
    """What is expected of two damages together."""
    if other is None:
        return one
    said = next(word for word in ("error", "either", "right") if word in (one.expected, other.expected))
    return one._replace(
        kind="pairs",
        target=f"{one.target} {other.target}",
        expected=said,
        compare=min(one.compare, other.compare, key=STRICT.index),
        around=one.around if one.around.obeys else other.around,
    )


def name_of(one: Case, other: Case | None) -> str:
    return one.name if other is None else f"{one.name} + {other.name}"


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
        number = running.pop(pid)
        said = undamaged.home / f"{number}.json"
        yield number, json.loads(said.read_text(encoding="utf-8"))
        said.unlink()
        shutil.rmtree(undamaged.home / str(number), ignore_errors=True)


def write_verdict(number: int, one: Case, other: Case | None, undamaged: Undamaged, real: bool) -> None:
    """Play a case in this process, which ends with it."""
    try:
        verdict, argv, text = play(joined(one, other), other, undamaged.home / str(number), undamaged, real)
    except BaseException:  # noqa: BLE001 - a fault of the campaign itself is shown as one
        verdict, argv, text = Verdict("traceback", "in tests/campaign.py itself"), [], traceback.format_exc()
    found = {"verdict": verdict.what, "why": verdict.why, "real": real, "argv": argv, "tail": text[-3000:]}
    (undamaged.home / f"{number}.json").write_text(json.dumps(found), encoding="utf-8")
    os._exit(0)


def table(rows: list[dict]) -> str:
    """Kind x verdict, as text."""
    counts, kinds = Counter((row["kind"], row["verdict"]) for row in rows), sorted({row["kind"] for row in rows})
    lines = [f"{'':14}" + "".join(f"{verdict:>18}" for verdict in VERDICTS)]
    lines += [f"{kind:14}" + "".join(f"{counts[kind, verdict]:18}" for verdict in VERDICTS) for kind in kinds]
    sums = [sum(counts[kind, verdict] for kind in kinds) for verdict in VERDICTS]
    return "\n".join([*lines, f"{'all':14}" + "".join(f"{number:18}" for number in sums)])


def show_one(cases: list[Case], name: str, undamaged: Undamaged) -> None:
    """Play the case of this name as a process of its own, and keep its folder."""
    named, parts = {case.name: case for case in cases}, name.split(" + ")
    if lacking := [part for part in parts if part not in named]:
        sys.exit(f"no case is called {lacking[0]!r}; --list prints all names")
    one, other = (*(named[part] for part in parts), None)[:2]
    place = undamaged.home / "one"
    verdict, argv, text = play(joined(one, other), other, place, undamaged, True)
    script = shlex.join([str(ROOT / COMMANDS[one.command].script), *argv])
    print(f"{text}\n\ncd {place}\n{script}\n")
    print(f"{verdict.what}: {verdict.why} (expected: {joined(one, other).expected})")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument("--seed", type=int, default=1, help="of their choice")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    parser.add_argument("--json", help="file for all verdicts")
    parser.add_argument("--commands", help=f"only these, of {','.join(COMMANDS)}")
    parser.add_argument("--kinds", help="only these (the first column of the table)")
    parser.add_argument("--real_every", type=int, default=50, help="every such case is a process of its own")
    parser.add_argument("--only", help="the name of one case, or of two: 'NAME + NAME'")
    parser.add_argument("--list", action="store_true", help="print the names of all cases")
    arguments = parser.parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")
    home = set_up()
    try:
        return campaign(arguments, home)
    finally:
        if not arguments.only:
            shutil.rmtree(home, ignore_errors=True)


def campaign(arguments, home: Path) -> int:
    began, names = time.time(), arguments.commands.split(",") if arguments.commands else list(COMMANDS)
    if arguments.only:
        names = [arguments.only.split()[0]]
    undamaged = prepare(names, home)
    print(f"{time.time() - began:.0f} s to prepare", file=sys.stderr)

    def source_of(name: str, part: str) -> Path | None:
        file = undamaged.folder / name / part
        return file if name in names and file.is_file() else None

    kinds = arguments.kinds and arguments.kinds.split(",")
    cases = [case for case in all_cases(source_of) if case.command in names and (not kinds or case.kind in kinds)]
    if arguments.list:
        print("\n".join(case.name for case in cases))
    if arguments.only:
        show_one(cases, arguments.only, undamaged)
    if arguments.list or arguments.only:
        return 0
    chosen, rows = choose(cases, arguments.cases, arguments.seed), []
    for number, found in play_all(chosen, undamaged, arguments.jobs, arguments.real_every):
        case, name = joined(*chosen[number]), name_of(*chosen[number])
        rows.append({"name": name, "kind": case.kind, "command": case.command, "expected": case.expected, **found})
        if found["verdict"] in VERDICTS[2:]:
            print(f"{found['verdict']}: {name}\n    {found['why']}", flush=True)
    bad = [row for row in rows if row["verdict"] in FAULTS]
    print("\n".join(f"python tests/campaign.py --only {shlex.quote(row['name'])}" for row in bad))
    print(f"\n{table(rows)}\n{len(rows)} cases, of {len(cases)} and their pairs, in {time.time() - began:.0f} s")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
