"""Train with --bits 8 through this project's product and through bitsandbytes' own, and compare the losses.

python scripts/compare_8bit.py --model_name_or_path models/smollm2-135m-instruct --train_file data/sample/train.json \
    --output_dir results/compare-8bit --max_steps 50 --per_device_train_batch_size 2 --gradient_accumulation_steps 1 \
    --train_sampling_strategy random

Takes the flags of src/test_finetune.py. All runs see the same records in the same order, and start from the same
adapter. Training on a CPU, bitsandbytes turns the weights back as this project does; a third run there multiplies as
bitsandbytes does on a GPU, in 8 bits, with the inputs rounded too.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch

import test_finetune
from common.errors import run_script
from loading.quantised import QUANTISATIONS, use_plain_product

MEAN_OF = 10  # steps: the loss of one batch alone says little


def keep_own(model) -> int:
    """The layers keep bitsandbytes' product."""
    return 0


def use_product(product) -> None:
    """Weights of 8 bits get `product` (a function of the model) for the rest of this process."""
    QUANTISATIONS[8] = QUANTISATIONS[8]._replace(use_product=product)


def multiply_as_a_card(model) -> int:
    """bitsandbytes' product with inputs in 8 bits, on a CPU too; for the rest of this process."""
    from bitsandbytes.autograd import _functions

    _functions.MatMul8bitFp = _functions.MatMul8bitLt
    return 0


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="results/compare-8bit", help="folder of all runs, made anew")
    arguments, flags = parser.parse_known_args(argv)
    products = {"ours": use_plain_product, "bitsandbytes": keep_own}
    if not torch.cuda.is_available():
        products["bitsandbytes-8bit-inputs"] = multiply_as_a_card
    losses = {}
    for name, product in products.items():
        use_product(product)
        out = Path(arguments.output_dir) / name
        own = ["--output_dir", str(out), "--bits", "8", "--logging_steps", "1", "--save_strategy", "no"]
        test_finetune.main(["--do_train", "--overwrite_output_dir", *own, *flags])
        log = map(json.loads, (out / "log.jsonl").read_text(encoding="utf-8").splitlines())
        losses[name] = [row["loss"] for row in log if "loss" in row]
    for last in range(MEAN_OF, len(losses["ours"]) + 1, MEAN_OF):
        means = {name: sum(row[last - MEAN_OF : last]) / MEAN_OF for name, row in losses.items()}
        others = (f"{name} {mean:.4f} ({100 * (mean / means['ours'] - 1):+.3f} %)" for name, mean in means.items())
        print(f"mean loss of steps {last - MEAN_OF + 1}-{last}: " + ", ".join(others))


if __name__ == "__main__":
    run_script(main)
