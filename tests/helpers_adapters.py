"""Bases of five shapes and six architectures, adapters of peft made on them, and the greedy answers of both sides."""

import json
import shutil
import warnings

import torch
from helpers import CHATGLM, GOLDEN, ROOT
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

import models.cpmbee  # noqa: F401 - which teaches transformers the class, as models.moss below does
from checkpoints.family import find_family
from decoding.answers import cut_answer
from decoding.engines import ENGINES
from loading.base import load_base
from loading.precision import Precision
from models.chatglm import ChatGLMConfig  # noqa: F401
from models.moss import load_tokenizer
from prediction.opening import open_model, plan_adapter
from prediction.questions import ask_all
from tokens.readers import load_codec
from utils.args_predict import parse_inference

MOSS, CPMBEE = (ROOT / "tests" / "golden" / name for name in ("moss", "cpmbee"))
NEW = 6  # tokens of an answer
RECORDS = [
    {"instruction": "列表：['位于']", "input": "米卡在北京。"},
    {"instruction": "关系：['a']", "input": "A quick fox, 12 of them."},
    {"instruction": "x", "input": "雨"},
]
TASK = {"task_type": "CAUSAL_LM"}
LAYERS = {  # of each base: those that adapters are usually on
    "llama": ["q_proj", "v_proj"],
    "qwen3": ["q_proj", "v_proj"],
    "gpt2": ["c_attn", "c_proj"],
    "chatglm": ["query_key_value"],
    "moss": ["qkv_proj", "fc_in"],
    "cpmbee": ["project_q", "w_out"],
}


def make_bases(folder) -> dict:
    """Name -> folder of a tiny base with a tokenizer; qwen3 and gpt2 have one weight for embedding and head."""
    shutil.copytree(CHATGLM / "base", folder / "chatglm")
    shutil.copy(CHATGLM / "ice_text.model", folder / "chatglm")
    ids = {"vocab_size": 520, "bos_token_id": 516, "eos_token_id": 518}
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    grouped = {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True}
    torch.manual_seed(1)
    made = {
        "gpt2": GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=3, n_head=4, n_positions=256, **ids)),
        "qwen3": Qwen3ForCausalLM(Qwen3Config(**sizes, **grouped, **ids)),
    }
    for name, model in made.items():
        for weight in model.parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.2)
        model.save_pretrained(folder / name)
        load_tokenizer(MOSS).save_pretrained(folder / name)
    own = {name: folder / name for name in ("chatglm", "gpt2", "qwen3")}
    return {"llama": GOLDEN / "checkpoint", "moss": MOSS, "cpmbee": CPMBEE, **own}


def lora(base, extra=(), **settings):
    """A configuration of LoRA on the usual layers of a base, and on `extra`."""
    chosen = {"r": 4, "lora_alpha": 16, "target_modules": [*LAYERS[base], *extra], **TASK}
    return LoraConfig(**(chosen | settings))


def load(base):
    """A base in float32, as peft's users load it."""
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def make_adapter(base, folder, config, size=0.1, **saving):
    """An adapter of random numbers, saved by peft; the peft model. `saving`: options of save_pretrained."""
    torch.manual_seed(3)
    model = load(base)
    if hasattr(model, "lora_alphas") and config.peft_type == "LORA":
        config.alpha_pattern = model.lora_alphas(config.lora_alpha, config.target_modules)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(model, config)
        for weight in model.parameters():
            if weight.requires_grad:
                weight.data += torch.randn_like(weight) * size
        model.save_pretrained(folder, **saving)
    return model


def rewrite(folder, config=None, tensors=None):
    """Change the saved settings of an adapter, or write its tensors (by name) as a .bin file."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | (config or {})))
    if tensors:
        (folder / "adapter_model.safetensors").unlink()
        torch.save(tensors, folder / "adapter_model.bin")


def plan(base, adapter, *more, engine="batch"):
    """What src/inference.py decides and checks before it loads any weight."""
    flags = {"model_name_or_path": base, "lora_weights": adapter, "engine": engine, "prompt_template_name": "plain"}
    flags |= {"max_new_tokens": NEW, "max_repeats": 0, "input_file": GOLDEN / "valid.json", "output_file": "none.json"}
    words = [str(word) for name, value in flags.items() if value for word in (f"--{name}", value)]
    return plan_adapter(*parse_inference([*words, *map(str, more)]))


def answers(base, adapter, *more, engine="batch") -> tuple[list[str], str]:
    """The answers to RECORDS of src/inference.py's engine, and its name."""
    opening = plan(base, adapter, *more, engine=engine)
    prompts = [question.ids for question in ask_all(opening, RECORDS, None)]
    model, rules = open_model(opening, prompts), opening.serving.rules._replace(batch_size=len(prompts))
    made = {}
    for group in ENGINES[opening.engine].answers(model, opening.codec, dict(enumerate(prompts)), rules):
        made |= group
    return [made[number].text for number in range(len(prompts))], opening.engine


@torch.inference_mode()
def peft_answers(base, adapter) -> list[str]:
    """The answers to RECORDS of the base with what peft makes of the adapter, each prompt by itself."""
    codec = load_codec(base, find_family(base)[0])
    model = load_base(base, Precision("float32", 16), "cpu", codec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(model, adapter).eval() if adapter else model.eval()
    made = []
    for question in ask_all(plan(base, None), RECORDS, None):
        if hasattr(model, "answer_trees"):
            [(text, _, _)] = model.answer_trees(codec.tokenizer, [question.ids.data], NEW)
            made.append(text.strip())
            continue
        ids = torch.tensor([question.ids])
        ends = {"eos_token_id": codec.eos_id, "pad_token_id": codec.pad_id}
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, **ends
        )
        made.append(cut_answer(codec, out[0, ids.shape[1] :].tolist()).text)
    return made
