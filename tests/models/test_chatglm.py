"""ChatGLM-6B against the published code under transformers 4.30.2 (tests/golden/chatglm: of the arrays of logits every
eighth column is kept, of the gradients every fourth row).
"""

import json

import pytest
import torch
from helpers import CHATGLM
from helpers_chatglm import Golden, near
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration, ChatGLMTokenizer
from models.chatglm.modeling import answer_start, make_positions, make_visible

SETS = ("base", "deep28", "ptv2-mlp", "ptv2-emb")
PREFIXED = SETS[2:]
NEAR = {"rtol": 0, "atol": 2e-4}


@pytest.fixture(scope="module", params=SETS)
def golden(request):
    return Golden(CHATGLM / request.param)


@pytest.fixture(scope="module", params=PREFIXED)
def prefixed(request):
    return Golden(CHATGLM / request.param)


@pytest.fixture
def model():
    return ChatGLMForConditionalGeneration.from_pretrained(CHATGLM / "base", dtype=torch.float32).eval()


def columns(logits):
    return logits[..., ::8]


def visible_of(golden, ids, valid=None):
    start = answer_start(ids, golden.model.config)[0]
    return make_visible(start, valid, 0, ids.shape[1], ids.device)


# The model


@pytest.mark.parametrize("name", ["p0", "p1", "p2", "mask"])
def test_a_prompts_positions_mask_and_logits(golden, name):
    ids = golden[f"{name}_input_ids"]
    assert torch.equal(make_positions(ids, None, golden.model.config), golden[f"{name}_position_ids"])
    assert torch.equal(~visible_of(golden, ids), golden[f"{name}_attention_mask"])
    out = golden.model(input_ids=ids, output_hidden_states=True, use_cache=True)
    near(columns(out.logits), golden[f"{name}_logits"])
    if name == "p0":
        near(torch.cat(out.hidden_states), golden["p0_hidden_states"])
        for kind in ("keys", "values"):
            cached = torch.stack([getattr(layer, kind)[0].transpose(0, 1) for layer in out.past_key_values.layers])
            near(cached, golden[f"p0_cache_{kind[0]}"])


