"""The contest's score, mean of triple F1 (exact match, micro) and ROUGE-2, and where it comes from.

python src/utils/score.py --pred result/result_llama_7b_e3_r8.json --gold data/sample/valid_gold.json
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.errors import UserError, begin_script, run_script, say

if __name__ == "__main__":
    begin_script()

from common.files import check_output, to_line, write_lines
from common.flags import MOST_SEED, Range, check_ranges, command, parse_flags
from data.answers import load_answers, pair_answers, read_confidence
from kg.breakdown import Row, as_text, breakdown, printable
from kg.metrics import compare, summarise
from kg.triples import render
from kg.votes import threshold_curve

CURVE_LINES = 8  # of the table of thresholds, at most
RANGES = {"show": Range(0, 10**6), "bootstrap": Range(0, 100_000), "seed": Range(0, MOST_SEED)}


def main(argv=None) -> None:
    parser = command(__doc__)
    parser.add_argument("--pred", required=True, help="predictions: a submission, or the output of inference.py")
    parser.add_argument("--gold", required=True, help="the same records with the right kg")
    parser.add_argument("--json", metavar="FILE", help="also write the figures and the whole breakdown to this file")
    parser.add_argument("--show", type=int, default=0, help="also print this many predicted rows beside their gold")
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamples for the 95 %% intervals; 0: none")
    parser.add_argument("--seed", type=int, default=42, help="of the resamples")
    arguments = parse_flags(parser, argv)
    check_ranges(arguments, RANGES)
    if arguments.json is not None:
        check_output(arguments.json, "--json", arguments.pred, arguments.gold)

    gold = load_answers(arguments.gold, "is this the test set? To score, give the records with their answers")
    predicted = load_answers(arguments.pred, "give what inference.py or convert.py wrote")
    pairs, notes = pair_answers(predicted, gold)
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    rows = compare(pairs)
    figures = summarise(rows)
    details = breakdown(rows, arguments.bootstrap, arguments.seed)
    curve = make_curve(pairs, rows)
    if curve:
        details["by_confidence"] = curve

    if arguments.json:  # before anything is printed: a terminal may close
        counts = count_triples(pairs, rows)
        write_lines(arguments.json, [to_line({**figures, "counts": counts, **details}, indent=2)])
    print(f"records {len(gold)}  " + "  ".join(f"{name} {value:.4f}" for name, value in figures.items()))
    print("\n".join(as_text(details)))
    if curve:
        print("\n".join(curve_text(curve)))
    for row in rows[: arguments.show]:
        print(f"\nid {row.id}  predicted {printable(render(row.predicted)) or '-'}")
        print(f"{' ' * len(str(row.id))}         gold {printable(render(row.gold)) or '-'}")


def make_curve(pairs: list[tuple[dict | None, dict | None]], rows: list[Row]) -> list[dict]:
    """The figures of all thresholds of `confidence` (kg.votes.threshold_curve); empty where a prediction has none."""
    scored, lacking = [], []
    for (prediction, _), row in zip(pairs, rows, strict=True):
        try:
            confidence = read_confidence(prediction or {}, len(row.predicted))
        except UserError as error:
            raise UserError(f"--pred: id {row.id}: {error}") from None
        lacking += [row.id] if confidence is None and row.predicted else []
        scored.append((list(zip(row.predicted, confidence or [0] * len(row.predicted), strict=True)), set(row.gold)))
    if not lacking:
        return threshold_curve(scored)
    if any("confidence" in (prediction or {}) for prediction, _ in pairs):
        say(f"warning: {len(lacking)} predictions have no confidence, e.g. id {lacking[0]}: no thresholds are compared")
    return []


def curve_text(curve: list[dict]) -> list[str]:
    """The lines to print: some thresholds, from the lowest to the highest, and the best by F1."""
    best = max(curve, key=lambda line: line["f1"])
    shown = [curve[len(curve) * part // CURVE_LINES] for part in range(min(CURVE_LINES, len(curve)))]
    names = "".join(f"{name:>10}" for name in ("predicted", "precision", "recall", "f1"))
    lines = ["", f"{'confidence':24}{names}"]
    for line in sorted({line["threshold"]: line for line in [*shown, best]}.values(), key=lambda one: one["threshold"]):
        figures = "".join(f"{line[name]:10.4f}" for name in ("precision", "recall", "f1"))
        mark = "  best f1: convert.py --min_confidence" if line is best else ""
        lines.append(f">= {line['threshold']:<21.4f}{line['predicted']:10}{figures}{mark}")
    return lines


def count_triples(pairs: list[tuple[dict | None, dict | None]], rows: list[Row]) -> dict[str, int]:
    """How many records gold has, predictions are missing and extra; how many triples are gold's, predicted, right."""
    return {
        "records": sum(gold is not None for _, gold in pairs),
        "missing": sum(prediction is None for prediction, _ in pairs),
        "extra": sum(gold is None for _, gold in pairs),
        "gold": sum(len(row.gold) for row in rows),
        "predicted": sum(len(row.predicted) for row in rows),
        "right": sum(mark.kind == "right" for row in rows for mark in row.marks),
    }


if __name__ == "__main__":
    run_script(main)
