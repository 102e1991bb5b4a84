"""Records of given lengths to measure speed on: tokens drawn from a normal distribution, text from the sample.

python scripts/bench_records.py --base models/random-7b --out results/bench/train.json
python scripts/bench_records.py --base models/counting-7b --out results/bench/ask.json --answers 20 400 \
    --template results/bench/ask-template.json
"""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from random_base import COUNTED

from checkpoints.family import find_family
from common.errors import run_script, say
from common.files import write_rows
from common.flags import command, parse_flags
from data.prompts import load_template, make_prompt
from data.records import read_records
from tokens.readers import load_codec
from tokens.rows import Limits, fit_record

SAMPLE = Path(__file__).resolve().parents[1] / "data" / "sample" / "train.json"


def main(argv=None) -> None:
    parser = command(__doc__)
    parser.add_argument("--base", required=True, help="folder whose tokenizer counts the tokens")
    parser.add_argument("--out", required=True, help="file of the records")
    parser.add_argument("--records", type=int, default=1024)
    parser.add_argument("--template", default="plain", help="short, so that short rows are possible")
    parser.add_argument(
        "--answers",
        type=int,
        nargs=2,
        metavar=("LEAST", "MOST"),
        help="records to predict, whose answers a base of random_base.py --counting makes so many tokens long; the "
        "template must end with the text",
    )
    parser.add_argument(
        "--alike", type=int, help="so many of the sample's instructions in turn, instead of a shorter one"
    )
    arguments = parse_flags(parser, argv)
    family, _, _ = find_family(arguments.base)
    codec, template = load_codec(arguments.base, family), load_template(arguments.template)
    draw, sample = random.Random(0), read_records(SAMPLE)
    text = "".join(record["input"] for record in sample)
    shortest = sorted({record["instruction"] for record in sample}, key=lambda one: (len(one), one))
    instructions = shortest[: arguments.alike] if arguments.alike else ["抽取关系：类型。"]
    rows, tokens = [], 0
    for number in range(arguments.records):
        wanted = int(min(512, max(120, draw.gauss(380, 90))))
        start = draw.randrange(len(text) - 600)
        record = {
            "id": number,
            "instruction": instructions[number % len(instructions)],
            "output": "" if arguments.answers else sample[number % len(sample)]["output"][:40],
        }
        record["input"] = text[start : start + 600]
        fitted = fit_record(codec, template, record, Limits(wanted - 1 if arguments.answers else wanted))
        record["input"] = fitted.text
        length = len(fitted.prompt) + len(fitted.answer)
        if arguments.answers:
            last = COUNTED[draw.randint(*arguments.answers) - 1]
            record["input"] += "\n" + codec.tokenizer.convert_ids_to_tokens(last)
            length = len(codec.encode(make_prompt(template, record["instruction"], record["input"])))
        rows.append(record)
        tokens += length
    write_rows(arguments.out, rows)
    say(f"{arguments.out}: {len(rows)} records of {tokens / len(rows):.0f} tokens on average")


if __name__ == "__main__":
    run_script(main)
