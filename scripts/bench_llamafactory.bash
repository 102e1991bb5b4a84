#!/usr/bin/env bash
# Training speed beside LLaMA-Factory: the same base, records, LoRA and number of records a step, one after the other.
# LLAMAFACTORY names its command, where it is not on the PATH: docs/comparison.md installs it in an environment of its
# own. ROWS="ours lf" runs some rows only.
#   ours       src/test_finetune.py as the quickstart calls it
#   lf         LLaMA-Factory with its own defaults: padding, gradient checkpointing
#   lf-keep    the same, activations kept (no gradient checkpointing)
#   lf-packed  the same with neat_packing: rows of about as many tokens as a step of the others has
# Times the steps after the first two. What each run printed stands in results/llamafactory/*.log.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -d .venv ] && export PATH="$PWD/.venv/bin:$PATH"

LLAMAFACTORY=${LLAMAFACTORY:-llamafactory-cli}
BASE=${BASE:-models/smollm2-135m-instruct}
TRAIN=${TRAIN:-data/sample/train.json}
STEPS=${STEPS:-12}
ROWS=${ROWS:-ours lf lf-keep lf-packed}
PACKED=${PACKED:-1112} # tokens of a packed row: four records of the sample have 4 x 278
OUT=results/llamafactory

same=(--per_device_train_batch_size 4 --gradient_accumulation_steps 1 --max_steps "$STEPS" --learning_rate 2e-3
    --lr_scheduler_type linear --bf16 --logging_steps 1)
lf=(--stage sft --do_train --finetuning_type lora --lora_rank 32 --lora_alpha 64 --lora_dropout 0 --lora_target all
    --model_name_or_path "$BASE" --dataset_dir "$OUT" --dataset records --template empty --cutoff_len 640
    --save_strategy no --report_to none --overwrite_output_dir true "${same[@]}")
nvidia-smi --list-gpus >/dev/null 2>&1 || lf+=(--use_cpu true)
keep=(--disable_gradient_checkpointing true)
packed=("${keep[@]}" --neat_packing true --cutoff_len "$PACKED" --per_device_train_batch_size 1)

run_row() { # run_row ROW: trains it
    case $1 in
        ours) python src/test_finetune.py --do_train --model_name_or_path "$BASE" --train_file "$TRAIN" \
            --output_dir "$OUT/ours" --overwrite_output_dir --prompt_template_name plain --cutoff_len 640 --lora_r 32 \
            --lora_alpha 64 --lora_dropout 0 --lora_target_modules all-linear --save_strategy no "${same[@]}" ;;
        lf) "$LLAMAFACTORY" train --output_dir "$OUT/$1" "${lf[@]}" ;;
        lf-keep) "$LLAMAFACTORY" train --output_dir "$OUT/$1" "${lf[@]}" "${keep[@]}" ;;
        lf-packed) "$LLAMAFACTORY" train --output_dir "$OUT/$1" "${lf[@]}" "${packed[@]}" ;;
    esac
}

mkdir -p "$OUT"
cp "$TRAIN" "$OUT/records.json"
echo '{"records": {"file_name": "records.json"}}' >"$OUT/dataset_info.json"
printf '%-10s %10s %8s\n' row records/s s/step
for row in $ROWS; do
    rm -rf "${OUT:?}/$row"
    if run_row "$row" >"$OUT/$row.log" 2>&1; then
        python - "$row" "$OUT/$row" "$OUT/$row.log" "$TRAIN" <<'PRINT'
import json, re, sys
row, out, log, train = sys.argv[1:]
records = 4
if row == "ours":
    found = json.load(open(f"{out}/run.json"))["results"]
    pace = found["samples_per_second"]
else:
    steps = [json.loads(line) for line in open(f"{out}/trainer_log.jsonl")]
    at = {step["current_steps"]: step["elapsed_time"] for step in steps}
    clock = {n: sum(int(part) * 60**i for i, part in enumerate(reversed(t.split(":")))) for n, t in at.items()}
    if row == "lf-packed":
        rows = int(re.search(r"Num examples = ([\d,]+)", open(log).read())[1].replace(",", ""))
        records = sum(1 for _ in open(train)) / rows
    pace = records * (max(clock) - 2) / (clock[max(clock)] - clock[2])
print(f"{row:10} {pace:10.2f} {records / pace:8.2f}")
PRINT
    else
        printf '%-10s failed: %s\n' "$row" "$(tail -n 1 "$OUT/$row.log")"
    fi
done
