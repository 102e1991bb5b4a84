#!/usr/bin/env bash
# Fine-tune Gemma-2-9B with LoRA over 8-bit weights.
set -euo pipefail
model_name=gemma
model_path=${MODEL:-models/gemma-2-9b-it}
template=alpaca
train_file=${TRAIN:-data/train.json}
val_set_size=1000
output_dir=${OUTPUT:-lora/gemma-2-9b-it-e10-r8}
batch_size=16
accumulation=8
epochs=10
learning_rate=1e-4
cutoff_len=512
lora_r=8
lora_alpha=16
bits=8
numbers=
max_memory_MB=24000
source "$(dirname "$0")/finetune.bash"
