#!/usr/bin/env bash
# Measures graphs on generated Chinese predictions. TRIPLES=100000 for a try; FOLDER holds what is made, about 3 GB.
set -euo pipefail
source "$(dirname "$0")/setup.bash"

install requirements.txt
python scripts/bench_graph.py --triples "${TRIPLES:-1000000}" --folder "${FOLDER:-results/bench_graph}" "$@"
