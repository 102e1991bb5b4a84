"""CPM-Bee in plain torch: a decoder over a tree of text segments (openbmb/cpm-bee-1b, 2b, 5b, 10b).

Where the weights lie: the modules hold them as the checkpoints do, unscaled (about 1 in size), and `scaled` divides
each product by √inputs. So a checkpoint is loaded and saved without touching a number in any dtype, and layers of 8 or
4 bits can take the place of plain ones. What is beside a weight in the product is divided too: an adapter of peft on
such a layer has 1/√inputs of its usual strength unless its alpha is √inputs times as large. `lora_alphas` gives those
alphas for peft's `alpha_pattern`; then ΔW = alpha/r · B A in the effective weight, and merging changes nothing.
"""

import math
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel, initialization
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutput

from models.cpmbee.bias import bias_index, bias_tables, segment_relations
from models.cpmbee.configuration import CpmBeeConfig
from models.cpmbee.data import ANSWER, IGNORED
from models.cpmbee.generation import SUPPRESSED, generate
from models.cpmbee.tokenizer import unescape

RESIDUAL = 1.05  # the hidden state is divided by it after every addition
ROTARY_BASE = 10000
STRANGERS = 1  # the relation of tokens of different samples or spans


def scaled(linear: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """linear(inputs) / √(size of an input): (…, inputs) -> (…, outputs)."""
    return linear(inputs) / math.sqrt(inputs.shape[-1])


def lora_alphas(config: CpmBeeConfig, alpha: float, targets) -> dict[str, float]:
    """peft's `alpha_pattern` for adapters on the layers called `targets` (a string: every one): alpha · √inputs.

    With it an adapter has the strength that `alpha` has in other models (see above).
    """
    everywhere = isinstance(targets, str) or "all-linear" in targets
    targets = {target.split(".")[-1] for target in targets}  # peft keeps whole names where it found them itself
    inputs = dict.fromkeys(("project_q", "project_k", "project_v", "w_0", "w_1"), config.hidden_size)
    inputs |= {"attention_out": config.num_attention_heads * config.dim_head, "w_out": config.dim_ff}
    return {name: alpha * math.sqrt(size) for name, size in inputs.items() if everywhere or name in targets}


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, hidden):
        wide = hidden.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return wide.to(hidden.dtype) * self.weight


class Attention(nn.Module):
    def __init__(self, config: CpmBeeConfig, index: int):
        super().__init__()
        inner = config.num_attention_heads * config.dim_head
        self.project_q = nn.Linear(config.hidden_size, inner, bias=False)
        self.project_k = nn.Linear(config.hidden_size, inner, bias=False)
        self.project_v = nn.Linear(config.hidden_size, inner, bias=False)
        self.attention_out = nn.Linear(inner, config.hidden_size, bias=False)
        self.heads, self.index = config.num_attention_heads, index

    def forward(self, hidden, bias, past_key_values=None):
        projects = self.project_q, self.project_k, self.project_v
        query, key, value = (scaled(project, hidden).unflatten(-1, (self.heads, -1)) for project in projects)
        if hasattr(past_key_values, "attend"):  # a cache with an attention of its own
            attended = past_key_values.attend(query[0], key[0], value[0], self.index, bias)[None]
            return scaled(self.attention_out, attended.flatten(2))
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.index)
        # torch divides by √(size of a head) and keeps the softmax in float32 for every dtype.
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return scaled(self.attention_out, attended.transpose(1, 2).flatten(2))


class SelfAttentionBlock(nn.Module):
    def __init__(self, config: CpmBeeConfig, index: int):
        super().__init__()
        self.layernorm_before_attention = RMSNorm(config.hidden_size, config.eps)
        self.self_attention = Attention(config, index)

    def forward(self, hidden, bias, past_key_values=None):
        return self.self_attention(self.layernorm_before_attention(hidden), bias, past_key_values)


class GatedInput(nn.Module):
    def __init__(self, config: CpmBeeConfig):
        super().__init__()
        self.w_0 = nn.Linear(config.hidden_size, config.dim_ff, bias=False)
        self.w_1 = nn.Linear(config.hidden_size, config.dim_ff, bias=False)

    def forward(self, hidden):
        return functional.gelu(scaled(self.w_0, hidden)) * scaled(self.w_1, hidden)


