"""Short runs of src/test_finetune.py on the golden LLaMA, which several test files make."""

import json

from helpers import GOLDEN, ROOT

BASE = GOLDEN / "checkpoint"
TRAIN = GOLDEN / "train.json"
RECORDS = [json.loads(line) for line in TRAIN.read_text(encoding="utf-8").splitlines()]
SCRIPT = ROOT / "src" / "test_finetune.py"


def flags(output, *more, **values):
    """A short run's command line; `values` replace or add flags."""
    chosen = {
        "model_name_or_path": BASE,
        "train_file": TRAIN,
        "output_dir": output,
        "cutoff_len": 1024,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "learning_rate": 3e-3,
        "max_steps": 4,
        "save_strategy": "no",
        "logging_steps": 1,
        **values,
    }
    return ["--do_train", *more, *(str(part) for name, value in chosen.items() for part in (f"--{name}", value))]
