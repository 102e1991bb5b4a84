"""The attention of the engine `fast` on a CPU, by its formula."""

from types import SimpleNamespace

import pytest
import torch

from decoding.kept import Bias, Kept, Spans, _attend_all, _attend_each, _pad_all, _records_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [1, 3])  # heads that share keys and values
@pytest.mark.parametrize("window", [None, 1, 5, 10, 99])  # of all that a token may see, the last
def test_every_token_sees_those_of_its_record_up_to_itself(dtype, share, window):
    torch.manual_seed(0)
    # One alone, some of many, one of many, a short prompt; a rest and a whole prompt that are longer than drafts.
    asked, starts, seen = [1, 4, 1, 6, 18, 17], [3, 10, 40, 50, 60, 90], [1, 9, 27, 6, 30, 17]
    query = torch.randn(2 * share, sum(asked), 16, dtype=dtype).transpose(0, 1)  # laid out as the model gives it
    key, value = torch.randn(2, 110, 2, 16, dtype=dtype)
    bounds = torch.tensor([0, *asked]).cumsum(0).int()
    spans = Spans(bounds, torch.tensor([*starts, 0]).int(), torch.tensor(seen).int(), max(asked))
    out = _attend_each(query, key, value, _records_of(spans), 0.3, window)
    row = 0
    for count, start, most in zip(asked, starts, seen, strict=True):
        for last in range(start + most - count + 1, start + most + 1):
            first = start if window is None else max(start, last - window)
            keys, values = (part[first:last].double().repeat_interleave(share, 1) for part in (key, value))
            score = torch.einsum("hs,ths->ht", query[row].double(), keys) * 0.3
            exact = torch.einsum("ht,ths->hs", score.softmax(-1), values)
            assert (out[row].double() - exact).abs().max() < 6 * torch.finfo(dtype).eps
            row += 1
    assert row == len(query)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [1, 3])
@pytest.mark.parametrize("common", [0, 4])
def test_records_asked_at_once_see_what_they_see_one_by_one(dtype, share, common):
    torch.manual_seed(0)
    asked, starts, seen = [1, 4, 1, 6], [3, 10, 40, 50], [5, 9, 27, 6]
    query = torch.randn(2 * share, sum(asked), 16, dtype=dtype).transpose(0, 1)
    key, value = torch.randn(2, 90, 2, 16, dtype=dtype)
    bounds = torch.tensor([0, *asked]).cumsum(0).int()
    spans = Spans(bounds, torch.tensor([*starts, 0]).int(), torch.tensor(seen).int(), max(asked), common=common)
    out = _attend_all(query, key, value, _pad_all(spans, max(seen), share, dtype), 0.3)
    each = _attend_each(query, key, value, _records_of(spans), 0.3, None)
    assert out.shape == query.shape
    assert (out - each).abs().max() < 6 * torch.finfo(dtype).eps


def test_records_are_asked_at_once_where_that_copies_little():
    shape = {"num_hidden_layers": 1, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16}
    config = SimpleNamespace(**shape, hidden_size=96)
    config.get_text_config = lambda: config
    kept = Kept(SimpleNamespace(config=config, device=torch.device("cpu"), dtype=torch.float32), 10)

    def pads(seen: list[int], most: int = 1) -> bool:
        count = torch.arange(len(seen) + 1).int()
        spans = kept.pad(Spans(count * most, count, torch.tensor(seen).int(), most))
        assert spans.padded is None or spans.padded.mask.shape == (len(seen), 1, 3 * most, max(seen))
        return spans.padded is not None

    assert pads([100, 60])
    assert pads([100, 60], most=16)
    assert not pads([100])
    assert not pads([100, 60], most=17), "prompts"
    assert pads([500, 9, 9, 9])
    assert not pads([512, 9, 9, 9]), "most of what is copied would be padding"
    assert not pads([3000, 3000]), "too much to copy in every layer"


@pytest.mark.parametrize("asked", [1, 6, 20])
def test_keys_and_values_in_eight_bits_are_read_as_what_they_were_rounded_to(asked):
    torch.manual_seed(0)
    query, (key, value) = torch.randn(asked, 2, 16), torch.randn(2, 30, 2, 16)
    spans = Spans(torch.tensor([0, asked]).int(), torch.tensor([3, 0]).int(), torch.tensor([25]).int(), asked)
    kept = [part.to(torch.float8_e4m3fn) for part in (key, value)]
    made = _attend_each(query, *kept, _records_of(spans), 0.3, None)
    torch.testing.assert_close(
        made, _attend_each(query, *(part.float() for part in kept), _records_of(spans), 0.3, None)
    )
    exact = _attend_each(query, key, value, _records_of(spans), 0.3, None)
    assert 0 < (made - exact).norm() / exact.norm() < 0.1


def test_what_is_larger_than_eight_bits_hold_is_kept_as_the_largest():
    config = SimpleNamespace(num_hidden_layers=1, num_attention_heads=2, hidden_size=32)
    config.get_text_config = lambda: config
    kept = Kept(SimpleNamespace(config=config, device=torch.device("cpu"), dtype=torch.float32), 5, fp8=True)
    kept.begin(torch.tensor([1, 2]), None)
    kept.update(torch.full((1, 2, 2, 16), 1e4), torch.full((1, 2, 2, 16), -1e4), 0)
    assert [part.float().unique().tolist() for part in kept.layers[0]] == [[0.0, 448.0], [-448.0, 0.0]]


@pytest.mark.parametrize("share", [1, 3])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("most", [1, 3])
def test_newest_tokens_of_each_record_see_the_same_with_copied_keys(share, biased, most):
    torch.manual_seed(0)
    starts, seen, counts = torch.tensor([3, 10, 40, 0]).int(), torch.tensor([1, 9, 17]).int(), [1, most, most]
    bounds = torch.tensor([0, *counts]).cumsum(0)
    query, (key, value) = torch.randn(sum(counts), 2 * share, 16), torch.randn(2, 60, 2, 16)
    apart = torch.tensor([[-1, 3, 4], [5, -1, 6], [7, 8, -1]])
    bias = Bias(torch.randn(14, 2 * share), torch.randint(0, 3, (60,)), apart, torch.arange(9, 14)) if biased else None
    spans = Spans(bounds.int(), starts, seen, most)
    each = _attend_each(query, key, value, _records_of(spans, True, bias), 0.3, None)
    padded = _attend_all(query, key, value, _pad_all(spans, 17, share, torch.float32, bias), 0.3)
    torch.testing.assert_close(padded, each)
    places = [
        (first, last - new + one)
        for first, last, new in zip(starts.tolist(), seen.tolist(), counts, strict=False)
        for one in range(1, new + 1)
    ]
    for row, (first, count) in enumerate(places):
        score = torch.einsum("hs,ths->ht", query[row], key[first : first + count].repeat_interleave(share, 1)) * 0.3
        for token in range(count) if biased else ():
            kinds = bias.marks[first + count - 1], bias.marks[first + token]
            near = bias.near[max(token - count + 1, -2) + 2]
            score[:, token] += bias.table[near if kinds[0] == kinds[1] else apart[kinds]]
        exact = torch.einsum("ht,ths->hs", score.softmax(-1), value[first : first + count].repeat_interleave(share, 1))
        torch.testing.assert_close(each[row], exact)
