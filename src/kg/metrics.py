"""The contest's figures: triple F1 (exact match, micro), ROUGE-2, and the mean of the two."""

from collections import Counter

from kg.breakdown import NO_CATE, Row, align, rates
from kg.schema import read_schema
from kg.triples import parse, render

FIGURES = ("precision", "recall", "f1", "rouge2", "contest")  # that `summarise` gives, as files and logs call them
CURVE = ("f1", "contest")  # of them: drawn over the steps of a training
BEST = "contest"  # of them: by which a training chooses its best checkpoint


def triples_of(record: dict) -> list[tuple]:
    """A record's triples: its `kg`, or what its `output` says."""
    if isinstance(record.get("kg"), list):
        return [tuple(triple) for triple in record["kg"]]
    asked = read_schema(record.get("instruction") or "")
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
    """FIGURES of compared rows, each 0 to 1; `contest` is the mean of f1 and rouge2."""
    triples = f1([row.predicted for row in rows], [row.gold for row in rows])
    rouges = [row.rouge for row in rows if row.rouge is not None]
    rouge2 = sum(rouges) / max(1, len(rouges))
    return dict(zip(FIGURES, (*triples.values(), rouge2, (triples["f1"] + rouge2) / 2), strict=True))


def score_records(predicted: list[dict], gold: list[dict]) -> dict[str, float]:
    """The figures of `summarise` for rows in the same order."""
    return summarise(compare(list(zip(predicted, gold, strict=True))))
