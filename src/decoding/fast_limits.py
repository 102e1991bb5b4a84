"""What the engine `fast` can serve, told before anything is loaded."""

from transformers import AutoConfig

from checkpoints.adapters import read_adapter_config
from common.errors import UserError, reason_of
from decoding.serving import Serving
from loading.adapted import unusual_settings
from loading.shape import kept_shape
from ops import available, packed_attention


def why_not(serving: Serving) -> str | None:
    """Why the engine cannot serve these rules, base and adapter or prefix on this device; None: it can."""
    if serving.prefix and not serving.family.own_prefix:
        return "it does not know prefixes"
    rules = serving.rules
    asked = {"num_beams": rules.num_beams > 1, "do_sample": rules.do_sample, "device_map": bool(serving.device_map)}
    asked["repetition_penalty"] = rules.repetition_penalty != 1
    if wrong := [f"--{name}" for name, there in asked.items() if there]:
        return f"it answers greedily, on one GPU, without {', '.join(wrong)}"
    if serving.adapter and (reason := _why_not_with(read_adapter_config(serving.adapter), serving.merge)):
        return reason
    try:
        config = AutoConfig.from_pretrained(serving.base, trust_remote_code=serving.trust).get_text_config()
    except Exception as error:  # noqa: BLE001 - somebody's own code may fail in any way; loading will say more
        return reason_of(error)
    if serving.trust and getattr(config, "auto_map", None):
        return "the base brings code of its own"
    if rope := rope_types(config) & {"dynamic", "longrope"}:
        return f"rope_type {', '.join(rope)} turns all records of a pass as the longest of them asks for"
    if method := getattr(config, "quantization_config", None):
        return f"the base comes quantised ({method.get('quant_method')}), which was not tried with it"
    size = kept_shape(config)[-1]
    if rules.fp8 and size & (size - 1):
        return f"heads of {size} numbers cannot be kept in 8-bit floats (a power of 2 can)"
    family, device, dtype = serving.family, serving.device, serving.precision.dtype
    if reason := packed_attention.why_not(config, family.packed_types + family.laid_types, device, dtype):
        return reason
    if family.kernel and device.type == "cuda" and (reason := available.why_not("decode_attention", device, dtype)):
        return f"family {family.name} needs its kernel: {reason}"
    return None


def rope_types(config) -> set[str]:
    """How positions are turned: rope_type of config.json, which may name one for each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    each = rope.values() if rope and all(isinstance(value, dict) for value in rope.values()) else [rope]
    return {one.get("rope_type", "default") for one in each}


def _why_not_with(adapter: dict, merge: bool) -> str | None:
    """Why not with an adapter of these settings; merged, it is but the base's weights, and perhaps more layers."""
    if not merge and adapter["peft_type"] != "LORA":
        return f"adapters of kind {adapter['peft_type']} are not known to it"
    unknown = [name for name in unusual_settings(adapter) if not merge or name == "layer_replication"]
    return f"adapters with {', '.join(unknown)} are not known to it" if unknown else None


def check(serving: Serving) -> None:
    """UserError when the engine was asked for and cannot serve."""
    if reason := why_not(serving):
        raise UserError(f"--engine fast: {reason}; use --engine batch")
