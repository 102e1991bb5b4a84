#!/usr/bin/env bash
# Set up, then ruff and every test, on two cores. Arguments go to pytest; TEST_PROCESSES=1 takes one core.
set -euo pipefail
source "$(dirname "$0")/setup.bash"

install requirements-test.txt
export HF_HUB_OFFLINE=1
# Every process has one thread: many tests start several processes.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
install_base smollm2 models/smollm2-135m-instruct
python src/utils/gguf_to_hf.py --base smollm2
ruff check .
ruff format --check .
python -m pytest -n "${TEST_PROCESSES:-2}" --dist worksteal "$@"
