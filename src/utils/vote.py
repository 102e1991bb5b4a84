"""Several files of predictions of the same records -> one: the triples that enough of them have, with their share.

python src/utils/vote.py --pred results/head.json results/tail.json --min_votes 2 --tgt_path results/agreed.json

For adapters of other seeds, bases or --answer_order. The rows are those of the first file; a record that another file
lacks has so many fewer votes.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.errors import UserError, begin_script, run_script, say

if __name__ == "__main__":
    begin_script()

from common.files import check_output, write_rows
from common.flags import Range, check_ranges, command, parse_flags
from data.answers import load_answers
from kg.metrics import triples_of
from kg.schema import read_schema
from kg.triples import Triple
from kg.votes import count_votes, write_scored


def main(argv=None) -> None:
    parser = command(__doc__)
    parser.add_argument("--pred", nargs="+", required=True, help="two or more files of predictions or submissions")
    parser.add_argument("--tgt_path", required=True, help="where the rows go, each with output and confidence")
    parser.add_argument("--min_votes", type=int, help="files that must have a triple; default: more than half")
    arguments = parse_flags(parser, argv)
    files = arguments.pred
    if len(files) < 2:
        raise UserError(f"--pred {files[0]}: one file has nothing to agree with; give two or more")
    real = list(map(os.path.realpath, files))
    if again := [file for number, file in enumerate(files) if real[number] in real[:number]]:
        raise UserError(f"--pred {again[0]}: is given twice, and would have two votes; drop one of them")
    least = len(files) // 2 + 1 if arguments.min_votes is None else arguments.min_votes
    check_ranges(arguments, {"min_votes": Range(1, len(files))})
    check_output(arguments.tgt_path, "--tgt_path", *files)
    read = [load_answers(file, "give what inference.py or convert.py wrote") for file in files]
    for note in odd_ids(files, read):
        say(f"warning: {note}")
    rows = vote(read, least)
    write_rows(arguments.tgt_path, rows)
    triples = sum(len(row["kg"]) for row in rows)
    say(f"{arguments.tgt_path}: {len(rows)} rows, {triples} triples that {least} or more of {len(files)} files have")


def vote(files: list[list[dict]], least: int) -> list[dict]:
    """The first file's rows with the triples that `least` of the files have, and the share of files as `confidence`."""
    others = [{row["id"]: row for row in rows} for rows in files[1:]]
    made = []
    for row in files[0]:
        same = [row, *(rows[row["id"]] for rows in others if row["id"] in rows)]
        fields = {name: row.get(name) for name in ("instruction", "input")}  # decide how an output is parsed
        answers = [[Triple(*triple) for triple in triples_of({**one, **fields})] for one in same]
        counted = count_votes(answers + [[]] * (len(files) - len(same)), least / len(files))
        output, triples, confidence = write_scored(counted, read_schema(row.get("instruction")), row.get("input"))
        made.append({**row, "output": output, "kg": [list(triple) for triple in triples], "confidence": confidence})
    return made


def odd_ids(names: list[str], files: list[list[dict]]) -> list[str]:
    """What is odd about the ids of the files, in words."""
    first, notes = {row["id"] for row in files[0]}, []
    for name, rows in zip(names[1:], files[1:], strict=True):
        ids = {row["id"] for row in rows}
        if missing := len(first - ids):
            notes.append(f"{name} lacks {missing} of the {len(first)} records of {names[0]}, which it has no vote for")
        if extra := len(ids - first):
            notes.append(f"{name} has {extra} records that {names[0]} lacks: they are left out")
    return notes


if __name__ == "__main__":
    run_script(main)
