"""The rooms of src/, and who may call whom (docs/architecture.md): calls go down, and no files call in a circle."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from helpers import ROOT, python

SRC = ROOT / "src"
SCRIPTS = "src"  # the recipes: src/*.py
ALL_BELOW_THE_PAGE = ("prediction", "training", "decoding", "tokens", "data", "loading", "checkpoints", "kg", "ops")
MAY_CALL = {
    SCRIPTS: ("utils", "web", *ALL_BELOW_THE_PAGE, "models", "common"),
    "utils": (*ALL_BELOW_THE_PAGE, "models", "common"),
    "web": ("prediction", "kg", "common"),
    "training": ("decoding", "tokens", "loading", "data", "checkpoints", "kg", "ops", "common"),
    "prediction": ("decoding", "tokens", "loading", "data", "checkpoints", "kg", "common"),
    "decoding": ("loading", "checkpoints", "kg", "ops", "common"),
    "tokens": ("data", "checkpoints", "models", "common"),
    "data": ("kg", "common"),
    "loading": ("checkpoints", "ops", "models", "common"),
    "checkpoints": ("models", "common"),
    "kg": ("common",),
    "ops": ("common",),
    "models": (),
    "common": (),
}
FILES = sorted(SRC.rglob("*.py"))


def module_of(file: Path) -> str:
    """`kg.triples` of src/kg/triples.py; a package is called like its folder."""
    return ".".join(file.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(file): file for file in FILES}


def room_of(module: str) -> str:
    return module.split(".")[0] if "." in module or (SRC / module).is_dir() else SCRIPTS


def imported(file: Path) -> set[str]:
    """The project's modules that a file imports, anywhere in it."""
    found, here = set(), module_of(file)
    package = here if file.name == "__init__.py" else here.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{source}.{alias.name}" for alias in node.names} | {source}
    return {name for name in found if name in MODULES and name != here}


def test_every_room_has_a_line_in_the_table():
    folders = {path.parent.name for path in SRC.glob("*/__init__.py")}
    assert folders <= set(MAY_CALL)
    assert {path.name for path in SRC.iterdir() if path.is_dir() and path.name != "__pycache__"} == folders
    for room, called in MAY_CALL.items():
        for other in called:
            assert room not in MAY_CALL[other], f"{room} and {other} may call each other"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SRC)))
def test_a_room_calls_only_those_below_it(file):
    room = room_of(module_of(file))
    called = {room_of(name): name for name in imported(file)}
    wrong = {other: name for other, name in called.items() if other not in (room, *MAY_CALL[room])}
    assert not wrong, f"{file.relative_to(ROOT)} may not import {', '.join(wrong.values())}"


def test_no_files_import_each_other_in_a_circle():
    graph = {}
    for name, file in MODULES.items():
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        graph[name] = {other for other in imported(file) if other != package}
    for name, file in MODULES.items():  # a package stands for what its __init__ gathers
        if file.name == "__init__.py":
            graph[name] -= {name}
    TopologicalSorter(graph).prepare()  # CycleError names the circle


def test_a_forbidden_import_is_noticed(tmp_path):
    file = SRC / "kg" / "triples.py"
    assert room_of("kg.triples") == "kg"
    assert "common.errors" in imported(SRC / "data" / "records.py")
    assert "kg.schema" not in imported(file)


def test_the_graph_room_needs_neither_torch_nor_numpy():
    code = "import sys, kg.triples, kg.schema, kg.metrics; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    run = python("-c", code, env={"PYTHONPATH": str(SRC)})
    assert run.stdout.strip() == "[]", run.stderr


@pytest.mark.parametrize(
    "script", ["inference.py", "inference_pt.py", "extract.py", "utils/convert.py", "utils/graph.py"]
)
def test_help_is_shown_without_torch_and_transformers(script):
    run = python("-X", "importtime", SRC / script, "--help")
    loaded = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines()}
    assert run.stdout
    assert "argparse" in loaded
    assert not loaded & {"torch", "transformers", "numpy"}


def test_the_commands_are_few():
    commands = [file for file in (SRC / "utils").glob("*.py") if not file.name.startswith(("args", "__"))]
    assert len(commands) <= 8
    assert sys.version_info >= (3, 10)
