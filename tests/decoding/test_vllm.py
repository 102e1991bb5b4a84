"""The engine vllm, with a package in vLLM's place that keeps what it is asked and answers by transformers."""

import functools
import importlib.machinery
import json
import os
import sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import pytest
import torch
from helpers import GOLDEN, ROOT, python, random_llama, rows
from helpers_prediction import RECORDS, flags, loaded

import inference
from common.errors import UserError
from data.prompts import load_template, make_prompt
from decoding import vllm_engine
from decoding.answers import Answer
from decoding.choosing import seed_of
from decoding.engines import ENGINES
from decoding.serving import Serving
from loading.lora import add_lora
from loading.precision import Precision
from models.families import FAMILIES
from prediction import partial
from prediction.settings import rules_of
from utils.args_predict import parse_inference
from utils.args_pt import parse_ptuning_inference

BASE, ADAPTER = GOLDEN / "checkpoint", GOLDEN / "adapter"


class Fake:
    """What stands for vLLM: its three classes, and what they were given."""

    def __init__(self):
        self.made, self.asked, self.shown, self.error = [], [], [], None
        self.model = loaded(BASE, ADAPTER)[0]

    def LLM(self, **options):
        if self.error:
            raise self.error
        self.made.append(options)
        self.shown.append({name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "RANK", "WORLD_SIZE")})
        return SimpleNamespace(generate=self.generate)

    def generate(self, prompts, sampling_params, *, use_tqdm, lora_request):
        self.asked.append((prompts, sampling_params, lora_request))
        found = []
        for one, how in zip(prompts, sampling_params, strict=True):
            ids = one["prompt_token_ids"]
            [end] = how.stop_token_ids
            new = self.model.generate(torch.tensor([ids]), max_new_tokens=how.max_tokens, eos_token_id=end)
            new = new[0, len(ids) :].tolist()
            output = SimpleNamespace(token_ids=tuple(new), finish_reason="stop" if new[-1] == end else "length")
            found.append(SimpleNamespace(outputs=[output]))
        return found


