"""The flags about what a training of an adapter starts from: an older adapter, and tokens that the base lacks."""

from dataclasses import dataclass

from common.errors import UserError
from common.flags import option


@dataclass
class StartFlags:
    """Of training."""

    init_lora: str | None = option(
        None, "folder of a LoRA adapter that is trained on; rank, scale and layers are its own"
    )
    modules_to_save: str | None = option(
        None,
        "modules that are trained whole beside the adapter and saved with it, e.g. embed_tokens,lm_head; default: "
        "none, or with --extend_vocab embedding and head",
    )
    extend_vocab: str | None = option(None, "file of tokens, one a line, that tokenizer and embedding are extended by")


def check_start(lora, args) -> None:
    """UserError for flags of `lora` (StartFlags) that do not go together, or not with those of `args`."""
    if lora.init_lora and lora.extend_vocab:
        raise UserError(
            "--init_lora and --extend_vocab contradict each other: the adapter's embedding has no rows for these "
            "tokens. Merge it first (weight_diff.py merge), and extend what that makes; or drop one of them"
        )
    given = [name for name in StartFlags.__dataclass_fields__ if getattr(lora, name)]
    if args.fsdp and given:
        raise UserError(f"--{given[0]} does not work on a model split by --fsdp; drop one of them")
