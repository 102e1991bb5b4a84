"""The records of a batch one behind the other in one row, without padding: every token computed is a real one.

No record sees another: positions start anew at each, and attention is told where each one begins. On a card torch's
own fused attention takes these bounds, and the window of a layer that sees only its last tokens; on a CPU transformers
makes a mask of the positions.
"""

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "packed"  # of the attention, among those of transformers
KNOWN_LAYERS = {"full_attention", "sliding_attention"}  # of config.json's layer_types


def why_unknown(config, known: tuple[str, ...]) -> str | None:
    """Why nothing is known of this model's attention that would keep records apart; None: it is plain or windowed.

    `known`: the model types whose layers hand the bounds and their window on to attention, and have no state.
    """
    if config.model_type not in known:
        return f"model_type {config.model_type} is not known to keep records apart"
    if unknown := set(getattr(config, "layer_types", None) or ()) - KNOWN_LAYERS:
        return f"it has layers of kind {', '.join(sorted(unknown))}"
    if getattr(config, "attn_logit_softcapping", None):
        return "its attention caps scores (attn_logit_softcapping), which torch's fused attention cannot"
    if getattr(config, "use_bidirectional_attention", None):
        return "its tokens see those behind them (use_bidirectional_attention)"
    return None


def why_not(config, known: tuple[str, ...], device: torch.device, dtype: torch.dtype) -> str | None:
    """Why batches of this model must be padded; None: they can be packed. `known`: see `why_unknown`."""
    if reason := why_unknown(config, known):
        return reason
    if device.type == "cuda" and dtype == torch.float32:
        return "torch's fused attention needs 16-bit floats"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "torch's fused attention needs a GPU of Ampere's generation or newer"
    return None


def use_packed_attention(model) -> None:
    """Give `model`, on a card, the attention that takes the bounds; batches with a mask are computed as before."""
    AttentionInterface.register(NAME, _forward)
    AttentionMaskInterface.register(NAME, _mask)
    model.set_attn_implementation(NAME)


def _mask(*arguments, attention_mask=None, **more):
    return None if attention_mask is None else sdpa_mask(*arguments, attention_mask=attention_mask, **more)


def _forward(
    module, query, key, value, mask, scaling=None, sliding_window=None, cu_seq_lens_q=None, max_length_q=None, **more
):
    """transformers' contract: (1, heads, tokens, size) in, (1, tokens, heads, size) and no weights out."""
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **more)
    if query.dtype == torch.float32:  # a rotary embedding of 32 bits under autocast
        query, key = query.to(value.dtype), key.to(value.dtype)
    # squeeze, not [0]: the gradient of an index is a copy into zeros.
    parts = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    return attend(*parts, cu_seq_lens_q, max_length_q, scaling, sliding_window)[None], None


def attend(query, key, value, starts, longest: int, scale: float | None, window: int | None = None):
    """Causal attention within records: (tokens, heads, size) each, `starts` (records + 1) their bounds in int32.

    `window`: tokens that each one sees, itself included; None: all before it.
    """
    more = {"scale": scale, "window_size_left": window and window - 1}
    return torch.ops.aten._flash_attention_forward(
        query, key, value, starts, starts, longest, longest, 0.0, True, False, **more
    )[0]
