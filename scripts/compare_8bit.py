"""Train twice with --bits 8, through this project's product and through bitsandbytes' own, and compare the losses.

python scripts/compare_8bit.py --model_name_or_path models/smollm2-135m-instruct --train_file data/sample/train.json \
    --output_dir results/compare-8bit --max_steps 50 --per_device_train_batch_size 4 --gradient_accumulation_steps 1

Takes the flags of src/test_finetune.py. Both runs see the same records in the same order, and start from the same
adapter.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import test_finetune
from utils import loading
from utils.errors import run_script

PRODUCTS = {"ours": loading.train_frozen, "bitsandbytes": lambda model: 0}
MEAN_OF = 10  # steps: the loss of one batch alone says little


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="results/compare-8bit", help="folder of both runs, made anew")
    arguments, flags = parser.parse_known_args(argv)
    losses = {}
    for name, product in PRODUCTS.items():
        loading.train_frozen = product
        out = Path(arguments.output_dir) / name
        own = ["--output_dir", str(out), "--bits", "8", "--logging_steps", "1", "--save_strategy", "no"]
        test_finetune.main(["--do_train", "--overwrite_output_dir", *own, *flags])
        log = map(json.loads, (out / "log.jsonl").read_text(encoding="utf-8").splitlines())
        losses[name] = [row["loss"] for row in log if "loss" in row]
    steps = len(losses["ours"])
    for last in range(MEAN_OF, steps + 1, MEAN_OF):
        means = {name: sum(row[last - MEAN_OF : last]) / MEAN_OF for name, row in losses.items()}
        apart = 100 * (means["ours"] / means["bitsandbytes"] - 1)
        said = ", ".join(f"{name} {mean:.4f}" for name, mean in means.items())
        print(f"mean loss of steps {last - MEAN_OF + 1}-{last}: {said} ({apart:+.2f} %)")
    for name in losses:
        print(f"{name}: {losses[name][-1]:.4f} at step {steps}")


if __name__ == "__main__":
    run_script(main)
