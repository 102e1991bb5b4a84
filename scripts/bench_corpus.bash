#!/usr/bin/env bash
# A file of records in one process, and by Ray with one worker and with two, side by side: what Ray costs, and what the
# second worker gains. On GPUs a worker has one each; without one a core each: CPUS=1.
# "s in all" is the whole command: start, weights, answers, the file. "s predicting" is from the first question to the
# last answer, start-up apart, and records/s is by it; "x one" is that pace as a multiple of the row `one`.
# "equal" counts the records whose answer is that of the row `one`: all of them in 32 bits, up to rounding in 16.
# Enough records for a minute a row keep the end of a shard, where a GPU runs empty, out of the figures.
# RECORDS=40000 BASE=models/… ADAPTER=lora/… MORE="--max_new_tokens 128" bash scripts/bench_corpus.bash
# ROWS="one ray-1 ray-2 ray-2-4000 torchrun-2": which rows; ray-WORKERS-SHARD is with another --shard_size than 1000.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -d .venv ] && export PATH="$PWD/.venv/bin:$PATH"

RECORDS=${RECORDS:-2000}
BASE=${BASE-tests/golden/llama/checkpoint}
ADAPTER=${ADAPTER-tests/golden/llama/adapter}
OUT=results/bench-corpus
gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true)
worker=()
if [ "$gpus" = 0 ]; then
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

printf '%-12s %9s %13s %10s %6s %12s\n' row "s in all" "s predicting" records/s "x one" equal
for row in ${ROWS:-one ray-1 ray-2}; do
    file=$OUT/$row.json flags=() start=(python)
    IFS=- read -r kind count shard <<<"$row"
    case $kind in
        ray) flags=(--ray "${RAY:-auto}" --workers "$count" --shard_size "${shard:-1000}" "${worker[@]}") ;;
        torchrun) start=(torchrun --nproc_per_node="$count" --master_port="${PORT:-1332}") ;;
    esac
    rm -f "$file"* "$OUT/$row.run.json"
    begin=$(date +%s.%N)
    # shellcheck disable=SC2086 # MORE is flags
    "${start[@]}" src/inference.py ${BASE:+--model_name_or_path "$BASE"} ${ADAPTER:+--lora_weights "$ADAPTER"} \
        ${MORE:---max_new_tokens 32} --input_file "$OUT/records.json" --output_file "$file" "${flags[@]}" \
        >"$OUT/$row.log" 2>&1 || { echo "failed, see $OUT/$row.log: $(tail -n 1 "$OUT/$row.log")" >&2 && exit 1; }
    python - "$OUT" "$row" "$begin" "$(date +%s.%N)" <<'END'
import json, sys
from pathlib import Path

folder, row, begin, end = Path(sys.argv[1]), sys.argv[2], *map(float, sys.argv[3:])


def read(name):
    """(records/s while predicting, answers by id) of a row; None where it was not run."""
    if not (folder / f"{name}.run.json").exists():
        return None
    found = json.loads((folder / f"{name}.run.json").read_text())["results"]
    lines = (folder / f"{name}.json").read_text().splitlines()
    return found["answers_per_second"], {one["id"]: one["output"] for one in map(json.loads, lines)}


(pace, answers), one = read(row), read("one")
gain, equal = "", ""
if one and one[1].keys() == answers.keys():
    gain = f"{pace / one[0]:.2f}"
    equal = f"{sum(one[1][name] == answer for name, answer in answers.items())}/{len(answers)}"
seconds = len(answers) / pace
print(f"{row:12} {end - begin:9.1f} {seconds:13.1f} {pace:10.2f} {gain:>6} {equal:>12}", flush=True)
END
done
