"""ChatGLM-6B (the first generation): a prefix language model with two-dimensional rotary positions.

A row is `context … [gMASK] <sop> answer … <eop>`. The context up to [gMASK] sees all of itself; from <sop> on, a token
sees what is before it. Parameters have the published names. Shapes: B rows, S tokens of this call, C tokens in the
cache, P learnt prefix positions, n heads of size d.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel, initialization
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from models.chatglm.configuration import ChatGLMConfig


def answer_start(input_ids: torch.Tensor, config: ChatGLMConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """(c, g) of each row of [B, S] ids: the index of its first <sop>, and of the mask that the answer stands for.

    g is the first [gMASK], else the first [MASK], else c - 1. A row without <sop> is not noticed here: that would wait
    for the card at every generated token.
    """
    start = (input_ids == config.bos_token_id).int().argmax(dim=1)
    masked = start - 1
    for number in (config.mask_token_id, config.gmask_token_id):  # the later one wins
        there = input_ids == number
        masked = torch.where(there.any(dim=1), there.int().argmax(dim=1), masked)
    return start, masked


def make_positions(input_ids: torch.Tensor, valid: torch.Tensor | None, config: ChatGLMConfig) -> torch.Tensor:
    """Positions [B, 2, S] of [B, S] ids; `valid` [B, S] is 0 on padding, which counts for nothing.

    Row 0 counts the context and stays at the mask's place in the answer; row 1 is 0 in the context, then 1, 2, 3, …
    """
    start, masked = answer_start(input_ids, config)
    index = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    pads = torch.zeros_like(start) if valid is None else (valid == 0).long().mul(index < start[:, None]).sum(dim=1)
    first = torch.where(index < start[:, None], index - pads[:, None], (masked - pads)[:, None])
    return torch.stack([first, index - start[:, None] + 1], dim=1).clamp(min=0)


def laid_positions(index: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Positions [1, 2, S] of tokens at `index` [1, S] of their records, whose contexts, [gMASK] the last of them, have
    `whole` [S] tokens.
    """
    return torch.stack([torch.where(index < whole, index, whole - 1), (index - whole + 1).clamp(min=0)], dim=1)


def make_visible(start: torch.Tensor | None, valid: torch.Tensor | None, past: int, size: int, device) -> torch.Tensor:
    """Which keys a query sees: bool [B or 1, 1, S, C + S], True = visible.

    `start` [B]: index of <sop> (None: the context lies in the cache); `valid` [B, C + S]: 0 on padding. A token always
    sees itself, so that no row is empty, not even one of padding.
    """
    keys = torch.arange(past + size, device=device)
    queries = keys[past:, None]
    visible = (keys <= queries)[None, None]
    if start is not None:
        visible = visible | (keys < start[:, None, None, None])
    if valid is not None:
        visible = visible & (valid != 0)[:, None, None, :] | (keys == queries)
    return visible


def rotary_tables(positions: torch.Tensor, head_size: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [B, S, 1, 1, d] for positions [B, 2, S]: the first half of d turns by row 0, the second by row 1.

    The sine of what is turned from behind to in front is negative.

    Frequencies 10000^(-2j/r), r = d/2, rounded to fp16 as in the published weights; with a dtype of 16 bits the angles
    are rounded to fp16 too, as the model was trained (reading the published code: its tables were half precision).
    """
    half = head_size // 2
    exponents = torch.arange(0, half, 2, dtype=torch.float32, device=positions.device) / half
    angles = positions.float()[..., None] * (10000.0**-exponents).half().float()  # [B, 2, S, d/4]
    if dtype != torch.float32:
        angles = angles.half().float()
    angles = angles.transpose(1, 2)  # [B, S, 2, d/4]
    cos, sin = angles.cos(), angles.sin()
    tables = torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)
    return tuple(table.flatten(2)[:, :, None, None].to(dtype) for table in tables)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn each half of the last dimension of x [B, S, n, …, d]: its first quarter pairs with its second, and so on."""
    return x * cos + x.unflatten(-1, (2, 2, -1)).flip(-2).flatten(-3) * sin


class Attention(nn.Module):
    def __init__(self, config: ChatGLMConfig, layer: int):
        super().__init__()
        self.layer, self.heads = layer, config.num_attention_heads
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x, tables, visible, cache, prefix):
        qkv = self.query_key_value(x).unflatten(-1, (self.heads, 3, -1))  # [B, S, n, 3, d]
        (q, k), v = rotate(qkv[..., :2, :], *tables).unbind(-2), qkv[..., 2, :]
        if visible is None:  # the cache knows
            return self.dense(cache.attend(q[0], k[0], v[0], self.layer).flatten(1)[None])
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        if prefix is not None:  # learnt keys are not rotated
            learnt = (part.to(k.dtype) for part in prefix)
            k, v = (torch.cat(parts, dim=2) for parts in zip(learnt, (k, v), strict=True))
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        # torch's kernels keep the softmax in 32 bits and scale before they sum, so 16 bits do not overflow.
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        return self.dense(out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: ChatGLMConfig):
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.inner_hidden_size)
        self.dense_4h_to_h = nn.Linear(config.inner_hidden_size, config.hidden_size)

    def forward(self, x):
        return self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(x), approximate="tanh"))


