#!/usr/bin/env bash
# Predict the test set with ChatGLM-6B and its LoRA adapter.
set -euo pipefail
model_name=chatglm
model_path=${MODEL:-models/chatglm-6b}
lora_weights=${LORA:-lora/chatglm-6b-e10-r8}
input_file=${INPUT:-data/valid.json}
output_file=${OUTPUT:-results/results_valid_chatglm-6b.json}
max_new_tokens=256
bits=16
source "$(dirname "$0")/predict.bash"
