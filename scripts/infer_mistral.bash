#!/usr/bin/env bash
# Predict the test set with Mistral-7B-Instruct v0.3 and its LoRA adapter.
set -euo pipefail
model_name=mistral
model_path=${MODEL:-models/mistral-7b-instruct-v0.3}
lora_weights=${LORA:-lora/mistral-7b-instruct-v0.3-e10-r8}
input_file=${INPUT:-data/valid.json}
output_file=${OUTPUT:-results/results_valid_mistral-7b-instruct-v0.3.json}
max_new_tokens=512
bits=8
numbers=
source "$(dirname "$0")/predict.bash"
