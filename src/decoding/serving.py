"""What an engine is to serve, as it is known before any weight is read."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from checkpoints.prefixes import Kind
from decoding.answers import Rules
from loading.precision import Precision
from loading.shape import Shape


class Prefix(NamedTuple):
    """A prefix of P-Tuning v2."""

    folder: Path
    kind: Kind


@dataclass(frozen=True)
class Serving:
    """A base with what was trained on it, and how it is to answer."""

    base: str  # folder of the base model
    family: object  # its row of models.families.FAMILIES
    shape: Shape | None  # None: not known
    precision: Precision
    device: torch.device
    rules: Rules  # how answers are made; without a batch size
    adapter: Path | None = None  # folder of a LoRA adapter; without it and a prefix, the base alone
    prefix: Prefix | None = None
    merge: bool = False  # add the adapter into the base's weights
    retry_length: bool = False  # an answer that was cut is asked again with twice as many tokens
    batch_size: int | None = None  # records at a time, where one was asked for
    drafts: int | None = None  # most tokens that are looked up and verified together (fast); None: what pays
    max_memory_mb: int | None = None  # of a card
    device_map: str | None = None  # auto: the base is spread over all cards
    trust: bool = False  # whether the base's own code may run
    processes: int = 1  # of this run
    tensor_parallel_size: int = 1  # cards that share one model (vllm)
    data_parallel_size: int | None = None  # models at a time (vllm)

    def budget(self, prompt: int) -> int:
        """Tokens of a prompt of `prompt` tokens and all that may be answered to it, a second time included."""
        return prompt + self.rules.max_new_tokens * (1 + self.retry_length)
