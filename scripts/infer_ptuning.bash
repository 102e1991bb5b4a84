#!/usr/bin/env bash
# Predict with a checkpoint of P-Tuning v2: the newest one, or STEP=N; base and lengths as it was trained, or MODEL.
# DRY_RUN=1 prints the command.
# Further flags of src/inference_pt.py can follow.
set -euo pipefail
test_path=${TEST:-data/valid.json}
output_dir=${OUTPUT:-output_dir_pt}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -d .venv ] && export PATH="$PWD/.venv/bin:$PATH"
newest=$(find "$output_dir" -maxdepth 1 -name 'global_step-*' 2>/dev/null | sort -V | tail -n 1 || true)
[ -n "${STEP:-}" ] && newest=$output_dir/global_step-$STEP

command=(python src/inference_pt.py --test_path "$test_path" --device "${CARD:-0}" ${MODEL:+--ori_model_dir "$MODEL"}
    --model_dir "${newest:-$output_dir/global_step-}" "$@")

if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' "${command[@]}"
    echo
elif [ ! -d "$newest" ]; then
    echo "error: ${newest:-$output_dir}: no checkpoint global_step-N there yet; train first (OUTPUT=$output_dir bash" \
        "scripts/fine_ptuning.bash), or set OUTPUT=FOLDER" >&2
    exit 2
else
    "${command[@]}"
fi
