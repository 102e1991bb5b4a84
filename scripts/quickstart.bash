#!/usr/bin/env bash
# The whole product in one command: set up, take the embedded base, fine-tune, predict, convert, score.
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

finished() { grep -q '"status": "finished"' "$ADAPTER/run.json" 2>/dev/null; }
if ! finished; then
    python src/test_finetune.py --do_train --bf16 \
        --model_name_or_path "$BASE" --train_file "$DATA/train.json" --output_dir "$ADAPTER" \
        --prompt_template_name plain --cutoff_len 640 \
        --per_device_train_batch_size 4 --gradient_accumulation_steps 1 --max_steps "$STEPS" \
        --lora_r 32 --lora_alpha 64 --lora_dropout 0 --lora_target_modules all-linear \
        --learning_rate 2e-3 --warmup_steps 0.05 \
        --save_strategy steps --save_steps 50 --save_total_limit 1 --resume_from_checkpoint auto
fi
if [ ! "$RESULTS/valid.json" -nt "$ADAPTER/run.json" ]; then
    python src/inference.py --bf16 --merge_lora --max_new_tokens "$NEW_TOKENS" \
        --lora_weights "$ADAPTER" --input_file "$DATA/valid.json" --output_file "$RESULTS/valid.json"
fi
python src/utils/convert.py --pred_path "$RESULTS/valid.json" --tgt_path "$RESULTS/submission.json"
echo
python src/utils/score.py --pred "$RESULTS/submission.json" --gold "$DATA/valid_gold.json" --json "$RESULTS/score.json" --show 3
echo "time         $(($(date +%s) - start)) s since the installation; the adapter was trained for $STEPS steps"
echo "adapter      $ADAPTER (run.json says how it was made, curve.png how it learnt)"
echo "predictions  $RESULTS/valid.json"
echo "submission   $RESULTS/submission.json"