@pytest.mark.parametrize("name", ["p0", "p1", "p2", "mask"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_answers_and_the_positions_of_every_step(golden, name, use_cache):
    ids, expected = golden[f"{name}_input_ids"], golden[f"{name}_gen"]
    new = expected.shape[1] - ids.shape[1]
    made = golden.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        min_new_tokens=new if name != "mask" else None,
        do_sample=False,
        use_cache=use_cache,
        eos_token_id=None,
    )
    assert torch.equal(made, expected)
    positions = make_positions(made, None, golden.model.config)[0, :, ids.shape[1] - 1 : -1]
    assert torch.equal(positions.T, golden[f"{name}_gen_position_ids"])


def test_the_logits_of_every_cached_step(golden):
    made = golden["p0_gen"][:, : golden["p0_input_ids"].shape[1] + 8]
    out = golden.model.generate(
        golden["p0_input_ids"],
        attention_mask=torch.ones_like(golden["p0_input_ids"]),
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert torch.equal(out.sequences, made)
    near(columns(torch.cat(out.logits)), golden["p0_gen_step_logits"])


def test_left_padded_rows_equal_single_ones(golden):
    ids, valid = golden["batch_input_ids"], golden["batch_valid"]
    positions = make_positions(ids, valid, golden.model.config)
    assert torch.equal(positions, golden["batch_position_ids"])
    hidden = golden["batch_attention_mask"]
    pairs = valid[:, None, :, None] & valid[:, None, None, :]
    assert torch.equal(~visible_of(golden, ids, valid) & pairs, hidden & pairs)
    out = golden.model(input_ids=ids, attention_mask=valid.long(), logits_to_keep=4)
    near(columns(out.logits), golden["batch_logits_last4"])
    new = golden["batch_gen"].shape[1] - ids.shape[1]
    made = golden.model.generate(
        ids, attention_mask=valid.long(), max_new_tokens=new, do_sample=False, eos_token_id=None
    )
    assert torch.equal(made, golden["batch_gen"])
    mask = torch.cat([valid, torch.ones(3, new, dtype=torch.bool)], dim=1)
    steps = make_positions(made, mask, golden.model.config)[:, :, ids.shape[1] - 1 : -1]
    assert torch.equal(steps.permute(2, 0, 1), golden["batch_gen_position_ids"])


def test_rows_stop_at_the_stop_token_and_are_filled_with_padding(golden):
    made = golden.model.generate(
        golden["batch_input_ids"],
        attention_mask=golden["batch_valid"].long(),
        max_new_tokens=32,
        do_sample=False,
        eos_token_id=golden.json["stop_eos_token_id"],
        pad_token_id=golden.model.config.pad_token_id,
    )
    assert torch.equal(made, golden["stop_gen"])


@pytest.mark.parametrize("layout", ["trainA", "trainB"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_losses_and_gradients_of_both_label_layouts(golden, layout, checkpointing):
    model, expected = golden.model, golden.json[layout]
    ids, labels = golden[f"{layout}_input_ids"], golden[f"{layout}_labels"]
    valid = golden[f"{layout}_valid"] if layout == "trainB" else None
    assert torch.equal(make_positions(ids, valid, model.config), golden[f"{layout}_position_ids"])
    if checkpointing:  # recomputed layers must be in training mode, where the prefix would be dropped out at random
        model.gradient_checkpointing_enable({"use_reentrant": False})
        for layer in model.transformer.layers:
            layer.train()
    model.zero_grad()
    out = model(input_ids=ids, attention_mask=None if valid is None else valid.long(), labels=labels, use_cache=False)
    out.loss.backward()
    model.gradient_checkpointing_disable()
    model.eval()
    near(out.loss, torch.tensor(expected["loss"]), atol=1e-4)
    if layout == "trainB":
        near(columns(out.logits[1])[valid[1]], golden["trainB_row1_logits"][valid[1]])
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    near(
        gradients["transformer.layers.0.attention.query_key_value.weight"][::4],
        golden[f"{layout}_grad_l0_qkv_weight"],
        atol=1e-4,
    )
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm().item()
    assert norm == pytest.approx(expected["grad_norm_all"], rel=1e-4)
    for name, value in expected["prefix_grad_norms"].items():
        assert gradients[name].norm().item() == pytest.approx(value, rel=1e-4)
    assert bool(expected["prefix_grad_norms"]) == (model.config.pre_seq_len is not None)


def test_the_learnt_prefix_and_the_model_without_it(prefixed, tmp_path):
    keys_values = torch.stack([torch.stack(pair, dim=1)[0] for pair in _pairs(prefixed.model)])
    near(keys_values.transpose(2, 3), prefixed["prefix_kv"])
    bare = ChatGLMForConditionalGeneration.from_pretrained(prefixed.folder, pre_seq_len=None, dtype=torch.float32)
    near(columns(bare.eval()(input_ids=prefixed["p0_input_ids"]).logits), prefixed["p0_logits_without_prefix"])


def _pairs(model):
    return [(keys, values) for keys, values in model.transformer.make_prefix(1)]


def test_a_tenth_of_the_prefix_is_dropped_while_training_each_row_for_itself(prefixed):
    transformer = prefixed.model.transformer.train()
    torch.manual_seed(0)
    keys = torch.cat([keys for keys, _ in transformer.make_prefix(64)])
    transformer.eval()
    assert (keys == 0).float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert not torch.equal(keys[0], keys[1])


def test_several_tokens_at_once_behind_a_cache_see_only_what_is_before_them(golden):
    ids, made = golden["p1_input_ids"], golden["p1_gen"][:, :40]
    whole = golden.model(input_ids=made).logits
    cache = golden.model(input_ids=ids, use_cache=True).past_key_values
    positions = make_positions(made, None, golden.model.config)[:, :, ids.shape[1] :]
    rest = golden.model(input_ids=made[:, ids.shape[1] :], position_ids=positions, past_key_values=cache).logits
    near(rest, whole[:, ids.shape[1] :])


def test_beams_keep_rows_apart(golden):
    ids, valid = golden["batch_input_ids"], golden["batch_valid"].long()
    options = {"max_new_tokens": 12, "num_beams": 3, "do_sample": False}
    together = golden.model.generate(ids, attention_mask=valid, **options)
    for row in range(3):
        own = ids[row : row + 1, valid[row].bool()]
        single = golden.model.generate(own, attention_mask=torch.ones_like(own), **options)[0, own.shape[1] :]
        assert torch.equal(together[row, ids.shape[1] :][: len(single)], single)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_stay_near_and_never_become_nan_even_on_padding(golden, dtype):
    model = ChatGLMForConditionalGeneration.from_pretrained(golden.folder, dtype=dtype).eval()
    ids, valid = golden["batch_input_ids"], golden["batch_valid"].long()
    logits = model(input_ids=ids, attention_mask=valid).logits.float()
    assert logits.isfinite().all()
    # The angles are rounded to 16 bits as in the released model, which alone moves these random models' logits.
    exact = golden.model(input_ids=ids, attention_mask=valid).logits[:, -1]
    assert (logits[:, -1] - exact).abs().max() < (0.5 if dtype == torch.float16 else 2)
    prefix = [p.dtype for name, p in model.named_parameters() if "prefix_encoder" in name]
    assert set(prefix) <= {torch.float32}


# Files


def test_lm_head_is_the_embedding_whatever_the_files_hold(model, tmp_path):
    assert model.lm_head.weight is model.transformer.word_embeddings.weight
    tensors = load_file(CHATGLM / "base" / "model.safetensors")
    head = tensors.pop("lm_head.weight")
    _write(tmp_path, tensors)
    one = ChatGLMForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(one.lm_head.weight, head.float())


def test_the_released_layout_loads_without_a_word_about_its_buffers(model, tmp_path):
    tensors = load_file(CHATGLM / "base" / "model.safetensors")
    buffers = [f"transformer.layers.{i}.attention.rotary_emb.inv_freq" for i in range(3)]
    tensors |= {name: torch.full((4,), 9.0, dtype=torch.float16) for name in buffers}
    shards = [{k: v for k, v in tensors.items() if ("layers.1" in k) == second} for second in (False, True)]
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    for name, shard in zip(names, shards, strict=True):
        torch.save(shard, tmp_path / name)
    where = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text((CHATGLM / "base" / "config.json").read_text())
    other, found = ChatGLMForConditionalGeneration.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not found["unexpected_keys"]
    assert not found["missing_keys"]
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_saved_weights_have_the_published_names_and_come_back_equal(golden, tmp_path):
    golden.model.save_pretrained(tmp_path)
    published = load_file(golden.folder / "model.safetensors")
    saved = load_file(tmp_path / "model.safetensors")
    assert {name.split(".")[-1] for name in set(published) - set(saved) - {"lm_head.weight"}} <= {"inv_freq"}
    assert set(saved) <= set(published)
    for name, tensor in saved.items():
        assert torch.equal(tensor, published[name].float()), name


def test_a_fresh_prefix_has_torchs_own_first_values():
    torch.manual_seed(0)
    model, found = ChatGLMForConditionalGeneration.from_pretrained(
        CHATGLM / "base", pre_seq_len=32, prefix_projection=True, dtype=torch.float32, output_loading_info=True
    )
    assert all("prefix_encoder" in name for name in found["missing_keys"])
    encoder = model.transformer.prefix_encoder
    assert encoder.embedding.weight.std().item() == pytest.approx(1, abs=0.05)
    for layer in (encoder.trans[0], encoder.trans[2]):
        for tensor in (layer.weight, layer.bias):  # uniform within 1/sqrt(inputs) = 1/8
            assert tensor.abs().max().item() == pytest.approx(1 / 8, rel=0.1)
            assert tensor.std().item() == pytest.approx(1 / 8 / 3**0.5, rel=0.2)


def test_transformers_auto_classes_know_it():
    assert isinstance(AutoConfig.from_pretrained(CHATGLM / "base"), ChatGLMConfig)
    with torch.device("meta"):
        assert AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(CHATGLM / "base")).num_parameters() > 0


@pytest.mark.parametrize(
    ("vocabulary", "ids"),
    [(130528, (130000, 130001, 130004, 130005, 3)), (150528, (150000, 150001, 150004, 150005, 20003))],
)
def test_ids_that_the_first_release_leaves_out_follow_from_its_vocabulary(vocabulary, ids):
    config = ChatGLMConfig(vocab_size=vocabulary)
    found = (config.mask_token_id, config.gmask_token_id, config.bos_token_id, config.eos_token_id)
    assert (*found, config.pad_token_id) == ids


def test_the_released_size():
    with torch.device("meta"):
        assert ChatGLMForConditionalGeneration(ChatGLMConfig()).num_parameters() == 6_173_286_400


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"input_ids": torch.tensor([[5, 6, 7]])}, "no <sop>"),
        ({"input_ids": torch.tensor([[5, 601, 604]]), "attention_mask": torch.ones(1, 1, 3, 3)}, "expected"),
        ({"inputs_embeds": torch.zeros(1, 3, 64)}, "give them too"),
    ],
)
def test_inputs_that_it_cannot_place_are_refused(model, arguments, words):
    with pytest.raises(ValueError, match=words):
        model(**arguments)


