"""What requests hold and answers say, as OpenAPI describes it."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from kg.judging import VERDICTS
from kg.wordings import LONGEST, MOST


def _check_text(text: str) -> str:
    """A text without half a surrogate pair, which is no character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it holds half a surrogate pair, which is no character") from None
    return text


Text = Annotated[str, AfterValidator(_check_text)]  # as long as the request may be: see guard.py
Name = Annotated[Text, Field(min_length=1, max_length=LONGEST)]
Part = Annotated[Text, Field(min_length=1, max_length=1000)]
Wording = Literal["contest", "older"]
MOST_TRIPLES = 2000


class Strict(BaseModel):
    """A form without fields that nobody knows."""

    model_config = ConfigDict(extra="forbid")


class Question(Strict):
    """What is asked about a text."""

    text: Annotated[Text, Field(min_length=1, description="the text to find triples in")]
    relations: Annotated[list[Name], Field(min_length=1, max_length=MOST, description="the relations to look for")]
    topic: Annotated[Text, Field(max_length=40, description="of the text, such as 人物")] = ""
    wording: Annotated[Wording, Field(description="of the question: one of the contest's two")] = "contest"


class Found(BaseModel):
    """A triple."""

    head: str
    relation: str
    tail: str
    head_at: Annotated[list[int] | None, Field(description="where the head first stands in the text: [from, to)")]
    tail_at: Annotated[list[int] | None, Field(description="where the tail first stands in the text: [from, to)")]
    completed: Annotated[bool, Field(description="whether one of them does not stand in the text")]
    confidence: float | None = None


class Answer(BaseModel):
    """What the model said."""

    triples: list[Found]
    output: str
    finish_reason: str
    parts: Annotated[int, Field(description="prompts that were asked: windows of a long text")]
    warnings: list[str]
    seconds: float


class Judged(Strict):
    """A verdict on a triple."""

    verdict: Literal[VERDICTS]
    triple: Annotated[list[Part], Field(min_length=3, max_length=3)]
    to: Annotated[
        Annotated[list[Part], Field(min_length=3, max_length=3)] | None,
        Field(description="with `correct`: what is right"),
    ] = None


class Correction(Strict):
    """What somebody says of the triples of a text."""

    text: Text
    topic: Annotated[Text, Field(max_length=40)] = ""
    relations: Annotated[list[Name], Field(max_length=MOST)] = []
    wording: Wording = "contest"
    complete: Annotated[bool, Field(description="whether every triple is judged; then it is a training record")] = False
    triples: Annotated[list[Judged], Field(min_length=1, max_length=MOST_TRIPLES)]


class Kept(Strict):
    """Triples of a text, to be brought into the graph."""

    text: Annotated[Text, Field(min_length=1)]
    topic: Annotated[Text, Field(max_length=40)] = ""
    triples: Annotated[
        list[Annotated[list[Part], Field(min_length=3, max_length=3)]], Field(min_length=1, max_length=MOST_TRIPLES)
    ]


class Error(BaseModel):
    """What was wrong, in a sentence."""

    detail: str | list
