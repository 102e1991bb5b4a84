#!/usr/bin/env bash
# Predict the test set with a base of any other family and its LoRA adapter.
# MODEL_NAME is its --model_name (internlm3, minicpm3, …); flags such as --trust_remote_code can follow.
set -euo pipefail
model_name=${MODEL_NAME:-auto}
model_path=${MODEL:-models/my-base}
lora_weights=${LORA:-lora/my-base-e10-r8}
input_file=${INPUT:-data/valid.json}
output_file=${OUTPUT:-results/results_valid_my-base.json}
max_new_tokens=512
bits=8
numbers=
source "$(dirname "$0")/predict.bash"
