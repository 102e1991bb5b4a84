"""The flag about how a card is told what to compute."""

from dataclasses import dataclass

from common.errors import UserError
from common.flags import option


@dataclass
class GraphFlags:
    """Of training."""

    cuda_graphs: bool | None = option(
        None,
        "start the kernels of a packed batch all at once, as a CUDA graph; default: for bases below 1e9 weights on one "
        "GPU, where the memory holds all activations twice",
    )


def check_graphs(args) -> None:
    """UserError for flags of `args` that do not go with --cuda_graphs."""
    if not args.cuda_graphs:
        return
    given = {
        "--packing False": args.packing is False,
        "--gradient_checkpointing": args.gradient_checkpointing,
        "--fsdp": args.fsdp,
        "--torch_compile": args.torch_compile,
        "--fp16": args.fp16,
        "--use_cpu": args.use_cpu,
    }
    for flag in (flag for flag, typed in given.items() if typed):
        raise UserError(f"--cuda_graphs and {flag} contradict each other; drop one of them")
