#!/usr/bin/env bash
# Speed and memory of prediction with the shapes of ChatGLM-6B, MOSS-16B and CPM-Bee-10B, random weights: the 108 records
# of data/sample/valid.json, 128 new tokens each, the engines `fast` and `batch` side by side. Rows `-8bit`, `-4bit`:
# quantised; `cap-`: within 24 GB of the GPU. Needs a GPU; MODELS="chatglm-tiny moss-tiny cpmbee-tiny" RECORDS=16 tries
# it without one. ROWS="batch fast" runs some of the rows only. What each run printed stands in results/bench/*.log.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -d .venv ] && export PATH="$PWD/.venv/bin:$PATH"

MODELS=${MODELS-chatglm-6b moss-16b cpmbee-10b}
ROWS=${ROWS-batch fast batch-8bit fast-8bit cap-fast-8bit batch-4bit fast-4bit cap-fast-4bit} # 4 bits: of MOSS alone
RECORDS=${RECORDS:-108}
TOKENS=${TOKENS:-128}
OUT=results/bench
declare -A tokenizers=([chatglm]=$OUT/ice-text [moss]=tests/golden/moss [cpmbee]=tests/golden/cpmbee)
mkdir -p "$OUT/ice-text"
cp tests/golden/chatglm/{ice_text.model,base/tokenizer_config.json} "$OUT/ice-text"
head -n "$RECORDS" data/sample/valid.json >"$OUT/sample-$RECORDS.json"

printf '%-12s %-14s %10s %12s %9s\n' model row records/s "new tokens/s" "peak GiB"
for model in $MODELS; do
    kind=${model%-*} base=models/random-$model
    [ -d "$base" ] || { # under its name only when it is whole
        rm -rf "$base.new"
        python scripts/random_base.py --model "$model" --out "$base.new" --tokenizer "${tokenizers[$kind]}" \
            >"$OUT/base-$model.log" 2>&1 || { tail -n 1 "$OUT/base-$model.log" >&2 && exit 1; }
        mv "$base.new" "$base"
    }
    for row in $ROWS; do
        [[ $row = *-4bit && $kind != moss ]] && continue
        name=${row#cap-} flags="--max_new_tokens $TOKENS --max_repeats 0"
        flags+=" --engine ${name%-?bit}"
        [[ $row = cap-* ]] && flags+=" --max_memory_MB 24000"
        case $row in *-8bit) flags+=" --bits 8" ;; *-4bit) flags+=" --bits 4" ;; esac
        log=$OUT/infer-$model-$row.log answers=$OUT/answers-$model-$row.json
        rm -f "$answers"*
        # shellcheck disable=SC2086  # the flags of a row
        if python src/inference.py --model_name_or_path "$base" --input_file "$OUT/sample-$RECORDS.json" \
            --output_file "$answers" $flags >"$log" 2>&1; then
            python - "$model" "$row" "$log" <<'PRINT'
import re, sys
model, row, log = sys.argv[1], sys.argv[2], open(sys.argv[3]).read()
records, new = (float(found) for found in re.search(r"([\d.]+) answers/s, ([\d.]+) new tokens/s", log).groups())
peak = re.search(r"peak ([\d.]+) GiB", log)
print(f"{model:12} {row:14} {records:10.2f} {new:12,.0f} {peak[1] if peak else '-':>9}")
PRINT
        else
            printf '%-12s %-14s failed: %s\n' "$model" "$row" "$(tail -n 1 "$log")"
        fi
    done
done
