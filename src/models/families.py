"""The one table of model families: names, templates, LoRA targets, tokens. A new family is one new row.

Nothing else in the project asks which family a model is of.
"""

from dataclasses import dataclass

# Model types of transformers that keep a prefix in their cache as peft makes it; each is tested.
STOCK_PREFIX = (
    *("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "gemma2"),
    *("gemma3_text", "phi", "phi3", "stablelm", "olmo2", "granite", "glm", "glm4", "cohere", "smollm3"),
    *("starcoder2", "exaone4", "ernie4_5", "hunyuan_v1_dense", "gpt2", "gptj", "gpt_neo", "gpt_neox"),
    *("gpt_bigcode", "codegen", "bloom", "opt", "falcon"),
)
# Those whose layers hand bounds and window on to attention, and have no state; each is tested.
STOCK_PACKED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text", "glm", "glm4", "internlm3")
STOCK_CONTEXT = ("max_position_embeddings", "n_positions", "max_sequence_length")


@dataclass(frozen=True)
class Family:
    name: str  # what run.json says, and one of the values of --model_name
    templates: dict[str, str]  # every value of --model_name that means this family -> its prompt template
    model_types: tuple[str, ...]  # `model_type` of config.json; () = any causal model of transformers
    lora_targets: tuple[str, ...]  # module names; ("all-linear",) = every linear layer but the head
    tokenizer: str = "auto"  # how its text becomes ids: a reader of tokens.readers.READERS
    told_by: str | None = None  # a file that a checkpoint of these model_types must hold, else it is another family's
    told_by_config: tuple[str, tuple] | None = None  # the same of a key of config.json: its values
    package: str | None = None  # of src/models, imported to teach transformers the classes it lacks
    prompt_apart: bool = False  # prompt and answer are limited each by itself
    answer_only: bool = False  # a prompt sees itself whole, so that only the answer can be learnt
    refused: tuple[tuple[str, tuple, str], ...] = ()  # key of config.json, its values (() = any), what to say of them
    engines: tuple[str, ...] = ("batch",)  # that answer for it (decoding.engines.ENGINES)
    embeds: bool = True  # whether it can be given something learnt in place of tokens (peft's prompt tuning)
    draws: bool = True  # whether --do_sample works; False: the family generates by itself
    own_prefix: str | None = None  # name of the model's own P-Tuning encoder; None: peft's prefix tuning
    prefix_types: tuple[str, ...] = ()  # model types that keep a prefix in their cache as peft makes it; each is tested
    prefix_keeps: tuple[str, ...] = ()  # of them: gradient checkpointing would lose the prefix
    packed_types: tuple[str, ...] = ()  # model types whose layers hand bounds and window to attention, without a state
    laid_types: tuple[str, ...] = ()  # those of this project, whose layers ask the cache of the engine fast to attend
    kernel: bool = False  # of them: on a card that needs ops/decode_attention.py, for what is added to the scores
    context_keys: tuple[str, ...] = ()  # of config.json: positions that the base has or was trained on
    turned_types: tuple[str, ...] = ()  # model types that keep the weights of a layer as (in, out)
    scales_products: bool = False  # products are divided by √inputs, and an adapter's of 2023 only its base's


def _stock(name: str, *model_types: str, **more) -> Family:
    """A family whose model and tokenizer are read by transformers alone; without model types, any other base."""
    about = {
        "templates": {name: "alpaca"},
        "lora_targets": ("all-linear",),
        "engines": ("batch", "fast", "vllm"),
        "prefix_types": STOCK_PREFIX,
        "prefix_keeps": ("gpt2",),
        "packed_types": STOCK_PACKED,
        "context_keys": STOCK_CONTEXT,
        "turned_types": ("gpt2", "imagegpt", "openai-gpt"),
    }
    return Family(name=name, model_types=model_types, **(about | more))


FAMILIES = (
    Family(
        name="llama",
        templates={
            "llama": "alpaca",
            "alpaca": "alpaca",
            "vicuna": "vicuna",
            "zhixi": "alpaca",
            "chatflow": "alpaca",
            "chinese-llama": "alpaca",
        },
        model_types=("llama",),
        lora_targets=("q_proj", "v_proj"),
        tokenizer="llama",
        told_by="tokenizer.model",
        engines=("batch", "fast", "vllm"),
        prefix_types=("llama",),
        packed_types=("llama",),
        context_keys=("max_position_embeddings", "max_sequence_length"),
    ),
    Family(
        name="chatglm",
        templates={"chatglm": "alpaca"},
        model_types=("chatglm",),
        lora_targets=("query_key_value",),
        tokenizer="chatglm",
        package="models.chatglm",
        prompt_apart=True,
        answer_only=True,
        engines=("batch", "fast"),
        embeds=False,
        own_prefix="transformer.prefix_encoder",
        laid_types=("chatglm",),
        context_keys=("max_sequence_length",),
        refused=(
            (
                "padded_vocab_size",
                (),
                "is ChatGLM2 or ChatGLM3, or GLM-4 with code of its own: other models under the same name, whose code "
                "is for an older transformers; give chatglm-6b, or GLM-4 as transformers has it (glm-4-9b-chat-hf)",
            ),
            ("quantization_bit", (4, 8), "holds int4 or int8 weights; give chatglm-6b itself, and --bits 4 or 8"),
        ),
    ),
    Family(
        name="moss",
        templates={"moss": "moss"},
        model_types=("moss",),
        lora_targets=("qkv_proj",),
        tokenizer="moss",
        package="models.moss",
        engines=("batch", "fast"),
        prefix_types=("moss",),
        laid_types=("moss",),
        context_keys=("n_positions",),
        refused=(
            ("wbits", (4, 8), "holds GPTQ's 4-bit or 8-bit weights; give moss-moon-003-sft itself, and --bits 4 or 8"),
        ),
    ),
    Family(
        name="cpm-bee",
        templates={"cpm-bee": "cpm-bee"},
        model_types=("cpmbee",),
        lora_targets=("project_q", "project_v"),
        tokenizer="cpm-bee",
        package="models.cpmbee",
        answer_only=True,
        engines=("batch", "fast"),
        embeds=False,
        draws=False,
        laid_types=("cpmbee",),
        kernel=True,
        scales_products=True,
    ),
    _stock("qwen", "qwen2", "qwen3"),
    _stock("llama3", "llama", told_by_config=("vocab_size", (128256,))),
    _stock("glm4", "glm", "glm4"),
    _stock("mistral", "mistral"),
    _stock("gemma", "gemma", "gemma2", "gemma3_text"),
    _stock("internlm3", "internlm3"),
    _stock("minicpm3", "minicpm3"),
    # Three that transformers lacks: the checkpoint's own code runs, with --trust_remote_code.
    _stock("baichuan2", "baichuan"),
    _stock("internlm2", "internlm2"),
    _stock("minicpm", "minicpm"),
    _stock("auto"),
)
NAMES = tuple(name for family in FAMILIES for name in family.templates)
