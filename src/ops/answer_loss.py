"""The loss of a large vocabulary, a piece of its positions at a time: their logits together can outweigh the model.

A frozen head gives the gradient of what goes into it at once, piece by piece (as liger-kernel's fused loss does), so
that no piece's logits outlive it; before a trained one each piece is computed a second time.
"""

from contextlib import contextmanager

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import MoeModelOutputWithPast

from common.labels import IGNORED

# Logits of a piece: those of 256 positions at 262,144 tokens; a card is fast with more.
PIECES = {"cpu": 2**26, "cuda": 2**28}


def piece_on(device: torch.device) -> int:
    """The most logits that are made at a time there."""
    return PIECES.get(device.type, PIECES["cuda"])


def head_is_apart(model) -> bool:
    """Whether a causal model's logits are its head's output as it is, and its loss `loss_function` of them.

    Not so where they are capped or scaled (Gemma 2, Granite, Cohere), or where a model has a loss of its own. Told by
    a call without the layers, so that a model on the device meta can be asked, too.
    """
    body, head, made, asked = model.base_model, model.get_output_embeddings(), [], []
    own = vars(body).get("forward")
    if body is model or head is None or not hasattr(head, "weight"):
        return False
    hidden = torch.zeros((1, 2, head.weight.shape[-1]), device=head.weight.device, dtype=head.weight.dtype)
    label = torch.zeros((1, 1), device=hidden.device, dtype=torch.long)
    more = {"labels": label, "shift_labels": label, "logits_to_keep": label[0], "use_cache": False}

    def ask(logits, labels, *args, shift_labels=None, **more):
        asked.append((logits, shift_labels))
        return logits.sum()

    try:
        body.forward = lambda *args, **more: MoeModelOutputWithPast(last_hidden_state=hidden)
        hook = head.register_forward_hook(lambda _, __, out: made.append(out))
        with torch.no_grad(), _hooked(hook), _loss(model, ask):
            model(input_ids=torch.zeros((1, 2), device=hidden.device, dtype=torch.long), **more)
    except Exception:  # noqa: BLE001 - a model of another kind: its forward may want anything
        return False
    finally:
        vars(body).pop("forward") if own is None else setattr(body, "forward", own)
    if len(made) != 1 or len(asked) != 1:
        return False
    (out,), ((logits, labels),) = made, asked
    return logits is out and labels is label


@contextmanager
def by_pieces(model, most: int | None = None):
    """Within it, a `model` whose head is apart computes its loss in pieces of at most `most` logits (None: as many as
    its device takes); the logits it gives beside it are empty. To be entered anew for each call of the model.
    """
    head, given = model.get_output_embeddings(), []

    def hold(_, args):
        given.append(args[0])
        hook.remove()  # the pieces go through the head themselves
        return (args[0][:, :0],)

    def loss_of(logits, labels, *args, num_items_in_batch=None, shift_labels=None, **more):
        labels = (labels if shift_labels is None else shift_labels).to(given[0].device)
        count = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        count = count.to(labels.device) if torch.is_tensor(count) else count
        size = (most or piece_on(labels.device)) // logits.shape[-1]
        return sum_loss(given.pop(), labels, head, max(1, size)) / count

    with _hooked(hook := head.register_forward_pre_hook(hold)), _loss(model, loss_of):
        yield


def sum_loss(hidden: torch.Tensor, labels: torch.Tensor, head: torch.nn.Module, size: int) -> torch.Tensor:
    """The sum, in 32 bits, of the cross entropy of what `head` makes of hidden (rows, positions, width).

    `labels` (rows, positions): the token to say, or IGNORED; `size`: positions of a piece.
    """
    several = len(labels) > 1
    hidden, labels = hidden.flatten(0, 1), labels.flatten()
    # Of padded rows: where another row's answer stands, nothing is learnt. A card would have to wait for their number.
    if several and (len(hidden) > size or hidden.device.type == "cpu"):
        learnt = labels != IGNORED
        hidden, labels = hidden[learnt], labels[learnt]
    if len(hidden) <= size:
        return _loss_of(head, hidden, labels)
    if not head(hidden[:1].detach()).requires_grad:
        return _FrozenHead.apply(hidden, labels, head, size)
    pieces = zip(hidden.split(size), labels.split(size), strict=True)
    return sum(checkpoint(_loss_of, head, *piece, use_reentrant=False) for piece in pieces)


def _loss_of(head, hidden, labels):
    return cross_entropy(head(hidden).float(), labels, ignore_index=IGNORED, reduction="sum")


class _FrozenHead(torch.autograd.Function):
    """`sum_loss` with its gradient computed at once, in the numbers of `hidden`."""

    @staticmethod
    def forward(ctx, hidden, labels, head, size):
        total, gradients = 0, []
        for part, wanted in zip(hidden.split(size), labels.split(size), strict=True):
            with torch.enable_grad():
                part = part.detach().requires_grad_()
                loss = _loss_of(head, part, wanted)
            gradients += torch.autograd.grad(loss, part) if ctx.needs_input_grad[0] else ()
            total = total + loss.detach()
        ctx.save_for_backward(torch.cat(gradients) if gradients else None)
        return total

    @staticmethod
    def backward(ctx, outer):
        (gradient,) = ctx.saved_tensors
        return (gradient * outer).to(gradient.dtype), None, None, None


@contextmanager
def _hooked(hook):
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _loss(model, function):
    """Within it, `function` stands for the loss of transformers."""
    before = vars(model).get("_loss_function")
    model.loss_function = function
    try:
        yield
    finally:
        vars(model).pop("_loss_function") if before is None else setattr(model, "loss_function", before)
