#!/usr/bin/env bash
# Predict with a checkpoint of P-Tuning v2: by default the newest one. DRY_RUN=1 prints the command.
# Further flags of src/inference_pt.py can follow.
set -euo pipefail
model_path=${MODEL:-models/chatglm-6b}
test_path=${TEST:-data/valid.json}
output_dir=${OUTPUT:-output_dir_pt}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -d .venv ] && export PATH="$PWD/.venv/bin:$PATH"
newest=$(find "$output_dir" -maxdepth 1 -name 'global_step-*' 2>/dev/null | sort -V | tail -n 1 || true)

command=(python src/inference_pt.py --test_path "$test_path" --device "${CARD:-0}" --ori_model_dir "$model_path"
    --model_dir "${STEP:-${newest:-$output_dir/global_step-}}" --max_len 768 --max_src_len 450 "$@")

if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' "${command[@]}"
    echo
else
    "${command[@]}"
fi
