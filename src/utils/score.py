"""The contest's score, mean of triple F1 (exact match, micro) and ROUGE-2, and where it comes from.

python src/utils/score.py --pred result/result_llama_7b_e3_r8.json --gold data/sample/valid_gold.json
"""

import json
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.breakdown import NO_CATE, Row, align, as_text, breakdown, printable, rates
from utils.errors import UserError, run_script
from utils.flags import check_flags, command
from utils.records import check, check_output, read_with_lines, write_lines
from utils.triples import parse, render, schema


def triples_of(record: dict) -> list[tuple]:
    """A record's triples: its `kg`, or what its `output` says."""
    if isinstance(record.get("kg"), list):
        return [tuple(triple) for triple in record["kg"]]
    asked = schema(record.get("instruction") or "")
    return [tuple(triple) for triple in parse(record.get("output") or "", asked, record.get("input"))]


def f1(predicted: list[list[tuple]], gold: list[list[tuple]]) -> dict[str, float]:
    """Micro precision, recall and F1 of exact triples, row by row; a repeated prediction counts against precision."""
    right = sum((Counter(p) & Counter(set(g))).total() for p, g in zip(predicted, gold, strict=True))
    return rates(right, sum(map(len, predicted)), sum(len(set(g)) for g in gold))


def rouge2_rows(predicted: list[str], gold: list[str]) -> list[float]:
    """ROUGE-2 f of each pair of texts, of jieba's words, by rouge_chinese; both empty is 1, one empty is 0.

    The package counts the distinct pairs of neighbouring words, over the whole text: f = 2pr / (p + r + 1e-8). Of two
    equal texts that is 1 up to the 1e-8, but 0 when they are a single word (rendered triples never are).
    """
    import jieba
    from rouge_chinese import Rouge
    from tqdm import tqdm

    jieba.setLogLevel(60)
    rouge = Rouge(metrics=["rouge-2"])
    values = []
    both = list(zip(predicted, gold, strict=True))
    for mine, right in tqdm(both, desc="ROUGE-2", unit="record", delay=3, mininterval=1, leave=False):
        mine, right = mine.strip(), right.strip()
        if mine and right:
            words = " ".join(jieba.cut(mine)), " ".join(jieba.cut(right))
            values.append(rouge.get_scores(*words)[0]["rouge-2"]["f"])
        else:
            values.append(float(mine == right))
    return values


def rouge2(predicted: list[str], gold: list[str]) -> float:
    """Mean ROUGE-2 f over rows."""
    return sum(rouge2_rows(predicted, gold)) / max(1, len(gold))


def compare(pairs: list[tuple[dict | None, dict | None]]) -> list[Row]:
    """A row for every (prediction, gold record). None stands for a missing prediction, or for the gold of an extra one.

    A missing prediction has ROUGE-2 0, even where gold is empty: no answer is not an empty answer.
    """
    mine = [triples_of(prediction or {}) for prediction, _ in pairs]
    right = [triples_of(gold or {}) for _, gold in pairs]
    # The compared text is the submission's: triples in contest form, empty where there are none.
    rouges = rouge2_rows([render(triples) for triples in mine], [render(triples) for triples in right])
    rows = []
    for (prediction, gold), predicted, wanted, rouge in zip(pairs, mine, right, rouges, strict=True):
        record = {**(prediction or {}), **(gold or {})}
        if prediction is None:
            rouge = 0.0
        elif gold is None:
            rouge = None
        wanted = list(dict.fromkeys(wanted))
        marks = align(predicted, wanted)
        cate, text = str(record.get("cate") or NO_CATE), record.get("input") or ""
        rows.append(Row(record.get("id"), cate, text, predicted, wanted, marks, rouge))
    return rows


def summarise(rows: list[Row]) -> dict[str, float]:
    """precision, recall, f1, rouge2 and contest (the mean of f1 and rouge2) of compared rows."""
    result = f1([row.predicted for row in rows], [row.gold for row in rows])
    rouges = [row.rouge for row in rows if row.rouge is not None]
    result["rouge2"] = sum(rouges) / max(1, len(rouges))
    return {**result, "contest": (result["f1"] + result["rouge2"]) / 2}


def score(predicted: list[dict], gold: list[dict]) -> dict[str, float]:
    """The figures of `summarise` for rows in the same order."""
    return summarise(compare(list(zip(predicted, gold, strict=True))))


