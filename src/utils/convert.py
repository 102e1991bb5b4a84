"""Predictions -> contest submission: `kg` parsed from `output`, `output` rebuilt in contest form, rows in id order.

python src/utils/convert.py --pred_path result/output_llama_7b_e3_r8.json --tgt_path result/result_llama_7b_e3_r8.json
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.errors import UserError, run_script
from utils.records import read_with_lines, write
from utils.triples import parse, render, schema


def convert(record: dict) -> dict:
    """The submission's row of a predicted record; every other field is kept."""
    triples = parse(record["output"], schema(record.get("instruction", "")), record.get("input"))
    return {**record, "output": render(triples), "kg": [list(triple) for triple in triples]}


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pred_path", default="result/output_llama_7b_e3_r8.json", help="what inference.py wrote")
    parser.add_argument("--tgt_path", default="result/result_llama_7b_e3_r8.json", help="the submission")
    arguments = parser.parse_args(argv)
    rows = []
    for line, record in read_with_lines(arguments.pred_path):
        if not isinstance(record.get("output"), str):
            raise UserError(
                f"{arguments.pred_path}:{line}: output is missing or not a string; is this a predictions file?"
            )
        rows.append(convert(record))
    # Ids are ints in the contest; others keep their order behind them.
    rows.sort(key=lambda row: (not isinstance(row.get("id"), int), row["id"] if isinstance(row.get("id"), int) else 0))
    write(arguments.tgt_path, rows)
    asked = [schema(row.get("instruction", "")) for row in rows]
    unasked = sum(
        t[1] not in names for row, names in zip(rows, asked, strict=True) if names is not None for t in row["kg"]
    )
    triples, empty = sum(len(row["kg"]) for row in rows), sum(not row["kg"] for row in rows)
    print(
        f"{arguments.tgt_path}: {len(rows)} rows, {triples} triples, {empty} rows without a triple, "
        f"{unasked} triples with a relation that was not asked for",
        file=sys.stderr,
    )


if __name__ == "__main__":
    run_script(main)
