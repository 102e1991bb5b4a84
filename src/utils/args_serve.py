"""The arguments of src/extract.py and src/serve.py: a model that is asked for single texts."""

import ipaddress
from dataclasses import dataclass

from common.errors import UserError
from common.flags import Range, check_ranges, option
from kg.wordings import WORDINGS, ask_for, split_names
from tokens.lengths import MAX_LEN, MAX_SRC_LEN, TEXT_WINDOW, check_lengths
from utils.args_predict import AdapterArguments, parse_adapter

SERVE_RANGES = {
    "port": Range(0, 65535),
    "max_text": Range(1),
    "max_upload_MB": Range(1, 10_000),
    "max_waiting": Range(1, 100_000),
    "max_jobs": Range(1, 10_000),
}
SHORTEST_TOKEN = 16  # characters


@dataclass
class TextArguments(AdapterArguments):
    """What both have."""

    ptuning_dir: str | None = option(
        None, "checkpoint of P-Tuning v2 (output_dir_pt/global_step-N), in place of an adapter"
    )
    max_len: int | None = option(
        None, f"with --ptuning_dir: most tokens of question and answer; default: as trained, else {MAX_LEN}"
    )
    max_src_len: int | None = option(
        None,
        "with --ptuning_dir: most tokens of the question, longer texts are split; default: as trained, else "
        f"{MAX_SRC_LEN}",
    )
    max_new_tokens: int | None = option(
        None, "most tokens of an answer; default: 512, or with --ptuning_dir max_len - max_src_len"
    )
    window: int | None = option(
        None,
        "texts whose prompt would have more tokens are split at sentence ends, and the triples merged; without a "
        "number, or with 0: what the base's context leaves beside --max_new_tokens; default: "
        f"{TEXT_WINDOW}, or what the context leaves where that is less",
        nargs="?",
        const=0,
    )
    output_file = ""  # nothing is written beside what is read

    def __post_init__(self):
        super().__post_init__()
        for flag, given, instead in (
            ("--retry_length", self.retry_length, "raise --max_new_tokens"),
            ("--engine vllm", self.engine == "vllm", "leave it out"),
            ("--skip_failed", self.skip_failed, "leave it out"),
        ):
            if given:
                raise UserError(f"{flag}: not for single texts; {instead}")
        if self.ptuning_dir:
            self._check_prefix()
            return
        for name in ("max_len", "max_src_len"):
            if getattr(self, name) is not None:
                raise UserError(f"--{name} without --ptuning_dir: it is about prefixes; drop it")
        if self.max_new_tokens is None:
            self.max_new_tokens = AdapterArguments.max_new_tokens

    def _check_prefix(self):
        check_lengths(self.max_len, self.max_src_len)
        for flag, given, instead in (
            ("--lora_weights", self.lora_weights, "give one of them"),
            ("--fp8", self.fp8, "drop it"),
            (f"--device_map {self.device_map}", self.device_map, "drop it"),
            (f"--num_beams {self.num_beams}", self.num_beams > 1, "drop it: a prefix is made for one row an answer"),
            (f"--drafts {self.drafts}", self.drafts not in ("auto", "0"), "drop it: a model with a prefix has none"),
            (f"--window {self.window}", self.window, "--max_src_len says how long a question may be"),
        ):
            if given:
                raise UserError(f"{flag} and --ptuning_dir {self.ptuning_dir} do not go together; {instead}")

    @property
    def model_dir(self) -> str | None:  # what the opening of a prefix asks for it by
        return self.ptuning_dir


@dataclass
class ExtractArguments(TextArguments):
    """One sentence."""

    text: str | None = option(None, "the text to find triples in")
    relations: str | None = option(None, "the relations to look for, with commas between them: 位于,类型")
    wording: str = option("contest", "of the question: contest or older, both the contest's", choices=list(WORDINGS))

    def __post_init__(self):
        super().__post_init__()
        for name in ("text", "relations"):
            if getattr(self, name) is None:
                raise UserError(f"--{name} is missing; e.g. --text 东方明珠位于上海。 --relations 位于,高度")
        try:
            ask_for(split_names(self.relations))
        except UserError as error:
            raise UserError(f"--relations {self.relations:.60}: {error}") from None


@dataclass
class ServeArguments(TextArguments):
    """The page."""

    host: str = option(
        "127.0.0.1", "the address to listen at; any but this machine's own (127.0.0.1, ::1, localhost) needs --token"
    )
    port: int = option(7860, "the port to listen at; 0: any that is free")
    token: str | None = option(None, f"who shows it may use the page and the API; {SHORTEST_TOKEN} characters or more")
    allow_host: str | None = option(
        None, "with --host: names by which browsers reach this machine, with commas between them (kg.example.org)"
    )
    data_dir: str = option("results/web", "folder of jobs, corrections and the graph")
    store: str | None = option(None, "folder of the graph, as graph.py has it; default: graph in --data_dir")
    max_text: int = option(20_000, "most characters of a text that is asked about")
    max_upload_MB: int = option(64, "most megabytes of a file")
    max_waiting: int = option(256, "most questions that wait; who asks then is told to come again (429)")
    max_jobs: int = option(20, "most jobs that are not finished")

    def __post_init__(self):
        super().__post_init__()
        check_ranges(self, SERVE_RANGES)
        if not is_own(self.host) and self.token is None:
            raise UserError(f"--host {self.host} without --token: others could use it; give --token, or drop --host")
        if self.token is not None and (len(self.token) < SHORTEST_TOKEN or not self.token.isascii()):
            raise UserError(
                f"--token: expected {SHORTEST_TOKEN} ASCII characters or more; openssl rand -hex 16 makes some"
            )
        if self.allow_host is not None and is_own(self.host):
            raise UserError("--allow_host without --host: only this machine's own browsers reach it; drop it")


def is_own(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_text(argv=None):
    """(model, extraction) arguments of src/extract.py with --text."""
    return parse_adapter(ExtractArguments, argv)


def parse_serve(argv=None):
    """(model, server) arguments of src/serve.py."""
    return parse_adapter(ServeArguments, argv)
