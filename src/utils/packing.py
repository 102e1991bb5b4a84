"""The records of a batch one behind the other in one row, without padding: every token computed is a real one.

No record sees another: positions start anew at each, and attention is told where each one begins. On a card torch's
own fused attention takes these bounds; on a CPU transformers makes a mask of the positions.
"""

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from utils.batches import IGNORED

NAME = "packed"  # of the attention, among those of transformers
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")  # whose layers hand the bounds on to attention, and have no state


def why_unknown(config) -> str | None:
    """Why nothing is known of this model's attention that would keep records apart; None: it is plain."""
    if config.model_type not in MODEL_TYPES:
        return f"model_type {config.model_type} is not known to keep records apart"
    types = getattr(config, "layer_types", None) or ["full_attention"]
    if set(types) != {"full_attention"} or (config.model_type == "mistral" and config.sliding_window):
        return "its attention is windowed"
    return None


def why_not(config, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why batches of this model must be padded; None: they can be packed."""
    if reason := why_unknown(config):
        return reason
    if device.type == "cuda" and dtype == torch.float32:
        return "torch's fused attention needs 16-bit floats"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "torch's fused attention needs a card of Ampere's generation or newer"
    return None


def pack(rows: list[dict]) -> dict:
    """A batch of one row: ids (1, tokens), positions, bounds of the records, logits wanted where an answer is learnt.

    `shift_labels` are those of the wanted logits only, as in `batches.make_collator`; no record's last token predicts
    the next record's first.
    """
    ids, positions, labels, bounds = [], [], [], [0]
    for row in rows:
        length = len(row["input_ids"])
        ids += row["input_ids"]
        positions += range(length)
        labels += [*row["labels"][1:], IGNORED]
        bounds.append(bounds[-1] + length)
    ids, positions, labels = (torch.tensor([part]) for part in (ids, positions, labels))
    kept = (labels[0] != IGNORED).nonzero()[:, 0]
    starts = torch.tensor(bounds, dtype=torch.int32)
    longest = max(len(row["input_ids"]) for row in rows)
    return {
        "input_ids": ids,
        "position_ids": positions,
        "labels": labels[:, kept],
        "shift_labels": labels[:, kept],
        "logits_to_keep": kept,
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def use_packed_attention(model) -> None:
    """Give `model`, on a card, the attention that takes the bounds; batches with a mask are computed as before."""
    AttentionInterface.register(NAME, _forward)
    AttentionMaskInterface.register(NAME, _mask)
    model.set_attn_implementation(NAME)


def _mask(*arguments, attention_mask=None, **more):
    return None if attention_mask is None else sdpa_mask(*arguments, attention_mask=attention_mask, **more)


def _forward(module, query, key, value, attention_mask, scaling=None, cu_seq_lens_q=None, max_length_q=None, **more):
    """transformers' contract: (1, heads, tokens, size) in, (1, tokens, heads, size) and no weights out."""
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **more)
    if query.dtype == torch.float32:  # a rotary embedding of 32 bits under autocast
        query, key = query.to(value.dtype), key.to(value.dtype)
    # squeeze, not [0]: the gradient of an index is a copy into zeros.
    parts = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    return attend(*parts, cu_seq_lens_q, max_length_q, scaling)[None], None


def attend(query, key, value, starts, longest: int, scale: float | None):
    """Causal attention within records: (tokens, heads, size) each, `starts` (records + 1) their bounds in int32."""
    return torch.ops.aten._flash_attention_forward(
        query, key, value, starts, starts, longest, longest, 0.0, True, False, scale=scale
    )[0]
