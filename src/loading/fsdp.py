"""A model split over cards by PyTorch's FSDP2 (--fsdp): each holds its part of every weight, gradient and moment.

accelerate does the splitting; here is what it leaves to be done: how a base comes from disk to many cards without any
of them holding all of it, and how a trained adapter is put together again.
"""

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import AutoConfig, AutoModelForCausalLM

from checkpoints.config import pad_beyond

CONFIG = {
    "version": 2,
    "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",  # layer by layer
    "cpu_ram_efficient_loading": True,  # the first process reads the base and hands the others their parts
    "state_dict_type": "FULL_STATE_DICT",  # checkpoints are gathered: torch's sharded ones are read by plain pickle
}


def choose_policy(dtype: torch.dtype) -> MixedPrecisionPolicy:
    """Products in `dtype`; gradients are summed over the cards, and the loss is left, in 32 bits."""
    return MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, output_dtype=None)


def split_on_cpu() -> None:
    """Have accelerate split the model where there is no card, too; by itself it would keep it whole, in silence."""
    PartialState().distributed_type = DistributedType.MULTI_GPU


def empty_model(path, trust_remote_code: bool = False, **options):
    """The model of a checkpoint folder on the CPU without its weights: of memory never touched, none is taken."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, **pad_beyond(path))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code, **options)
    model.to_empty(device="cpu")
    model.tie_weights()
    return model


def share_buffers(model, device: torch.device) -> None:
    """Give every process the first one's buffers, such as the frequencies of positions: splitting leaves them out."""
    for buffer in model.buffers():
        values = buffer.to(device)
        torch.distributed.broadcast(values, src=0)
        buffer.copy_(values)


def gather_trained(model) -> dict[str, torch.Tensor]:
    """The trained weights, put together on the CPU of the first process; {} on the others. All must call it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    return get_model_state_dict(model, options=options)
