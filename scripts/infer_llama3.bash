#!/usr/bin/env bash
# Predict the test set with Llama-3.1-8B-Instruct and its LoRA adapter.
set -euo pipefail
model_name=llama3
model_path=${MODEL:-models/llama-3.1-8b-instruct}
lora_weights=${LORA:-lora/llama-3.1-8b-instruct-e10-r8}
input_file=${INPUT:-data/valid.json}
output_file=${OUTPUT:-results/results_valid_llama-3.1-8b-instruct.json}
max_new_tokens=512
bits=8
numbers=
source "$(dirname "$0")/predict.bash"
