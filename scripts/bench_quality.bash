#!/usr/bin/env bash
# What makes answers right more often: today's recipe, a better one, each flag alone, and what three adapters agree on.
#
#     BASE=models/gemma3-270m TRAIN=duie_train.json VALID=duie_valid.json RATE=3e-4 JOBS=8 bash scripts/bench_quality.bash
#
# Every row is trained for SEEDS and scored on VALID; choose settings without VALID, by scripts/sweep_rate.py. A row is
# a call of that script with a folder of its own, so that a stopped run goes on. ROWS="today tail" takes some of them.
set -euo pipefail
source "$(dirname "$0")/setup.bash"
install requirements.txt

BASE=${BASE:-models/gemma3-270m}
TRAIN=${TRAIN:-data/sample/train.json}
VALID=${VALID:-data/sample/valid_gold.json} # records with their answers
OUT=${OUT:-results/quality}
RATE=${RATE:-7e-4}
RANK=${RANK:-32}
BATCH=${BATCH:-4}
STEPS=${STEPS:-200}  # of the recipe today
LONGER=${LONGER:-267} # of the better one
SEEDS=${SEEDS:-1,2,3}
JOBS=${JOBS:-1}
ROWS=${ROWS:-today constrain constrain-text best shuffle batch4 tail votes}

row() { # row NAME STEPS FLAGS-OF-PREDICTION FLAGS-OF-TRAINING...
    [[ " $ROWS " == *" $1 "* ]] || return 0
    echo -e "\n## $1"
    python scripts/sweep_rate.py --model "$BASE" --train "$TRAIN" --valid "$VALID" --out "$OUT/$1" --rates "$RATE" \
        --ranks "$RANK" --steps "$2" --seeds "$SEEDS" --jobs "$JOBS" ${3:+--predict="$3"} \
        -- --per_device_train_batch_size "$BATCH" "${@:4}"
}

better=(--lr_scheduler_type cosine)
row today "$STEPS" ""
row constrain "$STEPS" "--constrain"
row constrain-text "$STEPS" "--constrain text"
row best "$LONGER" "--constrain" "${better[@]}"
row shuffle "$LONGER" "--constrain" "${better[@]}" --shuffle_schema --negative_relations 2
row batch4 "$LONGER" "--constrain" "${better[@]}" --schema_batch 4
row tail "$LONGER" "--constrain" "${better[@]}" --answer_order tail
row votes "$LONGER" "--constrain --votes 5" "${better[@]}" --shuffle_schema --negative_relations 2

# Three adapters, one of them tail first: what two of them say.
for seed in ${SEEDS//,/ }; do
    files=()
    for name in best shuffle tail; do
        for file in "$OUT/$name"/*-s"$seed"-*/valid.json; do
            [ ! -f "$file" ] || files+=("$file")
        done
    done
    if [ ${#files[@]} != 3 ]; then # some row was left out, or OUT has rows of several settings
        echo "seed $seed: no agreement of three adapters, for $OUT has ${#files[@]} predictions of best, shuffle and tail" >&2
        continue
    fi
    echo -e "\n## agreement of three adapters, seed $seed"
    python src/utils/vote.py --pred "${files[@]}" --min_votes 2 --tgt_path "$OUT/agreed-$seed.json"
    python src/utils/score.py --pred "$OUT/agreed-$seed.json" --gold "$OUT/best/valid.json" | head -2
done