class FeedForward(nn.Module):
    def __init__(self, config: CpmBeeConfig):
        super().__init__()
        self.w_in = GatedInput(config)
        self.w_out = nn.Linear(config.dim_ff, config.hidden_size, bias=False)

    def forward(self, hidden):
        return scaled(self.w_out, self.w_in(hidden))


class FeedForwardBlock(nn.Module):
    def __init__(self, config: CpmBeeConfig):
        super().__init__()
        self.layernorm_before_ffn = RMSNorm(config.hidden_size, config.eps)
        self.ffn = FeedForward(config)

    def forward(self, hidden):
        return self.ffn(self.layernorm_before_ffn(hidden))


class CpmBeeLayer(GradientCheckpointingLayer):
    """Attention and feed-forward, of which a pruned model lacks one or both. `index`: where the cache keeps it."""

    def __init__(self, config: CpmBeeConfig, index: int, has_attention: bool, has_ffn: bool):
        super().__init__()
        self.self_att = SelfAttentionBlock(config, index) if has_attention else None
        self.ffn = FeedForwardBlock(config) if has_ffn else None
        self.dropout = config.dropout_p

    def forward(self, hidden, bias, past_key_values=None):
        if self.self_att is not None:
            hidden = self._add(hidden, self.self_att(hidden, bias, past_key_values))
        return hidden if self.ffn is None else self._add(hidden, self.ffn(hidden))

    def _add(self, hidden, branch):
        return (hidden + functional.dropout(branch, self.dropout, self.training)) / RESIDUAL


class Encoder(nn.Module):
    def __init__(self, config: CpmBeeConfig):
        super().__init__()
        self.layers = nn.ModuleList(CpmBeeLayer(config, index, *kept) for index, kept in enumerate(config.kept()))
        self.output_layernorm = RMSNorm(config.hidden_size, config.eps)

    def forward(self, hidden, bias, past_key_values=None):
        for layer in self.layers:
            hidden = layer(hidden, bias, past_key_values=past_key_values)
        return self.output_layernorm(hidden)


class PositionBias(nn.Module):
    def __init__(self, config: CpmBeeConfig):
        super().__init__()
        rows = config.position_bias_num_buckets + config.position_bias_num_segment_buckets
        self.relative_attention_bias = nn.Parameter(torch.empty(rows, config.num_attention_heads))

    def forward(self, index, visible):
        """(batch, heads, queries, keys): the bias, and -inf where `visible` (batch, queries, keys) is false.

        A query that may see nothing is padding. It sees everything, for nobody reads what comes of it; -inf throughout
        would make it NaN.
        """
        visible = visible | ~visible.any(-1, keepdim=True)
        bias = functional.embedding(index, self.relative_attention_bias).permute(0, 3, 1, 2)
        return bias.masked_fill(~visible[:, None], -math.inf).contiguous()


class CpmBeeModel(nn.Module):
    """From token ids to hidden states."""

    def __init__(self, config: CpmBeeConfig):
        super().__init__()
        self.input_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_bias = PositionBias(config)
        self.encoder = Encoder(config)
        self.distance_scale = config.distance_scale

    def embed(self, ids, subs):
        """Embeddings (…, hidden) of tokens and of their numbers among like tokens: `<mask_1>` is `<mask>` turned by 1.

        The two halves of the width are turned as pairs, by sub · distance_scale · 10000^(-2j/width).
        """
        embedded = self.input_embedding(ids)
        width = embedded.shape[-1]
        embedded = embedded.float() / math.sqrt(width)
        exponent = torch.arange(0, width, 2, device=embedded.device, dtype=torch.float32) / width
        angle = subs.float()[..., None] * self.distance_scale * ROTARY_BASE**-exponent
        cosine, sine = angle.cos(), angle.sin()
        first, second = embedded.chunk(2, dim=-1)
        turned = torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
        return turned.to(self.input_embedding.weight.dtype)

    def forward(self, ids, subs, index, visible, past_key_values=None):
        """Hidden states (batch, queries, hidden) of tokens `ids`, `subs` (batch, queries).

        `index`, `visible` (batch, queries, keys): rows of the position bias, and which keys a query may look at. With
        a cache (`past_key_values`, of transformers) the keys are those in it, followed by the queries.
        """
        return self.encoder(self.embed(ids, subs), self.position_bias(index, visible), past_key_values)


