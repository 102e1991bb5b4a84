#!/usr/bin/env bash
# Predict the test set with Qwen3-8B and its LoRA adapter.
set -euo pipefail
model_name=qwen
model_path=${MODEL:-models/qwen3-8b}
lora_weights=${LORA:-lora/qwen3-8b-e10-r8}
input_file=${INPUT:-data/valid.json}
output_file=${OUTPUT:-results/results_valid_qwen3-8b.json}
max_new_tokens=512
bits=8
numbers=
source "$(dirname "$0")/predict.bash"
