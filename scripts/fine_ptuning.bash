#!/usr/bin/env bash
# Train ChatGLM-6B by P-Tuning v2 under DeepSpeed; the log is in $output_dir/train.log.
# CARDS=0,1 takes two cards. DRY_RUN=1 prints the command. Further flags of src/finetuning_pt.py can follow.
set -euo pipefail
model_path=${MODEL:-models/chatglm-6b}
train_path=${TRAIN:-data/train.json}
output_dir=${OUTPUT:-output_dir_pt}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -d .venv ] && export PATH="$PWD/.venv/bin:$PATH"

cards=${CARDS:-0}
if [[ ! "$cards" =~ ^[0-9]+(,[0-9]+)*$ ]]; then
    echo "error: CARDS=$cards: expected the numbers of GPUs, like 0 or 0,1" >&2
    exit 2
fi
start=(python)
if [[ "$cards" == *,* ]]; then
    start=(deepspeed --include "localhost:$cards" --master_port "${PORT:-29500}")
else
    export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-$cards}
fi
command=("${start[@]}" src/finetuning_pt.py
    --train_path "$train_path" --model_dir "$model_path" --num_train_epochs 20 --train_batch_size 2
    --gradient_accumulation_steps 1 --output_dir "$output_dir" --log_steps 10 --max_len 768 --max_src_len 450
    --pre_seq_len 16 --prefix_projection true "$@")

if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' "${command[@]}"
    echo
    exit 0
fi
source scripts/logged.bash
run_logged "$output_dir" "${command[@]}"
