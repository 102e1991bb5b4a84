#!/usr/bin/env bash
# Predict the test set with LLaMA-7B and an adapter, and convert the answers into a submission.
set -euo pipefail
model_name=llama
model_path=${MODEL:-models/llama-7b-hf}
lora_weights=${LORA:-lora/llama-7b-e3-r8}
input_file=${INPUT:-data/valid.json}
output_file=${OUTPUT:-result/output_llama_7b_e3_r8.json}
submission=${SUBMISSION:-result/result_llama_7b_e3_r8.json}
max_new_tokens=512
bits=8
source "$(dirname "$0")/predict.bash"

convert=(python src/utils/convert.py --pred_path "$output_file" --tgt_path "$submission")
if [ -n "${DRY_RUN:-}" ]; then
    echo "${convert[*]}"
else
    "${convert[@]}"
fi
