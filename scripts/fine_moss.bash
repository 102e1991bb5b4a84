#!/usr/bin/env bash
# Fine-tune MOSS (moss-moon-003-sft) with QLoRA: LoRA over 4-bit weights.
set -euo pipefail
model_name=moss
model_path=${MODEL:-models/moss-moon-003-sft}
template=moss
train_file=${TRAIN:-data/train.json}
val_set_size=1000
output_dir=${OUTPUT:-lora/moss-moon-003-e10-r16}
batch_size=4
accumulation=16
epochs=10
learning_rate=2e-4
cutoff_len=1024
lora_r=16
lora_alpha=64
bits=4
max_memory_MB=24000
set -- --optim paged_adamw_32bit --max_grad_norm 0.3 --lr_scheduler_type constant "$@"
source "$(dirname "$0")/finetune.bash"
