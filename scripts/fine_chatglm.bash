#!/usr/bin/env bash
# Fine-tune ChatGLM-6B with LoRA over 16-bit weights.
set -euo pipefail
model_name=chatglm
model_path=${MODEL:-models/chatglm-6b}
template=alpaca
train_file=${TRAIN:-data/train.json}
val_set_size=1000
output_dir=${OUTPUT:-lora/chatglm-6b-e10-r8}
batch_size=4
accumulation=16
epochs=10
learning_rate=1e-4
cutoff_len=512
lora_r=8
lora_alpha=16
bits=16
max_memory_MB=24000
set -- --max_source_length 512 --max_target_length 256 "$@"
source "$(dirname "$0")/finetune.bash"
