"""Predictions -> contest submission: `kg` parsed from `output`, `output` rebuilt in contest form, rows in id order.

python src/utils/convert.py --pred_path result/output_llama_7b_e3_r8.json --tgt_path result/result_llama_7b_e3_r8.json
python src/utils/convert.py --check data/valid.json --tgt_path result/result_llama_7b_e3_r8.json
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from utils.errors import UserError, run_script, say
from utils.flags import check_flags, command
from utils.records import check_output, is_kg, stream, to_line, write_lines
from utils.triples import parse_with_rest, render, schema

# What prediction scripts of 2023 called these fields: P-Tuning `cata`, ChatGLM's LoRA `text` and `answer`, CPM-Bee
# `prompt` and `<ans>`; and LLaMA-Factory `predict`.
OLD_NAMES = {
    "cata": "cate",
    "text": "input",
    "prompt": "instruction",
    "answer": "output",
    "<ans>": "output",
    "predict": "output",
}
MOST_NAMED = 20  # bad lines, or faults of a submission, that are listed one by one


class Spooled(NamedTuple):
    """A converted row in the temporary file, and what is counted of it."""

    identity: object
    offset: int  # bytes
    triples: int
    dropped: int  # fragments of the answer that began like a triple
    unasked: int  # triples with a relation that was not asked for


def convert(record: dict, strict: bool = False) -> tuple[dict, int, int]:
    """The submission's row of a prediction, how many fragments were dropped, how many relations were not asked for.

    Every field is kept. `strict` leaves the triples out whose relation was not asked for. An instruction without a
    list, or with an empty one (three test records of the contest have it), asks for any relation.
    UserError when a text field is not a string.
    """
    record = record | {name: record[old] for old, name in OLD_NAMES.items() if old in record and name not in record}
    if "output" not in record and record.get("kg") is not None and is_kg(record["kg"]):
        record["output"] = render(record["kg"])
    for name in ("output", "instruction", "input"):
        text = record.get(name)
        if not isinstance(text, str) and (name == "output" or text is not None):
            found = f"{text!r:.40}" if name in record else "missing"
            raise UserError(f"{name} is {found}, expected a string; is this a predictions file?")
    asked = schema(record.get("instruction"))
    triples, dropped = parse_with_rest(record["output"], asked, record.get("input"))
    unasked = [triple for triple in triples if asked and triple.relation not in asked]
    if strict:
        triples = [triple for triple in triples if not asked or triple.relation in asked]
    row = {**record, "output": render(triples), "kg": [list(triple) for triple in triples]}
    return row, len(dropped), len(unasked)


def spool(path: str, file, strict: bool, bad: list[str] | None) -> list[Spooled]:
    """Convert the predictions of `path` into `file` (binary), one by one, so that memory holds only this index."""
    index = []
    for line, record in tqdm(stream(path, bad), desc="converting", unit=" rows", delay=3, mininterval=1, leave=False):
        try:
            row, dropped, unasked = convert(record, strict)
        except UserError as error:
            if bad is None:
                raise UserError(f"{path}:{line}: {error}") from None
            bad.append(f"{path}:{line}: {error}")
            continue
        index.append(Spooled(row.get("id"), file.tell(), len(row["kg"]), dropped, unasked))
        file.write(to_line(row).encode() + b"\n")
    return index


def order(identity) -> tuple[int, float]:
    """What rows are sorted by: numbers, also written as text, and behind them all other ids as they come."""
    if isinstance(identity, str) and identity.isdecimal():
        return 0, int(identity)
    number = isinstance(identity, (int, float)) and not isinstance(identity, bool) and identity == identity
    return (0, identity) if number else (1, 0)


def key(identity):
    """What two equal ids share, and can be looked up; 7 and "7" are different."""
    return identity if type(identity) in (int, str) else (json.dumps(identity, sort_keys=True),)


def last_of_each(index: list[Spooled]) -> list[Spooled]:
    """The rows, of several with the same id only the last, at its place."""
    last = {key(row.identity): row.offset for row in index}
    return [row for row in index if row.identity is None or last[key(row.identity)] == row.offset]


def check_submission(path: str, test_path: str) -> str:
    """One line about a valid submission for the test file; UserError lists what is wrong with any other."""
    tests = {}
    for line, record in stream(test_path):
        if record.get("id") is None:
            raise UserError(f"{test_path}:{line}: no id; a submission is matched with its test file by id")
        if key(record["id"]) in tests:
            raise UserError(f"{test_path}:{line}: id {record['id']!r} stands there twice; ids must be unique")
        tests[key(record["id"])] = record
    faults, seen, triples, before = [], {}, 0, None
    for line, row in stream(path):
        identity = row.get("id")
        test, name = tests.get(key(identity)), f"{path}:{line}: id {identity!r}"
        if test is None:
            faults.append(f"{name} is not in {test_path}")
        elif key(identity) in seen:
            faults.append(f"{name} already stands on line {seen[key(identity)]}")
        else:
            faults += [f"{name}: the field {field} is missing" for field in test if field not in row]
            changed = [f for f in test if f in row and f not in ("output", "kg") and row[f] != test[f]]
            faults += [f"{name}: the field {field} is not the test file's" for field in changed]
        seen.setdefault(key(identity), line)
        if not is_kg(row.get("kg")):
            faults.append(f"{name}: kg is not a list of [head, relation, tail], all strings")
        elif row.get("output") != render(row["kg"]):
            faults.append(f"{name}: output is not the text of kg, (h,r,t),(h,r,t)")
        else:
            triples += len(row["kg"])
            if len(set(map(tuple, row["kg"]))) < len(row["kg"]):
                faults.append(f"{name}: kg holds a triple twice")
            if any(not part.strip() or part == "NAN" for triple in row["kg"] for part in triple):
                faults.append(f"{name}: kg holds a triple with an empty part or NAN")
        if before is not None and order(identity) < order(before):
            faults.append(f"{name} stands behind {before!r}; expected the rows in id order")
        before = identity
    missing = [record["id"] for identity, record in tests.items() if identity not in seen]
    faults += [f"{path}: no row for id {identity!r}" for identity in missing]
    if faults:
        raise UserError(f"{path}: not a valid submission for {test_path}, {len(faults)} faults\n" + listed(faults))
    return f"{path}: a valid submission for {test_path}: {len(seen)} rows, {triples} triples"


def listed(lines: list[str]) -> str:
    more = [f"… and {len(lines) - MOST_NAMED} more"] if len(lines) > MOST_NAMED else []
    return "\n".join("  " + line for line in lines[:MOST_NAMED] + more)


def main(argv=None) -> None:
    parser = command(__doc__)
    parser.add_argument("--pred_path", default="result/output_llama_7b_e3_r8.json", help="the predictions")
    parser.add_argument("--tgt_path", default="result/result_llama_7b_e3_r8.json", help="the submission")
    parser.add_argument("--schema", choices=("keep", "strict"), default="keep", help="relations not asked for")
    parser.add_argument("--dedupe", action="store_true", help="of several rows with one id keep the last")
    parser.add_argument("--sort", choices=("id", "input"), default="id", help="order of the rows")
    parser.add_argument("--skip_bad", action="store_true", help="list and leave out bad lines instead of stopping")
    parser.add_argument("--check", metavar="TEST_FILE", help="only check --tgt_path against this test file")
    argv = check_flags(parser, argv)
    arguments = parser.parse_args(argv)
    target = Path(arguments.tgt_path)
    if arguments.check:
        others = [flag for flag in ("pred_path", "schema", "dedupe", "sort", "skip_bad") if f"--{flag}" in argv]
        if others:
            raise UserError(f"--check converts nothing, so --{others[0]} would have no effect; drop one of them")
        say(check_submission(arguments.tgt_path, arguments.check))
        return
    check_output(arguments.tgt_path, "--tgt_path", arguments.pred_path)
    bad = [] if arguments.skip_bad else None
    existing = next(parent for parent in target.resolve().parents if parent.is_dir())
    with tempfile.TemporaryFile(dir=existing) as file:
        index = spool(arguments.pred_path, file, arguments.schema == "strict", bad)
        if not index:
            raise UserError(f"{arguments.pred_path}: no prediction could be read\n" + listed(bad))
        lasts = last_of_each(index)
        again = len(index) - len(lasts)
        if arguments.dedupe:
            index = lasts
        if arguments.sort == "id":
            index.sort(key=lambda row: order(row.identity))

        def lines():
            for row in index:
                file.seek(row.offset)
                yield file.readline().decode().rstrip("\n")

        write_lines(target, lines())

    if again and not arguments.dedupe:
        say(f"warning: {again} rows have an id that came before; --dedupe keeps the last row of each id")
    if bad:
        say(f"warning: bad lines were left out:\n{listed(bad)}")
    counts = {
        "rows": len(index),
        "triples": sum(row.triples for row in index),
        "rows without a triple": sum(not row.triples for row in index),
        "dropped fragments": sum(row.dropped for row in index),
        f"relations not asked for ({'dropped' if arguments.schema == 'strict' else 'kept'})": sum(
            row.unasked for row in index
        ),
    }
    if arguments.dedupe:
        counts["earlier rows of an id dropped"] = again
    if arguments.skip_bad:
        counts["bad lines skipped"] = len(bad)
    say(f"{target}: " + ", ".join(f"{count} {what}" for what, count in counts.items()))


if __name__ == "__main__":
    run_script(main)
