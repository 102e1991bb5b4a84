#!/usr/bin/env bash
# Predict the test set with ZhiXi-13B and its LoRA adapter.
set -euo pipefail
model_name=zhixi
model_path=${MODEL:-models/zhixi-13b}
lora_weights=${LORA:-lora/zhixi-13b-e10-r8}
input_file=${INPUT:-data/valid.json}
output_file=${OUTPUT:-results/results_valid_zhixi-13b.json}
max_new_tokens=512
bits=8
source "$(dirname "$0")/predict.bash"
