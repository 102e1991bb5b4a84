"""CPM-Bee's answers: the originals' greedy and beam search, token by token, and several answers to one record."""

import copy
import math

import pytest
import torch
from helpers_cpmbee import GOLDEN, TOKENIZER, loaded, logits_of, pruned_folder, tensor

from models.cpmbee import collate, convert, generate, prefill
from models.cpmbee.generation import Feed, Path, Reader, _adjuster, beam_search, greedy

DATA = GOLDEN["gen_data"]


@pytest.fixture(scope="module")
def model():
    return loaded()


def as_golden(said):
    return [[list(token) for token in record] for record in said]


@torch.inference_mode()
def test_logits_of_every_step_are_the_originals(model):
    for number, one in enumerate(DATA):
        prompts = prefill(TOKENIZER, [one])
        reader = Reader(model, prompts)
        logits = model.logits(reader.hidden, prompts.ext_ids, prompts.ext_subs)[0]
        assert (logits - tensor(f"gen{number}_prefill_logits_last")).abs().max() < 1e-4
        feed = Feed(TOKENIZER.bos_id, 0, 0, prompts.predicted[0][0][0])
        for step, expected in enumerate(tensor(f"gen{number}_step_logits_first8")):
            assert (reader.read([feed])[0] - expected).abs().max() < 1e-4
            feed = Feed(GOLDEN["greedy_single"][number][step][0], 0, step + 1, feed.segment)


@torch.inference_mode()
def test_greedy_answers_are_the_originals_alone_and_in_a_batch(model):
    steps = GOLDEN["gen_max_steps"]
    single = [greedy(model, TOKENIZER, prefill(TOKENIZER, [one]), steps)[0] for one in DATA]
    assert as_golden(single) == GOLDEN["greedy_single"]
    assert as_golden(greedy(model, TOKENIZER, prefill(TOKENIZER, DATA), steps)) == GOLDEN["greedy_batch"]


def first_answer(data):
    answer = data["<ans>"]
    return answer["<mask_0>"] if isinstance(answer, dict) else answer


def test_texts_of_greedy_answers_are_the_originals_and_the_data_stay_as_they_are(model):
    before = copy.deepcopy(DATA)
    together = generate(model, TOKENIZER, DATA, GOLDEN["gen_max_steps"])
    alone = [generate(model, TOKENIZER, [one], GOLDEN["gen_max_steps"])[0] for one in DATA]
    assert before == DATA
    assert [first_answer(one.data) for one in together] == [text["1"] for text in GOLDEN["greedy_batch_text"]]
    assert [first_answer(one.data) for one in alone] == [text["1"] for text in GOLDEN["greedy_single_text"]]
    assert together[2].data["<ans>"]["<mask_1>"] is None
    assert {(one.finish_reason, one.tokens) for one in together} == {("length", GOLDEN["gen_max_steps"])}


@pytest.mark.parametrize("name", ["beam1", "beam3", "beam1_rp", "beam3_rp"])
@torch.inference_mode()
def test_beam_search_finds_what_the_originals_found(model, name):
    case = GOLDEN[name]
    most = case["args"]["max_length"] + 2  # the originals count from 0 and allow one more
    options = most, case["args"]["beam_size"], case["args"].get("repetition_penalty", 1.0)
    single = [beam_search(model, TOKENIZER, prefill(TOKENIZER, [one]), *options)[0] for one in DATA]
    assert as_golden(single) == case["raw"]
    assert as_golden(beam_search(model, TOKENIZER, prefill(TOKENIZER, DATA), *options)) == case["raw"]
    if options[1] > 1:
        made = generate(model, TOKENIZER, DATA, *options)
        assert [one.data for one in made] == case["results"] == case["batched_results"]


# several answers, numbered tokens


class Spoken(Reader):
    """Reads as it should, and then wants `script[row][step]` said."""

    script = ()

    def read(self, feeds):
        logits = super().read(feeds)
        self.feeds = [*getattr(self, "feeds", []), list(feeds)]
        type(self).last = self
        for row, wanted in enumerate(self.script):
            step = len(self.feeds) - 1
            if step < len(wanted):
                logits[row, wanted[step]] = 1000
        return logits


def test_an_answer_that_ends_is_followed_by_the_next_and_names_are_written_out(model, monkeypatch):
    data = [DATA[2], {"input": "龘中😀", "<ans>": {"a": {"b": ""}, "c": ""}}, DATA[0]]
    # columns: 515 is <mask> 1, 516 the second unknown run of a record
    Spoken.script = [[516, 1, 7, 515, 129, 7], [7, 516, 7], [TOKENIZER.ids["<"], 7]]
    monkeypatch.setattr("models.cpmbee.generation.Reader", Spoken)
    first, second, third = generate(model, TOKENIZER, data, 6)
    assert first.data["<ans>"] == {"<mask_0>": "龘😀", "<mask_1>": "<mask_1>中"}
    assert second.data["<ans>"] == {"a": {"b": ""}, "c": "😀"}
    assert third.data["<ans>"] == "<<"
    assert [(one.finish_reason, one.tokens) for one in (first, second, third)] == [("eos", 6), ("eos", 3), ("eos", 2)]
    fed = [feeds[0] for feeds in Spoken.last.feeds]
    assert fed == [(6, 0, 0, 5), (1, 1, 1, 5), (1, 0, 2, 5), (6, 0, 0, 7), (2, 1, 1, 7), (129, 0, 2, 7)]


