"""Looking up what may come next: as a search place by place finds it."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from decoding.lookup import NONE, look_up


def look_up_by_hand(text: list[int], longest: int, count: int) -> tuple[list[int], int]:
    """What followed the latest of the places where most of the last tokens stood before."""
    for size in range(min(longest, len(text) - 1), 0, -1):
        for end in range(len(text) - 1, size - 1, -1):
            if text[end - size : end] == text[-size:]:
                longer = text[:]
                for at in range(count):  # what would follow if it went on so
                    longer.append(longer[end + at])
                return longer[len(text) :], size
    return [NONE] * count, 0


texts = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=20), min_size=1, max_size=4)


@given(texts, st.integers(1, 5), st.integers(1, 9), st.randoms())
def test_what_followed_the_last_tokens_before_is_found(rows, longest, count, draw):
    width = max(map(len, rows)) + draw.randrange(4)
    beyond = [[*row, *(draw.randrange(4) for _ in range(width - len(row)))] for row in rows]  # not known yet
    newest = torch.tensor([len(row) - 1 for row in rows])
    drafts, matched = look_up(torch.tensor(beyond), newest, longest, count)
    assert list(zip(drafts.tolist(), matched.tolist(), strict=True)) == [
        look_up_by_hand(row, longest, count) for row in rows
    ]


def test_the_longest_beginning_counts_and_of_these_the_latest():
    text = [7, 1, 2, 30, 2, 31, 1, 2, 32, 2, 33, 1, 2]
    drafts, matched = look_up(torch.tensor([text]), torch.tensor([len(text) - 1]), 3, 2)
    assert (drafts.tolist(), matched.tolist()) == ([[32, 2]], [2])
