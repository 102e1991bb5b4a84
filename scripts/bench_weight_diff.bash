#!/usr/bin/env bash
# Memory and time of weight_diff.py recover: a base and a delta of 4.3 GB each are made up, and added in a fresh process.
# bash scripts/bench_weight_diff.bash [FOLDER]     FOLDER is made, needs 13 GB, and is removed at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -d .venv ] && export PATH="$PWD/.venv/bin:$PATH"
folder=${1:-bench_weight_diff}
mkdir "$folder" # an error if it is there: what it holds would be removed
trap 'rm -rf "$folder"' EXIT

python - "$folder" <<'PYTHON'
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

HIDDEN, INNER, LAYERS, ROWS = 2048, 5504, 40, 32000
shapes = {"model.embed_tokens.weight": (ROWS, HIDDEN)}
for layer in range(LAYERS):
    start = f"model.layers.{layer}"
    shapes |= {f"{start}.self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
    shapes |= {f"{start}.mlp.{name}_proj.weight": (INNER, HIDDEN) for name in ("gate", "up")}
    shapes |= {f"{start}.mlp.down_proj.weight": (HIDDEN, INNER)}
    shapes |= {f"{start}.{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (ROWS, HIDDEN)}
config = {
    "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
    "num_attention_heads": 16, "vocab_size": ROWS,
}


def fill(folder, shard_bytes, center, spread, save, pattern):
    """A checkpoint of fp16 noise in shards of `shard_bytes`; norms lie around `center`."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    shards, filled = [{}], 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        if filled + size > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += size
    files = {}
    for number, names in enumerate(shards):
        tensors = {n: (torch.randn(s) * spread + (center if len(s) == 1 else 0)).half() for n, s in names.items()}
        save(tensors, folder / pattern.format(number))
        files |= dict.fromkeys(names, pattern.format(number))
    index = "pytorch_model.bin.index.json" if pattern.endswith("bin") else "model.safetensors.index.json"
    (folder / index).write_text(json.dumps({"weight_map": files}))


torch.manual_seed(0)
folder = Path(sys.argv[1])
fill(folder / "base", 1.8e9, 1.0, 0.02, torch.save, "pytorch_model-{}.bin")
fill(folder / "delta", 1.1e9, 0.0, 0.001, save_file, "model-{}.safetensors")
PYTHON

sync "$folder"
python - "$folder" <<'PYTHON'
import re
import subprocess
import sys
import time
from pathlib import Path

folder = Path(sys.argv[1])
command = [sys.executable, "src/utils/weight_diff.py", "recover"]
command += ["--path_raw", folder / "base", "--path_diff", folder / "delta", "--path_tuned", folder / "tuned"]
started = time.time()
done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
seconds = time.time() - started
print(done.stderr.splitlines()[0] if done.returncode else "\n".join(done.stderr.splitlines()[-4:]), file=sys.stderr)
done.check_returncode()


def total(part):
    sizes = [file.stat().st_size for file in (folder / part).iterdir() if file.suffix in (".bin", ".safetensors")]
    return f"{sum(sizes) / 1e9:.2f} GB in {len(sizes)} shards", max(sizes)


for part in ("base", "delta", "tuned"):
    print(f"{part:<20} {total(part)[0]}")
largest = max(total("base")[1], total("delta")[1])
peak = float(re.search(r"peak memory ([\d.]+) GB", done.stderr)[1]) * 1e9
bound = 1.5 * largest + 1e9
print(f"largest input shard  {largest / 1e9:.2f} GB")
print(f"peak memory (RSS)    {peak / 1e9:.2f} GB, the bound is 1.5 x largest shard + 1 GB = {bound / 1e9:.2f} GB")
print(f"time                 {seconds:.0f} s")
sys.exit(peak > bound)
PYTHON