def test_tokens_behind_a_cache_need_their_positions(model):
    cache = model(input_ids=torch.tensor([[5, 601, 604]]), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="position_ids are missing"):
        model(input_ids=torch.tensor([[9]]), past_key_values=cache)


def _write(folder, tensors):
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text((CHATGLM / "base" / "config.json").read_text())


# The tokenizer


@pytest.fixture(scope="module", params=["base", "ptv2-emb"])
def texts(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "ice_text.model").write_bytes((CHATGLM / "ice_text.model").read_bytes())
    config = CHATGLM / request.param / "tokenizer_config.json"
    (folder / "tokenizer_config.json").write_text(config.read_text())
    golden = json.loads((CHATGLM / request.param / "golden.json").read_text(encoding="utf-8"))
    return ChatGLMTokenizer(folder), golden["tokenizer"]


def test_texts_become_the_published_pieces_and_ids_and_come_back(texts):
    tokenizer, golden = texts
    cases = [case for case in golden["tokenization"] if not case["literal_special"]]
    assert len(cases) > 30
    for case in cases:
        assert tokenizer.tokenize(case["text"]) == case["tokens"], case["text"]
        assert tokenizer.encode(case["text"], add_special_tokens=False) == case["ids"]
        assert tokenizer.encode(case["text"]) == case["ids_with_special"]
        assert tokenizer.decode(case["ids"]) == case["decoded"]
        assert tokenizer.decode(case["ids_with_special"]) == case["decoded_with_special"]
    for case in golden["decode_extra"]:
        assert tokenizer.decode(case["ids"]) == case["decoded"]


