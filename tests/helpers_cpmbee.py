"""The golden CPM-Bee, as several test files use it."""

import json

import numpy
import torch
from helpers import ROOT
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from models.cpmbee import escape, load_tokenizer
from models.cpmbee.modeling import CpmBeeForCausalLM

FOLDER = ROOT / "tests" / "golden" / "cpmbee"
GOLDEN = json.loads((FOLDER / "golden.json").read_text(encoding="utf-8"))
ARRAYS = dict(numpy.load(FOLDER / "golden.npz"))
TOKENIZER = load_tokenizer(FOLDER)
BATCH = ["input_ids", "input_id_sub", "length", "context", "sample_ids", "num_segments", "segment"]
BATCH += ["segment_rel_offset", "segment_rel", "span", "labels", "ext_table_ids", "ext_table_sub"]
WEIGHTS = load_file(FOLDER / "model.safetensors")
PRUNED = [[True, False], [False, True], [True, True], [False, False]]  # attention, feed-forward


def tree_of(record):
    """A record as the originals gave it to the model: instruction and text as `input`, and the answer."""
    text = f"{record['instruction']}\n{record['input']}"
    return {"input": escape(text), "<ans>": escape(record["output"])}


def tensor(name):
    array = torch.from_numpy(ARRAYS[name])
    return array if array.is_floating_point() else array.long()


def folder_with(folder, weights=WEIGHTS, **settings):
    """A checkpoint folder as safetensors; `settings` go into its config.json."""
    folder.mkdir(exist_ok=True)
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **settings}), encoding="utf-8")
    if weights is not None:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def loaded(folder=FOLDER, **options):
    model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    assert isinstance(model, CpmBeeForCausalLM)
    assert not any(found.values()), found
    return model


def logits_of(model, batch):
    """Of whole rows, padding left out."""
    with torch.no_grad():
        logits = model(**{**batch, "labels": None}).logits
    return logits[torch.arange(logits.shape[1]) < batch["length"][:, None]]


def pruned_folder(folder):
    gone = [f".layers.{i}.self_att." for i, (attention, _) in enumerate(PRUNED) if attention]
    gone += [f".layers.{i}.ffn." for i, (_, ffn) in enumerate(PRUNED) if ffn]
    weights = {name: weight for name, weight in WEIGHTS.items() if not any(part in name for part in gone)}
    assert not any(".layers.2." in name for name in weights)
    return folder_with(folder, weights, mask_modules=PRUNED)
