"""The contest's score: mean of triple F1 (exact match, micro) and ROUGE-2.

python src/utils/score.py --pred result/result_llama_7b_e3_r8.json --gold data/sample/valid_gold.json
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.errors import UserError, run_script
from utils.records import read, write_lines
from utils.triples import parse, render, schema


def triples_of(record: dict) -> list[tuple]:
    """A record's triples: its `kg`, or what its `output` says."""
    if isinstance(record.get("kg"), list):
        return [tuple(triple) for triple in record["kg"]]
    asked = schema(record.get("instruction", ""))
    return [tuple(triple) for triple in parse(record.get("output") or "", asked, record.get("input"))]


def f1(predicted: list[list[tuple]], gold: list[list[tuple]]) -> dict[str, float]:
    """Micro precision, recall and F1 of exact triples, row by row; a repeated prediction counts against precision."""
    right = sum((Counter(p) & Counter(set(g))).total() for p, g in zip(predicted, gold, strict=True))
    precision = right / max(1, sum(map(len, predicted)))
    recall = right / max(1, sum(len(set(g)) for g in gold))
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if right else 0.0,
    }


def rouge2(predicted: list[str], gold: list[str]) -> float:
    """Mean ROUGE-2 f over rows, of jieba's words (rouge_chinese); both empty is 1, one empty is 0."""
    import jieba
    from rouge_chinese import Rouge

    jieba.setLogLevel(60)
    rouge = Rouge(metrics=["rouge-2"])
    total = 0.0
    for mine, right in zip(predicted, gold, strict=True):
        mine, right = mine.strip(), right.strip()
        if mine and right:
            total += rouge.get_scores(" ".join(jieba.cut(mine)), " ".join(jieba.cut(right)))[0]["rouge-2"]["f"]
        else:
            total += mine == right
    return total / max(1, len(gold))


def score(predicted: list[dict], gold: list[dict]) -> dict[str, float]:
    """precision, recall, f1, rouge2 and contest (the mean of f1 and rouge2) of rows in the same order."""
    mine, right = [triples_of(row) for row in predicted], [triples_of(row) for row in gold]
    result = f1(mine, right)
    # The compared text is the submission's: triples in contest form, empty where there are none.
    result["rouge2"] = rouge2([render(row) for row in mine], [render(row) for row in right])
    return {**result, "contest": (result["f1"] + result["rouge2"]) / 2}


def pair(predicted: list[dict], gold: list[dict]) -> tuple[list[dict], list[str]]:
    """The predictions in gold's order, by id; a missing one is an empty answer. The second value says what was odd."""
    for name, rows in (("predictions", predicted), ("gold", gold)):
        if any(row.get("id") is None for row in rows):
            raise UserError(f"a record of the {name} has no id; predictions and gold are paired by id")
    by_id = {row["id"]: row for row in predicted}
    missing = [row["id"] for row in gold if row["id"] not in by_id]
    extra = set(by_id) - {row["id"] for row in gold}
    twice = [identity for identity, count in Counter(row["id"] for row in predicted).items() if count > 1]
    notes = [f"{len(missing)} records of the gold file have no prediction, e.g. id {missing[0]}"] if missing else []
    notes += [f"{len(extra)} predictions are of no record of the gold file"] if extra else []
    notes += [f"{len(twice)} ids are predicted twice, e.g. id {twice[0]}; the last one counts"] if twice else []
    return [by_id.get(row["id"], {"kg": [], "output": ""}) for row in gold], notes


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pred", required=True, help="predictions: a submission, or the output of inference.py")
    parser.add_argument("--gold", required=True, help="the same records with the right kg")
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--show", type=int, default=0, help="also print this many predicted rows beside their gold")
    arguments = parser.parse_args(argv)
    gold = read(arguments.gold)
    if all("kg" not in row and "output" not in row for row in gold):
        raise UserError(f"{arguments.gold}: no record has kg or output, so there is nothing to compare with")
    predicted, notes = pair(read(arguments.pred), gold)
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    figures = score(predicted, gold)
    print(f"records {len(gold)}  " + "  ".join(f"{name} {value:.4f}" for name, value in figures.items()))
    for mine, right in list(zip(predicted, gold, strict=True))[: arguments.show]:
        print(f"id {right.get('id')}  predicted {render(triples_of(mine)) or '-'}")
        print(f"{' ' * len(str(right.get('id')))}         gold {render(triples_of(right)) or '-'}")
    if arguments.json:
        write_lines(arguments.json, [json.dumps(figures, indent=2)])


if __name__ == "__main__":
    run_script(main)
