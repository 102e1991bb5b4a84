"""How fast a run was, and what share of the hardware's arithmetic that is."""

import time

import torch
from transformers import TrainerCallback

WARM_UP = 2  # optimizer steps that are not timed: kernels are loaded, memory is allocated


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of one large matrix product here: what MFU is a share of."""
    side, times = (8192, 10) if device.type == "cuda" else (1024, 5)
    one = torch.randn(side, side, device=device).to(dtype)
    out = one @ one
    _wait(device)
    start = time.perf_counter()
    for _ in range(times):
        out = one @ one
    _wait(device)
    rate = times * 2 * side**3 / (time.perf_counter() - start)
    if device.type == "cuda":
        del one, out
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return rate


def _wait(device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def mfu(weights: int, tokens_a_second: float, rate: float, full: bool) -> float:
    """Model FLOPs utilisation of one card: (4, or with `full` 6) · weights · real tokens/s ÷ rate.

    A forward pass takes 2 operations a weight and token, the gradient of the activations 2, that of the weights 2
    (PaLM, arXiv 2204.02311, appendix B, without attention); frozen weights need none, padding counts as nothing.
    """
    return (6 if full else 4) * weights * tokens_a_second / rate


class Stopwatch(TrainerCallback):
    """Times the optimizer steps after the first two, without evaluation and checkpoints.

    `count()` gives the real tokens that this process has trained on.
    """

    def __init__(self, count, device: torch.device):
        self.count, self.device = count, device
        self.begun = None
        self.seconds, self.tokens, self.steps = 0.0, 0, 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.first = state.global_step + (WARM_UP if state.max_steps - state.global_step > 2 * WARM_UP else 0)

    def on_step_begin(self, args, state, control, **kwargs):
        if self.begun is None and state.global_step >= self.first:
            tokens = self.count()
            _wait(self.device)
            self.begun = time.perf_counter(), tokens, state.global_step

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_save or control.should_evaluate or state.global_step >= state.max_steps:
            self.stop(state)

    def on_epoch_end(self, args, state, control, **kwargs):
        self.stop(state)

    def stop(self, state) -> None:
        if self.begun is not None:
            _wait(self.device)
            start, tokens, step = self.begun
            self.seconds += time.perf_counter() - start
            self.tokens += self.count() - tokens
            self.steps += state.global_step - step
            self.begun = None


def measure(trainer, watch: Stopwatch, rate: float, sizes: dict, full: bool, records_a_step: int) -> dict:
    """Samples/s and real tokens/s of all processes, and the MFU of one, over the steps that the first one timed.

    `rate`: see `product_rate`; `sizes`: numbers of weights and trained weights. Every process must call it.
    """
    seconds = watch.seconds or float("inf")
    tokens = trainer.accelerator.reduce(torch.tensor(watch.tokens, device=trainer.args.device)).item() / seconds
    return {
        "samples_per_second": round(watch.steps * records_a_step / seconds, 2),
        "tokens_per_second": round(tokens, 1),
        "mfu": round(mfu(sizes["weights"], tokens / trainer.args.world_size, rate, full), 4),
        **sizes,
        "timed_steps": watch.steps,
    }


def say_pace(pace: dict, rate: float, full: bool) -> str:
    """What `measure` gave, in one line."""
    return (
        f"{pace['samples_per_second']} samples/s, {pace['tokens_per_second']:,.0f} real tokens/s, "
        f"MFU {pace['mfu']:.3f} = {6 if full else 4} x {pace['weights']:,} weights x tokens/s of a process "
        f"/ {rate / 1e12:.3g} TFLOP/s (a large matrix product here)"
    )
