"""The arguments of src/extract.py with --input: a corpus. Its --help shows --text too."""

import sys
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from common.files import check_output
from common.flags import option
from common.manifest import run_file_of
from data.documents import Reading, check_encoding, check_input
from data.records import TEXT_NAMES
from data.topics import RECORDS, RELATIONS, learn_topics, read_topics
from kg.wordings import WORDINGS, ask_for, split_names
from utils.args_base import ModelArguments
from utils.args_predict import AdapterArguments, parse_adapter
from utils.args_ray import RayFlags

AUTO = "auto"
MOST_RELATIONS = 10_000  # --schema_batch asks for long lists in parts
WINDOW = 512  # tokens of a prompt: what adapters are trained on by default


@dataclass
class CorpusArguments(RayFlags, AdapterArguments):
    """A corpus."""

    text: str | None = option(
        None, "instead of --input: one sentence, whose triples are printed; it needs --relations, and writes no file"
    )
    input: str | None = option(
        None,
        "a document, or a folder of them: txt, md, html, pdf, docx, pptx, xlsx, epub; jsonl, csv and parquet hold one "
        "a row",
    )
    output_file: str = option("results/corpus.jsonl", "where the documents go, one a line, each with its triples")
    overwrite_output_file: bool = option(
        False,
        "replace a finished --output_file that was made of another --input or with other settings; answers about the "
        "same texts are taken from it where only --input, --encoding or --text_field differ",
    )
    store: str | None = option(None, "folder of the graph that is made of them; default: none")
    relations: str | None = option(None, "the relations to ask for, separated by commas")
    wording: str = option("contest", "of the question: contest or older, both the contest's", choices=list(WORDINGS))
    cate: str | None = option(None, "ask for the relations of this topic; auto: of the topic that each text has")
    topics: str = option(str(RELATIONS), "with --cate: topics and their relations; default: data/sample/relations.json")
    topic_records: str = option(
        str(RECORDS), "with --cate auto: labelled records that show what topics are; default: data/sample/train.json"
    )
    window: int = option(
        WINDOW,
        "texts whose prompt would have more tokens are split at sentence ends; 0: what the base's context leaves "
        "beside --max_new_tokens",
    )
    encoding: str | None = option(
        None, "of the text files; default: by the mark at a file's beginning, else UTF-8 or, where it is none, GB18030"
    )
    text_field: str | None = option(
        None, f"of jsonl, csv and parquet; default: {', '.join(TEXT_NAMES)}, the first that a row has"
    )
    skip_failed: bool = option(False, "always on: documents that cannot be read, or asked about, are listed")

    def __post_init__(self):
        super().__post_init__()
        self.check_ray()
        if not self.input:
            raise UserError("--input is missing; give a document or a folder of them, or --text with one sentence")
        check_input(Path(self.input))
        check_encoding(self.encoding)
        if (self.relations is None) == (self.cate is None):
            raise UserError("give either --relations 位于,类型,… or --cate TOPIC (or --cate auto): what to ask for")
        for made in (self.output_file, run_file_of(self.output_file)):
            check_output(made, "--output_file", self.input, self.prompt_template_name)
        if Path(self.input).is_dir() and Path(self.input).resolve() in Path(self.output_file).resolve().parents:
            raise UserError(
                f"--output_file {self.output_file}: lies in --input {self.input}, and would be read as a document; "
                "give a file elsewhere"
            )

    @property
    def reading(self) -> Reading:
        return Reading(self.encoding, self.text_field)


def asks_once(argv=None) -> bool:
    """Whether src/extract.py is asked about one sentence (--text), whose flags stand in args_serve.py. UserError where
    it is asked about a corpus as well.
    """
    given = {word.split("=")[0] for word in (sys.argv[1:] if argv is None else argv)}
    if {"--text", "--input"} <= given:
        raise UserError("--text and --input do not go together: one sentence, or a corpus; drop one of them")
    return "--text" in given


def parse_corpus(argv=None) -> tuple[ModelArguments, CorpusArguments]:
    """(model, corpus) arguments of src/extract.py."""
    return parse_adapter(CorpusArguments, argv)


def read_wanted(args: CorpusArguments) -> tuple[dict[str, str], object]:
    """What texts are asked for: (topic -> instruction, data.topics.Topics to choose among several, or None)."""
    if args.relations is not None:
        return {
            "": _make_instruction(split_names(args.relations), f"--relations {args.relations:.60}", args.wording)
        }, None
    relations = read_topics(args.topics)
    if "" in relations:
        raise UserError(f"--topics {args.topics}: names without a topic; name topics, or give the names by --relations")
    if args.cate != AUTO and args.cate not in relations:
        raise UserError(f"--cate {args.cate}: no topic of {args.topics}; expected {AUTO}, {', '.join(relations)}")
    chosen = relations if args.cate == AUTO else {args.cate: relations[args.cate]}
    where = f"--topics {args.topics}"
    instructions = {
        topic: _make_instruction(names, f"{where}: {topic}", args.wording) for topic, names in chosen.items()
    }
    return instructions, learn_topics(args.topic_records, set(chosen)) if args.cate == AUTO else None


def _make_instruction(names: list[str], where: str, wording: str) -> str:
    """What texts are asked; UserError, which begins with `where`, for names that no list can hold."""
    try:
        return ask_for(names, wording, most=MOST_RELATIONS)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
