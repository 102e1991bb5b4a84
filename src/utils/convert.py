"""Predictions -> contest submission: `kg` parsed from `output`, `output` rebuilt in contest form, rows in id order.

python src/utils/convert.py --pred_path result/output_llama_7b_e3_r8.json --tgt_path result/result_llama_7b_e3_r8.json
python src/utils/convert.py --check data/valid.json --tgt_path result/result_llama_7b_e3_r8.json

Or records of another project -> this project's, and back (docs/formats.md):

python src/utils/convert.py --from duie --pred_path duie_train.json --tgt_path data/train.json
python src/utils/convert.py --to messages --pred_path data/train.json --tgt_path messages.json
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.errors import UserError, begin_script, keeping, run_script, say
from common.refusals import naming

if __name__ == "__main__":
    begin_script()

from common.files import check_output, write_lines, write_rows
from common.flags import Range, check_flags, check_ranges, command
from common.manifest import run_file_of
from data.formats import READ, TABLES, WRITTEN, choose_form, read_as, recognise, say_turned, write_as
from data.records import check_records, read_with_lines
from data.submission import check_submission, last_of_each, listed, sort_key, spool
from data.tables import read_table
from data.topics import read_topics

OF_SUBMISSIONS = ("schema", "min_confidence", "dedupe", "sort", "skip_bad", "check")  # flags
SCHEMA_HELP = "triples whose relation was not asked for: keep leaves them in, strict drops them"


def main(argv=None) -> None:
    parser = command(__doc__)
    parser.add_argument("--pred_path", default="result/output_llama_7b_e3_r8.json", help="the predictions")
    parser.add_argument("--tgt_path", default="result/result_llama_7b_e3_r8.json", help="the submission")
    parser.add_argument("--schema", choices=("keep", "strict"), default="keep", help=SCHEMA_HELP)
    parser.add_argument("--min_confidence", type=float, default=0, help="leave triples out that are less sure; 0: none")
    parser.add_argument("--dedupe", action="store_true", help="of several rows with one id keep the last")
    parser.add_argument("--sort", choices=("id", "input"), default="id", help="order of the rows")
    parser.add_argument("--skip_bad", action="store_true", help="list and leave out bad lines instead of stopping")
    parser.add_argument("--check", metavar="TEST_FILE", help="only check --tgt_path against this test file")
    parser.add_argument("--from", dest="source", choices=READ, help="read records of another form")
    parser.add_argument("--to", dest="form", choices=WRITTEN, help="write records in another form")
    parser.add_argument("--relations", metavar="FILE", help="with --from: those to ask for; default: the file's own")
    argv = check_flags(parser, argv)
    arguments = parser.parse_args(argv)
    check_ranges(arguments, {"min_confidence": Range(0, 1)})
    target, given = Path(arguments.tgt_path), {word.split("=")[0] for word in argv}
    if arguments.source or arguments.form or arguments.relations:
        others = [flag for flag in OF_SUBMISSIONS if f"--{flag}" in given]
        if others:
            raise UserError(
                f"--from and --to make no submission, so --{others[0]} would have no effect; drop one of them"
            )
        turn_file(arguments)
        return
    if arguments.check:
        flags = ("pred_path", "schema", "min_confidence", "dedupe", "sort", "skip_bad")
        others = [flag for flag in flags if f"--{flag}" in given]
        if others:
            raise UserError(f"--check converts nothing, so --{others[0]} would have no effect; drop one of them")
        say(check_submission(arguments.tgt_path, arguments.check))
        return
    check_output(arguments.tgt_path, "--tgt_path", arguments.pred_path)
    bad = [] if arguments.skip_bad else None
    existing = next(parent for parent in target.resolve().parents if parent.is_dir())
    kept = f"{arguments.tgt_path} is left as it was, and the same command begins anew"
    with keeping(lambda: kept), naming(target), tempfile.TemporaryFile(dir=existing) as file:
        index = spool(arguments.pred_path, file, arguments.schema == "strict", bad, arguments.min_confidence)
        if not index:
            raise UserError(f"{arguments.pred_path}: no prediction could be read\n" + listed(bad))
        lasts = last_of_each(index)
        again = len(index) - len(lasts)
        if arguments.dedupe:
            index = lasts
        if arguments.sort == "id":
            index.sort(key=lambda row: sort_key(row.identity))

        def lines():
            for row in index:
                file.seek(row.offset)
                yield file.readline().decode().rstrip("\n")

        write_lines(target, lines())

    run = run_file_of(arguments.pred_path)
    if run.is_file() and run != run_file_of(target):  # how the answers were made, beside the submission too
        write_lines(run_file_of(target), [run.read_text(encoding="utf-8").rstrip("\n")])

    if again and not arguments.dedupe:
        say(f"warning: {again} rows have an id that came before; --dedupe keeps the last row of each id")
    if bad:
        say(f"warning: bad lines were left out:\n{listed(bad)}")
    counts = {
        "rows": len(index),
        "triples": sum(row.triples for row in index),
        "rows without a triple": sum(not row.triples for row in index),
        "dropped fragments": sum(row.dropped for row in index),
        f"relations not asked for ({'dropped' if arguments.schema == 'strict' else 'kept'})": sum(
            row.unasked for row in index
        ),
    }
    if arguments.dedupe:
        counts["earlier rows of an id dropped"] = again
    if arguments.skip_bad:
        counts["bad lines skipped"] = len(bad)
    say(f"{target}: " + ", ".join(f"{count} {what}" for what, count in counts.items()))


def turn_file(arguments) -> None:
    """Records of another form -> this project's (--from), or another (--to); says what was lost."""
    path, target, name = arguments.pred_path, arguments.tgt_path, arguments.source
    check_output(target, "--tgt_path", path, arguments.relations)
    known = read_topics(arguments.relations, "--relations") if arguments.relations else None
    pairs = list(read_table(path, name)) if name in TABLES else read_with_lines(path)
    first = pairs[0][1]
    if name in (None, *TABLES):
        name = choose_form(path, first)
    elif "instruction" in first and "input" in first and name not in recognise(first):
        raise UserError(f"--from {name}: the records of {path} have instruction and input, as this project's; drop it")
    if name:
        turned = read_as(name, path, pairs, known)
        say_turned(f"{path}: read as --from {name}", turned)
        pairs = turned.records
    elif known is not None:
        raise UserError(f"--relations: the records of {path} have instructions already; drop it")
    check_records(path, pairs, ("instruction", "input"))
    if arguments.form:
        turned = write_as(arguments.form, pairs)
        say_turned(f"{target}: written as --to {arguments.form}", turned)
        pairs = turned.records
    else:
        say(f"{target}: {len(pairs)} records")
    write_rows(target, (record for _, record in pairs))


if __name__ == "__main__":
    run_script(main)
