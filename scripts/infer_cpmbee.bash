#!/usr/bin/env bash
# Predict the test set with CPM-Bee-10B and its LoRA adapter.
set -euo pipefail
model_name=cpm-bee
model_path=${MODEL:-models/cpm-bee-10b}
lora_weights=${LORA:-lora/cpm-bee-10b-e10-r8}
input_file=${INPUT:-data/valid.json}
output_file=${OUTPUT:-results/results_valid_cpm-bee-10b.json}
max_new_tokens=512
bits=8
source "$(dirname "$0")/predict.bash"
