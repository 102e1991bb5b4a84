"""The sizes of a CPM-Bee checkpoint, as its config.json gives them."""

from transformers import PretrainedConfig


class CpmBeeConfig(PretrainedConfig):
    """Keys of config.json; the defaults are the 10b model's.

    `mask_modules`: for every layer a pair (attention pruned, feed-forward pruned), or None when the model is whole. A
    pruned part has no weights and lets the hidden state pass. `half` says how the file's numbers are stored, nothing
    more. `dropout_p` falls on what attention and feed-forward add to the hidden state; published models have 0.
    """

    model_type = "cpmbee"
    attribute_map = {"head_dim": "dim_head", "intermediate_size": "dim_ff"}  # noqa: RUF012 - transformers' own form

    vocab_size: int = 86583
    hidden_size: int = 4096
    num_attention_heads: int = 32
    dim_head: int = 128
    dim_ff: int = 10240
    num_hidden_layers: int = 48
    dropout_p: float | int = 0.0
    position_bias_num_buckets: int = 256
    position_bias_num_segment_buckets: int = 256
    position_bias_max_distance: int = 2048
    eps: float = 1e-6
    distance_scale: float | int = 16
    mask_modules: list | None = None
    half: bool = False
    init_std: float | int = 1.0
    use_cache: bool = True
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 6
    eos_token_id: int | None = 7

    def kept(self) -> list[tuple[bool, bool]]:
        """(has attention, has feed-forward) of every layer; ValueError when `mask_modules` is of another length."""
        masks = self.mask_modules or [(False, False)] * self.num_hidden_layers
        pairs = all(isinstance(mask, list | tuple) and len(mask) == 2 for mask in masks)
        if len(masks) != self.num_hidden_layers or not pairs:
            raise ValueError(
                f"mask_modules: expected {self.num_hidden_layers} pairs (num_hidden_layers), found {masks!r:.200}"
            )
        return [(not attention, not feed_forward) for attention, feed_forward in masks]
