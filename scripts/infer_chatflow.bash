#!/usr/bin/env bash
# Predict the test set with ChatFlow-7B and its LoRA adapter.
set -euo pipefail
model_name=chatflow
model_path=${MODEL:-models/chatflow-7b}
lora_weights=${LORA:-lora/chatflow-7b-e10-r8}
input_file=${INPUT:-data/valid.json}
output_file=${OUTPUT:-results/results_valid_chatflow-7b.json}
max_new_tokens=512
bits=8
source "$(dirname "$0")/predict.bash"
