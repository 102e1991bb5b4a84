#!/usr/bin/env bash
# Predict the test set with Chinese-LLaMA-7B and its LoRA adapter.
set -euo pipefail
model_name=chinese-llama
model_path=${MODEL:-models/chinese-llama-7b}
lora_weights=${LORA:-lora/chinese-llama-7b-e10-r8}
input_file=${INPUT:-data/valid.json}
output_file=${OUTPUT:-results/results_valid_chinese-llama-7b.json}
max_new_tokens=512
bits=8
source "$(dirname "$0")/predict.bash"
