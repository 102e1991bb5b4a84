"""A tiny model learns eight records by heart, through the scripts themselves."""

import json

import random_base

import inference
import test_finetune
from kg import triples
from kg.metrics import f1

PLACES = ("刘德华", "香港"), ("陈思雨", "杭州"), ("张三", "北京"), ("李四", "上海"), ("王五", "南京"), ("赵六", "成都")
EIGHT = [  # records that a tiny model can learn by heart
    {
        "id": number,
        "cate": "人物",
        "instruction": "抽取关系：出生地。格式(头,关系,尾)",
        "input": f"{person}出生于{place}。",
        "output": f"({person},出生地,{place})",
    }
    for number, (person, place) in enumerate((*PLACES, ("孙七", "广州"), ("周八", "武汉")))
]


def tiny_base(model, tokenizer, folder):
    """A tiny checkpoint of random weights, with the tokenizer files of a folder."""
    base = folder / model
    random_base.main(["--model", model, "--out", str(base), "--tokenizer", str(tokenizer)])
    return base


def overfit(base, folder, more=(), **values):
    """Train on EIGHT with src/test_finetune.py, predict them with src/inference.py: the F1 of the triples."""
    records, out = folder / "eight.json", folder / "predicted.json"
    records.write_text("\n".join(json.dumps(record) for record in EIGHT), encoding="utf-8")
    chosen = {
        "model_name_or_path": base,
        "train_file": records,
        "output_dir": folder / "run",
        "prompt_template_name": "plain",
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "max_steps": 150,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "cosine",
        "lora_r": 32,
        "lora_alpha": 64,
        "lora_dropout": 0,
        "save_strategy": "no",
        **values,
    }
    flags = [str(part) for name, value in chosen.items() if value is not None for part in (f"--{name}", value)]
    test_finetune.main(["--do_train", *more, *flags])
    trained = ["--model_name_or_path" if "--full_finetune" in more else "--lora_weights", str(folder / "run")]
    inference.main([*trained, "--input_file", str(records), "--output_file", str(out), "--max_new_tokens", "40"])
    predicted = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    found = ([triples.parse(record["output"]) for record in records] for records in (predicted, EIGHT))
    return f1(*found)["f1"]
