#!/usr/bin/env bash
# Fine-tune CPM-Bee-10B with LoRA over 8-bit weights.
set -euo pipefail
model_name=cpm-bee
model_path=${MODEL:-models/cpm-bee-10b}
template=cpm-bee
train_file=${TRAIN:-data/train.json}
val_set_size=1000
output_dir=${OUTPUT:-lora/cpm-bee-10b-e10-r8}
batch_size=4
accumulation=16
epochs=10
learning_rate=1e-4
cutoff_len=512
lora_r=8
lora_alpha=16
bits=8
max_memory_MB=24000
source "$(dirname "$0")/finetune.bash"
