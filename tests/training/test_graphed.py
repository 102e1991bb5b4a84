"""Passes that are captured and replayed: batches in few sizes, gradients in one place, and what happens where not."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.training_args import OptimizerNames

from common.errors import UserError
from loading.precision import Precision
from tokens.batches import IGNORED, REAL, pack, pack_in_sizes, pad_batch, round_up
from training.graphed import Graphs, choose_graphs, sizes_of, why_no_graphs
from training.trainer import real_tokens
from utils.args_graphs import check_graphs

FEWEST = {"tokens": 16, "learnt": 8, "longest": 16}
CARD = torch.device("cuda")


def make_rows(*lengths):
    draw = torch.Generator().manual_seed(sum(lengths))
    rows = [torch.randint(1, 60, (length,), generator=draw).tolist() for length in lengths]
    return [{"input_ids": ids, "labels": [IGNORED] * (len(ids) // 2) + ids[len(ids) // 2 :]} for ids in rows]


def make_model(model_type):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(
        model_type, **sizes, num_key_value_heads=2, head_dim=8, vocab_size=60, pad_token_id=0, initializer_range=0.3
    )
    return AutoModelForCausalLM.from_config(config)


def learn(model, batch, count=None):
    model.zero_grad()
    batch = {name: part for name, part in batch.items() if name != REAL}
    loss = model(**batch, use_cache=False, num_items_in_batch=count).loss
    loss.backward()
    return loss.detach(), [weight.grad for weight in model.parameters()]


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
@pytest.mark.parametrize("lengths", [(5, 9, 2), (16,), (30, 18), (3, 4, 5, 6)])
def test_a_batch_padded_to_a_size_has_the_same_loss_and_gradients(model_type, lengths):
    model, batch = make_model(model_type), pack(make_rows(*lengths))
    count = (batch["labels"] != IGNORED).sum()
    padded = pad_batch(batch, 4, FEWEST)
    assert len(padded["cu_seq_lens_q"]) == 6
    assert padded["input_ids"].shape[1] % 16 == padded["labels"].shape[1] % 8 == 0
    for more in ({}, {"count": count}):
        (loss, gradients), (expected, exact) = learn(model, padded, **more), learn(model, batch, **more)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(gradients, exact)
    assert real_tokens(padded) == real_tokens(batch) == sum(lengths)


@given(some.lists(some.integers(2, 700), min_size=1, max_size=9), some.integers(1, 9))
def test_the_bounds_of_a_padded_batch_hold_all_its_tokens(lengths, records):
    batch = pack_in_sizes(make_rows(*lengths), records)
    sizes = batch["cu_seq_lens_q"].diff()
    assert [size for size in sizes.tolist()[:-1] if size] == lengths
    assert sizes.sum() == batch["input_ids"].shape[1] == batch["position_ids"].shape[1]
    assert sizes.max() <= batch["max_length_q"]
    assert sizes.shape == (max(records, len(lengths)) + 1,)
    assert len(batch["logits_to_keep"]) == batch["labels"].shape[1]
    assert batch["logits_to_keep"].max() < batch["input_ids"].shape[1]


@given(some.integers(0, 10**6), some.sampled_from([1, 16, 512]))
def test_sizes_are_few_and_near(count, fewest):
    size = round_up(count, fewest)
    assert count <= size <= max(count + fewest, count * 9 / 8)
    assert size % fewest == 0
    assert round_up(size, fewest) == size


def capture_nothing(compute, batch, count):
    """In place of a graph: every replay computes the batch in the place of the first one."""
    held = {name: part.clone() for name, part in batch.items()}

    def replay(batch, count):
        for name, part in held.items():
            part.copy_(batch[name])
        return compute(held, count.clone())

    return replay


def passes_of(capture):
    """Losses and gradients of steps of two passes, over batches of two sizes, and how each was computed.

    `capture`: in place of the function of this name; None: without graphs.
    """
    torch.manual_seed(0)
    layer, unused, ways = torch.nn.Linear(3, 1), torch.nn.Parameter(torch.ones(2)), []

    def compute(way, batch, count):
        ways.append(way)
        loss = layer(batch["input"]).square().sum() / count
        loss.backward()
        return loss.detach()

    graphs = Graphs([*layer.parameters(), unused], lambda _, *given: capture(partial(compute, "replayed"), *given))
    graphs.works, found = capture is not None, []
    for step in range(6):
        for index in range(2):
            batch = {"input": torch.randn(4 if (step + index) % 3 else 2, 3)}
            found.append(graphs.learn(partial(compute, "usual"), batch, torch.tensor(7.0 + step)))
        found += [weight.grad.clone() for weight in layer.parameters()]
        assert unused.grad is None  # an optimizer would let it decay
        layer.zero_grad()  # to None, as the Trainer does
    return found, ways


def test_replayed_passes_add_to_the_gradients_as_others_do():
    exact, ways = passes_of(None)
    assert ways == ["usual"] * 12
    found, ways = passes_of(capture_nothing)
    assert ways.count("usual") == 2  # the first of each size
    torch.testing.assert_close(found, exact)


def test_a_pass_that_cannot_be_captured_is_computed_as_usual_and_counts_once(capsys):
    def capture(compute, batch, count):
        if len(batch["input"]) == 2:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        return capture_nothing(compute, batch, count)

    exact, _ = passes_of(None)
    found, ways = passes_of(capture)
    assert {"usual", "replayed"} == set(ways)
    assert ways[-4:] == ["usual"] * 4
    torch.testing.assert_close(found, exact)
    said = "cuda graphs: off from here on (RuntimeError: operation not permitted when stream is capturing)"
    assert capsys.readouterr().err.count(said) == 1


def test_a_gradient_that_replays_would_not_find_is_no_graph(capsys):
    late = torch.nn.Parameter(torch.ones(1))

    def compute(batch, count):
        weight.grad = torch.ones(1) if weight.grad is None else weight.grad.add_(1)
        return torch.tensor(0.0)

    def capture(compute, batch, count):
        late.grad = torch.full((1,), torch.nan)
        return compute

    weight = torch.nn.Parameter(torch.ones(1))
    graphs = Graphs([weight, late], capture)
    for passes in (1, 2, 3):
        graphs.learn(compute, {"input": torch.ones(1)}, torch.tensor(1))
        assert weight.grad == passes
        assert late.grad is None
    assert "a weight has a gradient that it had not before" in capsys.readouterr().err


def test_sizes_are_those_of_tensors_and_what_numbers_are():
    batch = pack_in_sizes(make_rows(5, 9), 4)
    assert sizes_of(batch) == sizes_of(pack_in_sizes(make_rows(100, 200, 7), 4) | {REAL: 14})
    assert sizes_of(batch) != sizes_of(pack_in_sizes(make_rows(5, 600), 4) | {REAL: 14})


USUAL = {"precision": Precision("bfloat16", 16), "fsdp": False, "world_size": 1, "torch_compile": False, "fp16": False}
USUAL |= {"optim": "adamw_torch", "torch_empty_cache_steps": None}


@pytest.mark.parametrize(
    ("more", "packed", "recompute", "device", "why"),
    [
        ({}, True, False, CARD, None),
        ({}, True, False, torch.device("cpu"), "no GPU"),
        ({}, False, False, CARD, "batches are padded"),
        ({}, True, True, CARD, "gradient checkpointing"),
        ({"world_size": 2}, True, False, CARD, "2 processes"),
        ({"fsdp": True, "world_size": 2}, True, False, CARD, "split"),
        ({"torch_compile": True}, True, False, CARD, "torch.compile"),
        ({"fp16": True}, True, False, CARD, "float16"),
        ({"precision": Precision("bfloat16", 4)}, True, False, CARD, "4 bits"),
        ({"optim": OptimizerNames.GALORE_ADAMW_LAYERWISE}, True, False, CARD, "--optim galore_adamw_layerwise"),
        ({"optim": "lomo"}, True, False, CARD, "--optim lomo"),
        ({"torch_empty_cache_steps": 5}, True, False, CARD, "--torch_empty_cache_steps"),
    ],
)
def test_what_cannot_be_captured_says_why(more, packed, recompute, device, why):
    reason = why_no_graphs(SimpleNamespace(**USUAL | more), packed, recompute, device)
    assert reason is why if why is None else why in reason


def test_graphs_are_taken_for_small_bases_that_fit_twice(capsys):
    for asked, reason, weights, fits, chosen in (
        (None, None, 10**8, True, True),
        (None, None, 10**8, False, False),
        (None, None, 7 * 10**9, True, False),
        (None, None, None, True, False),
        (None, "no GPU", 10**8, True, False),
        (True, None, 7 * 10**9, False, True),
        (False, None, 10**8, True, False),
    ):
        assert choose_graphs(asked, reason, weights, fits).value is chosen
    assert capsys.readouterr().err.count("cuda graphs: on (a small base waits for the CPU)") == 1
    with pytest.raises(UserError, match="--cuda_graphs: no GPU; drop it"):
        choose_graphs(True, "no GPU", 10**8, True)


@pytest.mark.parametrize(
    "more", [{"packing": False}, {"gradient_checkpointing": True}, {"fsdp": True}, {"fp16": True}, {"use_cpu": True}]
)
def test_flags_that_do_not_go_with_graphs_are_named(more):
    plain = dict.fromkeys(("packing", "gradient_checkpointing", "fsdp", "torch_compile", "fp16", "use_cpu"))
    with pytest.raises(UserError, match=f"--cuda_graphs and --{next(iter(more))}.* contradict each other"):
        check_graphs(SimpleNamespace(**plain | more, cuda_graphs=True))
    check_graphs(SimpleNamespace(**plain | more, cuda_graphs=None))
