"""A corpus of documents -> their triples, and a graph of them; interrupted, the same command goes on where it stopped.

python src/extract.py --input docs/ --cate auto --lora_weights lora/sample --output_file results/corpus.jsonl \
    --store graphs/corpus
"""

import os
import time

from common.errors import begin_script, run_script

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if __name__ == "__main__":
    begin_script()

from utils.args_extract import parse_extract, read_wanted


def main(argv=None) -> None:
    started = time.time()
    model_args, args = parse_extract(argv)
    wanted = read_wanted(args)
    # Imported behind the flags, since torch takes seconds: --help and a wrong flag are answered at once.
    from prediction.whole_corpus import extract_corpus

    extract_corpus(model_args, args, wanted, started)


if __name__ == "__main__":
    run_script(main)
