"""README and docs: both languages in step; every command, flag and path in them is real."""

import inspect
import json
import os
import re
import shlex
import subprocess
from unittest.mock import patch

import bench_web
import pytest
import random_base
import sweep_rate
import write_flags
from helpers import ROOT
from transformers import HfArgumentParser

from common.errors import UserError
from models import families
from utils import (
    args,
    args_extract,
    args_predict,
    args_pt,
    args_serve,
    convert,
    gguf_to_hf,
    graph,
    score,
    vote,
    weight_diff,
)

READMES = ("README.md", "README_CN.md")
WEIGHTS = ("docs/weights.md", "docs/weights_CN.md")
BASES = (
    *("llama", "alpaca", "vicuna", "zhixi", "chatflow", "chinese-llama"),
    *("chatglm", "moss", "cpm-bee", "other"),
)
MODELS = [(f"docs/models/{base}.md", f"docs/models/{base}_CN.md") for base in BASES]
NAMED = ("qwen", "llama3", "glm4", "mistral", "gemma", "internlm3", "minicpm3", "baichuan2", "internlm2", "minicpm")
PTUNING = ("docs/ptuning.md", "docs/ptuning_CN.md")
MEMORY = ("docs/memory.md", "docs/memory_CN.md")
MANY_CARDS = ("docs/many_cards.md", "docs/many_cards_CN.md")
PREDICTION = ("docs/prediction.md", "docs/prediction_CN.md")
GRAPH = ("docs/graph.md", "docs/graph_CN.md")
FORMATS = ("docs/formats.md", "docs/formats_CN.md")
BY_NAME = ("docs/bases.md", "docs/bases_CN.md")
ARCHITECTURE = ("docs/architecture.md", "docs/architecture_CN.md")
WEB = ("docs/web.md", "docs/web_CN.md")
CORPUS = ("docs/corpus.md", "docs/corpus_CN.md")
MANY_MACHINES = ("docs/many_machines.md", "docs/many_machines_CN.md")
FLAGS = ("docs/flags.md", "docs/flags_CN.md")
TRAINING = ("docs/training.md", "docs/training_CN.md")
LOG = ("docs/log.md", "docs/log_CN.md")
SHORT = [
    (f"docs/{page}.md", f"docs/{page}_CN.md")
    for page in ("comparison", "install", "measured", "quality", "score", "triples")
]
TROUBLE = ("docs/troubleshooting.md", "docs/troubleshooting_CN.md")
TASKS = [WEIGHTS, PTUNING, MANY_CARDS, PREDICTION, FORMATS, GRAPH, WEB, MANY_MACHINES, TRAINING, FLAGS, LOG]
PAIRS = [READMES, *TASKS, MEMORY, ARCHITECTURE, BY_NAME, CORPUS, *SHORT, TROUBLE, *MODELS]
PAGES = [name for pair in PAIRS for name in pair]
TEXT = {name: (ROOT / name).read_text(encoding="utf-8") for name in PAGES}
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.bash"))
RUNNABLE = [name for name in SCRIPTS if re.match(r"fine_|infer_|run_inference", name)]
PARSERS = {
    "scripts/bench_web.py": bench_web.read_flags,
    "scripts/random_base.py": random_base.parse,
    "scripts/sweep_rate.py": sweep_rate.read_flags,
    "src/test_finetune.py": args.parse_finetune,
    "src/inference.py": args_predict.parse_inference,
    "src/extract.py --text": args_serve.parse_text,
    "src/serve.py": args_serve.parse_serve,
    "src/finetuning_pt.py": args_pt.parse_ptuning,
    "src/inference_pt.py": args_pt.parse_ptuning_inference,
    "src/utils/gguf_to_hf.py": gguf_to_hf.parse,
}
COMMANDS_OF_FILES = {
    "src/extract.py": args_extract.parse_corpus,
    "src/utils/convert.py": convert.main,
    "src/utils/score.py": score.main,
    "src/utils/graph.py": graph.main,
    "src/utils/vote.py": vote.main,
    "src/utils/weight_diff.py": weight_diff.main,
}
PTUNING_ARGUMENTS = (args_pt.TunedModelArguments, args_pt.PtuningArguments)
PTUNING_INFERENCE = (args_pt.OriginalModelArguments, args_pt.PtuningInferenceArguments)
OTHER_PROGRAMS = ("hf", "pip", "source", "curl")  # and `python3 -m venv`: nothing of this project
USERS_OWN = ("data/train.json", "data/valid.json")  # paths under models/, lora/, result/, results/ are not looked for


