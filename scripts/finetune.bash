# Sourced by fine_*.bash, which set the variables: one training run, its log in $output_dir/train.log.
# `numbers` may be empty: bfloat16 then, where the GPU has it. DRY_RUN=1 prints the command. Further flags of src/test_finetune.py can follow the script's name.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -d .venv ] && export PATH="$PWD/.venv/bin:$PATH"
cards=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true)
if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then cards=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c . || true); fi

processes=${NPROC:-$((cards > 1 ? cards : 1))}
if [[ ! "$processes" =~ ^[1-9][0-9]*$ ]]; then
    echo "error: NPROC=$processes: expected how many processes are to train, a whole number from 1 on" >&2
    exit 2
fi
start=(python)
[ "$processes" -gt 1 ] && start=(torchrun --nproc_per_node="$processes" --master_port="${PORT:-1331}")
command=("${start[@]}" src/test_finetune.py
    --do_train --do_eval
    --model_name_or_path "$model_path" --model_name "$model_name" --prompt_template_name "$template"
    --train_file "$train_file" --val_set_size "$val_set_size" --output_dir "$output_dir"
    --per_device_train_batch_size "$batch_size" --per_device_eval_batch_size "$batch_size"
    --gradient_accumulation_steps "$accumulation" --preprocessing_num_workers 8 --num_train_epochs "$epochs"
    --learning_rate "$learning_rate" --optim adamw_torch --cutoff_len "$cutoff_len"
    --eval_strategy epoch --save_strategy epoch --save_total_limit 10
    --lora_r "$lora_r" --lora_alpha "$lora_alpha" --lora_dropout 0.05
    --max_memory_MB "$max_memory_MB" ${numbers---fp16} --bits "$bits" "$@")

if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' "${command[@]}"
    echo
    exit 0
fi
if [ "$processes" -gt 1 ] && [ ! -d "$model_path" ]; then # or each process would say it, and torchrun after them
    echo "error: $model_path: no such folder; give the base's, MODEL=FOLDER" >&2
    exit 2
fi
source scripts/logged.bash
run_logged "$output_dir" "${command[@]}"
