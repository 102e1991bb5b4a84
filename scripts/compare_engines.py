"""Predict the same records by every engine, and count how many answers each two of them have in common.

bash scripts/quickstart.bash
python scripts/compare_engines.py --lora_weights lora/quickstart-smollm2-200

In 16 bits rounding decides near ties; what that is worth, the triple F1 beside the counts says.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from common.errors import UserError, run_script
from common.files import write_rows
from common.flags import check_flags, command
from data.answers import load_answers
from data.records import read_records
from kg.metrics import f1, triples_of

PREDICT = str(Path(__file__).resolve().parents[1] / "src" / "inference.py")
ROWS = {
    "one": "--engine batch --batch_size 1",
    "batch-32": "--engine batch --batch_size 32",
    "fast": "--engine fast",
    "fast-merged": "--engine fast --merge_lora",
    "batch-32-8bit": "--engine batch --batch_size 32 --bits 8",
    "fast-8bit": "--engine fast --bits 8",
    "batch-32-4bit": "--engine batch --batch_size 32 --bits 4",
    "fast-4bit": "--engine fast --bits 4",
    "vllm": "--engine vllm",
}


def predict(rows: list[str], records: list[dict], flags: list[str], out: Path, processes: int) -> None:
    """The answers of each row into OUT/ROW.json, `processes` commands at a time.

    The row `one` is split into as many shares, for there no record has company that its answer could depend on.
    """
    commands, parts = [], {row: [] for row in rows}
    for row in rows:
        count = min(processes, len(records)) if row == "one" else 1
        for rank in range(count):
            ask, part = (out / f"{row}-{what}-{rank}.json" for what in ("ask", "answers"))
            write_rows(ask, records[rank::count])
            parts[row].append(part)
            files = ["--input_file", str(ask), "--output_file", str(part), "--overwrite_output_file"]
            commands.append([sys.executable, PREDICT, *ROWS[row].split(), *flags, *files])
    threads = {"OMP_NUM_THREADS": "1"} if processes > 1 else {}  # as torchrun does
    with ThreadPoolExecutor(processes) as pool:
        ends = list(pool.map(lambda words: subprocess.call(words, env={**os.environ, **threads}), commands))
    for words, end in zip(commands, ends, strict=True):
        if end:
            raise UserError(f"failed, see above: {' '.join(words)}")
    for row, made in parts.items():
        write_rows(out / f"{row}.json", [record for part in made for record in read_records(part)])


def main(argv=None) -> None:
    parser = command(__doc__)
    parser.add_argument("--lora_weights", required=True, help="adapter folder")
    parser.add_argument("--model_name_or_path", help="base; by default the one the adapter was trained on")
    parser.add_argument("--input_file", default="data/sample/valid.json", help="records to answer")
    parser.add_argument("--gold", default="data/sample/valid_gold.json", help="the same records with the right kg")
    parser.add_argument("--max_new_tokens", default="256", help="as of src/inference.py")
    parser.add_argument("--rows", nargs="+", default=list(ROWS)[:4], choices=ROWS, help="what is compared")
    parser.add_argument("--processes", type=int, default=1, help="so many beside each other, to save time")
    parser.add_argument("--output_dir", default="results/compare-engines", help="folder of all answers")
    arguments = parser.parse_args(check_flags(parser, argv))
    if arguments.processes < 1:
        raise UserError(f"--processes {arguments.processes}: expected 1 or more")
    names = ("lora_weights", "model_name_or_path", "max_new_tokens")
    flags = [word for name in names if (value := getattr(arguments, name)) for word in (f"--{name}", value)]
    records, gold = (
        read_records(arguments.input_file),
        load_answers(arguments.gold, "give the records with their answers"),
    )
    ids = [record.get("id") for record in records]
    if set(ids) != {record["id"] for record in gold} or len(set(ids)) < len(ids):
        raise UserError(
            f"--input_file {arguments.input_file}, --gold {arguments.gold}: answers are paired by id; expected the "
            "same ids in both, each once"
        )
    out = Path(arguments.output_dir)
    predict(arguments.rows, records, flags, out, arguments.processes)
    answers = {row: {record["id"]: record for record in read_records(out / f"{row}.json")} for row in arguments.rows}

    print(f"equal answers of {len(records)}" + "".join(f"{row:>15}" for row in answers) + f"{'F1':>9}")
    for row, mine in answers.items():
        equal = [sum(mine[key]["output"] == other[key]["output"] for key in mine) for other in answers.values()]
        scored = f1([triples_of(mine[right["id"]]) for right in gold], [triples_of(right) for right in gold])
        print(f"{row:20}" + "".join(f"{count:15}" for count in equal) + f"{scored['f1']:9.4f}")


if __name__ == "__main__":
    run_script(main)
