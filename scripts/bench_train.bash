#!/usr/bin/env bash
# Speed and memory of training, the original recipe and ours side by side: LLaMA-7B's shape with random weights, LoRA
# r 8 on q_proj and v_proj, rows of 120 to 512 tokens. Needs a GPU; MODEL=llama-tiny tries it without one.
# ROWS="ours two-cards" runs some of the rows only. What each run printed stands in results/bench/*.log.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -d .venv ] && export PATH="$PWD/.venv/bin:$PATH"

MODEL=${MODEL:-llama-7b}
STEPS=${STEPS:-8}
BASE=models/random-$MODEL
OUT=results/bench
ROWS=${ROWS:-original original-4bit original-16bit padded packed ours-16 ours ours-fp8 ours-8bit ours-4bit cap-8bit cap-16bit cap-16bit-16 two-cards}

plain="--packing False --use_liger_kernel False"
sixteen="--per_device_train_batch_size 16"
declare -A more=(
    [original]="--fp16 --bits 8 $plain --gradient_checkpointing True $sixteen"
    [original-4bit]="--fp16 --bits 4 $plain --gradient_checkpointing True $sixteen"
    [original-16bit]="--fp16 $plain --gradient_checkpointing True $sixteen"
    [padded]="$plain $sixteen"
    [packed]="--use_liger_kernel False $sixteen"
    [ours-16]="$sixteen"
    [ours]=""
    [ours-fp8]="--bf16 --fp8"
    [ours-8bit]="--bits 8"
    [ours-4bit]="--bits 4"
    [cap-8bit]="--bits 8 --max_memory_MB 24000 $sixteen"
    [cap-8bit-4]="--bits 8 --max_memory_MB 24000 --per_device_train_batch_size 4"
    [cap-16bit]="--max_memory_MB 24000"
    [cap-16bit-16]="--max_memory_MB 24000 $sixteen"
    [two-cards]="" # the records of a step of `ours`, shared by two
)
gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true)
mkdir -p "$OUT"
[ -d "$BASE" ] || python scripts/random_base.py --model "$MODEL" --out "$BASE" --tokenizer tests/golden/llama/checkpoint
[ -f "$OUT/train.json" ] || python scripts/bench_records.py --base "$BASE" --out "$OUT/train.json"

printf '%-15s %10s %14s %6s %9s\n' row samples/s "real tokens/s" MFU "peak GiB"
for row in $ROWS; do
    script=src/test_finetune.py accumulation=8 start=python
    case $row in original*) script=scripts/bench_original.py accumulation=1 ;; esac # as fast, and slow enough
    if [ "$row" = two-cards ]; then
        accumulation=4 start="torchrun --nproc_per_node=2 --master_port=${PORT:-1331}"
        if [ "$gpus" -lt 2 ]; then
            printf '%-15s skipped: needs two GPUs, found %s\n' "$row" "$gpus"
            continue
        fi
    fi
    # shellcheck disable=SC2086  # the flags of a row, and the words that start it
    if $start $script --do_train --model_name_or_path "$BASE" --train_file "$OUT/train.json" --output_dir "$OUT/$row" \
        --prompt_template_name plain --overwrite_output_dir --max_steps "$STEPS" --save_strategy no \
        --gradient_accumulation_steps $accumulation --logging_steps 1 ${more[$row]} >"$OUT/$row.log" 2>&1; then
        python - "$row" "$OUT/$row/run.json" <<'PRINT'
import json, sys
found = json.load(open(sys.argv[2]))["results"]
print("{:15} {samples_per_second:10.1f} {tokens_per_second:14,.0f} {mfu:6.3f} {:>9}".format(
    sys.argv[1], f'{found["peak_gib"] or 0:9.1f}', **found))
PRINT
    else
        printf '%-15s failed: %s\n' "$row" "$(tail -n 1 "$OUT/$row.log")"
    fi
done
