"""Which learning rate, rank and number of steps suit a base: trained and scored for each, several seeds, as a table.

python scripts/sweep_rate.py --model models/smollm2-135m-instruct --train data/sample/train.json --out results/sweep \
    --rates 3e-4,7e-4 --ranks 32 --steps 200 --seeds 1,2,3 --jobs 6 -- --shuffle_schema

What stands behind -- goes to src/test_finetune.py and beats the quickstart's settings, which hold otherwise. Scored is
a part of the training records, drawn with --split_seed and kept out of the training, so that no held-out file chooses.
Each job is a training, a prediction and a scoring by the project's own commands; its figures are a line of
OUT/jobs.jsonl, and what stands there is not done again.
"""

import argparse
import hashlib
import json
import os
import queue
import shlex
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from common.errors import UserError, begin_script, run_script, say
from common.files import fingerprint, to_line, write_rows
from common.flags import MOST_SEED, Range, check_ranges, command, parse_flags, split_flags
from common.manifest import run_file_of
from data.records import load_training, split_records

ROOT = Path(__file__).resolve().parents[1]
TRAINING = [  # the quickstart's settings
    *("--do_train", "--prompt_template_name", "plain", "--cutoff_len", "640", "--save_strategy", "no"),
    *("--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "1", "--warmup_steps", "0.05"),
]
ADAPTER = ["--lora_dropout", "0", "--lora_target_modules", "all-linear"]
RANGES = {
    "valid_share": Range(0, 1, above=True, below=True),
    "split_seed": Range(0, MOST_SEED),
    "max_new_tokens": Range(1),
    "jobs": Range(1, 512),
}
ALLOWED = {
    "rates": Range(0, above=True),
    "ranks": Range(1, 2**16),
    "steps": Range(1, 10**9),
    "seeds": Range(0, MOST_SEED),
}
SETTING = ("rate", "rank", "steps")  # what makes a row of the table
SHOWN = ("precision", "recall", "rouge2")
KEPT = ("run.json", "log.jsonl", "curve.png")  # of a training, once its job is done
SHARE = 0.9  # of a GPU's memory that its jobs share; the rest is what the driver needs for each


def main(argv=None, how=None) -> None:
    arguments, extra = read_flags(sys.argv[1:] if argv is None else argv)
    out = Path(arguments.out).resolve()  # the jobs run in the project's folder
    split = arguments.valid_share, arguments.split_seed
    gold = cut_records(Path(arguments.train), out, *split, arguments.valid and Path(arguments.valid))
    wanted = list_jobs(arguments, extra)
    done = read_done(out / "jobs.jsonl")
    waiting = [job for job in wanted if key_of(job) not in done]
    where = arguments.valid or "training"
    say(f"jobs: {len(waiting)} of {len(wanted)} to do, {arguments.jobs} at once; scored on {gold} records of {where}")
    failed = do_jobs(waiting, out, arguments.jobs, done, how)
    print_table([job for job in wanted if key_of(job) in done], done, extra)
    if failed:
        raise UserError("\n".join(failed))


def read_flags(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The arguments, lists as lists of numbers; and the words behind `--`."""
    argv, extra = split_flags(argv)
    if "--predict" in argv[:-1]:  # its value may begin with --
        at = argv.index("--predict")
        argv[at : at + 2] = [f"--predict={argv[at + 1]}"]
    parser = command(__doc__)
    parser.add_argument("--model", required=True, help="folder of the base")
    parser.add_argument("--train", default="data/sample/train.json", help="training records")
    parser.add_argument(
        "--valid",
        help="score on these labelled records instead, once the settings are chosen: training has all of --train",
    )
    parser.add_argument("--out", default="results/sweep", help="folder for the split, the jobs and jobs.jsonl")
    parser.add_argument("--rates", required=True, help="learning rates, e.g. 3e-4,7e-4")
    parser.add_argument("--ranks", default="32", help="ranks of the adapter, whose alpha is twice as much")
    parser.add_argument("--steps", default="200", help="optimizer steps")
    parser.add_argument("--seeds", default="1,2,3", help="seeds: the spread is that between them")
    parser.add_argument("--jobs", type=int, default=1, help="jobs at once; several GPUs share them")
    parser.add_argument("--valid_share", type=float, default=0.15, help="share of the records to score on")
    parser.add_argument("--split_seed", type=int, default=42, help="draws these records, the same for all jobs")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="most tokens of an answer")
    parser.add_argument("--predict", default="", help='further flags for src/inference.py, e.g. "--engine batch"')
    arguments = parse_flags(parser, argv)
    check_ranges(arguments, RANGES)
    for name, allowed in ALLOWED.items():
        kind = float if name == "rates" else int
        setattr(arguments, name, read_numbers(f"--{name}", getattr(arguments, name), kind, allowed))
    return arguments, extra


def read_numbers(flag: str, text: str, kind, allowed: Range) -> list:
    """The numbers of a list with commas; UserError that names the flag for one that is none, or out of range."""
    numbers = []
    for word in text.split(","):
        try:
            numbers.append(kind(word))
        except ValueError:
            raise UserError(f"{flag} {text}: {word!r} is no number; expected some with commas between") from None
        if not allowed.holds(numbers[-1]):
            raise UserError(f"{flag} {word}: expected {allowed}")
    return list(dict.fromkeys(numbers))


def cut_records(file: Path, out: Path, share: float, seed: int, held_out: Path | None = None) -> int:
    """Write OUT/train.json and OUT/valid.json, disjoint parts of the file, or all of it and of `held_out`; how many the
    second has.

    UserError when OUT holds the parts of another split, whose figures cannot be compared with these.
    """
    records = with_ids(load_training(file))
    if held_out:
        train, valid = records, with_ids(load_training(held_out))
    else:
        train, valid = split_records(records, max(1, round(share * len(records))), seed)
    for name, part in (("train.json", train), ("valid.json", valid)):
        path = out / name
        text = "".join(to_line(record) + "\n" for record in part)
        if not path.is_file():
            write_rows(path, part)
        elif path.read_text(encoding="utf-8") != text:
            raise UserError(f"--out {out}: {name} there is of another split or file; give another folder")
    return len(valid)


def with_ids(records: list[dict]) -> list[dict]:
    """The records, numbered where one of them has no id: answers are scored by id."""
    if all(record.get("id", "") != "" for record in records):
        return records
    return [{**record, "id": number} for number, record in enumerate(records)]


def list_jobs(arguments: argparse.Namespace, extra: list[str]) -> list[dict]:
    """Every job as the JSON object of all that decides its figures."""
    common = {
        "model": str(Path(arguments.model).resolve()),
        "records": fingerprint(Path(arguments.out) / "train.json", Path(arguments.out) / "valid.json"),
        "flags": extra,
        "predict": ["--max_new_tokens", str(arguments.max_new_tokens), *shlex.split(arguments.predict)],
    }
    settings = product(arguments.rates, arguments.ranks, arguments.steps, arguments.seeds)
    return [dict(zip((*SETTING, "seed"), setting, strict=True), **common) for setting in settings]


def key_of(job: dict) -> str:
    return to_line(job)


def read_done(file: Path) -> dict[str, dict]:
    """The figures of the jobs that are done, by their keys; a last line that a kill cut in half is taken away."""
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    rows = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    if not text.endswith("\n") and text:
        write_rows(file, rows)
    return {key_of(row["job"]): row for row in rows}


def do_jobs(jobs: list[dict], out: Path, at_once: int, done: dict[str, dict], how=None) -> list[str]:
    """Do the jobs, and put their figures into `done` and OUT/jobs.jsonl; what is to be said of those that failed.

    `how`: what does one, instead of `do_job`.
    """
    places: queue.Queue = queue.Queue()
    for place in make_places(at_once, list_cards()):
        places.put(place)
    started, failed = set(), []

    def do(job: dict) -> dict:
        place = places.get()
        try:
            return (how or do_job)(job, out, place, started)
        finally:
            places.put(place)

    with ThreadPoolExecutor(at_once) as pool:
        waiting = {pool.submit(do, job): job for job in jobs}
        try:
            for number, future in enumerate(as_completed(waiting), start=1):
                job = waiting[future]
                try:
                    row = future.result()
                except UserError as error:
                    failed.append(str(error))
                    say(f"{name_of(job)}: failed")
                    continue
                with open(out / "jobs.jsonl", "a", encoding="utf-8") as file:
                    file.write(to_line(row) + "\n")
                done[key_of(job)] = row
                say(f"{name_of(job)}: F1 {row['f1']:.4f} ({number} of {len(jobs)})")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(started):
                process.kill()
            raise
    return failed


def make_places(at_once: int, cards: list[tuple[str, float]]) -> list[tuple[dict[str, str], list[str]]]:
    """For each of the jobs at once: what its environment gets, and its flags. Cores and `cards`, each with its number
    and its MB, are shared evenly.
    """
    cores = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // at_once)), "OMP_WAIT_POLICY": "PASSIVE"}
    threads = {name: os.environ.get(name, value) for name, value in cores.items()} if at_once > 1 else {}
    if not cards:
        return [(threads, [])] * at_once
    places = []
    for number in range(at_once):
        name, memory = cards[number % len(cards)]
        sharing = len(range(number % len(cards), at_once, len(cards)))
        flags = ["--max_memory_MB", str(int(memory * SHARE / sharing))] if sharing > 1 else []
        places.append((threads | {"CUDA_VISIBLE_DEVICES": name}, flags))
    return places


def list_cards() -> list[tuple[str, float]]:
    """(number, MB) of the GPUs that may be used."""
    ask = ["nvidia-smi", "--query-gpu=index,memory.total", "--format=csv,noheader,nounits"]
    if not shutil.which(ask[0]):
        return []
    found = subprocess.run(ask, capture_output=True, text=True)
    cards = [line.split(", ") for line in found.stdout.splitlines()] if found.returncode == 0 else []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [(name, float(memory)) for name, memory in cards if visible is None or name in visible.split(",")]


def name_of(job: dict) -> str:
    short = hashlib.sha256(key_of(job).encode()).hexdigest()[:8]
    return f"{job['rate']:g}-r{job['rank']}-{job['steps']}-s{job['seed']}-{short}"


def do_job(job: dict, out: Path, place: tuple[dict[str, str], list[str]], started: set) -> dict:
    """Train, predict and score; the job with its figures. Predictions and logs stay in OUT/NAME, the model does not."""
    environment, flags = place
    folder = out / name_of(job)
    folder.mkdir(parents=True, exist_ok=True)
    model, answers = folder / "model", folder / "valid.json"
    full = "--full_finetune" in job["flags"]
    adapter = [] if full else ["--lora_r", job["rank"], "--lora_alpha", 2 * job["rank"], *ADAPTER]
    numbers = [] if "CUDA_VISIBLE_DEVICES" in environment else ["--bf16"]  # a GPU chooses by itself
    train = ["src/test_finetune.py", *TRAINING, *numbers, *adapter, "--model_name_or_path", job["model"]]
    train += ["--train_file", out / "train.json", "--output_dir", model, "--resume_from_checkpoint", "auto"]
    train += ["--learning_rate", job["rate"], "--max_steps", job["steps"], "--seed", job["seed"], *flags, *job["flags"]]
    predict = ["src/inference.py", "--input_file", out / "valid.json", "--output_file", answers, *flags]
    predict += ["--model_name_or_path", model] if full else ["--merge_lora", "--lora_weights", model]
    score = ["src/utils/score.py", "--gold", out / "valid.json", "--pred", answers, "--json", folder / "score.json"]
    if not answers.is_file():
        run(train, environment, folder / "train.log", started)
        run([*predict, *job["predict"]], environment, folder / "predict.log", started)
    run([*score, "--bootstrap", 0], environment, folder / "score.log", started)
    figures = json.loads((folder / "score.json").read_text(encoding="utf-8"))
    trained = json.loads((model / "run.json").read_text(encoding="utf-8"))["results"]
    predicted = json.loads(run_file_of(answers).read_text(encoding="utf-8"))["results"]
    for part in model.iterdir():
        if part.name not in KEPT:
            shutil.rmtree(part) if part.is_dir() else part.unlink()
    shown = {name: figures[name] for name in ("f1", *SHOWN, "contest", "counts")}
    return {"job": job, **shown, "loss": trained["last_loss"], "seconds": [trained["seconds"], predicted["seconds"]]}


def run(words: list, environment: dict[str, str], log: Path, started: set) -> None:
    """Run one of the project's commands; UserError with its last words when it fails."""
    with open(log, "w", encoding="utf-8") as file:
        both = {"stdout": file, "stderr": subprocess.STDOUT}
        command_line = [sys.executable, *map(str, words)]
        process = subprocess.Popen(command_line, cwd=ROOT, env={**os.environ, **environment}, **both)
        started.add(process)
        status = process.wait()
        started.discard(process)
    if status:
        last = log.read_text(encoding="utf-8", errors="replace").strip()[-500:]
        raise UserError(f"{words[0]} failed ({log}): {last}")


def print_table(jobs: list[dict], done: dict[str, dict], extra: list[str]) -> None:
    """A row for each setting: the means over its seeds, the standard deviation of F1 between them and its extremes."""
    print(f"flags: {shlex.join(extra) or 'none'}\n")
    names = ("rate", "rank", "steps", "seeds", "F1", "between seeds", "precision", "recall", "ROUGE-2")
    names += ("training s", "prediction s")
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    rows: dict[tuple, list[dict]] = {}
    for job in jobs:
        rows.setdefault(tuple(job[name] for name in SETTING), []).append(done[key_of(job)])
    for (rate, rank, steps), several in rows.items():
        f1 = [row["f1"] for row in several]
        spread = f"± {statistics.stdev(f1):.3f} ({min(f1):.3f} to {max(f1):.3f})" if len(f1) > 1 else "-"
        means = [statistics.mean(row[name] for row in several) for name in ("f1", *SHOWN)]
        seconds = [statistics.mean(row["seconds"][part] for row in several) for part in (0, 1)]
        cells = [f"{rate:g}", rank, steps, len(f1), f"{means[0]:.3f}", spread, *(f"{mean:.3f}" for mean in means[1:])]
        print(f"| {' | '.join(map(str, cells))} | {seconds[0]:.0f} | {seconds[1]:.0f} |")


if __name__ == "__main__":
    begin_script()  # a SIGTERM, too, ends the jobs
    run_script(main)
