#!/usr/bin/env bash
# Predict the test set with Gemma-2-9B and its LoRA adapter.
set -euo pipefail
model_name=gemma
model_path=${MODEL:-models/gemma-2-9b-it}
lora_weights=${LORA:-lora/gemma-2-9b-it-e10-r8}
input_file=${INPUT:-data/valid.json}
output_file=${OUTPUT:-results/results_valid_gemma-2-9b-it.json}
max_new_tokens=512
bits=8
numbers=
source "$(dirname "$0")/predict.bash"
