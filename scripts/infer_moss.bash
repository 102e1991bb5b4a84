#!/usr/bin/env bash
# Predict the test set with MOSS and its LoRA adapter.
set -euo pipefail
model_name=moss
model_path=${MODEL:-models/moss-moon-003-sft}
lora_weights=${LORA:-lora/moss-moon-003-e10-r16}
input_file=${INPUT:-data/valid.json}
output_file=${OUTPUT:-results/results_valid_moss-moon-003.json}
max_new_tokens=512
bits=4
source "$(dirname "$0")/predict.bash"
