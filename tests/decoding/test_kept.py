"""The attention of the engine `fast` on a CPU, by its formula."""

import pytest
import torch

from decoding.kept import Spans, _attend_each


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
    out = _attend_each(query, key, value, spans, 0.3, window)
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
