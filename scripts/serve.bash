#!/usr/bin/env bash
# The page for one model: set up, and train the quickstart's adapter first where none is there. Arguments go to
# src/serve.py (--port, --host with --token, --lora_weights …).
set -euo pipefail
source "$(dirname "$0")/setup.bash"

case " $* " in
*" --lora_weights"* | *" --model_name_or_path"* | *" --ptuning_dir"* | *" --help "*) chosen=() ;;
*)
    newest() { # the newest adapter of the quickstart that was finished
        local file
        for file in $(ls -t lora/quickstart*/run.json 2>/dev/null); do
            grep -qs '"status": "finished"' "$file" && dirname "$file" && return
        done
    }
    adapter=$(newest || true)
    if [ -z "$adapter" ]; then
        echo "there is no adapter in lora/quickstart*: the quickstart trains one first" >&2
        bash scripts/quickstart.bash
        adapter=$(newest)
    fi
    chosen=(--lora_weights "$adapter" --merge_lora)
    ;;
esac
install requirements.txt
install requirements-web.txt
export HF_HUB_OFFLINE=1
exec python src/serve.py ${chosen[@]+"${chosen[@]}"} "$@"
