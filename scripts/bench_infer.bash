#!/usr/bin/env bash
# Speed and memory of prediction, side by side: LLaMA-7B's shape with random weights, a LoRA adapter, prompts of 120 to
# 512 tokens, answers of exactly 128 tokens. Rows `ragged-`: answers of 20 to 400 tokens; `alike-`: prompts with one of
# twelve instructions, not of their own; `cap-`: within 24 GB of the GPU; `-8bit`, `-4bit`: quantised;
# `-fp8`: products in 8-bit floats. Needs a GPU;
# `drafts`: the sample's right answers, replayed one at a time and many, with and without drafts; with
# ADAPTER=lora/… what that adapter answers instead (scripts/bench_drafts.py).
# MODEL=llama-tiny RECORDS=16 tries it without one. ROWS="batch-64 fast" runs some of the rows only. What each run
# printed stands in results/bench/*.log.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -d .venv ] && export PATH="$PWD/.venv/bin:$PATH"

MODEL=${MODEL:-llama-7b}
RECORDS=${RECORDS:-1024}
BASE=models/counting-$MODEL
OUT=results/bench
ROWS=${ROWS-one batch-16 batch-64 batch-128 fast fast-merged fast-fp8 fast-merged-fp8 fast-8bit fast-4bit vllm cap-batch-16-8bit cap-fast
    cap-fast-8bit cap-fast-4bit alike-fast ragged-batch-64 ragged-fast ragged-vllm two-cards drafts}

declare -A most=([one]=8 [batch-16]=128 [batch-64]=512 [batch-128]=512 [cap-batch-16-8bit]=64 [ragged-batch-64]=256) # records of the rows that are slow
gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true)
quit() { echo "failed, see $1: $(tail -n 1 "$1")" >&2 && exit 1; }
mkdir -p "$OUT"
printf '{"description": "", "prompt_input": "{instruction}\\n{input}", "prompt_no_input": "{instruction}", "response_split": "\\n"}' \
    >"$OUT/ask-template.json"
[ -d "$BASE" ] || { # under its name only when it is whole
    rm -rf "$BASE.new"
    python scripts/random_base.py --model "$MODEL" --counting --out "$BASE.new" --tokenizer tests/golden/llama/checkpoint
    mv "$BASE.new" "$BASE"
}
ask=$OUT/ask-$MODEL-$RECORDS ragged=$OUT/ragged-$MODEL-$RECORDS alike=$OUT/alike-$MODEL-$RECORDS
make() { # the records NAME.json, if they are not there: NAME, flags
    [ -f "$1.json" ] || python scripts/bench_records.py --base "$BASE" --out "$1.json" --records "$RECORDS" \
        --template "$OUT/ask-template.json" "${@:2}" 2>"$1.log" || quit "$1.log"
}
make "$ask" --answers 400 400
[ -f "$OUT/counting-$MODEL-adapter/run.json" ] || python src/test_finetune.py --do_train --model_name_or_path "$BASE" --max_steps 1 \
    --train_file data/sample/train.json --output_dir "$OUT/counting-$MODEL-adapter" --prompt_template_name "$OUT/ask-template.json" \
    --learning_rate 1e-5 --save_strategy no >"$OUT/adapter.log" 2>&1 || quit "$OUT/adapter.log"
limit=$(python scripts/bench_limit.py --base "$BASE")

printf '%-16s %10s %12s %9s %6s\n' row records/s "new tokens/s" "peak GiB" share
for row in $ROWS; do
    if [ "$row" = drafts ]; then
        if [ -n "${ADAPTER:-}" ]; then
            python scripts/bench_drafts.py -- --lora_weights "$ADAPTER" --merge_lora --max_new_tokens 256
        else
            python scripts/bench_drafts.py --replay --batch_sizes 1 --records 20 -- --model_name_or_path "$BASE" --max_new_tokens 256
            python scripts/bench_drafts.py --replay --batch_sizes 0 --repeat 10 -- --model_name_or_path "$BASE" --max_new_tokens 256
        fi
        continue
    fi
    records=$ask tokens=128 start=python engine=${row#ragged-}
    case $row in
        ragged-*) records=$ragged tokens=512 && make "$ragged" --answers 20 400 ;;
        alike-*) records=$alike && make "$alike" --answers 400 400 --alike 12 ;;
        two-cards) start="torchrun --nproc_per_node=2 --master_port=${PORT:-1331}" engine=fast ;;
    esac
    engine=${engine#alike-} engine=${engine#cap-} engine=${engine%-?bit} engine=${engine%-fp8}
    case $engine in
        one) flags="--engine batch --batch_size 1" ;; # the original way
        batch-*) flags="--engine batch --batch_size ${engine#batch-}" ;;
        fast-merged) flags="--engine fast --merge_lora" ;;
        *) flags="--engine $engine" ;;
    esac
    [[ $row = cap-* ]] && flags+=" --max_memory_MB 24000"
    case $row in *-fp8) flags+=" --fp8" ;; *-8bit) flags+=" --bits 8" ;; *-4bit) flags+=" --bits 4" ;; esac
    if [ "$engine" = vllm ] && ! python -c "import vllm" 2>/dev/null; then
        printf '%-16s skipped: vllm is not installed (requirements-vllm.txt)\n' "$row"
        continue
    elif [ "$row" = two-cards ] && [ "$gpus" -lt 2 ]; then
        printf '%-16s skipped: needs two GPUs, found %s\n' "$row" "$gpus"
        continue
    fi
    head -n "${most[$row]:-$RECORDS}" "$records.json" >"$OUT/asked-$row.json"
    rm -f "$OUT/answers-$row.json"*
    # shellcheck disable=SC2086  # the flags of a row, and the words that start it
    if $start src/inference.py --lora_weights "$OUT/counting-$MODEL-adapter" --input_file "$OUT/asked-$row.json" \
        --max_new_tokens $tokens --max_repeats 0 --output_file "$OUT/answers-$row.json" $flags >"$OUT/infer-$row.log" 2>&1; then
        python - "$row" "$OUT/infer-$row.log" "$records.log" "$limit" <<'PRINT'
import re, sys
row, log, made, limit = sys.argv[1], open(sys.argv[2]).read(), open(sys.argv[3]).read(), float(sys.argv[4])
records, new = (float(found) for found in re.search(r"([\d.]+) answers/s, ([\d.]+) new tokens/s", log).groups())
peak = re.search(r"peak ([\d.]+) GiB", log)
prompt = float(re.search(r"of (\d+) tokens", made)[1])
share = (records * prompt + new) / limit / (2 if row == "two-cards" else 1)
print(f"{row:16} {records:10.2f} {new:12,.0f} {peak[1] if peak else '-':>9} {share:6.3f}")
PRINT
    else
        printf '%-16s failed: %s\n' "$row" "$(tail -n 1 "$OUT/infer-$row.log")"
    fi
done
