"""Predict the triples of a file of records; interrupted, the same command goes on where it stopped.

python src/inference.py --lora_weights lora/sample --input_file data/sample/valid.json \
    --output_file results/sample.json
"""

import os
import time

from common.errors import begin_script, run_script

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if __name__ == "__main__":
    begin_script()

from common.startup import quick_startup, without_compiler
from data.records import load_records
from utils.args_predict import parse_inference


def main(argv=None) -> None:
    started = time.time()
    model_args, args = parse_inference(argv)
    records = load_records(args.input_file, needs=("instruction", "input"))
    # Imported later, since torch takes seconds: --help, a wrong flag and a broken file are answered at once.
    if args.ray:
        from prediction.spread_file import answer_file_spread

        answer_file_spread(model_args, args, records, started)
        return
    with quick_startup(), without_compiler():
        from prediction.opening import plan_adapter
        from prediction.predicting import predict_file

    predict_file(plan_adapter, model_args, args, args.input_file, records, started)


if __name__ == "__main__":
    run_script(main)
