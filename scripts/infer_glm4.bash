#!/usr/bin/env bash
# Predict the test set with GLM-4-9B-0414 and its LoRA adapter.
set -euo pipefail
model_name=glm4
model_path=${MODEL:-models/glm-4-9b-0414}
lora_weights=${LORA:-lora/glm-4-9b-0414-e10-r8}
input_file=${INPUT:-data/valid.json}
output_file=${OUTPUT:-results/results_valid_glm-4-9b-0414.json}
max_new_tokens=512
bits=8
numbers=
source "$(dirname "$0")/predict.bash"