def load_answers(path: str | Path, hint: str) -> list[dict]:
    """The records of a file, each with an id of its own and with kg or output; UserError with file and line if not."""
    pairs = read_with_lines(path)
    for line, record in pairs:
        identity = record.get("id")
        if isinstance(identity, bool) or not isinstance(identity, (int, str)) or identity == "":
            found = "no id" if identity is None else f"the id {identity!r}"
            raise UserError(
                f"{path}:{line}: {found}; predictions and gold are paired by id, expected a whole number or a text"
            )
        for field in ("instruction", "input", "output"):
            if not isinstance(record.get(field), (str, type(None))):
                raise UserError(f"{path}:{line}: {field} is {record[field]!r:.60}, expected a string")
        if record.get("kg") is None and record.get("output") is None:
            raise UserError(f"{path}:{line}: neither kg nor output; {hint}")
    return check(path, pairs, ())


def pair(predicted: list[dict], gold: list[dict]) -> tuple[list[tuple[dict | None, dict | None]], list[str]]:
    """(prediction, gold record) by id, in gold's order and then the extra predictions; and what was odd, in words.

    None stands where one of the two is missing. Both lists are those of `load_answers`. A prediction that lacks
    instruction or input, which decide how its output is parsed, has gold's. UserError when ids differ in type only.
    """
    by_id, wanted = {row["id"]: row for row in predicted}, {row["id"] for row in gold}
    missing = [row["id"] for row in gold if row["id"] not in by_id]
    extra = [row for row in predicted if row["id"] not in wanted]
    other_type = {str(identity): identity for identity in missing}
    for row in extra:
        if str(row["id"]) in other_type:
            mine, right = json.dumps(row["id"]), json.dumps(other_type[str(row["id"])])
            raise UserError(
                f"--pred has the id {mine}, --gold has {right}: a text in one file, a number in the other; write "
                "the ids of the predictions as those of gold"
            )
    notes = []
    if missing:
        notes.append(
            f"{len(missing)} of {len(gold)} gold records have no prediction, e.g. id {missing[0]}: "
            "all their triples count as missed, their ROUGE-2 as 0"
        )
    if extra:
        notes.append(
            f"{len(extra)} of {len(predicted)} predictions have an id that gold lacks, e.g. id {extra[0]['id']}: "
            "their triples count as spurious"
        )
    pairs = []
    for row in gold:
        mine = by_id.get(row["id"])
        if mine is not None:
            mine = mine | {field: mine.get(field) or row.get(field) for field in ("instruction", "input")}
        pairs.append((mine, row))
    return pairs + [(row, None) for row in extra], notes


def main(argv=None) -> None:
    parser = command(__doc__)
    parser.add_argument("--pred", required=True, help="predictions: a submission, or the output of inference.py")
    parser.add_argument("--gold", required=True, help="the same records with the right kg")
    parser.add_argument("--json", metavar="FILE", help="also write the figures and the whole breakdown to this file")
    parser.add_argument("--show", type=int, default=0, help="also print this many predicted rows beside their gold")
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamples for the 95 %% intervals; 0: none")
    parser.add_argument("--seed", type=int, default=42, help="of the resamples")
    arguments = parser.parse_args(check_flags(parser, argv))
    for flag in ("show", "bootstrap", "seed"):
        if getattr(arguments, flag) < 0:
            raise UserError(f"--{flag} {getattr(arguments, flag)}: expected 0 or more")
    if arguments.json is not None:
        check_output(arguments.json, "--json", arguments.pred, arguments.gold)

    gold = load_answers(arguments.gold, "is this the test set? To score, give the records with their answers")
    predicted = load_answers(arguments.pred, "give what inference.py or convert.py wrote")
    pairs, notes = pair(predicted, gold)
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    rows = compare(pairs)
    figures = summarise(rows)
    details = breakdown(rows, arguments.bootstrap, arguments.seed)

    print(f"records {len(gold)}  " + "  ".join(f"{name} {value:.4f}" for name, value in figures.items()))
    print("\n".join(as_text(details)))
    for row in rows[: arguments.show]:
        print(f"\nid {row.id}  predicted {printable(render(row.predicted)) or '-'}")
        print(f"{' ' * len(str(row.id))}         gold {printable(render(row.gold)) or '-'}")
    if arguments.json:
        counts = count(pairs, rows)
        write_lines(arguments.json, [json.dumps({**figures, "counts": counts, **details}, indent=2)])


def count(pairs: list[tuple[dict | None, dict | None]], rows: list[Row]) -> dict[str, int]:
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
