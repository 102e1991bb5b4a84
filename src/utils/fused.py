"""liger-kernel, a package of fused kernels for cards: norms, rotations and feed-forwards pass through memory once."""

import importlib.util
import logging

# Only its layers: logits are computed at the answers alone, which is more than its fused losses would save.
KERNELS = {"fused_linear_cross_entropy": False, "cross_entropy": False}


def installed() -> bool:
    """Whether the package is there; it is told not to warn of other makers' kernels, which it looks for in vain."""
    logging.getLogger("liger_kernel.backends.registry").setLevel(logging.ERROR)
    return importlib.util.find_spec("liger_kernel") is not None