class ChatGLMLayer(GradientCheckpointingLayer):
    """The residual is the normalised input, times sqrt(2 · residual_layers)."""

    def __init__(self, config: ChatGLMConfig, layer: int):
        super().__init__()
        self.alpha = (2 * config.residual_layers) ** 0.5
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.attention = Attention(config, layer)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x, tables, visible, past_key_values=None, prefix=None):
        x = self.input_layernorm(x)
        x = self.alpha * x + self.attention(x, tables, visible, past_key_values, prefix)
        x = self.post_attention_layernorm(x)
        return self.alpha * x + self.mlp(x)


class PrefixEncoder(nn.Module):
    """P-Tuning v2: keys and values of P positions for every layer, [P, 2·L·h], looked up or made by a small network."""

    def __init__(self, config: ChatGLMConfig):
        super().__init__()
        size = 2 * config.num_layers * config.hidden_size
        if config.prefix_projection:
            self.embedding = nn.Embedding(config.pre_seq_len, config.hidden_size)
            self.trans = nn.Sequential(
                nn.Linear(config.hidden_size, config.hidden_size), nn.Tanh(), nn.Linear(config.hidden_size, size)
            )
        else:
            self.embedding = nn.Embedding(config.pre_seq_len, size)
            self.trans = nn.Identity()

    def forward(self):
        with torch.autocast(self.embedding.weight.device.type, enabled=False):  # float32, whatever the base is in
            return self.trans(self.embedding.weight)


class ChatGLMPreTrainedModel(PreTrainedModel):
    config_class = ChatGLMConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ChatGLMLayer"]  # noqa: RUF012 - transformers' own form, like the lists below
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq"]  # noqa: RUF012 - tables, in every published file
    _keep_in_fp32_modules = ["prefix_encoder"]  # noqa: RUF012
    _keep_in_fp32_modules_strict = ["prefix_encoder"]  # noqa: RUF012
    _supports_sdpa = True
    sees_prompts_whole = True

    def set_attn_implementation(self, *_, **__):
        """Nothing: attention is torch's, or that of a cache that has its own (`attend`)."""

    @torch.no_grad()
    def _init_weights(self, module):
        # torch's own first values of each layer, as in the published code; those of the prefix must be.
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            initialization.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                initialization.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.Embedding):
            # Of the word embeddings, which are the head too, such that the logits of a fresh model have size 1.
            words = module is self.get_input_embeddings()
            initialization.normal_(module.weight, std=self.config.hidden_size**-0.5 if words else 1.0)
        elif isinstance(module, nn.LayerNorm):
            initialization.ones_(module.weight)
            initialization.zeros_(module.bias)


