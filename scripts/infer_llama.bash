#!/usr/bin/env bash
# Predict the test set with LLaMA-7B and its LoRA adapter.
set -euo pipefail
model_name=llama
model_path=${MODEL:-models/llama-7b-hf}
lora_weights=${LORA:-lora/llama-7b-e10-r8}
input_file=${INPUT:-data/valid.json}
output_file=${OUTPUT:-results/results_valid_llama-7b.json}
max_new_tokens=512
bits=8
source "$(dirname "$0")/predict.bash"
