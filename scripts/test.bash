#!/usr/bin/env bash
# Set up, then ruff and every test. Arguments go to pytest.
set -euo pipefail
source "$(dirname "$0")/setup.bash"

install requirements-test.txt
export HF_HUB_OFFLINE=1
python src/utils/gguf_to_hf.py
ruff check .
ruff format --check .
python -m pytest "$@"
