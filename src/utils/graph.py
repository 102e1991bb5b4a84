"""Predictions or labelled records -> a knowledge graph: merged, stored, asked, exported.

python src/utils/graph.py build --pred_path results/quickstart-200/submission.json --store results/quickstart-200/graph
python src/utils/graph.py COMMAND --help
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.errors import UserError, begin_script, run_script, say

if __name__ == "__main__":
    begin_script()

from common.errors import keeping
from common.flags import command, parse_flags
from data.sources import find_run, read_sources
from data.submission import listed
from kg import graph
from kg.merging import MODES
from kg.relations import read_relations
from kg.store import Settings, read_current


def build(argv: list[str]) -> None:
    """Bring predictions or labelled records into a graph; it is made if it is not there yet."""
    parser = _parser(build)
    parser.add_argument(
        "--pred_path", required=True, help="predictions or labelled records, in any shape convert reads"
    )
    parser.add_argument("--run", help="name of the run; left out: made of base and adapter in run.json")
    parser.add_argument("--run_file", help="the run.json of the predictions; left out: NAME.run.json beside them")
    parser.add_argument("--collection", default="", help="keeps records of other files with the same ids apart")
    parser.add_argument("--merge", choices=MODES, help="what makes two names one entity; left out: alias, or as it was")
    parser.add_argument("--relations", help="a file in place of src/kg/relations.json")
    parser.add_argument("--no_text", action="store_true", help="do not keep the texts of the records")
    parser.add_argument("--changed_texts", action="store_true", help="replace records whose text is another one too")
    parser.add_argument("--skip_bad", action="store_true", help="list and leave out bad lines instead of stopping")
    flags = parse_flags(parser, argv)
    bad = [] if flags.skip_bad else None
    with keeping(lambda: f"{flags.store} is as it was"):
        counts = graph.build(
            flags.store,
            read_sources(flags.pred_path, bad),
            find_run(flags.pred_path, flags.run_file, flags.run),
            _settings(flags),
            flags.collection,
            not flags.no_text,
            flags.changed_texts,
            resettle=bool(flags.merge or flags.relations),
        )
    if bad:
        say(f"warning: bad lines were left out:\n{listed(bad)}")
    names = ("records", "triples", "added", "replaced", "unchanged")
    say(f"{flags.store}: " + ", ".join(f"{counts[name]} {name}" for name in names))


def remove(argv: list[str]) -> None:
    """Take a record (of one collection or all), or all records of a run, out of a graph."""
    parser = _parser(remove)
    parser.add_argument("--document", help='a record\'s id; 7 is also found as the text "7"')
    parser.add_argument("--collection", help="only the record of this collection")
    parser.add_argument("--run", help="all records of the run of this name")
    flags = parse_flags(parser, argv)
    if (flags.document is None) == (flags.run is None):
        raise UserError("remove: give either --document ID or --run NAME")
    if flags.run is not None and flags.collection is not None:
        raise UserError("--collection has no effect beside --run; drop it")

    def chosen(store) -> list[str]:
        if flags.run is not None:
            return graph.sources_of_run(store, flags.run)
        found = [_number(flags.document), flags.document]
        return next(filter(None, (graph.sources_of_document(store, one, flags.collection) for one in found)), [])

    with keeping(lambda: f"{flags.store} is as it was"):
        counts = graph.remove(flags.store, chosen)
    if not counts["removed"]:
        what = f"--run {flags.run}" if flags.run is not None else f"--document {flags.document}"
        raise UserError(f"{what}: nothing of it is in {flags.store}")
    say(f"{flags.store}: {counts['removed']} records with {counts['triples']} triples removed")


def merge(argv: list[str]) -> None:
    """Merge names anew, by other evidence or another list of relations; what records say stays as it is."""
    parser = _parser(merge)
    parser.add_argument("--merge", choices=MODES, default="alias", help="what makes two names one entity")
    parser.add_argument("--relations", help="a file in place of src/kg/relations.json")
    flags = parse_flags(parser, argv)
    with keeping(lambda: f"{flags.store} is as it was"):
        graph.remerge(flags.store, _settings(flags))
    say(f"{flags.store}: merged by {flags.merge}")


def _settings(flags) -> Settings:
    """Those typed; what was left out as the graph has it."""
    current = read_current(flags.store)
    there = current[1] if current else Settings("alias", read_relations(None))
    relations = read_relations(flags.relations) if flags.relations else there.relations
    return Settings(flags.merge or there.merge, relations)


def _number(text: str):
    """The whole number that a text is, else the text."""
    return int(text) if text.removeprefix("-").isdecimal() and len(text) < 100 else text


def _parser(run):
    parser = command(run.__doc__)
    parser.prog = f"graph.py {run.__name__}"
    parser.add_argument("--store", required=True, help="folder of the graph")
    return parser


COMMANDS = {run.__name__: run for run in (build, remove, merge)}


def main(argv=None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {name:12}{run.__doc__.splitlines()[0]}" for name, run in COMMANDS.items()]
        print(f"{__doc__}\ncommands:\n" + "\n".join(lines))
        return
    if argv[0] not in COMMANDS:
        raise UserError(f"{argv[0]!r}: no command; expected one of {', '.join(COMMANDS)}")
    COMMANDS[argv[0]](argv[1:])


if __name__ == "__main__":
    run_script(main)
