"""Documents, or one sentence -> triples.

python src/extract.py --lora_weights lora/quickstart-400 --text "东方明珠位于上海，高468米。" --relations 位于,高度
python src/extract.py --lora_weights lora/quickstart-400 --input my_texts/ --cate auto \
    --output_file results/corpus.jsonl --store graphs/corpus

One sentence's triples are a table on a terminal, JSON lines in a pipe. A corpus becomes a file, and a graph;
interrupted, the same command goes on where it stopped.
"""

import os
import sys
import time

from common.errors import begin_script, run_script, say

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if __name__ == "__main__":
    begin_script()

from common.files import to_line
from common.startup import quick_startup, without_compiler
from kg.tables import as_table
from kg.wordings import ask_for, split_names
from utils.args_extract import asks_once, parse_corpus, read_wanted
from utils.args_serve import parse_text

TITLES = ("head", "relation", "tail", "in the text")


def main(argv=None) -> None:
    (extract_text if asks_once(argv) else extract_corpus)(argv)


def extract_corpus(argv) -> None:
    started = time.time()
    model_args, args = parse_corpus(argv)
    wanted = read_wanted(args)
    # Imported behind the flags, since torch takes seconds: --help and a wrong flag are answered at once.
    with quick_startup(), without_compiler():
        from prediction import whole_corpus

    whole_corpus.extract_corpus(model_args, args, wanted, started)


def extract_text(argv) -> None:
    model_args, args = parse_text(argv)
    with quick_startup():
        with without_compiler():
            from prediction.extracting import as_dicts, extract, plan_texts

        plan, window = plan_texts(model_args, args)
    record = {"instruction": ask_for(split_names(args.relations), args.wording), "input": args.text}
    found = extract(plan, record, window)
    for reason in found.failed:
        say(f"warning: a part of the text has no answer: {reason}")
    if found.finish_reason != "eos":
        say(f"warning: the answer was not ended by the model (finish_reason {found.finish_reason})")
    rows = as_dicts(found, args.text)
    if sys.stdout.isatty():
        print_table(rows)
    else:
        for row in rows:
            print(to_line(row))


def print_table(rows: list[dict]) -> None:
    """The triples of `prediction.extracting.as_dicts` for people."""
    sure = ["confidence"] if any("confidence" in row for row in rows) else []
    cells = [
        [*(row[name] for name in TITLES[:3]), "no" if row["completed"] else "yes", *(row[name] for name in sure)]
        for row in rows
    ]
    for line in as_table([*TITLES, *sure], cells, len(rows)):
        print(line)
    if not rows:
        say("no triple was found")


if __name__ == "__main__":
    run_script(main)
