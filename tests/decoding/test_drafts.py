"""Drafts of the engine `fast`: whatever is looked up and verified, answers are those without, to the token."""

import copy
import math
import re

import pytest
import torch
from helpers_prediction import RECORDS, flags
from transformers import AutoConfig, AutoModelForCausalLM

import inference
from common.errors import UserError
from decoding import fast_engine, passes
from decoding.answers import Failure, Rules
from decoding.batch_engine import generate
from decoding.constrained import make_limits
from decoding.fast_engine import Tuning
from decoding.passes import Drafting
from kg.permitted import ask
from kg.schema import read_schema
from tokens.codec import Codec
from tokens.pieces import token_bytes

NEW = 40


def fast(model, codec, prompts, rules, limits=None, **tuning):
    waiting, made = dict(sorted(enumerate(prompts), key=lambda item: -len(item[1]))), {}
    for group in fast_engine.answers(model, codec, waiting, rules, Tuning(**tuning), limits):
        made |= group
    return [made[number] for number in range(len(prompts))]


def tokens_a_step(told: str) -> float:
    return float(re.search(r"drafts: ([\d.]+) tokens a step", told)[1])


@pytest.fixture(scope="module")
def said(tiny):
    """The ids of each greedy answer; those of a random model repeat themselves sooner or later."""
    model, _, prompts = tiny
    answers = [model.generate(torch.tensor([ids]), max_new_tokens=NEW, do_sample=False)[0].tolist() for ids in prompts]
    return [ids[len(prompt) :] for ids, prompt in zip(answers, prompts, strict=True)]


@pytest.fixture(params=[False, True], ids=["as likely", "as on a card"])
def drafting(request, monkeypatch):
    """Rows have drafts by what stood before, or all of them as many, as the graphs of a card need it."""
    if request.param:
        monkeypatch.setattr(passes, "choose_drafting", lambda places, size: Drafting(places.drafts, True))


@pytest.mark.parametrize("drafts", [1, 3, 8])
def test_answers_are_those_without_drafts(tiny, said, drafts, drafting, capsys):
    """Whoever shares the rows; also where prompts hold what is answered, and where a draft holds the end."""
    model, codec, prompts = tiny
    asked = [[*prompts[0], *said[0][:9], *ids] for ids in prompts[:3]] + prompts[3:]
    first = model.generate(torch.tensor([asked[0]]), max_new_tokens=NEW, do_sample=False)[0, len(asked[0]) :].tolist()
    for eos in (codec.eos_id, first[17]):
        own = Codec(**{**vars(codec), "eos_id": eos})
        model.generation_config.eos_token_id = eos
        alone = [generate(model, own, [ids], Rules(NEW))[0] for ids in asked]
        model.generation_config.eos_token_id = codec.eos_id
        for size, steps in ((1, 1), (3, 3), (7, 2)):
            rules = Rules(NEW, batch_size=size, drafts=drafts)
            made = fast(model, own, asked, rules, steps=steps, drafted=steps, shared=1 if steps == 1 else 16)
            assert made == alone, (size, steps)
            assert 1 < tokens_a_step(capsys.readouterr().err) <= 1 + drafts
    assert len({answer.tokens for answer in alone}) > 1


def test_loops_and_answers_that_are_cut_are_those_without(tiny, capsys):
    model, codec, prompts = tiny
    for new in (1, 2, 5, 11):
        rules = Rules(new, batch_size=3)
        assert fast(model, codec, prompts, rules._replace(drafts=5)) == fast(model, codec, prompts, rules)
    rules = Rules(100, batch_size=3, max_repeats=2)
    assert fast(model, codec, prompts, rules._replace(drafts=4), block=4) == fast(model, codec, prompts, rules)


@pytest.mark.parametrize("model_type", ["mistral", "gemma3_text"])
@pytest.mark.parametrize("window", [3, 20])
def test_layers_that_see_only_the_last_tokens(tiny, model_type, window, drafting, capsys):
    base, codec, prompts = tiny
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"vocab_size": base.config.vocab_size, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
    if model_type == "gemma3_text":
        sizes |= {"layer_types": ["sliding_attention", "full_attention"], "use_sliding_window": True}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes, sliding_window=window))
    for parameter in model.eval().parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.eos_token_id, model.config._attn_implementation = codec.eos_id, "sdpa"
    prompts = prompts[:3]
    alone = [generate(model, codec, [ids], Rules(24))[0] for ids in prompts]
    for size in (1, 3):
        assert fast(model, codec, prompts, Rules(24, batch_size=size, drafts=4)) == alone
    assert tokens_a_step(capsys.readouterr().err) >= 1


