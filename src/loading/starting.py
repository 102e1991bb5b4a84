"""What a training of LoRA begins with: a fresh adapter, or one that is trained on; and what is trained beside it."""

from pathlib import Path
from typing import NamedTuple

from checkpoints.adapters import (
    ADAPTER_FILES,
    PLAIN_STARTS,
    as_peft_names,
    beyond_products,
    check_weights,
    find_adapter,
    read_adapter_config,
)
from checkpoints.family import Chosen
from common.errors import UserError
from common.files import fingerprint
from loading.adapted import check_adapter, check_tensors, empty_base, fit
from loading.lora import add_lora, go_on_lora
from loading.memory import adapter_weights
from loading.precision import Precision
from loading.shape import Shape
from loading.vocabulary import rows_for

FLAG = "--init_lora"
RANK, ALPHA, DROPOUT = 8, 16, 0.05  # of a fresh adapter
PEFTS = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0}  # where an adapter_config.json does not say it


class Lora(NamedTuple):
    """What is trained."""

    rank: int
    alpha: int
    dropout: float
    targets: tuple[str, ...]  # layers, by the last part of their names; ("all-linear",) = every one but the head
    saved: tuple[str, ...] = ()  # modules that are trained whole
    saved_weights: int = 0  # in them
    start: Path | None = None  # folder of the adapter that is trained on
    weights: int | None = None  # of that one in all

    def put_on(self, model, autocast: bool):
        """`model` with what is trained; see `loading.lora`."""
        if self.start:
            return go_on_lora(model, self.start, self.dropout, autocast)
        return add_lora(model, self.targets, self.rank, self.alpha, self.dropout, autocast, self.saved)

    def count(self, shape: Shape) -> int:
        """Number of trained weights on a base of this shape."""
        if self.weights is not None:
            return self.weights
        return adapter_weights(shape, self.targets, self.rank) + self.saved_weights

    def as_json(self) -> dict:
        """What run.json says of it, and a resumed run must agree with."""
        settings = {
            "lora_r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "lora_target_modules": list(self.targets),
            "full_finetune": False,
        }
        if self.saved:
            settings["modules_to_save"] = list(self.saved)
        if self.start:
            file = next(self.start / name for name in ADAPTER_FILES if (self.start / name).is_file())
            settings["init_lora"] = {"path": str(self.start.resolve()), "sha256": fingerprint(file)}
        return settings

    def __str__(self) -> str:
        beside = f", and {', '.join(self.saved)} whole" if self.saved else ""
        start = f", from {self.start}" if self.start else ""
        return f"LoRA r {self.rank} on {', '.join(self.targets)}{beside}{start}"


def choose_lora(flags, chosen: Chosen, base: str, precision: Precision, shape: Shape | None, codec) -> Lora:
    """What is trained, as the flags say, and those left out the adapter of --init_lora or the family.

    `flags`: utils.args.LoraArguments; `shape`: of the base, extended as `codec` is. UserError for modules that the base
    has not, for an adapter that is not of this base, and for flags that differ from it.
    """
    targets, saved = split_names(flags.lora_target_modules), split_names(flags.modules_to_save)
    if flags.init_lora:
        start = find_adapter(flags.init_lora, FLAG)
        return _start_from(start, flags, targets, saved, chosen, base, precision, shape, codec)
    saved, weights = _choose_saved(saved, codec, base, chosen.trust)
    return Lora(
        RANK if flags.lora_r is None else flags.lora_r,
        ALPHA if flags.lora_alpha is None else flags.lora_alpha,
        DROPOUT if flags.lora_dropout is None else flags.lora_dropout,
        targets or chosen.family.lora_targets,
        saved,
        weights,
    )


def split_names(text: str | None) -> tuple[str, ...]:
    """The names of a flag's value, between commas."""
    return tuple(dict.fromkeys(filter(None, map(str.strip, (text or "").split(",")))))


