"""src/test_finetune.py as the recipe of 2023 computed: bitsandbytes' own 8-bit product, logits at every position.

Takes the flags of src/test_finetune.py, among them those for padding and gradient checkpointing; called by
scripts/bench_train.bash.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch
from compare_8bit import keep_own, use_product

import test_finetune
from common.errors import run_script
from tokens import batches, codec


def make_collator(pad_id: int, width_of: int = 1):
    """`batches.make_collator` with logits and labels at all positions."""
    narrow = batches.make_collator(pad_id, width_of)

    def collate(rows):
        batch = narrow(rows)
        labels = torch.full_like(batch["input_ids"], batches.IGNORED)
        labels[:, batch["logits_to_keep"]] = batch["shift_labels"]
        return {name: batch[name] for name in ("input_ids", "attention_mask")} | {
            "labels": labels,
            "shift_labels": labels,
        }

    return collate


if __name__ == "__main__":
    use_product(keep_own)
    codec.make_collator = make_collator
    run_script(test_finetune.main)