def test_where_memory_is_short(tiny, monkeypatch, capsys):
    """Rows begin anew with half as many; and answers get more room when they need it."""
    model, codec, prompts = tiny
    alone = [generate(model, codec, [ids], Rules(NEW))[0] for ids in prompts]
    real = fast_engine.decode

    def small(*given):
        if given[1] > 3:
            raise torch.OutOfMemoryError("no room")
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(fast_engine, "decode", small)
        assert fast(model, codec, prompts, Rules(NEW, batch_size=7, drafts=4)) == alone
    assert "batch_size: 3 (out of memory)" in capsys.readouterr().err
    for ahead in (1, 9):
        room = 2.6 * (sum(map(len, prompts)) / len(prompts) + ahead)
        monkeypatch.setattr(fast_engine, "room", lambda *_, room=room: room)
        assert fast(model, codec, prompts, Rules(NEW, batch_size=3, drafts=4), ahead=ahead) == alone


def test_how_likely_tokens_were_is_what_it_is_without(tiny, drafting):
    model, codec, prompts = tiny
    rules = Rules(NEW, batch_size=3, confidence=True)
    for mine, other in zip(
        fast(model, codec, prompts, rules._replace(drafts=4)), fast(model, codec, prompts, rules), strict=True
    ):
        assert mine._replace(sure=None) == other._replace(sure=None)
        assert [end for end, _ in mine.sure] == [end for end, _ in other.sure]
        assert [chance for _, chance in mine.sure] == pytest.approx([chance for _, chance in other.sure], abs=2e-4)


@pytest.mark.parametrize("bound", ["relations", "text"])
def test_constrained_answers_are_those_without(tiny, bound, drafting, capsys):
    """A draft is taken as far as it may be said; the logits of the refused token, alone, choose another."""
    model, codec, prompts = tiny
    asked = {n: ask(read_schema(r["instruction"]), r["input"], bound) for n, r in enumerate(RECORDS[:4])}
    limits = make_limits(token_bytes(codec), codec.eos_id, asked)
    for watched in (1, 4):
        rules = Rules(NEW, batch_size=3, confidence=True)
        mine, other = (
            fast(model, codec, prompts[:4], rules._replace(drafts=drafts), limits, watched=watched, drafted=4)
            for drafts in (4, 0)
        )
        assert [one._replace(sure=None) for one in mine] == [one._replace(sure=None) for one in other]
        chances = [[chance for _, chance in one.sure] for one in (*mine, *other)]
        for at in range(4):
            assert chances[at] == pytest.approx(chances[4 + at], abs=2e-4)


def test_a_record_whose_logits_are_not_finite_fails_alone(tiny, said, drafting):
    model, codec, prompts = tiny
    token = said[2][5]
    bad = copy.deepcopy(model)
    bad.get_input_embeddings().weight.data[token, 0] = math.nan
    for new in (said[2].index(token) + 1, NEW):
        rules = Rules(new, batch_size=3)
        made = fast(bad, codec, prompts, rules._replace(drafts=4))
        assert made == fast(bad, codec, prompts, rules)
        assert any(isinstance(one, Failure) for one in made) == (new == NEW)


def test_the_script_says_what_was_drafted_and_writes_the_same(tmp_path, capsys):
    for drafts in ("0", "auto", "3"):
        inference.main(flags(tmp_path / f"{drafts}.json", engine="fast", max_new_tokens=24, drafts=drafts))
    told = capsys.readouterr().err
    assert "drafts: none (as asked)" in told
    assert "drafts: 8 tokens at most (a CPU" in told
    assert "drafts: 3 tokens at most (as asked)" in told
    assert tokens_a_step(told) >= 1
    assert len({(tmp_path / f"{drafts}.json").read_bytes() for drafts in ("0", "auto", "3")}) == 1
    with pytest.raises(UserError, match="--drafts 3 and --engine batch: only fast has drafts"):
        inference.main(flags(tmp_path / "x.json", engine="batch", drafts="3"))
    for wrong in ("-1", "16", "many"):
        with pytest.raises(UserError, match=f"--drafts {wrong}: expected auto, or tokens from 0 to 15"):
            inference.main([*flags(tmp_path / "x.json"), f"--drafts={wrong}"])


@pytest.mark.parametrize(
    ("heads", "rows", "most"), [(1, 1, 7), (1, 100, 4), (1, 400, 3), (4, 1, 7), (4, 100, 3), (4, 400, 0)]
)
def test_a_card_drafts_by_rows_and_heads(heads, rows, most):
    config = AutoConfig.for_model("llama", num_attention_heads=8, num_key_value_heads=8 // heads)
    assert fast_engine.choose_drafts(config, rows, torch.device("cuda"))[0] == most