class ChatGLMModel(ChatGLMPreTrainedModel):
    """The layers without the head."""

    def __init__(self, config: ChatGLMConfig):
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(ChatGLMLayer(config, layer) for layer in range(config.num_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        if config.pre_seq_len is not None:
            self.prefix_encoder = PrefixEncoder(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.word_embeddings

    def set_input_embeddings(self, new):
        self.word_embeddings = new

    @property
    def prefix_length(self) -> int:
        return self.config.pre_seq_len or 0

    def make_prefix(self, rows: int) -> list:
        """(keys, values) of each layer, [B, n, P, d]; a tenth of the numbers is dropped while training."""
        config = self.config
        x = self.prefix_encoder().to(self.word_embeddings.weight.dtype)
        x = x.view(config.pre_seq_len, 2 * config.num_layers, config.num_attention_heads, -1)
        x = F.dropout(x.expand(rows, -1, -1, -1, -1), 0.1, self.training)
        return list(x.permute(2, 0, 3, 1, 4).split(2))  # L pairs of [B, n, P, d]

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        about: torch.LongTensor | None = None,
        **_,
    ) -> BaseModelOutputWithPast:
        """`attention_mask` [B, C + S]: 1 for tokens, 0 for padding. `position_ids` [B, 2, S]: made from the ids when
        left out, which with a filled cache, or without `input_ids`, is a ValueError.

        With `about` [S, 1], the lengths of contexts, the tokens are of many records, one behind the other in one row;
        `position_ids` [1, S] are their places in these, and the cache knows what they see.
        """
        x = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        rows, size = x.shape[:2]
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None and not (self.training and self.gradient_checkpointing):
            past_key_values = DynamicCache()
        past = past_key_values.get_seq_length() if past_key_values is not None else 0  # the prefix is in it
        tokens_past = max(0, past - self.prefix_length)
        if attention_mask is not None and attention_mask.shape != (rows, tokens_past + size):
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, expected {(rows, tokens_past + size)}: 1 for "
                "tokens and 0 for padding, cached ones included and the learnt prefix not"
            )
        start = None
        if past == 0 and about is None:
            if input_ids is None:
                raise ValueError("inputs_embeds alone: <sop> and [gMASK] are found in input_ids; give them too")
            number = self.config.bos_token_id
            if not bool((input_ids == number).any(dim=1).all()):
                raise ValueError(f"a row of input_ids has no <sop> (id {number}): every prompt ends with it")
            start = answer_start(input_ids, self.config)[0]
        if about is not None:
            position_ids = laid_positions(position_ids, about[:, 0])
        if position_ids is None:
            if past:
                raise ValueError("position_ids are missing: with a filled cache they cannot be told from input_ids")
            position_ids = make_positions(input_ids, attention_mask, self.config)
        visible = None
        if about is None:
            visible = make_visible(start, attention_mask, tokens_past, size, x.device)
        prefix = [None] * self.config.num_layers
        if self.prefix_length and about is None:
            visible = F.pad(visible, (self.prefix_length, 0), value=True)
            if past == 0:
                prefix = self.make_prefix(rows)
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        tables = rotary_tables(position_ids, self.config.hidden_size // self.config.num_attention_heads, dtype)

        states = []
        for layer, learnt in zip(self.layers, prefix, strict=True):
            if output_hidden_states:
                states.append(x)
            x = layer(x, tables, visible, past_key_values=past_key_values, prefix=learnt)
        x = self.final_layernorm(x)
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=(*states, x) if output_hidden_states else None,
        )


class ChatGLMForConditionalGeneration(ChatGLMPreTrainedModel, GenerationMixin):
    """The model with its head, which is the embedding itself."""

    _tied_weights_keys = {"lm_head.weight": "transformer.word_embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: ChatGLMConfig):
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, new):
        self.lm_head = new

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        about: torch.LongTensor | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Logits [B, S, V] (of the last `logits_to_keep` positions, or of those positions) and, with labels [B, S],
        the mean cross entropy in float32 of predicting label t + 1 at position t; -100 is left out.
        """
        out = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            about=about,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(out.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=out.past_key_values, hidden_states=out.hidden_states
        )

    @torch.no_grad()
    def learnt_prefix(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Learnt keys and values of each layer, [P, n, d]; none without P-Tuning."""
        if not self.transformer.prefix_length:
            return []
        made = self.transformer.make_prefix(1)
        return [tuple(part[0].transpose(0, 1) for part in layer) for layer in made]

    def prepare_inputs_for_generation(
        self, input_ids, past_key_values=None, attention_mask=None, use_cache=True, **kwargs
    ):
        """The tokens that the cache lacks, with their positions: both rows follow from the whole sequence so far."""
        positions = make_positions(input_ids, attention_mask, self.config)
        cached = past_key_values.get_seq_length() if past_key_values is not None else 0
        done = max(0, cached - self.transformer.prefix_length)
        return {
            "input_ids": input_ids[:, done:],
            "position_ids": positions[:, :, done:],
            "past_key_values": past_key_values,
            "attention_mask": attention_mask,
            "use_cache": use_cache,
            "logits_to_keep": kwargs.get("logits_to_keep", 0),
            "output_hidden_states": kwargs.get("output_hidden_states"),
        }
