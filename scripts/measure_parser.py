"""How well the parser reads answers whose triples are known, and how many of them their text alone would not tell.

python scripts/measure_parser.py data/sample/train.json

Each file holds records with `output` and the right triples as `kg` (or `gold`); records without them are left out.
For every file the rows are counted whose triples come out exactly: from `output` with the instruction's relations and
the input known, and with neither; and the same from the rendered triples. `--show N` prints rows that do not.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from common.errors import run_script
from common.flags import command, parse_flags
from data.records import read_records
from kg.schema import read_schema
from kg.triples import Triple, parse, render


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="rows of each kind that are printed")
    arguments = parse_flags(parser)
    for file in arguments.files:
        rows = [
            (row, row.get("kg", row.get("gold"))) for row in read_records(file) if isinstance(row.get("output"), str)
        ]
        rows = [(row, list(dict.fromkeys(Triple(*t) for t in right))) for row, right in rows if right is not None]
        counts, shown, characters, start = {}, {}, 0, time.process_time()
        for row, right in rows:
            known = read_schema(row.get("instruction")), row.get("input")
            for text, of in ((row["output"], "output"), (render(right), "rendered")):
                for context, name in ((known, "relations and input known"), ((), "neither known")):
                    found = parse(text, *context)
                    characters += len(text)
                    kind = f"{of}, {name}"
                    counts[kind] = counts.get(kind, 0) + (found == right)
                    if found != right and shown.get(kind, 0) < arguments.show:
                        shown[kind] = shown.get(kind, 0) + 1
                        print(f"{kind}: id {row.get('id')}: found {render(found)} right {render(right)}")
        seconds = time.process_time() - start
        print(f"{file}: {len(rows)} rows, {characters / max(seconds, 1e-9) / 1e6:.1f} million characters/s")
        for kind, count in counts.items():
            print(f"  {kind}: {count} right ({100 * count / len(rows):.2f} %)")


if __name__ == "__main__":
    run_script(main)