def test_pairs_limits_and_special_ids(texts):
    tokenizer, golden = texts
    pair, cut = golden["pair"], golden["truncation"]
    assert tokenizer.encode(pair["text"], pair["text_pair"]) == pair["ids"]
    assert tokenizer.encode(cut["text"], max_length=cut["max_length"]) == cut["ids"]
    assert tokenizer.convert_tokens_to_ids(list(golden["special_ids"])) == list(golden["special_ids"].values())
    assert {name: getattr(tokenizer, name) for name in golden["id_properties"]} == golden["id_properties"]
    assert len(tokenizer) == golden["tokenizer_vocab_size"]


def test_special_tokens_in_a_text_are_characters(texts):
    tokenizer, golden = texts
    specials = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.gmask_token_id, tokenizer.mask_token_id}
    cases = [case["text"] for case in golden["tokenization"] if case["literal_special"]]
    for text in [*cases, "<sop>[gMASK][MASK]<eop><pad></s>"]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert not specials & set(ids)
        assert tokenizer.decode(ids) == text


def test_ids_without_a_piece_are_nothing(texts):
    tokenizer, _ = texts
    assert tokenizer.decode([len(tokenizer), len(tokenizer) + 20]) == ""


def test_a_folder_without_num_image_tokens_is_the_first_release(tmp_path):
    (tmp_path / "ice_text.model").write_bytes((CHATGLM / "ice_text.model").read_bytes())
    tokenizer = ChatGLMTokenizer(tmp_path)
    assert tokenizer.pad_token_id == 20003
    assert tokenizer.decode(tokenizer.encode("两行\n文字", add_special_tokens=False)) == "两行\n文字"


@pytest.mark.parametrize("text", ["<|blank_99999999999999999999|>", "<|blank_81|>", "<|blank_1|>", "<|blank_0|>"])
def test_only_blanks_of_the_vocabulary_become_spaces(texts, text):
    tokenizer, _ = texts
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    written = "<|blank_2|><|blank_79|>"
    assert tokenizer.decode(tokenizer.encode(written, add_special_tokens=False)) == " " * 81
