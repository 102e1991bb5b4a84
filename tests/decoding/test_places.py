"""The places of the engine `fast`: who stands where, and which beginnings of prompts stand there already."""

import torch

from decoding.places import Places, Started


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
