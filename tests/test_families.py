import json

import pytest
from conftest import GOLDEN

from utils.errors import UserError
from utils.families import FAMILIES, NAMES, find_family
from utils.prompter import load_template


def checkpoint(folder, model_type, *files):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    for file in files:
        (folder / file).touch()
    return folder


def test_config_decides_and_old_llama_is_told_by_its_tokenizer(tmp_path):
    assert find_family(GOLDEN / "checkpoint")[:2] == (FAMILIES[0], "llama")
    assert find_family(checkpoint(tmp_path, "llama", "tokenizer.json"))[0].name == "auto"
    assert find_family(checkpoint(tmp_path / "q", "qwen2", "tokenizer.json"))[0].name == "auto"


@pytest.mark.parametrize("name", ["llama", "alpaca", "vicuna", "zhixi", "chatflow", "chinese-llama"])
def test_every_llama_name_is_accepted_for_a_llama_checkpoint(name):
    family, found, why = find_family(GOLDEN / "checkpoint", name)
    assert (family.name, found, why) == ("llama", name, "--model_name")


def test_a_contradiction_names_both(tmp_path):
    folder = checkpoint(tmp_path, "qwen2")
    with pytest.raises(UserError, match="--model_name llama contradicts .*'qwen2'"):
        find_family(folder, "llama")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match="--model_name lama: not a family; known: llama, alpaca"):
        find_family(GOLDEN / "checkpoint", "lama")


def test_wrong_folders_say_what_they_are(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        find_family(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is a LoRA adapter, not a base"):
        find_family(GOLDEN / "adapter")
    (tmp_path / "weights.bin").touch()
    with pytest.raises(UserError, match=r"no config.json there; found weights.bin"):
        find_family(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(UserError, match=r"config.json:1: not JSON"):
        find_family(tmp_path)


def test_every_name_has_one_family_and_a_template_that_exists():
    assert len(NAMES) == len(set(NAMES))
    for family in FAMILIES:
        for template in family.templates.values():
            load_template(template)
