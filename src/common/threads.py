"""How the threads of a product wait for each other. OpenMP reads it once, when torch is loaded: call it before.

By itself each thread computes in circles while it waits, about 15 ms, which another program then lacks: beside a busy
one every product waits for a thread that has no core. Here a thread waits so for a short time and then sleeps
(docs/log.md has the figures; scripts/bench_busy.py measures them).
"""

import os

# What a person may have set by hand, which then stays: GNU's OpenMP (torch on Linux), and LLVM's and Intel's.
NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
SPINS = "1000"  # looks at a flag, some microseconds in all
BLOCK_TIME = "1ms"  # the same for LLVM's and Intel's


def bound_waiting() -> None:
    """Let waiting threads sleep soon, unless the environment says how they shall wait."""
    if not any(name in os.environ for name in NAMES):
        os.environ.update(GOMP_SPINCOUNT=SPINS, KMP_BLOCKTIME=BLOCK_TIME)
