#!/usr/bin/env bash
# Speed and memory of prediction, side by side: LLaMA-7B's shape with random weights, a LoRA adapter, prompts of up to 512
# tokens, TOKENS new ones a record. Needs a card; MODEL=llama-tiny RECORDS=16 TOKENS=16 tries it without one.
# ROWS="batch-64 fast" runs some of the rows only. What each run printed stands in results/bench/*.log.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -d .venv ] && export PATH="$PWD/.venv/bin:$PATH"

MODEL=${MODEL:-llama-7b}
RECORDS=${RECORDS:-1024}
TOKENS=${TOKENS:-128}
BASE=models/random-$MODEL
OUT=results/bench
ROWS=${ROWS-one batch-16 batch-64 batch-128 fast fast-merged vllm}

declare -A more=(
    [one]="--engine batch --batch_size 1" # of 16 records, the original way
    [batch-16]="--engine batch --batch_size 16"
    [batch-64]="--engine batch --batch_size 64"
    [batch-128]="--engine batch --batch_size 128"
    [fast]="--engine fast"
    [fast-merged]="--engine fast --merge_lora"
    [vllm]="--engine vllm"
)
mkdir -p "$OUT"
[ -d "$BASE" ] || python scripts/random_base.py --model "$MODEL" --out "$BASE" --tokenizer tests/golden/llama/checkpoint
python scripts/bench_records.py --base "$BASE" --out "$OUT/ask.json" --records "$RECORDS" 2>/dev/null
head -n 16 "$OUT/ask.json" >"$OUT/ask-16.json"
[ -f "$OUT/$MODEL-adapter/run.json" ] || python src/test_finetune.py --do_train --model_name_or_path "$BASE" --max_steps 1 \
    --train_file "$OUT/ask-16.json" --output_dir "$OUT/$MODEL-adapter" --prompt_template_name plain --save_strategy no \
    >"$OUT/adapter.log" 2>&1

printf '%-12s %s\n' row "answers, memory"
for row in $ROWS; do
    ask=$OUT/ask.json
    [ "$row" = one ] && ask=$OUT/ask-16.json
    if [ "$row" = vllm ] && ! python -c "import vllm" 2>/dev/null; then
        printf '%-12s skipped: vllm is not installed (requirements-vllm.txt)\n' "$row"
        continue
    fi
    rm -f "$OUT/answers-$row.json"*
    # shellcheck disable=SC2086  # the flags of a row are words
    if python src/inference.py --lora_weights "$OUT/$MODEL-adapter" --input_file "$ask" --max_new_tokens "$TOKENS" \
        --max_repeats 0 --output_file "$OUT/answers-$row.json" ${more[$row]} >"$OUT/infer-$row.log" 2>&1; then
        printf '%-12s %s\n' "$row" "$(grep 'while predicting' "$OUT/infer-$row.log")"
    else
        printf '%-12s failed: %s\n' "$row" "$(tail -n 1 "$OUT/infer-$row.log")"
    fi
done
