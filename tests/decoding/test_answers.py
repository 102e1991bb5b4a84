"""How answers are made and end: drawing, penalties, loops, larger budgets; alike at every batch size."""

import json

import pytest
import torch
from helpers import rows
from helpers_prediction import RECORDS, flags, interrupted_at, loaded
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

import inference
from common.errors import UserError
from data.prompts import load_template, make_prompt
from decoding import batch_engine, choosing
from decoding.answers import Answer, Rules, cut_answer
from decoding.batch_engine import answer, answers, generate
from decoding.choosing import Draw, StopLoops
from kg.loops import loop_end, loops
from prediction import partial, settings
from tokens.codec import Codec
from utils.args_predict import parse_inference

SAMPLING = {"do_sample": True, "temperature": 1.5, "top_p": 0.9, "seed": 3}


def in_all(model, codec, prompts, rules):
    """The answers to all prompts by the engine `batch`, in order."""
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    made = {}
    for group in answers(model, codec, {index: prompts[index] for index in order}, rules):
        made |= group
    return [made[index] for index in range(len(prompts))]


RULES = {
    "greedy": {},
    "penalty": {"repetition_penalty": 1.3},
    "beams": {"num_beams": 3},
    "beams and penalty": {"num_beams": 2, "repetition_penalty": 1.3},
    "drawn": SAMPLING,
    "drawn from all": {"do_sample": True, "top_k": 0},
    "loops": {"max_repeats": 2},
}


@pytest.mark.parametrize("name", RULES)
def test_every_batch_size_answers_as_one_at_a_time(tiny, name):
    model, codec, prompts = tiny
    # The padding is what the shortest prompt's answer begins with: a penalty on it would change that answer.
    shortest = min(prompts, key=len)
    said = int(model(torch.tensor([shortest])).logits[0, -1].argmax())
    assert said not in shortest
    codec = Codec(**{**vars(codec), "pad_id": said})
    rules = Rules(20, **RULES[name])
    alone = [generate(model, codec, [ids], rules, [number])[0] for number, ids in enumerate(prompts)]
    for size in (1, 2, 3, 7):
        assert in_all(model, codec, prompts, rules._replace(batch_size=size)) == alone, size


@pytest.mark.parametrize("name", ["greedy", "penalty", "beams"])
def test_alone_a_prompt_is_answered_as_transformers_does(tiny, name):
    model, codec, prompts = tiny
    for ids in prompts[:2]:
        config = GenerationConfig(
            max_new_tokens=20, eos_token_id=codec.eos_id, pad_token_id=codec.pad_id, do_sample=False, **RULES[name]
        )
        new = model.generate(torch.tensor([ids]), generation_config=config)[0, len(ids) :].tolist()
        assert generate(model, codec, [ids], Rules(20, **RULES[name])) == [cut_answer(codec, new)]


def test_the_embedded_base_answers_alike_at_every_batch_size(embedded_base):
    model, codec = loaded(embedded_base)
    template = load_template("plain")
    texts = [
        "北京是中国的首都。",
        "《边城》的作者是沈从文。",
        "长江全长6,300千米，流经十一个省级行政区。",
        "甲是乙的父亲。",
    ]
    prompts = [codec.encode(make_prompt(template, "已知候选的关系列表：['作者', '长度']", text)) for text in texts]
    for more in ({}, {"repetition_penalty": 1.2}, SAMPLING):
        alone = [generate(model, codec, [ids], Rules(8, **more), [n])[0] for n, ids in enumerate(prompts)]
        for size in (3, 4):
            assert in_all(model, codec, prompts, Rules(8, size, **more)) == alone


@pytest.mark.parametrize("name", ["greedy", "penalty", "beams", "drawn"])
def test_chatglm_answers_alike_at_every_batch_size(chatglm, name):
    model, codec = loaded(chatglm[0])
    template, rules = load_template("alpaca"), Rules(10, **RULES[name])
    prompts = [
        codec.encode(make_prompt(template, "抽取", r["input"][:size]))
        for r, size in zip(RECORDS, (9, 30, 3), strict=False)
    ]
    alone = [answer(model, codec, [ids], rules, [number])[0] for number, ids in enumerate(prompts)]
    assert in_all(model, codec, prompts, rules._replace(batch_size=3)) == alone
    if name != "greedy":
        assert alone != [answer(model, codec, [ids], Rules(10))[0] for ids in prompts]


def test_what_is_drawn_follows_the_seed_and_the_record(tiny):
    model, codec, prompts = tiny
    same = [prompts[0]] * 4
    made = generate(model, codec, same, Rules(20, **SAMPLING))
    assert len({answer.text for answer in made}) == 4
    assert generate(model, codec, same, Rules(20, **SAMPLING)) == made
    assert generate(model, codec, same, Rules(20, **{**SAMPLING, "seed": 4})) != made
    assert generate(model, codec, [same[0]], Rules(20, **SAMPLING), [2]) == [made[2]]
    greedy = generate(model, codec, same[:1], Rules(20))
    assert generate(model, codec, same[:1], Rules(20, do_sample=True, top_k=1)) == greedy


