#!/usr/bin/env bash
# The whole product in one command: set up, take the embedded base, fine-tune, predict, convert, score, draw the graph.
# A second run skips what is done; a half-finished one goes on. QUICKSTART_STEPS=4 shortens it for a try.
set -euo pipefail
source "$(dirname "$0")/setup.bash"

STEPS=${QUICKSTART_STEPS:-200}
NEW_TOKENS=$((STEPS < 100 ? 32 : 256)) # an adapter of a few steps does not know yet when to stop
BASE=models/smollm2-135m-instruct
DATA=data/sample
ADAPTER=lora/quickstart-$STEPS
RESULTS=results/quickstart-$STEPS

install requirements.txt
export HF_HUB_OFFLINE=1
start=$(date +%s)
python src/utils/gguf_to_hf.py --out "$BASE"

nvidia-smi --list-gpus >/dev/null 2>&1 && dtype=() || dtype=(--bf16) # a GPU chooses by itself
python src/test_finetune.py --do_train ${dtype[@]+"${dtype[@]}"} \
    --model_name_or_path "$BASE" --train_file "$DATA/train.json" --output_dir "$ADAPTER" \
    --prompt_template_name plain --cutoff_len 640 \
    --per_device_train_batch_size 4 --gradient_accumulation_steps 1 --max_steps "$STEPS" \
    --lora_r 32 --lora_alpha 64 --lora_dropout 0 --lora_target_modules all-linear \
    --learning_rate 2e-3 --warmup_steps 0.05 \
    --save_strategy steps --save_steps 50 --save_total_limit 1 --resume_from_checkpoint auto
if [ ! "$RESULTS/valid.json" -nt "$ADAPTER/run.json" ] || [ "$DATA/valid.json" -nt "$RESULTS/valid.json" ]; then
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
echo "adapter      $ADAPTER (run.json says how it was made, curve.png how it learnt)"
echo "predictions  $RESULTS/valid.json"
echo "submission   $RESULTS/submission.json"
echo "graph        $RESULTS/graph.html (open it in a browser)"
