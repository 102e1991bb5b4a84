import json

import pytest
from helpers import GOLDEN
from transformers import LlamaConfig, LlamaForCausalLM

from checkpoints.family import find_family
from common.errors import UserError
from data.prompts import load_template
from loading.base import load_base
from loading.precision import Precision
from models.families import FAMILIES, NAMES
from tokens.readers import load_codec


def checkpoint(folder, model_type, *files):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    for file in files:
        (folder / file).touch()
    return folder


def test_config_decides_and_old_llama_is_told_by_its_tokenizer(tmp_path):
    assert find_family(GOLDEN / "checkpoint")[:2] == (FAMILIES[0], "llama")
    assert find_family(checkpoint(tmp_path, "llama", "tokenizer.json"))[0].name == "auto"
    assert find_family(checkpoint(tmp_path / "f", "falcon", "tokenizer.json"))[0].name == "auto"


def test_a_base_has_its_name_by_its_type_and_llama_3_by_its_vocabulary_too(tmp_path):
    of_types = {name: name for name in ("qwen2", "qwen3", "glm", "glm4", "mistral", "gemma2", "minicpm", "baichuan")}
    found = {one: find_family(checkpoint(tmp_path / one, one))[1] for one in of_types}
    assert list(found.values()) == ["qwen", "qwen", "glm4", "glm4", "mistral", "gemma", "minicpm", "baichuan2"]
    folder = checkpoint(tmp_path / "llama", "llama", "tokenizer.json")
    change(folder / "config.json", vocab_size=128256)
    assert find_family(folder)[1:] == ("llama3", "model_type llama in config.json, no tokenizer.model")
    change(folder / "config.json", vocab_size=128300)  # a few tokens more
    assert [find_family(folder)[1], find_family(folder, "llama3")[1]] == ["auto", "llama3"]


def test_a_base_with_a_name_is_served_as_auto_too(tmp_path):
    """As by a run.json from before it had one."""
    assert find_family(checkpoint(tmp_path, "qwen3"), "auto")[0] is AUTO
    with pytest.raises(UserError, match="--model_name glm4 contradicts .*'qwen3'"):
        find_family(tmp_path, "glm4")


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
    with pytest.raises(UserError, match="no such folder.* hf download .* docs/install.md"):
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


AUTO = FAMILIES[-1]


@pytest.fixture(scope="module")
def code_cache(tmp_path_factory):
    """Where transformers copies the code of checkpoints to, instead of the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


@pytest.fixture
def own_code(tmp_path, code_cache):
    """A tiny checkpoint whose model and tokenizer are Python classes in its folder."""
    folder = tmp_path  # its name differs in every test: transformers keeps what it has imported, by name
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=1500, **sizes)).save_pretrained(folder)
    load_codec(GOLDEN / "checkpoint", FAMILIES[0]).tokenizer.save_pretrained(folder)
    write = {
        "configuration_own.py": "from transformers import LlamaConfig\nclass OwnConfig(LlamaConfig):\n"
        "    model_type = 'own'\n",
        "modeling_own.py": "from transformers import LlamaForCausalLM\nfrom .configuration_own import OwnConfig\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n",
        "tokenization_own.py": "from transformers import PreTrainedTokenizerFast\n"
        "class OwnTokenizer(PreTrainedTokenizerFast):\n    pass\n",
    }
    for name, text in write.items():
        (folder / name).write_text(text)
    change(folder / "config.json", model_type="own", auto_map=OWN_MODEL)
    return folder


OWN_MODEL = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
OWN_TOKENIZER = {"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]}


def change(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_own_code_is_refused_before_the_work_with_the_flag_that_allows_it(own_code, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the terminal was asked"))
    assert find_family(own_code)[0] is AUTO
    refusal = r"needs Python code of its own \(.*modeling_own.py.*\), .* --trust_remote_code"
    with pytest.raises(UserError, match=refusal):
        load_codec(own_code, AUTO)
    codec = load_codec(own_code, AUTO, trust_remote_code=True)
    with pytest.raises(UserError, match=refusal):
        load_base(own_code, Precision("float32", 16), "cpu", codec)
    model = load_base(own_code, Precision("float32", 16), "cpu", codec, trust_remote_code=True)
    assert type(model).__name__ == "OwnModel"


def test_a_tokenizers_own_code_is_refused_likewise(own_code):
    change(own_code / "config.json", model_type="llama", auto_map={})
    change(own_code / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=OWN_TOKENIZER)
    with pytest.raises(UserError, match="needs Python code of its own .* --trust_remote_code"):
        load_codec(own_code, AUTO)
    assert type(load_codec(own_code, AUTO, trust_remote_code=True).tokenizer).__name__ == "OwnTokenizer"


@pytest.mark.parametrize("file", ["modeling_own.py", "tokenization_own.py"])
def test_own_code_that_fails_is_named_with_its_error(own_code, file):
    change(own_code / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=OWN_TOKENIZER)
    with open(own_code / file, "a") as text:
        text.write("gone_since_then\n")
    with pytest.raises(UserError, match=r"--trust_remote_code: .*fails with transformers \d.*NameError: .*gone_since"):
        load_base(own_code, Precision("float32", 16), "cpu", load_codec(own_code, AUTO, True), True)


def test_a_known_model_type_does_not_need_the_code_in_its_folder(own_code):
    change(own_code / "config.json", model_type="llama", auto_map=OWN_MODEL)
    model = load_base(own_code, Precision("float32", 16), "cpu", load_codec(own_code, AUTO))
    assert type(model).__name__ == "LlamaForCausalLM"