def blocks(text, language=None):
    """The fenced code blocks of a document, their fences included; of one language: without them."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [body for name, body in found if name == language] if language else found


def prose(text):
    return re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def commands(text):
    """The lines of all bash blocks, continuations joined, comments and the ends of loops left out."""
    lines = "\n".join(blocks(text, "bash")).replace("\\\n", " ").split("\n")
    return [line for line in lines if shlex.split(line, comments=True) and not re.fullmatch("for .*; do|done", line)]


def words_of(command):
    words = shlex.split(command, comments=True)
    while re.match(r"\w+=", words[0]):
        words = words[1:]
    return words


def tables(text):
    """(heading above it, cells of a row) for every row of every table."""
    heading = ""
    for line in prose(text).split("\n"):
        heading = line if line.startswith("#") else heading
        if line.startswith("|") and not line.startswith("|---"):
            yield heading, [cell.strip() for cell in line.strip("|").split("|")]


def links(name):
    """The links of a page, sorted; a heading in one by its number, for its name depends on the language."""
    found = []
    for link in re.findall(r"\]\(([^)]+)\)", TEXT[name]):
        path, _, heading = link.partition("#")
        if heading and "://" not in link:
            target = ((ROOT / name).parent / path).resolve() if path else ROOT / name
            titles = re.findall(r"^#+ (.*)$", prose(target.read_text(encoding="utf-8")), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
            assert heading in slugs, link
            heading = slugs.index(heading)
        found.append((path.replace("_CN", ""), str(heading)))
    return sorted(found)


def code(cell):
    return re.findall(r"`([^`]+)`", cell)


def accept(command):
    """Let the script itself parse the command, in an empty folder; a missing file is no fault of the command."""
    words = words_of(command)
    at = next(index for index, word in enumerate(words) if word.endswith(".py"))
    file, argv = words[at], words[at + 1 :]
    assert words[0] in ("python", "torchrun", "deepspeed"), command
    assert at == 1 or words[0] != "python", command
    assert (ROOT / file).is_file(), command
    file += " --text" if "--text" in argv else ""
    if file in PARSERS:
        with patch.dict(os.environ, {"RANK": "0"} if words[0] == "torchrun" else {}):
            PARSERS[file](argv)
    elif file in COMMANDS_OF_FILES:
        with pytest.raises(UserError, match="no such (file|folder)"):
            COMMANDS_OF_FILES[file](argv)
    else:
        assert not argv, f"teach this test to parse {file}"


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def dry_run(command):
    """What a script prints with DRY_RUN=1, as lines."""
    variables = {**os.environ, "DRY_RUN": "1"}
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout, f"{command} printed no command"
    return done.stdout.splitlines()


def actions(parser):
    return {flag: action for action in parser._actions for flag in action.option_strings}


def actions_of(command):
    """The real parser's actions of a command in docs/flags.md."""
    return actions(write_flags.make_parser(command))


@pytest.mark.parametrize(
    ("pair", "least"),
    [(READMES, 10), (CORPUS, 4), *((pair, 5) for pair in (*TASKS, *MODELS)), *((pair, 2) for pair in SHORT)],
)
def test_both_have_the_same_headings_and_code_blocks(pair, least):
    levels = [re.findall(r"^(#+) ", prose(TEXT[name]), re.MULTILINE) for name in pair]
    assert levels[0] == levels[1]
    assert len(levels[0]) > least
    assert blocks(TEXT[pair[0]]) == blocks(TEXT[pair[1]])


@pytest.mark.parametrize("pair", PAIRS)
def test_both_have_the_same_links_and_flags_in_their_tables(pair):
    def flags(text):
        return [cells[:2] for _, cells in tables(text) if cells[0].startswith("`--") and len(cells) == 3]

    assert links(pair[0]) == links(pair[1])
    assert flags(TEXT[pair[0]]) == flags(TEXT[pair[1]])


def test_the_first_two_commands_are_quickstart_and_tests():
    assert commands(TEXT["README.md"])[:2] == ["bash scripts/quickstart.bash", "bash scripts/test.bash"]


def test_the_example_is_a_record_of_the_sample():
    example = json.loads(blocks(TEXT["README.md"], "json")[0])
    with open(ROOT / "data" / "sample" / "train.json", encoding="utf-8") as file:
        assert example in [json.loads(line) for line in file]


def wanted(text):
    """The commands in the README's table of what one types for what."""
    rows = [cells for heading, cells in tables(text) if heading.startswith("# ")]
    return [one for cells in rows for one in code(cells[1]) if " " in one and not one.startswith("--")]


def test_both_say_what_to_type_for_what():
    assert wanted(TEXT["README.md"]) == wanted(TEXT["README_CN.md"])
    assert len(wanted(TEXT["README.md"])) >= 8


COMMANDS = [*wanted(TEXT["README.md"]), *(line for pair in PAIRS for line in commands(TEXT[pair[0]]))]


