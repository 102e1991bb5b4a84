# Sourced by infer_*.bash, which set the variables: one prediction. DRY_RUN=1 prints the command.
# Further flags of src/inference.py can follow the script's name.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -d .venv ] && export PATH="$PWD/.venv/bin:$PATH"

command=(python src/inference.py --model_name_or_path "$model_path" --model_name "$model_name"
    --lora_weights "$lora_weights" --input_file "$input_file" --output_file "$output_file"
    --max_new_tokens "$max_new_tokens" --fp16 --bits "$bits" "$@")

if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' "${command[@]}"
    echo
else
    "${command[@]}"
fi
