"""Forward, loss and backward of packed batches as CUDA graphs: a small base waits for the CPU that starts its kernels.

A graph has fixed sizes (tokens.batches.pad_batch makes them few) and fixed places: of the batch, of every weight and
of every gradient. The first batch of a size is computed as usual, which loads kernels; the second is captured; later
ones are copied into its place, and one call starts all their kernels.
"""

import gc
from contextlib import suppress

import torch

from common.decisions import Decision, decide
from common.errors import UserError, reason_of, say

SMALL = 10**9  # weights of a base below which the CPU is what a step waits for
NO_CARD = "no GPU"
OWN_BACKWARD = ("lomo", "layerwise", "schedule_free")  # of --optim: those that do more than read gradients


def why_no_graphs(args, packed: bool, recompute: bool, device: torch.device) -> str | None:
    """Why the passes of a training cannot be captured; None: they can be.

    `args`: FinetuneArguments; `packed`, `recompute`: whether batches have no padding, and activations are computed
    twice.
    """
    bits, optimizer = args.precision.bits, getattr(args.optim, "value", args.optim)
    reasons = {
        NO_CARD: device.type != "cuda",
        "the model is split over GPUs": args.fsdp,
        f"{args.world_size} processes exchange gradients in every step": args.world_size > 1,
        "batches are padded, to many sizes": not packed,
        "gradient checkpointing is on": recompute,
        "torch.compile captures by itself": args.torch_compile,
        "with float16 the loss is scaled by what changes": args.fp16,
        f"weights of {bits} bits are unpacked on the way": bits != 16,
        f"--optim {optimizer} takes part in the passes": any(word in optimizer for word in OWN_BACKWARD),
        "--torch_empty_cache_steps frees memory on the way": args.torch_empty_cache_steps is not None,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def choose_graphs(asked: bool | None, reason: str | None, weights: int | None, fits: bool) -> Decision:
    """Whether passes are captured, said with its reason.

    `asked`: --cuda_graphs, None: left out; `reason`: of `why_no_graphs`; `weights`: of the base, None: not known;
    `fits`: whether the memory holds the activations twice, those of graphs beside those of the other passes.
    UserError where they were asked for and cannot be.
    """
    if asked and reason:
        raise UserError(f"--cuda_graphs: {reason}; drop it")
    if asked is not None:
        return decide("cuda graphs", asked, "as asked")
    if reason == NO_CARD:
        return Decision(False, reason)
    if reason is None and (weights is None or weights >= SMALL):
        reason = "the GPU, not the CPU, is what a large base waits for"
    if reason is None and not fits:
        reason = "the memory does not hold all activations twice"
    return decide("cuda graphs", reason is None, reason or "a small base waits for the CPU")


class Graphs:
    """The graphs of a training, by the sizes of their batches, and the gradients that all of them add to.

    `weights`: those that are trained; `capture`: what captures a pass, as `Capture` does.
    """

    def __init__(self, weights, capture=None):
        self.weights, self.capture = list(weights), capture or Capture()
        self.replays = {}  # sizes -> a captured pass, None: of one batch so far, which was computed as usual
        self.gradients = {}  # weight -> where graphs add its gradient
        self.works = True

    def learn(self, compute, batch: dict, count) -> torch.Tensor:
        """The loss of a batch, whose gradient is added to that of the weights.

        `compute(batch, count)` does this kernel by kernel; `count`: learnt tokens of the step, by which the loss is
        divided: where it is no tensor, it would be frozen in the graph.
        """
        if not self.works or not torch.is_tensor(count):
            return compute(batch, count)
        sizes = sizes_of(batch)
        if sizes not in self.replays:
            self.replays[sizes] = None
            loss = compute(batch, count)
            self.note_gradients()
            return loss
        self.attach_gradients()
        if self.replays[sizes] is None and (reason := self.why_not_captured(sizes, compute, batch, count)):
            self.give_up(reason)
            return compute(batch, count)
        return self.replays[sizes](batch, count)

    def why_not_captured(self, sizes: tuple, compute, batch: dict, count: torch.Tensor) -> str | None:
        """Capture the pass of a batch; what went wrong, None: nothing."""
        try:
            self.replays[sizes] = self.capture(compute, batch, count)
        except Exception as error:  # noqa: BLE001 - whatever a model's code, a kernel or the memory has against it
            return reason_of(error)
        if any(weight.grad is not self.gradients.get(weight) for weight in self.weights):  # a replay would not find it
            return "a weight has a gradient that it had not before"
        return None

    def note_gradients(self) -> None:
        """Make a place for the gradient of every weight that has one: what has none stays without."""
        for weight in self.weights:
            if weight.grad is not None and weight not in self.gradients:
                self.gradients[weight] = torch.zeros_like(weight, requires_grad=False)

    def attach_gradients(self) -> None:
        """Let every gradient lie where graphs add to it: what it was so far, or zero where it was set to None."""
        apart = [(weight, place) for weight, place in self.gradients.items() if weight.grad is not place]
        if empty := [place for weight, place in apart if weight.grad is None]:
            torch._foreach_zero_(empty)
        for weight, place in apart:
            if weight.grad is not None:
                place.copy_(weight.grad)
            weight.grad = place

    def give_up(self, reason: str) -> None:
        """Go on without graphs. Nothing was computed by what failed, so gradients are what they were before."""
        self.works = False
        self.replays.clear()
        for weight in self.weights:
            weight.grad = self.gradients.get(weight)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # of what the graphs held
        say("")  # ends the line of the progress bar
        say(f"cuda graphs: off from here on ({reason})")


def sizes_of(batch: dict) -> tuple:
    """What a graph cannot change in a batch: the shapes of its tensors, and its numbers."""
    return tuple((name, tuple(part.shape) if torch.is_tensor(part) else part) for name, part in batch.items())


class Capture:
    """Captures passes as CUDA graphs, which share their memory: never do two of them run at once."""

    pool = None

    def __call__(self, compute, batch: dict, count: torch.Tensor):
        """A function from a batch of these sizes, and its count, to its loss. Whatever fails here has computed nothing,
        and leaves the card as it was.
        """
        held = {name: part.clone() if torch.is_tensor(part) else part for name, part in batch.items()}
        divisor, graph, device = count.clone(), torch.cuda.CUDAGraph(), count.device
        # An older pass that still hangs together, in a circle, would tie gradients to its stream.
        gc.collect(2 if self.pool is None else 1)
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        stream, drawing = torch.cuda.current_stream(device), torch.cuda.default_generators[device.index]
        drawn = drawing.clone_state()
        try:
            # Other threads, that pin memory for the next batches, may go on.
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                loss = compute(held, divisor)
        except BaseException:
            # A capture that a forbidden call has broken cannot be ended as usual: what its end would have set back is
            # the stream, the generator of dropout, and where memory is taken from.
            torch.cuda.set_stream(stream)
            drawing.graphsafe_set_state(drawn)
            with suppress(RuntimeError):  # of the first: it was ended as usual
                torch._C._cuda_endAllocateToPool(device.index, self.pool)
                torch._C._cuda_releasePool(device.index, self.pool)
            raise

        def replay(batch: dict, count: torch.Tensor) -> torch.Tensor:
            for name, part in held.items():
                if torch.is_tensor(part):
                    part.copy_(batch[name])
            divisor.copy_(count)
            graph.replay()
            return loss.clone()

        return replay