def test_drawn_tokens_have_the_probabilities_of_the_logits():
    scores = torch.tensor([[0.0, -torch.inf, 1.0, 2.0]])
    draw = Draw(0, [0], 4000)
    counts = torch.zeros(4)
    for _ in range(4000):
        counts[draw(None, scores).argmax()] += 1
    assert counts[1] == 0
    assert torch.allclose(counts / 4000, scores.softmax(-1)[0], atol=0.03)


def test_loops_are_found_in_every_bracket_and_nowhere_else():
    once = "(甲(乙),位于,丙)"
    assert loop_end(once * 3, 3) == 3 * len(once)
    assert loop_end(f"答：{once}，{once}(丁,位于,丙){once}{once}", 3) == len(f"答：{once}，{once}(丁,位于,丙){once}")
    assert loop_end("（甲，位于，乙）\n（ 甲，位于，乙）", 2) == len("（甲，位于，乙）\n（ 甲，位于，乙）")
    one, other = (json.dumps({"head": "甲", "relation": "位于", "tail": tail}) for tail in "乙丙")
    assert loop_end(f'{{"triples": [{one}, {other}, {one}, {other}', 2) == len(f'{{"triples": [{one}, {other}, {one}')
    assert loop_end(f"[{one}, {other}]", 2) is None
    assert loop_end("[(a,b,c),(a,b,c)]", 2) == len("[(a,b,c),(a,b,c)")
    assert loop_end("((a,b,c)(a,b,c)", 2) == len("((a,b,c)(a,b,c)")
    assert loop_end("(甲,乙)" * 9, 2) is None
    assert loop_end("甲)乙)(丙,丁,戊", 2) is None
    assert loops(once * 3, 3)
    assert not loops(once * 3, 4)
    assert not loops(once * 30, 0)


@given(st.text("(),，（）ab ", max_size=60), st.integers(2, 3))
def test_a_loop_that_is_found_in_a_beginning_is_found_at_the_same_place_later(text, times):
    end = loop_end(text, times)
    assert [loop_end(text[:size], times) for size in range(len(text) + 1)] == [
        end if end is not None and size >= end else None for size in range(len(text) + 1)
    ]


class Saying:
    """A model that says given texts, one a row, whatever it is asked; and counts its steps."""

    def __init__(self, codec, texts):
        self.ids = [[*codec.tokenizer(text, add_special_tokens=False)["input_ids"], codec.eos_id] for text in texts]
        self.device, self.steps = torch.device("cpu"), 0
        self.pad = codec.pad_id

    def generate(self, input_ids, stopping_criteria, max_new_tokens, **more):
        """As transformers does it: a row that has ended is padded."""
        done = torch.zeros(len(input_ids), dtype=torch.bool)
        for step in range(max_new_tokens):
            new = [self.pad if end else ids[step] for ids, end in zip(self.ids, done.tolist(), strict=True)]
            input_ids = torch.cat([input_ids, torch.tensor(new)[:, None]], dim=1)
            self.steps += 1
            ended = torch.tensor([step + 1 >= len(ids) for ids in self.ids])
            done |= ended
            for criterion in stopping_criteria:
                done |= criterion(input_ids, None)
            if done.all():
                break
        return input_ids


def test_a_row_that_loops_is_stopped_and_the_others_go_on(tiny):
    _, codec, prompts = tiny
    triple, other = "(甲,位于,乙)", "(a,b,c),(d,e,f),(g,h,i),(j,k,l),(m,n,o)"
    model = Saying(codec, [triple * 20, other])
    answers = generate(model, codec, prompts[:2], Rules(400, max_repeats=3))
    assert answers[0][:2] == (triple * 3, "loop")
    assert answers[1][:2] == (other, "eos")
    a_triple = len(codec.tokenizer(triple, add_special_tokens=False)["input_ids"])
    assert 3 * a_triple - 4 <= answers[0].tokens <= 3 * a_triple + 2 * choosing.LOOK_EVERY
    assert model.steps == len(model.ids[1])
    assert generate(model, codec, prompts[:2], Rules(400))[0].finish_reason == "eos"
    alone = Saying(codec, [triple * 20])
    generate(alone, codec, prompts[:1], Rules(400, max_repeats=3))
    assert alone.steps < 4 * a_triple


def test_whole_answers_are_decoded_only_where_a_bracket_has_closed(tiny):
    _, codec, _ = tiny
    decoded = []

    class Counting:
        def decode(self, ids):
            decoded.append(len(ids))
            return codec.decode(ids)

    stop = StopLoops(Counting(), 3)
    ids = codec.tokenizer("没有括号的很长的文字" * 20, add_special_tokens=False)["input_ids"]
    for size in range(1, len(ids)):
        stop(torch.tensor([[1, 2, *ids[:size]]]), None)
    assert max(decoded) <= choosing.LOOK_EVERY + choosing.PIECES
    assert len(decoded) == (len(ids) - 1) // choosing.LOOK_EVERY