@pytest.mark.parametrize("beams", [1, 2])
def test_tokens_that_a_record_does_not_name_are_never_said(model, monkeypatch, beams):
    # record 0 names nothing, so that 1, 515 and 516, which record 2 names, must not be said
    Spoken.script = [[1, 515, 516, 7]] * beams
    monkeypatch.setattr("models.cpmbee.generation.Reader", Spoken)
    made = generate(model, TOKENIZER, [DATA[0], DATA[2]], 4, beams)
    assert made[0].tokens == 4
    assert made[0].finish_reason == "eos"
    assert made[0].data["<ans>"]
    assert "mask" not in made[0].data["<ans>"]


def test_beam_search_ends_answers_and_stops_once_nothing_better_can_come(model, monkeypatch):
    data = [{"input": "中", "<ans>": {"a": "", "b": ""}}]
    said = [(129, 1), (7, 1), (130, 2), (7, 2)]
    monkeypatch.setattr("models.cpmbee.generation.Reader", Spoken)
    for beams, steps in ((1, 5), (3, 30)):  # one beam has what it needs, three wait for two more answers
        Spoken.script = [[number for number, _ in said]] * beams
        with torch.inference_mode():
            assert beam_search(model, TOKENIZER, prefill(TOKENIZER, data), 30, beams) == [said]
        assert len(Spoken.last.feeds) == steps
    one = generate(model, TOKENIZER, data, 30, 3)[0]
    assert (one.data["<ans>"], one.finish_reason, one.tokens) == ({"a": "中", "b": TOKENIZER.words[130]}, "eos", 4)


class Weighed(Reader):
    """Gives the logits of `tables[step]` to every row, and nearly nothing to other tokens."""

    tables = ()

    def read(self, feeds):
        logits = super().read(feeds).fill_(-100)
        self.steps = getattr(self, "steps", -1) + 1
        for token, logit in self.tables[min(self.steps, len(self.tables) - 1)].items():
            logits[:, token] = logit
        return logits


@torch.inference_mode()
def test_of_two_answers_the_one_of_the_better_mean_wins(model, monkeypatch):
    # ended at once: ln 0.6 = -0.51; 129 and then the end: (ln 0.4 + 0) / 2 = -0.46
    Weighed.tables = [{7: math.log(0.6), 129: math.log(0.4)}, {7: 0.0}]
    monkeypatch.setattr("models.cpmbee.generation.Reader", Weighed)
    prompts = prefill(TOKENIZER, [{"input": "中", "<ans>": ""}])
    assert beam_search(model, TOKENIZER, prompts, 6, 2) == [[(129, 1), (7, 1)]]
    assert greedy(model, TOKENIZER, prompts, 6) == [[(7, 1)]]


@pytest.mark.parametrize("pruned", [False, True])
@torch.inference_mode()
def test_reading_token_by_token_gives_the_logits_of_training(model, tmp_path, pruned):
    model = loaded(pruned_folder(tmp_path)) if pruned else model
    data = {
        "input": "<mask_0>是😀的首都 龘 <mask_1>",
        "<ans>": {"<mask_0>": "龘中龘😀", "<mask_1>": "😀北京<mask_1>中"},
    }
    example = convert(TOKENIZER, data)
    features = {"input_ids": example.ids, "input_id_sub": example.subs, "context": example.context}
    features |= {"segment": example.segments, "segment_rel": example.relations, "num_segments": example.count}
    batch = collate(TOKENIZER, [{**features, "answer_cut": False}])
    expected = logits_of(model, batch)[[not given for given in example.context]]

    # The answer names a run that the prompt lacks; training sees the tables of the whole example.
    prompts = prefill(TOKENIZER, [DATA[0], data])
    prompts = prompts._replace(ext_ids=batch["ext_table_ids"], ext_subs=batch["ext_table_sub"])
    reader, got, position, row = Reader(model, prompts, 2), [], {}, 2  # rows 0, 1: the other record; 2, 3: this one
    for number, sub, given, segment in zip(example.ids, example.subs, example.context, example.segments, strict=True):
        if not given:
            position[segment] = position.get(segment, -1) + 1
            feeds = [Feed(TOKENIZER.bos_id, 0, 0, 4)] * 4
            feeds[row] = Feed(number, sub, position[segment], segment)
            got.append(reader.read(feeds)[row])
            reader.reorder([1, 1, 3, 2])  # what this path has read goes on in the other row
            row = 5 - row
    assert len(position) == 2
    assert (torch.stack(got) - expected).abs().max() < 1e-4


def test_what_was_said_becomes_less_likely_and_what_has_no_name_impossible():
    prompts = prefill(TOKENIZER, [DATA[2], DATA[0]])
    said = [Path([(516, 1), (7, 1), (129, 2)], 2, None), Path([(130, 1), (130, 1)], 1, None)]
    logits = torch.ones(2, 517)
    logits[0, 129] = -1
    logits = _adjuster(TOKENIZER, prompts, 2.0)(logits, said)
    # `<s>` was read, an answer's end was not; 516 is the second unknown run, of the family of id 1
    changed = [{place: row[place].item() for place in (row != 1).nonzero()[:, 0].tolist()} for row in logits]
    assert changed == [{1: 0.5, 6: 0.5, 129: -2.0}, {1: -10000, 6: 0.5, 130: 0.5, 515: -10000, 516: -10000}]


@pytest.mark.parametrize("options", [(0,), (3, 0), (3, 1, 0.5)])
def test_numbers_below_one_are_refused(model, options):
    with pytest.raises(ValueError, match="must be at least 1"):
        generate(model, TOKENIZER, DATA, *options)