@pytest.fixture
def fake(monkeypatch):
    made = Fake()
    package, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    package.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    package.LLM, package.SamplingParams = made.LLM, lambda **more: SimpleNamespace(**more)
    request.LoRARequest = lambda *arguments: arguments
    for module in (package, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    unchecked = ENGINES["vllm"]._replace(check=lambda _: None)  # there is no card
    monkeypatch.setitem(ENGINES, "vllm", unchecked)
    return made


def test_the_request_is_the_one_of_the_other_engine_and_so_is_the_file(tmp_path, fake):
    inference.main(flags(tmp_path / "batch.json"))
    inference.main(flags(tmp_path / "vllm.json", engine="vllm"))
    assert (tmp_path / "vllm.json").read_bytes() == (tmp_path / "batch.json").read_bytes()
    codec, template = loaded(BASE)[1], load_template("alpaca")
    encoded = [codec.encode(make_prompt(template, r["instruction"], r["input"])) for r in RECORDS]
    [options], [(prompts, how, adapter)] = fake.made, fake.asked
    assert options == {
        "model": str(BASE),
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "dtype": "float32",
        "trust_remote_code": False,
        "tensor_parallel_size": 1,
        "max_model_len": max(map(len, encoded)) + 12,
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": 8,
    }
    assert sorted(one["prompt_token_ids"] for one in prompts) == sorted(encoded)
    assert all(set(one) == {"prompt_token_ids"} for one in prompts)
    assert adapter == ("adapter", 1, str(ADAPTER))
    asked = {"max_tokens": 12, "stop_token_ids": [2], "ignore_eos": True, "detokenize": False, "temperature": 0.0}
    assert all(vars(one) == {**asked, "repetition_penalty": 1.0} for one in how)


def test_flags_are_passed_through(tmp_path, fake):
    drawing = {"temperature": 0.7, "top_k": 0, "top_p": 0.9, "seed": 4, "repetition_penalty": 1.1}
    more = {"tensor_parallel_size": 2, "batch_size": 64, "engine": "vllm"}
    out = tmp_path / "out.json"
    inference.main([*flags(out, "--do_sample", lora_weights=None, **more, **drawing), "--top_k", "0"])
    [options], [(_, how, adapter)] = fake.made, fake.asked
    assert (options["tensor_parallel_size"], options["max_num_seqs"]) == (2, 64)
    assert "enable_lora" not in options
    assert adapter is None
    assert {one.seed for one in how} == {seed_of(4, number) for number in range(len(RECORDS))}
    assert {(one.temperature, one.top_k, one.top_p, one.repetition_penalty) for one in how} == {(0.7, -1, 0.9, 1.1)}


@pytest.mark.parametrize(
    ("failure", "seen", "said"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (RuntimeError("EngineCore is dead"), UserError, r"vLLM failed \(RuntimeError: EngineCore is dead\)"),
    ],
)
def test_groups_are_written_as_they_come_and_the_other_engine_can_go_on(
    tmp_path, fake, monkeypatch, failure, seen, said
):
    small = functools.partial(vllm_engine.answers, first_group=4, group_seconds=0)
    monkeypatch.setitem(ENGINES, "vllm", ENGINES["vllm"]._replace(answers=small))
    out, real = tmp_path / "out.json", fake.generate

    def third_call_fails(*arguments, **more):
        if len(fake.asked) == 2:
            raise failure
        return real(*arguments, **more)

    fake.generate = third_call_fails
    with pytest.raises(seen, match=said):
        inference.main(flags(out, engine="vllm"))
    assert len(partial.read_finished(out)) == 8
    inference.main(flags(tmp_path / "whole.json"))
    inference.main(flags(out, engine="batch"))
    assert out.read_bytes() == (tmp_path / "whole.json").read_bytes()


@pytest.mark.skipif(not find_spec("vllm"), reason="vLLM is not installed: it needs an environment of its own")
def test_twenty_records_are_answered_alike_by_vllm_itself(tmp_path):
    base, adapter, ask = tmp_path / "base", tmp_path / "adapter", tmp_path / "ask.json"
    base.mkdir()
    model = add_lora(random_llama(base, head_dim=32), ("q_proj", "v_proj"), 8, 16, 0.0)  # vLLM has no heads of 16
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(adapter)
    lines = (ROOT / "data" / "sample" / "valid.json").read_text(encoding="utf-8").splitlines(keepends=True)
    ask.write_text("".join(lines[:20]), encoding="utf-8")
    for engine in ("batch", "vllm"):
        more = {"model_name_or_path": base, "lora_weights": adapter, "input_file": ask, "engine": engine}
        ran = python("src/inference.py", *flags(tmp_path / f"{engine}.json", "--fp32", **more))
        assert ran.returncode == 0, ran.stderr
    outputs = [row["output"] for row in rows(tmp_path / "vllm.json")]
    assert (len(outputs), len(set(outputs)) > 10) == (20, True)
    assert (tmp_path / "vllm.json").read_bytes() == (tmp_path / "batch.json").read_bytes()


def test_a_prompt_beyond_the_context_fails_alone(tmp_path, fake, capsys):
    sizes = json.loads((GOLDEN / "golden.json").read_text(encoding="utf-8"))["predictions"]
    lengths = sorted({case["id"]: len(case["prompt_ids"]) for case in sizes}.values())
    base = tmp_path / "base"
    base.mkdir()
    for file in BASE.iterdir():
        if file.name != "config.json":
            (base / file.name).symlink_to(file)
    config = json.loads((BASE / "config.json").read_text()) | {"max_position_embeddings": lengths[-1]}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="1 of 12 records failed"):
        inference.main(flags(tmp_path / "out.json", model_name_or_path=base, engine="vllm"))
    assert f"its prompt of {lengths[-1]} tokens leaves no room" in capsys.readouterr().err
    assert len(partial.read_finished(tmp_path / "out.json")) == 11


@pytest.mark.parametrize(
    "error",
    [ValueError("Model architectures ['X'] are not for now"), RuntimeError("Engine core initialization: not for now")],
)
def test_a_base_that_vllm_cannot_serve_is_said(tmp_path, fake, error):
    fake.error = error
    with pytest.raises(UserError, match="vLLM cannot serve .*not for now"):
        inference.main(flags(tmp_path / "out.json", engine="vllm"))


def test_the_token_that_ended_an_answer_counts_even_if_vllm_keeps_it(tmp_path):
    codec = loaded(BASE)[1]
    ids = codec.tokenizer("(a,b,c)", add_special_tokens=False)["input_ids"]
    rules = SimpleNamespace(max_repeats=0)
    for given in (ids, [*ids, 2]):
        answer = vllm_engine.read_answer(SimpleNamespace(token_ids=given, finish_reason="stop"), codec, rules)
        assert answer == Answer("(a,b,c)", "eos", len(ids) + 1)
    answer = vllm_engine.read_answer(SimpleNamespace(token_ids=ids * 3, finish_reason="length"), codec, rules)
    assert answer.finish_reason == "length"


def test_under_torchrun_vllm_sees_its_own_cards_and_nothing_of_torchrun(monkeypatch):
    given = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": "4,5,6,7"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    with vllm_engine.own_cards(torch.device("cuda:1"), 2):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "6,7"
        assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE"} & set(os.environ)
    assert {name: os.environ[name] for name in given} == given


