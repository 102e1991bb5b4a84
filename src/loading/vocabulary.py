"""Rows of embedding and head for tokens that a base was extended by."""

import torch

from loading.shape import Shape


def rows_for(pieces_before: dict[int, tuple[int, ...]]) -> int:
    """The least rows that hold these new ids; 0: there are none."""
    return max(pieces_before, default=-1) + 1


def resize(model, rows: int) -> None:
    """Embedding and head of `model`, which may be empty, of at least `rows` rows. What is in new ones means nothing."""
    if rows > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)


@torch.no_grad()
def grow(model, pieces_before: dict[int, tuple[int, ...]]) -> None:
    """Give new tokens (id -> ids of the pieces that it was before) the mean of their pieces' rows, at both ends."""
    if not pieces_before:
        return
    resize(model, rows_for(pieces_before))
    ends = [end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None]
    weights = [weight for end in ends for weight in (end.weight, getattr(end, "bias", None)) if weight is not None]
    for weight in {id(weight): weight for weight in weights}.values():  # a head may be the embedding
        means = [weight[list(pieces)].float().mean(0) for pieces in pieces_before.values()]
        weight[list(pieces_before)] = torch.stack(means).to(weight.dtype)


def extend_shape(shape: Shape | None, pieces_before: dict[int, tuple[int, ...]]) -> Shape | None:
    """The sizes of a base once it was extended, as if its head had weights of its own."""
    if shape is None or (more := rows_for(pieces_before) - shape.vocabulary) <= 0:
        return shape
    return shape._replace(other=shape.other + 2 * more * shape.hidden, vocabulary=shape.vocabulary + more)