@pytest.mark.usefixtures("empty_folder")
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_accepted_by_the_real_parser(command):
    words = words_of(command)
    if words[0] == "bash":
        assert (ROOT / words[1]).is_file()
        if words[1].removeprefix("scripts/") in RUNNABLE:
            for line in dry_run(command):
                accept(line)
    elif words[0] not in OTHER_PROGRAMS and words[:3] != ["python3", "-m", "venv"]:
        accept(command)


@pytest.mark.usefixtures("empty_folder")
@pytest.mark.parametrize("name", RUNNABLE)
def test_every_script_prints_a_command_that_is_accepted(name):
    for line in dry_run(f"bash scripts/{name}"):
        accept(line)


@pytest.mark.parametrize("name", READMES)
def test_scripts_named_exist_and_every_one_to_run_is_named(name):
    named = set(re.findall(r"scripts/(\w+\.bash)", TEXT[name])) - {"fine_X.bash", "infer_X.bash"}
    assert named <= set(SCRIPTS)
    assert set(RUNNABLE) <= named


@pytest.mark.parametrize("name", [*PAGES, "data/README.md", "CONTRIBUTING.md"])
def test_links_and_paths_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert links
    for link in links:
        assert ((ROOT / name).parent / link).resolve().exists(), link
    text = re.sub(r"\]\([^)]*\)|https?://\S+", "", text)
    paths = re.findall(r"(?<![\w./-])(?:src|scripts|templates|data|docs|tests)/[\w./*-]+", text, re.ASCII)
    assert paths
    for path in {path.rstrip(".") for path in paths} - set(USERS_OWN):
        assert list(ROOT.glob(path.replace("_X.", "_*."))), path


def test_the_badges_say_what_is_true():
    def shown(name):
        return re.findall(r"<title>(.*)</title>", (ROOT / f"docs/images/badge-{name}.svg").read_text())

    setup = (ROOT / "scripts/setup.bash").read_text()
    versions = sorted(set(re.findall(r"python(3\.\d+)", re.search(r"for candidate in (.*)", setup)[1])))
    assert shown("python") == ["python: " + " | ".join(versions)]
    assert shown("licence") == ["licence: " + (ROOT / "LICENSE").read_text().split()[0]]


@pytest.mark.parametrize("command", write_flags.COMMANDS)
@pytest.mark.parametrize("name", FLAGS)
def test_the_tables_of_flags_have_every_flag_with_its_default(name, command):
    """Of all the flags that --help lists; those of another command that is named there stand in its own table."""
    known, seen = actions_of(command), set()
    for heading, cells in tables(TEXT[name]):
        names = code(cells[0])
        if f"`{command}`" in heading and names and names[0].startswith("--"):
            assert len(cells) == 3, names
            assert set(names) <= set(known), set(names) - set(known)
            fields = list(dict.fromkeys(known[flag].dest for flag in names))  # aliases share one field
            said = code(cells[1]) or [None] * len(fields)
            real = [known[next(flag for flag in names if known[flag].dest == field)].default for field in fields]
            assert [str(value) for value in said] == [str(value).removeprefix(f"{ROOT}/") for value in real], names
            assert {flag for flag, one in known.items() if one.dest in fields and "-" not in flag[2:]} == set(names)
            seen |= set(fields)
    assert seen == set(write_flags.list_flags(command))
    assert len(seen) > {"src/test_finetune.py": 50, "src/inference.py": 30}.get(command, 2)


@pytest.mark.parametrize("name", FLAGS)
def test_the_tables_of_flags_are_as_the_script_writes_them(name):
    assert write_flags.fill_page(TEXT[name]) == TEXT[name], "run python scripts/write_flags.py"


def test_the_script_mends_a_default_and_adds_a_flag_that_has_no_row():
    text = TEXT["docs/flags.md"]
    row = next(line for line in text.split("\n") if line.startswith("| `--port` "))
    wrong = text.replace(row, row.replace("7860", "1"))
    assert wrong != text
    assert write_flags.fill_page(wrong) == text
    assert "| `--port` | `7860` | the port to listen at; 0: any that is free |" in write_flags.fill_page(
        text.replace(row + "\n", "")
    )
    with pytest.raises(UserError, match="--gone: no flag of"):
        write_flags.fill_page(text.replace("`--port`", "`--gone`"))


def test_every_flag_is_explained_in_chinese():
    for line in TEXT["docs/flags_CN.md"].split("\n"):
        if line.startswith("| `--"):
            assert re.search("[\u4e00-\u9fff]", line.split("|")[3]), line


