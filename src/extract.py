"""The triples of one sentence: a table on a terminal, JSON lines in a pipe.

python src/extract.py --lora_weights lora/quickstart-400 --text "东方明珠位于上海，高468米。" --relations 位于,高度
"""

import os
import sys

from common.errors import begin_script, run_script, say

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if __name__ == "__main__":
    begin_script()

from common.files import to_line
from kg.tables import as_table
from kg.wordings import ask_for
from utils.args_serve import parse_extract, split_names

TITLES = ("head", "relation", "tail", "in the text")


def main(argv=None) -> None:
    model_args, args = parse_extract(argv)
    # Imported behind the flags, since torch takes seconds: --help and a wrong flag are answered at once.
    from prediction.extracting import as_dicts, choose_short_window, extract
    from prediction.opening import plan_adapter

    plan = plan_adapter(model_args, args)
    record = {"instruction": ask_for(split_names(args.relations), args.wording), "input": args.text}
    found = extract(plan, record, choose_short_window(args.window, plan.context, args.max_new_tokens))
    rows = as_dicts(found, args.text)
    for reason in found.failed:
        say(f"warning: a part of the text has no answer: {reason}")
    if found.finish_reason != "eos":
        say(f"warning: the answer was not ended by the model (finish_reason {found.finish_reason})")
    if not sys.stdout.isatty():
        for row in rows:
            print(to_line(row))
        return
    titles = [*TITLES, *(["confidence"] if found.confidence else [])]
    names = "head", "relation", "tail"
    cells = (
        [
            *(row[n] for n in names),
            "no" if row["completed"] else "yes",
            *([row["confidence"]] if found.confidence else []),
        ]
        for row in rows
    )
    for line in as_table(titles, cells, len(rows)):
        print(line)
    if not rows:
        say("no triple was found")


if __name__ == "__main__":
    run_script(main)
