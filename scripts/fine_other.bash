#!/usr/bin/env bash
# Fine-tune a base of any other family with LoRA over 8-bit weights.
# MODEL_NAME is its --model_name (internlm3, minicpm3, …); flags such as --trust_remote_code can follow.
set -euo pipefail
model_name=${MODEL_NAME:-auto}
model_path=${MODEL:-models/my-base}
template=alpaca
train_file=${TRAIN:-data/train.json}
val_set_size=1000
output_dir=${OUTPUT:-lora/my-base-e10-r8}
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