@pytest.fixture
def budgets(monkeypatch):
    """(token budget, prompts) of each batch; with 20 tokens or more, prompts of an odd length are answered whole."""
    asked = []

    def answer(model, codec, prompts, rules, *more):
        asked.append((rules.max_new_tokens, len(prompts)))
        return [
            Answer(f"{rules.max_new_tokens}", "eos" if rules.max_new_tokens >= 20 and len(ids) % 2 else "length", 1)
            for ids in prompts
        ]

    monkeypatch.setattr(batch_engine, "answer", answer)
    return asked


def test_answers_that_were_cut_are_asked_again_once_with_twice_the_budget(tmp_path, budgets, capsys):
    inference.main(flags(tmp_path / "out.json", "--retry_length", max_new_tokens=12, batch_size=4))
    assert budgets == [(12, 4)] * 3 + [(24, 2)] * 6
    out = rows(tmp_path / "out.json")
    assert {row["output"] for row in out} == {"24"}
    assert {row["finish_reason"] for row in out} == {"eos", "length"}
    assert "stopped at --max_new_tokens 12 and again at twice as many" in capsys.readouterr().err


def test_an_interrupted_second_asking_goes_on(tmp_path, budgets, monkeypatch):
    out, real = tmp_path / "out.json", partial.append_answers

    def append(output, rows, rank=0):
        if len(budgets) == 6:
            raise KeyboardInterrupt
        real(output, rows, rank)

    with monkeypatch.context() as patch:
        patch.setattr(partial, "append_answers", append)
        with pytest.raises(KeyboardInterrupt):
            inference.main(flags(out, "--retry_length", max_new_tokens=12, batch_size=4))
    budgets.clear()
    inference.main(flags(out, "--retry_length", max_new_tokens=12))
    assert budgets == [(24, 2)] * 4


def test_an_answer_that_cannot_be_made_longer_stays(tmp_path, budgets, monkeypatch, capsys):
    real = batch_engine.answer

    def answer(model, codec, prompts, rules, *more):
        if rules.max_new_tokens == 24:
            raise MemoryError
        return real(model, codec, prompts, rules, *more)

    monkeypatch.setattr(batch_engine, "answer", answer)
    inference.main(flags(tmp_path / "out.json", "--retry_length", max_new_tokens=12, batch_size=4))
    assert {(row["output"], row["finish_reason"]) for row in rows(tmp_path / "out.json")} == {("12", "length")}
    assert "warning: 12 answers stay cut at 12 tokens: asked again, it failed (out of memory" in capsys.readouterr().err


def test_without_the_flag_nothing_is_asked_again(tmp_path, budgets):
    inference.main(flags(tmp_path / "out.json", max_new_tokens=12, batch_size=4))
    assert budgets == [(12, 4)] * 3


def test_drawing_goes_on_after_an_interruption_as_if_there_had_been_none(tmp_path, random_base, monkeypatch):
    more = {"model_name_or_path": random_base, "lora_weights": None, "temperature": 2, "seed": 5}
    inference.main(flags(tmp_path / "whole.json", "--do_sample", batch_size=5, **more))
    out = tmp_path / "cut.json"
    with monkeypatch.context() as patch:
        patch.setattr(batch_engine, "generate", interrupted_at(2)[0])
        with pytest.raises(KeyboardInterrupt):
            inference.main(flags(out, "--do_sample", batch_size=5, **more))
    with pytest.raises(UserError, match="seed: 5 there, 6 now"):
        inference.main(flags(out, "--do_sample", **{**more, "seed": 6}))
    settings = partial.recorded_settings(out) | {"batch_size": 3}  # as if less memory were free now
    lines = partial.partial_path(out).read_text(encoding="utf-8").split("\n")
    partial.partial_path(out).write_text("\n".join([json.dumps(settings), *lines[1:]]), encoding="utf-8")
    inference.main(flags(out, "--do_sample", **more))
    assert out.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert len({row["output"] for row in rows(out)}) == len(RECORDS)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("--temperature 0.5", "--temperature without --do_sample: nothing is drawn"),
        ("--top_k 5", "--top_k without --do_sample"),
        ("--seed 5", "--seed without --do_sample"),
        ("--do_sample --num_beams 2", "--do_sample and --num_beams 2 contradict each other"),
        ("--do_sample --top_p 1.5", "--top_p 1.5: expected more than 0, and 1 at most"),
        ("--do_sample --temperature 0", "--temperature 0: expected a number above 0"),
        ("--repetition_penalty -1", "--repetition_penalty -1: expected a number above 0"),
        ("--max_repeats 1", "--max_repeats 1: every answer would end at its first triple"),
        ("--max_repeats -1", "--max_repeats -1: expected at least 0"),
    ],
)
def test_flags_that_contradict_each_other_name_both(typed, message):
    with pytest.raises(UserError, match=message):
        parse_inference(typed.split())


def test_the_flags_become_rules():
    typed = "--do_sample --top_k 0 --seed 0 --max_repeats 0 --repetition_penalty 1.1"
    _, args = parse_inference(typed.split(" "))
    made = settings.rules_of(args, 512)
    assert made == Rules(512, repetition_penalty=1.1, do_sample=True, top_k=0, seed=0)