@pytest.mark.parametrize("name", PTUNING)
def test_the_tables_of_p_tuning_have_every_flag_with_its_default(name):
    kinds = iter((PTUNING_ARGUMENTS, PTUNING_INFERENCE))
    tables_there = [part for part in re.split(r"^#+ .*$", prose(TEXT[name]), flags=re.MULTILINE) if "| `--" in part]
    for part, kind in zip(tables_there, kinds, strict=True):
        known, seen = actions(HfArgumentParser(kind)), set()
        for _, cells in tables(part):
            if (names := code(cells[0])) and names[0].startswith("--"):
                assert set(names) <= set(known), names
                fields = list(dict.fromkeys(known[flag].dest for flag in names))
                real = [known[next(flag for flag in names if known[flag].dest == field)].default for field in fields]
                said = code(cells[1]) or [None] * len(fields)
                assert [str(value) for value in said] == [str(value) for value in real], names
                seen |= set(fields)
        assert seen == {action.dest for action in known.values()} - {"help", "local_rank"}


@pytest.mark.parametrize("name", PAGES)
def test_every_flag_in_the_prose_exists(name, capsys):
    known = {*actions_of("src/test_finetune.py"), *actions_of("src/inference.py")}
    known |= {*actions(HfArgumentParser(PTUNING_ARGUMENTS)), *actions(HfArgumentParser(PTUNING_INFERENCE))}
    known |= {
        *actions(HfArgumentParser(args_serve.ServeArguments)),
        *actions(HfArgumentParser(args_serve.ExtractArguments)),
    }
    known |= {"--model", "--tokenizer", "--counting"}  # of scripts/random_base.py
    known |= {"--url", "--people", "--rounds", "--length"}  # of scripts/bench_web.py
    known |= {"--jobs"}  # of scripts/sweep_rate.py
    known |= {"--tiles"}  # of scripts/bench_8bit.py
    known |= {"--steps", "--records", "--cases"}  # of scripts/bench_busy.py and tests/campaign.py
    known |= {"--replay", "--batch_sizes", "--repeat", "--widen"}  # of scripts/bench_drafts.py and bench_constrain.py
    known |= {*actions(HfArgumentParser((args.ModelArguments, args_extract.CorpusArguments)))}
    known |= {"--help", "--help_all", "--master_port", "--nocheck"}  # of torchrun, and fire's way to say --check False
    known |= {"--nproc_per_node", "--nnodes", "--node_rank", "--master_addr"}  # of torchrun, too
    known |= {"--include", "--num_gpus"}  # of deepspeed
    for main in (convert.main, score.main, *graph.COMMANDS.values()):
        with pytest.raises(SystemExit):
            main(["--help"])
    for command in weight_diff.COMMANDS:
        known |= {f"--{flag}" for flag in inspect.signature(command).parameters}
    known |= set(weight_diff.OLD_FLAGS)
    known |= set(re.findall(r"--\w+", capsys.readouterr().out))
    quoted = " ".join(re.findall(r"`([^`]+)`", prose(TEXT[name])))
    assert set(re.findall(r"(?<![\w-])--\w+", quoted)) <= known


def test_every_family_of_the_code_is_in_the_table_of_models():
    for name in READMES:
        first = [code(cells[0]) for heading, cells in tables(TEXT[name]) if heading in ("## Models", "## 模型")]
        assert sorted(name for cell in first[1:] for name in cell) == sorted(families.NAMES)


def test_the_table_of_bases_by_name_is_that_of_the_code():
    """Their types, and which of them can be packed or answered by `fast` at all."""
    for page in BY_NAME:
        table = [cells for _, cells in tables(TEXT[page])][1:]
        known = {family.name: family for family in families.FAMILIES}
        assert [code(cells[0])[0] for cells in table] == [one for one in known if one in NAMED]
        for name, types, _, targets, template, engines, packed, own in table:
            family = known[code(name)[0]]
            assert tuple(code(types)) == family.model_types
            assert (targets, template) == (*family.lora_targets, *family.templates.values())
            may_pack = bool(set(family.model_types) & set(family.packed_types))
            assert may_pack == (packed not in ("no", "不行")) == ("fast" in engines)
            assert (own in ("yes", "是")) == (family.name in ("baichuan2", "internlm2", "minicpm"))


def test_every_base_has_a_page_that_says_its_name_and_the_readme_links_it():
    for index, readme in enumerate(READMES):
        linked = set(re.findall(r"\]\((docs/models/[^)]+)\)", TEXT[readme]))
        assert linked == {pair[index] for pair in MODELS}
    for name in set(families.NAMES) - set(NAMED):
        page = TEXT[f"docs/models/{'other' if name == 'auto' else name}.md"]
        assert f"--model_name {name}" in page or f"--model_file {name}" in page