def _choose_saved(asked: tuple[str, ...], codec, base: str, trust: bool) -> tuple[tuple[str, ...], int]:
    """The modules that are trained whole, and the number of their weights.

    A token that is new needs both ends: a row to be read by, and one to be written by.
    """
    if not asked and not codec.pieces_before:
        return (), 0
    model = empty_base(base, None, trust, rows_for(codec.pieces_before))
    if model is None:
        if codec.pieces_before and len(asked) < 2:
            raise UserError(
                "--extend_vocab: the names of embedding and head cannot be told from this base's config.json; give "
                "both with --modules_to_save"
            )
        return asked, 0
    modules = dict(model.named_modules())
    ends = [end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None]
    needed = tuple(name.split(".")[-1] for end in ends for name, module in modules.items() if module is end)
    if codec.pieces_before and asked and (missing := [name for name in needed if name not in asked]):
        raise UserError(
            f"--modules_to_save {','.join(asked)} lacks {', '.join(missing)}, without which the tokens of "
            "--extend_vocab could not be learnt; add it, or leave the flag out"
        )
    asked = asked or needed
    # As peft takes them: by how their names end, so that norm means input_layernorm too.
    found = {path: one for path, one in modules.items() if path.endswith(asked)}
    if unknown := [name for name in asked if not any(path.endswith(name) for path in found)]:
        known = sorted({path.split(".")[-1] for path, one in modules.items() if list(one.parameters(False))})
        raise UserError(
            f"--modules_to_save {','.join(unknown)}: this model has no such module; those with weights are "
            f"{', '.join(name for name in known if not name.isdecimal())}"
        )
    return asked, sum(weight.numel() for one in found.values() for weight in one.parameters())


def _start_from(
    start: Path, flags, targets, saved, chosen: Chosen, base: str, precision: Precision, shape: Shape | None, codec
) -> Lora:
    """`choose_lora` with the adapter of --init_lora, found whole in the folder `start`."""
    settings, file = read_adapter_config(start), start / "adapter_config.json"
    _refuse_other_kinds(start, settings)
    rank, alpha, dropout = (settings.get(name, PEFTS[name]) for name in PEFTS)
    tensors = as_peft_names(check_weights(start))
    layers = {name.partition(".lora_")[0].removeprefix("base_model.model.") for name in tensors if ".lora_" in name}
    own = tuple(sorted({layer.split(".")[-1] for layer in layers}))
    own_saved = tuple(settings.get("modules_to_save") or ())
    asked = layers
    if targets and shape:
        every = targets == ("all-linear",)
        asked = {name for name in shape.sizes if every or name.split(".")[-1] in targets}
    elif targets:
        asked = layers if set(targets) == set(own) else set()
    for flag, typed, found, same in (
        ("lora_r", flags.lora_r, rank, flags.lora_r in (None, rank)),
        ("lora_alpha", flags.lora_alpha, alpha, flags.lora_alpha in (None, alpha)),
        ("lora_target_modules", ",".join(targets), f"on {', '.join(own)}", asked == layers),
        ("modules_to_save", ",".join(saved), ", ".join(own_saved) or "none", not saved or {*saved} == {*own_saved}),
    ):
        if not same:
            raise UserError(
                f"--{flag} {typed} and {FLAG} {start} contradict each other: {file.name} there says {found}; drop "
                f"--{flag}, or give another adapter"
            )
    rows = rows_for(codec.pieces_before)
    check_adapter(start, base, chosen.family, precision, False, chosen.trust, rows, FLAG)
    empty = empty_base(base, None, chosen.trust, rows)
    fitted = empty and fit(start, empty, FLAG)
    if fitted and (brought := check_tensors(start, fitted, tensors, FLAG)):
        raise UserError(
            f"{FLAG} {start}: it brings {len(brought)} weights of the base along, e.g. {brought[0]}, which training "
            "would leave out; merge it into its base first (weight_diff.py merge), and train on that"
        )
    dropout = dropout if flags.lora_dropout is None else flags.lora_dropout
    count = sum(tensor.numel() for tensor in tensors.values())
    return Lora(rank, alpha, dropout, own, own_saved, start=start, weights=count)


def _refuse_other_kinds(start: Path, settings: dict) -> None:
    """UserError for an adapter that cannot be trained on as LoRA."""
    found = [f"peft_type {settings['peft_type']}"] if settings["peft_type"] != "LORA" else beyond_products(settings)
    if settings["peft_type"] == "LORA" and settings.get("init_lora_weights") not in PLAIN_STARTS:
        found.append(f"init_lora_weights {settings['init_lora_weights']}")
    if found:
        raise UserError(
            f"{FLAG} {start}: its adapter_config.json says {', '.join(found)}, and only plain LoRA is trained on; "
            "merge it into its base first (weight_diff.py merge), and train on that"
        )