class CpmBeeForCausalLM(PreTrainedModel):
    config_class = CpmBeeConfig
    base_model_prefix = "cpmbee"  # transformers adds it to the names in OpenBMB's own .pt files
    supports_gradient_checkpointing = True
    _no_split_modules = ("CpmBeeLayer",)
    _supports_sdpa = True
    sees_prompts_whole = True
    _tied_weights_keys = {"lm_head.weight": "cpmbee.input_embedding.weight"}  # noqa: RUF012 - transformers' own form

    def __init__(self, config: CpmBeeConfig):
        super().__init__(config)
        self.cpmbee = CpmBeeModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        """As transformers', and for a folder whose weights are one .pt file as OpenBMB gives them out."""
        folder = Path(pretrained_model_name_or_path or "")
        if pretrained_model_name_or_path is None or not (file := openbmb_file(folder)):
            return super().from_pretrained(pretrained_model_name_or_path, *args, config=config, **kwargs)
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        config = config or CpmBeeConfig.from_pretrained(folder)
        loaded = super().from_pretrained(None, *args, config=config, state_dict=state, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with what was found, where that is asked for
        model.name_or_path = str(folder)  # adapters write down what they were trained on
        return loaded

    def _init_weights(self, module):
        std = self.config.init_std
        if isinstance(module, (nn.Linear, nn.Embedding)):
            initialization.normal_(module.weight, std=std)
        elif isinstance(module, PositionBias):
            initialization.normal_(module.relative_attention_bias, std=std)
        elif isinstance(module, RMSNorm):
            initialization.ones_(module.weight)

    def tie_weights(self, missing_keys=None, recompute_mapping=True):
        """The head is the embedding, whatever a checkpoint keeps under the head's name."""
        if missing_keys is not None and "cpmbee.input_embedding.weight" not in missing_keys:
            missing_keys.add("lm_head.weight")
        super().tie_weights(missing_keys=missing_keys, recompute_mapping=recompute_mapping)

    def set_attn_implementation(self, *_, **__):
        """Nothing: attention is torch's, or that of a cache that has its own (`attend`)."""

    def get_input_embeddings(self):
        return self.cpmbee.input_embedding

    def set_input_embeddings(self, value):
        self.cpmbee.input_embedding = value

    def lora_alphas(self, alpha: float, targets) -> dict[str, float]:
        return lora_alphas(self.config, alpha, targets)

    @property
    def pair_bytes(self) -> int:
        """Bytes that the position bias takes for each pair of tokens: it, and a step towards it, in 16 bits."""
        return 2 * 2 * self.config.num_attention_heads

    @classmethod
    def can_generate(cls):  # transformers' own generate knows nothing of segments
        return False

    def prepare_inputs_for_generation(self, *_, **__):  # peft looks for it
        raise NotImplementedError("CPM-Bee answers structured data: call answer_trees(tokenizer, …)")

    def answer_trees(
        self, tokenizer, trees: list[dict], max_new_tokens: int, num_beams: int = 1, repetition_penalty: float = 1.0
    ) -> list[tuple[str, str, int]]:
        """Of each tree of texts its answer without markup, why it ended (eos or length), and how many tokens it took.

        See `generation.generate`.
        """
        made = generate(self, tokenizer, trees, max_new_tokens, num_beams, repetition_penalty)
        return [(unescape(one.data[ANSWER] or ""), one.finish_reason, one.tokens) for one in made]

    def logits(self, hidden, ext_table_ids, ext_table_sub):
        """(…, vocabulary + X) of hidden states (…, hidden); the X extra classes are the tokens of the ext table (X)."""
        words = scaled(self.lm_head, hidden)
        table = self.cpmbee.embed(ext_table_ids[None], ext_table_sub[None])[0]  # as a batch: so hooks expect it
        extra = functional.linear(hidden, table)
        return torch.cat((words, extra.to(words.dtype)), dim=-1)

    def forward(
        self,
        input_ids,
        input_id_sub=None,
        length=None,
        context=None,
        sample_ids=None,
        num_segments=None,
        segment=None,
        segment_rel_offset=None,
        segment_rel=None,
        span=None,
        labels=None,
        ext_table_ids=None,
        ext_table_sub=None,
        num_items_in_batch=None,
        return_dict=True,
        past_key_values=None,
        **unknown,
    ):
        """Logits of whole rows, or with `labels` the loss and the logits of the labelled positions alone.

        All (batch, length) but `length` (batch), `segment_rel` (batch, entries) and `ext_table_*` (X); see
        `data.collate`. `labels` stand at the position that predicts them (they are not shifted here), IGNORED
        elsewhere; the loss is the mean over the others, or their sum / `num_items_in_batch`. Logits: (batch, length,
        vocabulary + X), with labels (labelled positions, vocabulary + X).

        With `past_key_values`, a cache that has an attention of its own: see `_read`.
        """
        if past_key_values is not None:
            return self._read(input_ids[0], past_key_values, ext_table_ids, ext_table_sub, **unknown)
        given = sorted(name for name, value in unknown.items() if value is not None and value is not False)
        if given:
            raise TypeError(f"CPM-Bee has no use for {', '.join(given)}; its batches come from models.cpmbee.collate")
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        same_span = span[:, :, None] == span[:, None, :]
        same_sample = sample_ids[:, :, None] == sample_ids[:, None, :]
        relation = segment_relations(segment_rel, segment, num_segments, segment_rel_offset, segment)
        relation = torch.where(same_span & same_sample, relation, STRANGERS)
        index = bias_index(self.config, positions[None, :] - positions[:, None], relation)

        # Context sees all context of its span, predicted tokens see it and themselves up to where they stand.
        known, real = context.bool(), positions < length[:, None]
        visible = known[:, None, :] | (~known[:, :, None] & (positions[None, :] <= positions[:, None]))
        visible &= (sample_ids == 0)[:, :, None] | same_sample
        visible &= same_span & real[:, :, None] & real[:, None, :]

        if ext_table_ids is None:
            ext_table_ids = ext_table_sub = input_ids.new_zeros(0)
        hidden, loss = self.cpmbee(input_ids, input_id_sub, index, visible), None
        if labels is not None:  # the vocabulary is large: no logits but these
            hidden, labels = hidden[labels != IGNORED], labels[labels != IGNORED]
        logits = self.logits(hidden, ext_table_ids, ext_table_sub)
        if labels is not None:
            count = len(labels) if num_items_in_batch is None else num_items_in_batch
            loss = functional.cross_entropy(logits.float(), labels, reduction="sum") / count
        out = CausalLMOutput(loss=loss, logits=logits)
        return out if return_dict is not False else out.to_tuple()

    def _read(self, tokens, cache, ext_table_ids, ext_table_sub, relations, columns, about, logits_to_keep=None, **_):
        """Logits (1, tokens or those of `logits_to_keep`, vocabulary + X) of the tokens of many records, one behind the
        other, by what the cache keeps of them. An answer's token is a class, id or vocabulary + column of the ext
        table; a prompt's is that + (its segment + 1) · classes, and so a token tells its mark, 0 in an answer.

        `relations` (marks, marks): of a query's segment to a key's. `about` (tokens, 1 + columns): behind the first
        number, which of the classes `columns` a token's record does not name; they are suppressed.
        """
        words = self.config.vocab_size
        classes = words + len(ext_table_ids)
        marks, tokens = tokens // classes, tokens % classes
        column = (tokens - words).clamp(min=0)
        ids = torch.where(tokens < words, tokens, ext_table_ids[column])
        subs = torch.where(tokens < words, 0, ext_table_sub[column])
        cache.marks.index_copy_(0, cache.at, marks)
        table = self.cpmbee.position_bias.relative_attention_bias
        bias = (table, cache.marks, *bias_tables(self.config, relations))
        hidden = self.cpmbee.encoder(self.cpmbee.embed(ids[None], subs[None]), bias, cache)[0]
        if logits_to_keep is not None:
            hidden, about = hidden[logits_to_keep], about[logits_to_keep]
        logits = self.logits(hidden, ext_table_ids, ext_table_sub)
        named = logits.index_select(1, columns).masked_fill(about[:, 1:].bool(), SUPPRESSED)
        return CausalLMOutput(logits=logits.index_copy(1, columns, named)[None])


def openbmb_file(folder: Path) -> Path | None:
    """The one .pt file of a folder without weights in transformers' formats; None when there is none, or several."""
    if not folder.is_dir() or any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")):
        return None
    files = list(folder.glob("*.pt"))
    return files[0] if len(files) == 1 else None