def test_vllm_sees_the_card_that_was_asked_for(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    for device, expected in (("cuda:2", "6"), ("cuda:0", "4,5,6,7"), ("cpu", "4,5,6,7")):
        with vllm_engine.own_cards(torch.device(device), 1):
            assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


def serving(args, bits, device):
    return Serving(
        base=str(BASE),
        family=FAMILIES[0],
        shape=None,
        precision=Precision("float32", bits),
        device=torch.device(device),
        rules=rules_of(args, args.max_new_tokens),
        merge=args.merge_lora,
        tensor_parallel_size=args.tensor_parallel_size,
        data_parallel_size=args.data_parallel_size,
    )


@pytest.mark.parametrize(
    ("typed", "bits", "message"),
    [
        ("--num_beams 2", 16, "--engine vllm and --num_beams 2 do not go together"),
        ("--lora_weights x --merge_lora", 16, "--engine vllm and --merge_lora do not go together"),
        ("", 8, "--engine vllm and --bits 8 do not go together: vLLM quantises to 4 bits only"),
        ("--data_parallel_size 2", 16, "torchrun --nproc_per_node=2, and --tensor_parallel_size GPUs for each"),
        ("--tensor_parallel_size 2", 16, "--tensor_parallel_size 2: this machine shows 1 GPUs from cuda:1 on"),
    ],
)
def test_what_vllm_cannot_do_is_refused_before_anything_is_loaded(monkeypatch, typed, bits, message):
    monkeypatch.setattr(vllm_engine.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    _, args = parse_inference(["--engine", "vllm", *typed.split()])
    with pytest.raises(UserError, match=message):
        vllm_engine.check(serving(args, bits, "cuda:1"))


def test_without_the_package_or_a_card_it_says_what_to_do(monkeypatch):
    _, args = parse_inference(["--engine", "vllm"])
    monkeypatch.setattr(vllm_engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install -r requirements-vllm.txt"):
        vllm_engine.check(serving(args, 16, "cuda"))
    monkeypatch.setattr(vllm_engine.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(vllm_engine, "is_for_cpus", lambda: False)
    with pytest.raises(UserError, match="the vLLM installed here needs a GPU, and there is none"):
        vllm_engine.check(serving(args, 16, "cpu"))
    assert (ROOT / "requirements-vllm.txt").is_file()
    assert "vllm" not in sys.modules


def test_families_that_vllm_cannot_serve_are_refused(chatglm, tmp_path):
    assert {family.name for family in FAMILIES if "vllm" not in family.engines} >= {"chatglm", "moss", "cpm-bee"}
    assert {family.name for family in FAMILIES if "vllm" in family.engines} >= {"llama", "auto"}
    more = flags(tmp_path / "out.json", model_name_or_path=chatglm[0], lora_weights=None, engine="vllm")
    with pytest.raises(UserError, match=r"--engine vllm: not for family chatglm \(it has batch, fast\)"):
        inference.main(more)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("--tensor_parallel_size 2", "--tensor_parallel_size without --engine vllm"),
        ("--data_parallel_size 2", "--data_parallel_size without --engine vllm"),
        ("--device_map auto --device cuda:1", "--device_map auto and --device cuda:1 contradict each other"),
        ("--device_map auto --max_memory_MB 9", "--device_map auto and --max_memory_MB 9 contradict each other"),
        ("--device_map auto --engine vllm", "--device_map auto and --engine vllm contradict each other"),
    ],
)
def test_flags_of_several_cards_that_do_not_go_together(typed, message):
    with pytest.raises(UserError, match=message):
        parse_inference(typed.split())


def test_device_map_and_torchrun_do_not_go_together(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--device_map auto and torchrun with 2 processes contradict each other"):
        parse_inference(["--device_map", "auto"])


def test_a_spread_base_answers_alike(tmp_path, capsys):
    inference.main(flags(tmp_path / "one.json"))
    inference.main(flags(tmp_path / "spread.json", device_map="auto"))
    assert "device_map: " in capsys.readouterr().err
    assert rows(tmp_path / "spread.json") == rows(tmp_path / "one.json")


def test_a_prefix_of_p_tuning_is_not_for_vllm():
    with pytest.raises(UserError, match="--engine: invalid choice: 'vllm'"):
        parse_ptuning_inference(["--model_dir", "x", "--engine", "vllm"])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"r": 4}, 8),
        ({"r": 8}, 8),
        ({"r": 24}, 32),
        ({"r": 8, "rank_pattern": {"q_proj": 100}}, 128),
        ({"r": 1000}, "is LORA of rank 1000"),
        ({"r": 8, "use_dora": True}, "has use_dora"),
        ({"r": 8, "peft_type": "LOHA"}, "is LOHA of rank 8"),
    ],
)
def test_the_adapter_gets_the_next_rank_that_vllm_has(tmp_path, change, expected):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **change}))
    if isinstance(expected, int):
        assert vllm_engine.rank_for(tmp_path) == expected
        return
    with pytest.raises(UserError, match=expected):
        vllm_engine.rank_for(tmp_path)
