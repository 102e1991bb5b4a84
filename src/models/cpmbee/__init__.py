"""CPM-Bee (openbmb/cpm-bee-1b, 2b, 5b, 10b): model, tokenizer, training rows and generation.

Importing it makes transformers' AutoConfig and AutoModelForCausalLM read its checkpoints, without their own code.
"""

from transformers import AutoConfig, AutoModelForCausalLM

from models.cpmbee.configuration import CpmBeeConfig
from models.cpmbee.data import collate, convert, lay_out, prefill, training_features
from models.cpmbee.generation import Generated, generate
from models.cpmbee.modeling import CpmBeeForCausalLM, lora_alphas
from models.cpmbee.tokenizer import CpmBeeTokenizer, escape, load_tokenizer, unescape

AutoConfig.register(CpmBeeConfig.model_type, CpmBeeConfig, exist_ok=True)
AutoModelForCausalLM.register(CpmBeeConfig, CpmBeeForCausalLM, exist_ok=True)

__all__ = [
    "CpmBeeConfig",
    "CpmBeeForCausalLM",
    "CpmBeeTokenizer",
    "Generated",
    "collate",
    "convert",
    "escape",
    "generate",
    "lay_out",
    "load_tokenizer",
    "lora_alphas",
    "prefill",
    "training_features",
    "unescape",
]
