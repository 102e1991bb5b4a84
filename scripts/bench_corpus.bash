#!/usr/bin/env bash
# A file of records in one process, and by Ray with one worker and with two, side by side: what Ray costs, and what the
# second worker gains. The files have to be equal where nothing is rounded (32 bits).
# On cards a worker has a card each; without one a core each: CPUS=1.
# RECORDS=200 BASE=models/… LORA=lora/… MORE="--max_new_tokens 32" ROWS="one ray-1 ray-2" bash scripts/bench_corpus.bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -d .venv ] && export PATH="$PWD/.venv/bin:$PATH"

RECORDS=${RECORDS:-2000}
BASE=${BASE:-tests/golden/llama/checkpoint}
LORA=${LORA-tests/golden/llama/adapter}
OUT=results/bench-corpus
cards=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true)
worker=(--shard_size 1000)
if [ "$cards" = 0 ]; then
    export OMP_NUM_THREADS=${CPUS:-1}
    worker+=(--cpus_per_worker "$OMP_NUM_THREADS")
fi
mkdir -p "$OUT"
python - "$RECORDS" data/sample/train.json >"$OUT/records.json" <<'END'
import json, sys

lines = open(sys.argv[2], encoding="utf-8").read().splitlines()
for number in range(int(sys.argv[1])):  # each text once
    record = json.loads(lines[number % len(lines)])
    text = f"{record['input']}（{number}）"
    print(json.dumps({"id": number, "instruction": record["instruction"], "input": text}, ensure_ascii=False))
END

printf '%-8s %10s %14s %12s %6s\n' row "s in all" "s predicting" records/s equal
for row in ${ROWS:-one ray-1 ray-2}; do
    file=$OUT/$row.json flags=()
    [[ $row = ray-* ]] && flags=(--ray "${RAY:-auto}" --workers "${row#ray-}" "${worker[@]}")
    rm -f "$file"*
    start=$(date +%s.%N)
    # shellcheck disable=SC2086 # MORE is flags
    python src/inference.py --model_name_or_path "$BASE" ${LORA:+--lora_weights "$LORA"} ${MORE:---max_new_tokens 32} \
        --input_file "$OUT/records.json" --output_file "$file" "${flags[@]}" >"$OUT/$row.log" 2>&1 ||
        { echo "failed, see $OUT/$row.log: $(tail -n 1 "$OUT/$row.log")" >&2 && exit 1; }
    seconds=$(python -c "import sys; print(f'{float(sys.argv[2]) - float(sys.argv[1]):.1f}')" "$start" "$(date +%s.%N)")
    equal=$(cmp -s "$file" "$OUT/one.json" && echo yes || echo no)
    python - "$row" "$seconds" "$equal" "$OUT/$row.run.json" <<'END'
import json, sys

row, seconds, equal, file = sys.argv[1:]
found = json.load(open(file))["results"]
pace = found["answers_per_second"]
print(f"{row:8} {seconds:>10} {found['answers'] / pace:14.1f} {pace:12.2f} {equal:>6}")
END
done
