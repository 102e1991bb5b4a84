"""The engine `fast` over this project's own models: the answers of `batch`, and those of the published code."""

import json
from types import SimpleNamespace

import pytest
import torch
from helpers import CHATGLM, ROOT, published
from helpers_chatglm import Golden
from helpers_prediction import RECORDS, loaded
from peft import LoraConfig, get_peft_model

from data.prompts import Piece
from decoding import fast_engine
from decoding.answers import Rules
from decoding.batch_engine import answer
from decoding.fast_engine import Tuning
from tokens.codec import Codec
from tokens.cpmbee import Prompt

MOSS, CPMBEE = (ROOT / "tests" / "golden" / name for name in ("moss", "cpmbee"))
FAMILIES = ("chatglm", "moss", "cpmbee")
TEXTS = [f"{one['instruction']}{one['input']}"[: 10 + 11 * number] for number, one in enumerate((RECORDS * 2)[:12])]
TEXTS[3] = "<unk> ☃㐀 and ☃ 𠀀 <<"  # CPM-Bee's vocabulary lacks some of it, and numbers it


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    glm, _ = published("base", tmp_path_factory.mktemp("bases") / "chatglm")
    return {"chatglm": glm, "moss": MOSS, "cpmbee": CPMBEE}


@pytest.fixture(scope="module", params=FAMILIES)
def base(request, folders):
    model, codec = loaded(folders[request.param])
    prompts = [codec.encode([Piece(text, from_template=False)]) for text in TEXTS]
    return model, codec, [ids[: codec.context - 16] if codec.context else ids for ids in prompts]


def fast(model, codec, prompts, rules, **tuning):
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    made, waiting = {}, {index: prompts[index] for index in order}
    for group in fast_engine.answers(model, codec, waiting, rules, Tuning(**tuning)):
        made |= group
    return [made[index] for index in range(len(prompts))]


def with_adapter(model):
    """A LoRA adapter on every linear layer, whose weights matter."""
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return adapted


def test_answers_are_those_of_batch_however_many_are_side_by_side(base):
    model, codec, prompts = base
    rules = Rules(14)
    alone = [answer(model, codec, [prompt], rules)[0] for prompt in prompts]
    assert len({one.text for one in alone}) > 6
    for size, tokens in ((1, 8192), (4, 1), (4, 90), (12, 8192)):  # of prompts computed together
        assert fast(model, codec, prompts, rules._replace(batch_size=size), pass_tokens=tokens) == alone, (size, tokens)


@pytest.mark.parametrize("merged", [False, True])
def test_adapters(base, merged):
    model, codec, prompts = base
    plain, rules = fast(model, codec, prompts[:6], Rules(8, batch_size=4)), Rules(8)
    adapted = with_adapter(model)
    try:
        if merged:
            adapted.merge_adapter()
        made = fast(adapted, codec, prompts[:6], rules._replace(batch_size=4))
        assert made == [answer(adapted, codec, [prompt], rules)[0] for prompt in prompts[:6]] != plain
    finally:
        adapted.unload() if not merged else (adapted.unmerge_adapter(), adapted.unload())


@pytest.mark.parametrize("ahead", [1, 5])
def test_an_answer_that_gets_more_room_goes_on(base, ahead, monkeypatch):
    model, codec, prompts = base
    room = 2.6 * (sum(map(len, prompts)) / len(prompts) + ahead)
    monkeypatch.setattr(fast_engine, "room", lambda *_: room)
    alone = [answer(model, codec, [prompt], Rules(12))[0] for prompt in prompts]
    assert fast(model, codec, prompts, Rules(12, batch_size=3), ahead=ahead) == alone


def test_an_answer_ends_where_the_positions_do(folders):
    model, codec = loaded(folders["moss"])
    short = Codec(**{**vars(codec), "context": 40, "eos_id": -1})
    prompts = [[5 + at % 300 for at in range(count)] for count in (39, 36, 20)]
    made = fast(model, short, prompts, Rules(8, batch_size=3))
    assert [one.tokens for one in made] == [1, 4, 8]
    assert [one.finish_reason for one in made] == ["length"] * 3


def numbers(**more):
    """A codec that writes tokens as numbers, which no token ends."""
    return SimpleNamespace(decode=lambda ids: " ".join(map(str, ids)), eos_id=-1, **more)


def said(model, codec, prompts, count):
    return [list(map(int, one.text.split())) for one in fast(model, codec, prompts, Rules(count, batch_size=4))]


@pytest.mark.parametrize("name", ["base", "deep28", "ptv2-emb", "ptv2-mlp"])
def test_the_published_chatglm_answers_alike(name):
    """The last two with a prefix of its own."""
    golden = Golden(CHATGLM / name)
    prompts, made = ([golden[f"p{number}_{part}"][0].tolist() for number in range(3)] for part in ("input_ids", "gen"))
    count = min(len(ids) - len(prompt) for ids, prompt in zip(made, prompts, strict=True))
    expected = [ids[len(prompt) : len(prompt) + count] for ids, prompt in zip(made, prompts, strict=True)]
    assert said(golden.model, numbers(), prompts * 2, count) == expected * 2


def test_the_published_moss_answers_alike(folders):
    golden = json.loads((MOSS / "golden.json").read_text(encoding="utf-8"))
    prompts, model = golden["prompt_ids"], loaded(folders["moss"])[0]
    expected = [ids[len(prompt) :] for ids, prompt in zip(golden["greedy_single"], prompts, strict=True)]
    assert said(model, numbers(), prompts, len(expected[0])) == expected


def test_the_published_cpm_bee_answers_alike(folders):
    model, codec = loaded(folders["cpmbee"])
    golden = json.loads((CPMBEE / "golden.json").read_text(encoding="utf-8"))
    own, asked = numbers(lay_out=codec.lay_out, naming=lambda _: numbers()), 0
    for data, expected in zip(golden["gen_data"], golden["greedy_single"], strict=True):
        if isinstance(data["<ans>"], str):  # one answer
            asked += 1
            assert said(model, own, [Prompt([0], data)], golden["gen_max_steps"]) == [[token for token, _ in expected]]
    assert asked > 1


@pytest.mark.parametrize("name", ["ptv2-emb", "ptv2-mlp"])
def test_a_prefix_of_chatglms_own(name, tmp_path):
    folder, codec = published(name, tmp_path / name)
    model = Golden(folder).model
    prompts = [codec.encode([Piece(text, from_template=False)]) for text in TEXTS]
    alone = [answer(model, codec, [prompt], Rules(12))[0] for prompt in prompts]
    for size, tokens in ((1, 8192), (4, 1), (12, 8192)):
        assert fast(model, codec, prompts, Rules(12, batch_size=size), pass_tokens=tokens) == alone
