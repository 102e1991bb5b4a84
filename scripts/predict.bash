# Sourced by infer_*.bash, which set the variables: one prediction. DRY_RUN=1 prints the command; NPROC=2 shares the
# records between two processes, each on its GPU, that talk over PORT.
# Further flags of src/inference.py can follow the script's name.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -d .venv ] && export PATH="$PWD/.venv/bin:$PATH"

if [[ ! "${NPROC:-1}" =~ ^[1-9][0-9]*$ ]]; then
    echo "error: NPROC=$NPROC: expected how many processes are to predict, a whole number from 1 on" >&2
    exit 2
fi
start=(python)
[ "${NPROC:-1}" -gt 1 ] && start=(torchrun --nproc_per_node="$NPROC" --master_port="${PORT:-1331}")
command=("${start[@]}" src/inference.py --model_name_or_path "$model_path" --model_name "$model_name"
    --lora_weights "$lora_weights" --input_file "$input_file" --output_file "$output_file"
    --max_new_tokens "$max_new_tokens" ${numbers---fp16} --bits "$bits" "$@")

if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' "${command[@]}"
    echo
elif [ ! -d "$lora_weights" ]; then
    fine=scripts/fine_${0##*infer_}
    [ -f "$fine" ] || fine=scripts/fine_$model_name.bash
    echo "error: $lora_weights: no adapter there yet; train it first (OUTPUT=$lora_weights bash $fine), or set" \
        "LORA=FOLDER" >&2
    exit 2
else
    "${command[@]}"
fi
