"""The places of the engine `fast`: who stands where, and which beginnings of prompts stand there already."""

import random
from types import SimpleNamespace

import torch

from decoding.places import Place, Places, Started


def admit(places, started):
    places.hold(started)
    return places.admit(started)


def test_the_longest_beginning_is_found_among_the_prompts_that_are_kept(tiny):
    places = Places(tiny[0], 4, 100, shared=2)
    kept = [[1, 2, 3, 4], [1, 2, 9], [5, 6]]
    found = places.find(map(len, kept))
    assert places.beginnings([[1, 2, 3]]) == [(0, 0)]
    admit(places, Started([0, 1, 2], found, kept, 0, torch.tensor([7, 8, 9])))
    asked = [[1, 2, 3, 4], [1, 2, 3, 4, 5], [1, 2, 5, 5], [1, 2, 9, 9], [5, 6, 7], [5, 6], [5, 7, 8], [0], [9, 9, 9]]
    assert places.beginnings(asked) == [(3, 0), (4, 0), (2, 4), (3, 4), (2, 7), (0, 0), (0, 0), (0, 0), (0, 0)]
    places.clear([0])
    assert places.beginnings(asked)[:2] == [(3, 0), (4, 0)]  # nobody has written there yet
    places.overwrite(places.find([1]))
    assert places.beginnings(asked)[:2] == [(2, 4), (2, 4)]


def test_prompts_are_forgotten_where_a_new_record_writes_and_nowhere_else():
    drawn, seen = random.Random(0), set()
    for _ in range(300):
        common, before = drawn.choice([(0, 0), (3, -3), (0, 2)])
        cuts = sorted(drawn.sample(range(common, 60), 10))
        new = [Place(row, cuts[row] + before, cuts[row + 1]) for row in drawn.sample(range(9), 4)]
        kept = [([1] * (common + drawn.randint(1, 9)), drawn.randint(0, 50)) for _ in range(6)]
        places = SimpleNamespace(common=common, before=before, prompts=kept)
        Places.overwrite(places, new)
        written = {at for place in new for at in range(place.start - before, place.end)}
        own = [written.isdisjoint(range(start + common, start + len(ids))) for ids, start in kept]
        assert places.prompts == [prompt for prompt, left in zip(kept, own, strict=True) if left]
        seen |= set(own)
    assert seen == {True, False}


def test_a_row_without_a_record_writes_beside_the_others(tiny):
    model, _, _ = tiny
    places = Places(model, 3, 100, shared=16)
    found = places.find([60, 40, 1])
    assert found == [(0, 0, 60), (1, 60, 100)]
    firsts = torch.tensor([7, 8])
    assert admit(places, Started([4, 5], found, [[1] * 50, [2] * 30], 0, firsts)) == [(4, 0, 7, 0.0), (5, 1, 8, 0.0)]
    assert places.starts.tolist() == [0, 60, 102]
    assert places.positions.tolist() == [50, 30, 0]
    places.clear([0])
    assert places.starts.tolist() == [100, 60, 102]
    assert (places.starts + places.last).tolist() == [100, 99, 102]
    assert places.find([61, 30]) == []
    assert places.find([30, 30, 1]) == [(0, 0, 30), (2, 30, 60)]


def test_records_that_move_to_the_first_rows_keep_what_is_theirs(tiny):
    places = Places(tiny[0], 4, 100, shared=16)
    found = places.find([10, 20, 30, 40])
    prompts = [[1] * 5, [2] * 6, [3] * 7, [4] * 8]
    admit(places, Started([5, 6, 7, 8], found, prompts, 0, torch.tensor([11, 12, 13, 14])))
    places.clear([0, 2])
    assert places.gather({3: 8, 1: 6}) == {1: 8, 0: 6}
    assert places.tokens[:2].tolist() == [12, 14]
    assert places.positions.tolist() == [6, 8, 0, 0]
    assert places.starts.tolist() == [10, 60, 102, 103]
    assert places.last.tolist() == [19, 39, 0, 0]
    assert places.find([10, 30, 1]) == [(2, 0, 10), (3, 30, 60)]
