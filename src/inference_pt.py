"""Predict with a prefix of P-Tuning v2; interrupted, the same command goes on where it stopped.

python src/inference_pt.py --test_path data/sample/valid.json --device 0 \
    --model_dir output_dir_pt/global_step-100
"""

import os
import time

from common.errors import begin_script, run_script

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if __name__ == "__main__":
    begin_script()

from common.startup import quick_startup, without_compiler
from data.records import load_records
from utils.args_pt import parse_ptuning_inference


def main(argv=None) -> None:
    started = time.time()
    model_args, args = parse_ptuning_inference(argv)
    records = load_records(args.test_path, needs=("instruction", "input"))
    # Imported later, since torch takes seconds: --help, a wrong flag and a broken file are answered at once.
    with quick_startup(), without_compiler():
        from prediction.opening import plan_prefix
        from prediction.predicting import predict_file

    predict_file(plan_prefix, model_args, args, args.test_path, records, started)


if __name__ == "__main__":
    run_script(main)
