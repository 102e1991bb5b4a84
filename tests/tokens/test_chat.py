"""--prompt_template_name chat: the same ids as apply_chat_template makes, for templates in five families' style."""

import json
import shutil

import pytest
from helpers import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from common.errors import UserError
from data.prompts import CHAT, load_template, make_answer, make_prompt
from models.families import FAMILIES
from prediction.settings import choose_template
from tokens.batches import IGNORED
from tokens.chat import DAY, FLAG, choose_chat, read_chat_template
from tokens.readers import load_prompting
from tokens.rows import Limits, encode_row

FAMILY = {family.name: family for family in FAMILIES}
CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nYou are helpful."
    "<|im_end|>\n{% endif %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and enable_thinking is defined and loop.last %}"
    "<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}"
    "<|im_start|>assistant\n{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% if date_string is not defined %}{% set date_string = 'today' %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ date_string }}\n\n"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] | trim }}{% endif %}<|eot_id|>"
    "{% for m in messages %}{% if m['role'] != 'system' %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
GLM4 = (
    "[gMASK]<sop>{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
STYLES = {  # name -> the template, its special tokens (bos and eos first), the end of an answer
    "chatml": (CHATML, ["<|bos|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|im_end|>"),
    "llama3": (
        LLAMA3,
        ["<|begin|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"],
        "<|eot_id|>",
    ),
    "gemma": (GEMMA, ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], "<end_of_turn>"),
    "glm4": (GLM4, ["[gMASK]", "<|endoftext|>", "<sop>", "<|user|>", "<|assistant|>", "<|system|>"], "<|endoftext|>"),
    "mistral": (MISTRAL, ["<s>", "</s>", "[INST]", "[/INST]"], "</s>"),
}
RECORD = {"instruction": "已知候选的关系列表：['位于']，请抽取。", "input": "甲在乙。 ", "output": "(甲,位于,乙)"}


def save_tokenizer(folder, template, specials):
    """A tokenizer of bytes, with special tokens, most of which are named nowhere but among the added ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({character: number for number, character in enumerate(alphabet)}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens(specials)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=specials[0], eos_token=specials[1])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """(template, codec) of each style, and of Mistral's on LLaMA's own pieces, which put a blank before a text."""
    made = {}
    for name, (template, specials, _) in STYLES.items():
        folder = save_tokenizer(tmp_path_factory.mktemp(name), template, specials)
        made[name] = load_prompting(load_template(CHAT), None, folder, FAMILY["auto"])
    folder = tmp_path_factory.mktemp("pieces")
    for file in (GOLDEN / "tokenizer_vicuna_style").iterdir():
        shutil.copy(file, folder)
    (folder / "chat_template.jinja").write_text(MISTRAL, encoding="utf-8")
    made["pieces"] = load_prompting(load_template(CHAT), None, folder, FAMILY["llama"])
    return made


NAMES = [*STYLES, "pieces"]


def expected(codec, record, whole, **more):
    """What transformers makes of the same conversation."""
    asked = "\n".join([record["instruction"], *filter(None, [record["input"]])])
    messages = [{"role": "user", "content": asked}]
    messages += [{"role": "assistant", "content": record["output"]}] if whole else []
    switches = {"enable_thinking": False, "date_string": DAY, **more}
    switches = {name: value for name, value in switches.items() if name in codec.tokenizer.chat_template}
    made = codec.tokenizer.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=not whole, return_dict=False, **switches
    )
    return made


def check_equal(template, codec, record):
    prompt = codec.encode(make_prompt(template, record["instruction"], record["input"]))
    assert prompt == expected(codec, record, whole=False)
    row = encode_row(codec, template, record, Limits(4096))
    whole = expected(codec, record, whole=True)
    end = len(whole) - 1 - whole[::-1].index(codec.eos_id) if codec.eos_id in whole else len(whole)
    assert row.input_ids == [*whole[:end], codec.eos_id]
    learnt = [token for token in row.labels if token != IGNORED]
    assert learnt == row.input_ids[len(prompt) :]
    assert row.input_ids[: len(prompt)] == prompt


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["甲在乙。 ", "", "  \n", "a\nb  c"])
def test_prompt_and_row_are_what_apply_chat_template_makes(opened, name, text):
    check_equal(*opened[name], {**RECORD, "input": text})


BLANK = st.sampled_from(["", " ", "\n", "\t ", "甲", "乙,", "a b", "(", "《", "<|im", "</s", "🙂"])
WORDS = st.lists(BLANK, max_size=6).map("".join)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20, deadline=None)
@given(instruction=WORDS, text=WORDS, output=WORDS)
def test_any_record_is_what_apply_chat_template_makes(opened, name, instruction, text, output):
    check_equal(*opened[name], {"instruction": instruction, "input": text, "output": output})


@pytest.mark.parametrize("name", STYLES)
def test_an_answer_ends_with_the_templates_own_end(opened, name):
    template, codec = opened[name]
    end = codec.tokenizer.convert_tokens_to_ids(STYLES[name][2])
    assert codec.eos_id == end
    assert encode_row(codec, template, RECORD, Limits(4096)).labels[-1] == end
    answer = make_answer(template, RECORD["output"])
    labels = [token for token in encode_row(codec, template, RECORD, Limits(4096)).labels if token != IGNORED]
    assert codec.decode(labels) == answer


def test_what_stands_around_an_answer_is_learnt_with_it(opened):
    assert {name: opened[name][0]["answer_lead"] for name in STYLES} == dict.fromkeys(STYLES, "") | {"mistral": " "}
    assert [name for name in STYLES if opened[name][0]["trims"]] == ["llama3", "gemma"]


def test_thinking_is_off_where_the_template_has_a_switch(opened):
    assert opened["chatml"][0]["prompt_no_input"].endswith("assistant\n<think>\n\n</think>\n\n")


@pytest.mark.parametrize("name", STYLES)
@pytest.mark.parametrize("field", ["instruction", "input", "output"])
def test_a_records_special_tokens_stay_text(opened, name, field):
    template, codec = opened[name]
    for special in STYLES[name][1]:
        plain, said = (encode_row(codec, template, {**RECORD, field: t}, Limits(4096)) for t in ("甲", f"甲{special}"))
        number = codec.tokenizer.convert_tokens_to_ids(special)
        assert plain.input_ids.count(number) == said.input_ids.count(number)


@pytest.mark.parametrize("name", NAMES)
def test_a_text_that_is_too_long_loses_its_end_and_nothing_else(opened, name):
    template, codec = opened[name]
    record = {**RECORD, "input": "甲在乙。" * 50}
    whole = encode_row(codec, template, {**record, "input": "甲在"}, Limits(None))
    cut = encode_row(codec, template, record, Limits(len(whole.input_ids)))
    assert (cut.input_ids, cut.labels, cut.cut) == (whole.input_ids, whole.labels, True)


def test_the_systems_line_is_the_templates_unless_it_is_given(tmp_path, opened, capsys):
    folder = save_tokenizer(tmp_path, *STYLES["chatml"][:2])
    assert "You are helpful." in opened["chatml"][0]["prompt_input"]
    template, codec = load_prompting(load_template(CHAT), "只答三元组", folder, FAMILY["auto"])
    assert template["prompt_input"].startswith("<|im_start|>system\n只答三元组<|im_end|>\n<|im_start|>user\n{instr")
    kept = json.loads(json.dumps(template))
    assert load_prompting(kept, None, folder, FAMILY["auto"])[0] == template
    assert load_prompting(kept, "只答三元组", folder, FAMILY["auto"])[1].eos_id == codec.eos_id
    assert "warning" not in capsys.readouterr().err
    assert load_prompting(kept, "另", folder, FAMILY["auto"])[0]["system"] == "另"
    assert "warning: --chat_system differs from run.json's" in capsys.readouterr().err


def test_prediction_takes_the_template_that_run_json_kept(opened):
    run = {"template_name": CHAT, "template": opened["gemma"][0]}
    assert choose_template(None, run, "alpaca") == opened["gemma"][0]
    assert choose_template(CHAT, run, "alpaca") == opened["gemma"][0]
    assert choose_template(CHAT, {}, "alpaca") == {"chat": True}
    with pytest.raises(UserError, match="run.json: template is no chat template as it is written there"):
        choose_chat({**opened["gemma"][0], "answer_lead": 3}, None, opened["gemma"][1], "x")


def refused(folder, system=None, family="auto"):
    with pytest.raises(UserError) as caught:
        load_prompting(load_template(CHAT), system, folder, FAMILY[family])
    return str(caught.value)


def test_what_cannot_be_is_one_clear_error(tmp_path):
    names = ["<s>", "</s>"]
    none = save_tokenizer(tmp_path / "none", None, names)
    assert f"{FLAG}: the tokenizer of {none} has no chat template; give another" in refused(none)
    gemma = save_tokenizer(tmp_path / "gemma", *STYLES["gemma"][:2])
    assert "fails (System role not supported); drop --chat_system" in refused(gemma, "x")
    assert "family moss has no chat template" in refused(gemma, family="moss")
    with pytest.raises(UserError, match="--chat_system goes with --prompt_template_name chat alone"):
        load_prompting(load_template("plain"), "x", gemma, FAMILY["auto"])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0]['content'] * 2 }}", "does not show a message once"),
        ("nothing", "does not show a message once"),
        ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "does not show a message once"),
        ("{input}{% for m in messages %}{{ m['content'] }}{% endfor %}", "does not show a message once"),
        ("{% for m in messages %}{{ m['content'].lstrip() }}{% endfor %}", "changes the blanks"),
        ("{{ ''.__class__.__mro__ }}", "fails ("),
        ("{% for", "fails ("),
    ],
)
def test_templates_that_do_more_than_show_a_message_are_refused(tmp_path, template, message):
    """One that reaches for Python's insides is stopped by the sandbox."""
    assert message in refused(save_tokenizer(tmp_path, template, ["<s>", "</s>"]))


def test_the_chat_template_of_smollm2(embedded_base):
    template, codec = load_prompting(load_template(CHAT), None, embedded_base, FAMILY["llama"])
    check_equal(template, codec, RECORD)
    assert codec.tokenizer.convert_ids_to_tokens(codec.eos_id) == "<|im_end|>"
    assert read_chat_template(codec.tokenizer, None, str(embedded_base)) == template
