#!/usr/bin/env bash
# The losses of the first steps of a training with and without a flag, on the same records: how far they differ.
#
#     FLAG=--fp8 BASE=models/gemma3-270m STEPS=50 bash scripts/compare_losses.bash --learning_rate 5e-4
#
# Further flags go to both trainings. With a GPU FLAG=--fp8 tells what 8-bit floats cost; FLAG="--packing False"
# tries the script without one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -d .venv ] && export PATH="$PWD/.venv/bin:$PATH"

FLAG=${FLAG:---fp8}
BASE=${BASE:-models/gemma3-270m}
STEPS=${STEPS:-50}
TRAIN=${TRAIN:-data/sample/train.json}
OUT=${OUT:-results/losses}
mkdir -p "$OUT"
for row in without with; do
    flags=()
    [ "$row" = without ] || read -ra flags <<<"$FLAG"
    python src/test_finetune.py --do_train --model_name_or_path "$BASE" --train_file "$TRAIN" --output_dir "$OUT/$row" \
        --overwrite_output_dir --prompt_template_name plain --max_steps "$STEPS" --logging_steps 1 --save_strategy no \
        --per_device_train_batch_size 4 --gradient_accumulation_steps 1 --lora_dropout 0 \
        --lora_target_modules all-linear "$@" "${flags[@]}" >"$OUT/$row.log" 2>&1 ||
        { echo "failed, see $OUT/$row.log: $(tail -n 1 "$OUT/$row.log")" >&2 && exit 1; }
done
python - "$OUT" "$FLAG" <<'PRINT'
import json, sys

out, flag = sys.argv[1:]
lines = [[json.loads(line) for line in open(f"{out}/{row}/log.jsonl")] for row in ("without", "with")]
before, after = ([line["loss"] for line in part if "loss" in line] for part in lines)
apart = [abs(new - old) / old for old, new in zip(before, after, strict=True)]
print(f"{len(apart)} steps, {flag}: losses differ by {sum(apart) / len(apart):.2%} on average, {max(apart):.2%} at most; "
      f"mean loss {sum(before) / len(before):.4f} without, {sum(after) / len(after):.4f} with")
PRINT
