"""How much triples are to be believed: several answers to one question, and the words of one. No torch."""

from kg.breakdown import rates
from kg.triples import Triple, parse, render

NEAR_HEAD = 5  # characters that stand between a head and its relation, at most: a comma, blanks, quotation marks


def count_votes(answers: list[list[Triple]], least: float) -> list[tuple[Triple, float]]:
    """The triples that a share of `least` or more of the answers (0 to 1) have, each with its share, in the order in
    which they first appear. An answer that says a triple twice has one vote.
    """
    counts: dict[Triple, int] = {}
    for triples in answers:
        for triple in dict.fromkeys(triples):
            counts[triple] = counts.get(triple, 0) + 1
    shares = ((triple, count / len(answers)) for triple, count in counts.items())
    return [(triple, share) for triple, share in shares if share >= least - 1e-9]


def write_scored(
    scored: list[tuple[Triple, float]], schema: list[str] | None, source: str | None
) -> tuple[str, list[Triple], list[float]]:
    """The text of triples with their confidences, the triples that it is read as, and theirs, four digits each.

    A few texts are read as other triples (kg.triples): these are as sure as the least sure that was written.
    """
    known = dict(scored)
    text, least = render(known), min(known.values(), default=0.0)
    triples = parse(text, schema, source)
    return text, triples, [round(known.get(triple, least), 4) for triple in triples]


def mean_probabilities(triples: list[Triple], text: str, tokens: list[tuple[int, float]]) -> list[float]:
    """For each triple of an answer the mean probability of the tokens that say it, 0 to 1.

    `tokens`: of each token of `text` where it ends (characters) and its probability. Triples are looked for one behind
    the other; one that does not stand in the text as it is (an answer in JSON) has the mean of the whole answer.
    """
    found, at = [], 0
    for triple in triples:
        opened = text.find(f"({triple.head}", at)  # before it, too, the head's words may stand
        start = opened + 1 if opened >= 0 else text.find(triple.head, at)
        behind = start + len(triple.head)
        relation = text.find(triple.relation, behind, behind + NEAR_HEAD + len(triple.relation))
        behind = relation + len(triple.relation) if relation >= 0 else behind  # which may hold the tail, too
        end = text.find(triple.tail, behind) if start >= 0 else -1
        if end >= 0:
            at = end = end + len(triple.tail)
            found.append(_mean(tokens, start, end))
        else:
            found.append(_mean(tokens, 0, len(text)))
    return found


def _mean(tokens: list[tuple[int, float]], start: int, end: int) -> float:
    """Of the tokens that hold a character between `start` and `end`."""
    before, chosen = 0, []
    for last, probability in tokens:
        if before < end and last > start:
            chosen.append(probability)
        before = last
    return sum(chosen) / len(chosen) if chosen else 0.0


def threshold_curve(rows: list[tuple[list[tuple[tuple, float]], set[tuple]]]) -> list[dict]:
    """What is right when only triples of a confidence or more are kept: a line for each confidence there is, the
    lowest first, with `threshold`, `predicted`, `precision`, `recall` and `f1` (micro, exact triples).

    `rows`: of each record its triples with their confidences, and gold's. The time is that of sorting them.
    """
    gold = sum(len(wanted) for _, wanted in rows)
    marks = sorted((confidence, triple in wanted) for triples, wanted in rows for triple, confidence in triples)
    predicted, right, curve = len(marks), sum(mark for _, mark in marks), []
    for number, (confidence, mark) in enumerate(marks):
        if number == 0 or confidence != marks[number - 1][0]:
            curve.append({"threshold": confidence, "predicted": predicted, **rates(right, predicted, gold)})
        predicted, right = predicted - 1, right - mark
    return curve
