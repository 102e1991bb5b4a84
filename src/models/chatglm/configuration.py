"""config.json of ChatGLM-6B."""

from transformers import PreTrainedConfig


class ChatGLMConfig(PreTrainedConfig):
    """Sizes and special ids of a first-generation ChatGLM; the defaults are the released 6B's.

    `residual_layers` n sets the residual factor sqrt(2 n). It is 28 whatever `num_layers` says, as in the published
    code. `pre_seq_len` (P-Tuning v2): learnt keys and values in front of every layer's own, None for none;
    `prefix_projection`: a small network makes them.
    """

    model_type = "chatglm"
    attribute_map = {  # noqa: RUF012 - transformers' own form
        "num_hidden_layers": "num_layers",
        "intermediate_size": "inner_hidden_size",
        "max_position_embeddings": "max_sequence_length",
    }

    def __init__(
        self,
        vocab_size: int = 130528,
        hidden_size: int = 4096,
        inner_hidden_size: int = 16384,
        num_layers: int = 28,
        num_attention_heads: int = 32,
        max_sequence_length: int = 2048,
        layernorm_epsilon: float = 1e-5,
        position_encoding_2d: bool = True,
        residual_layers: int = 28,
        use_cache: bool = True,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        mask_token_id: int | None = None,
        gmask_token_id: int | None = None,
        pad_token_id: int | None = None,
        pre_seq_len: int | None = None,
        prefix_projection: bool = False,
        quantization_bit: int = 0,
        tie_word_embeddings: bool = True,
        **kwargs,
    ):
        if not position_encoding_2d:
            raise ValueError("position_encoding_2d false: no published ChatGLM-6B has it, and it is not supported")
        if hidden_size % (4 * num_attention_heads):
            raise ValueError(
                f"hidden_size {hidden_size} and num_attention_heads {num_attention_heads}: a head's size must be a "
                "multiple of 4 (two halves, rotated in pairs)"
            )
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.inner_hidden_size = inner_hidden_size
        self.num_layers = num_layers
        self.num_attention_heads = num_attention_heads
        self.max_sequence_length = max_sequence_length
        self.layernorm_epsilon = layernorm_epsilon
        self.position_encoding_2d = position_encoding_2d
        self.residual_layers = residual_layers
        self.use_cache = use_cache
        self.pre_seq_len = pre_seq_len
        self.prefix_projection = prefix_projection
        self.quantization_bit = quantization_bit
        # Files of March 2023 lack some of the ids; 20,000 ids of images precede the text's in their vocabulary.
        bos = bos_token_id if bos_token_id is not None else 150004 if vocab_size >= 150344 else 130004
        self.mask_token_id = bos - 4 if mask_token_id is None else mask_token_id
        self.gmask_token_id = bos - 3 if gmask_token_id is None else gmask_token_id
        super().__init__(
            bos_token_id=bos,
            eos_token_id=bos + 1 if eos_token_id is None else eos_token_id,
            pad_token_id=bos - 130001 if pad_token_id is None and bos > 130001 else pad_token_id,
            tie_word_embeddings=tie_word_embeddings,
            **kwargs,
        )
