#!/usr/bin/env bash
# Predict the test set with Alpaca-13B and its LoRA adapter.
set -euo pipefail
model_name=alpaca
model_path=${MODEL:-models/alpaca-13b}
lora_weights=${LORA:-lora/alpaca-13b-e10-r8}
input_file=${INPUT:-data/valid.json}
output_file=${OUTPUT:-results/results_valid_alpaca-13b.json}
max_new_tokens=512
bits=8
source "$(dirname "$0")/predict.bash"
