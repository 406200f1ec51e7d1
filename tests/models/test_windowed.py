"""The windowed language model: what it sees, padding, cache, sizes, loading."""

import copy

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, DynamicCache

from stillroom.core import Failure
from stillroom.models.windowed import WindowedConfig, WindowedLM, WindowedModel, visible

WORLD = {"window": 2, "sinks": 5}
SHAPES = [{}, WORLD, {"window": 3}, WORLD | {"num_hidden_layers": 2}]


def tiny(**fields):
    torch.manual_seed(0)
    return WindowedLM(WindowedConfig(**fields)).double()


def texts(*lengths, pad_left):
    """Ids, mask and position ids of random texts, padded with a word that means something."""
    width, made = max(lengths), torch.Generator().manual_seed(1)
    ids = torch.full((len(lengths), width), 7)
    real = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        place = slice(width - length, width) if pad_left else slice(0, length)
        ids[row, place] = torch.randint(3, 37, (length,), generator=made)
        real[row, place] = 1
    return ids, real, (real.cumsum(-1) - 1).clamp(min=0)


def params(model):
    return sum(p.numel() for p in model.parameters())


def test_sizes_of_the_student_and_of_the_critic():
    student = WindowedLM(WindowedConfig(**WORLD))
    changed = copy.deepcopy(student.config)
    changed.num_hidden_layers, changed.window = 2, None
    critic = type(student)(changed).model
    assert params(student) == 8269
    assert params(critic) + params(torch.nn.Linear(24, 1)) == 12241
    assert params(student.model) + params(torch.nn.Linear(24, 1)) == 7369
    assert (student.config.num_hidden_layers, student.config.window) == (1, 2)


def test_initial_scales():
    model = tiny(vocab_size=2000, max_position_embeddings=2000)
    assert model.model.embed_tokens.weight.std().item() == pytest.approx(0.5, rel=0.02)
    assert model.model.embed_positions.weight.std().item() == pytest.approx(0.3, rel=0.02)
    assert model.lm_head.weight.abs().max().item() == pytest.approx(24**-0.5, rel=0.01)
    assert model.lm_head.weight is not model.get_input_embeddings().weight


def test_visible_by_hand():
    at = torch.arange(6).unsqueeze(0)
    assert visible(at, at, 2, 1)[0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 0, 1, 1, 0, 0],
        [1, 0, 0, 1, 1, 0],
        [1, 0, 0, 0, 1, 1],
    ]
    assert torch.equal(visible(at, at, None, 0)[0], torch.ones(6, 6).tril().bool())


@pytest.mark.parametrize(("window", "layers", "moves"), [(2, 1, False), (3, 1, True), (2, 2, True)])
def test_the_earlier_marker_is_seen_through_a_wider_window_or_two_layers(window, layers, moves):
    model = tiny(window=window, sinks=5, num_hidden_layers=layers)
    one = torch.tensor([[5, 6, 5, 5, 2, 21, 13, 14, 27, 13, 13, 33, 1]])
    other = one.clone()
    other[0, 5] = 24
    a, b = model(one).logits[0], model(other).logits[0]
    assert torch.equal(a[:5], b[:5])
    assert not torch.equal(a[5:7], b[5:7])
    # place 7, a word, predicts marker 1 at place 8
    assert torch.equal(a[7], b[7]) is not moves


def test_visibility_goes_by_positions_not_by_storage():
    model = tiny(**WORLD)
    one = torch.randint(3, 37, (1, 6))
    # from position 4 on, the first token is the only one of the five sinks that is there
    positions = torch.arange(4, 10).unsqueeze(0)
    moved = []
    for place in (0, 1):
        other = one.clone()
        other[0, place] = one[0, place] % 30 + 4
        pair = [model(ids, position_ids=positions).logits[0, 4] for ids in (one, other)]
        moved.append(not torch.equal(*pair))
    assert moved == [True, False]


def test_every_query_sees_the_prompt():
    model = tiny(**WORLD)
    one = torch.randint(3, 37, (1, 13))
    other = one.clone()
    other[0, 0] = one[0, 0] % 30 + 4
    moved = (model(one).logits - model(other).logits).abs().amax(-1)[0]
    assert (moved > 1e-6).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_padding_on_either_side_changes_nothing(shape):
    model, lengths = tiny(**shape), (13, 7, 1)
    found = []
    for pad_left in (False, True):
        ids, real, positions = texts(*lengths, pad_left=pad_left)
        logits = model(ids, attention_mask=real, position_ids=positions).logits
        assert torch.equal(logits, model(ids, attention_mask=real).logits)
        ids[real == 0] = 20
        assert torch.equal(logits[real == 1], model(ids, attention_mask=real).logits[real == 1])
        found.append(logits[real == 1])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-12)
    ids, real, _ = texts(*lengths, pad_left=False)
    alone = [model(ids[i : i + 1, :n]).logits[0] for i, n in enumerate(lengths)]
    torch.testing.assert_close(torch.cat(alone), found[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("given", ["mask", "mask and positions", "nothing"])
def test_cached_decoding_is_the_whole_forward(shape, given):
    model = tiny(**shape)
    lengths = (12, 12, 12) if given == "nothing" else (12, 9, 8)
    ids, real, positions = texts(*lengths, pad_left=True)
    whole = model(ids, attention_mask=real).logits
    cache, parts = DynamicCache(), []
    for start, stop in ((0, 5), (5, 6), (6, 9), (9, 10), (10, 12)):
        more = {} if given == "nothing" else {"attention_mask": real[:, :stop]}
        if given == "mask and positions":
            more["position_ids"] = positions[:, start:stop]
        out = model(ids[:, start:stop], past_key_values=cache, use_cache=True, **more)
        assert out.past_key_values is cache
        parts.append(out.logits)
    got = torch.cat(parts, 1)
    torch.testing.assert_close(got[real == 1], whole[real == 1], rtol=0, atol=1e-12)


def test_use_cache_makes_a_cache_and_the_default_none():
    model = tiny()
    ids = torch.tensor([[3, 4, 5]])
    assert model(ids).past_key_values is None
    assert model(ids, use_cache=True).past_key_values.get_seq_length() == 3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_text_of_padding_alone_is_finite_with_its_gradients(attention, dtype):
    model = tiny(**WORLD, attn_implementation=attention).to(dtype)
    ids, real, _ = texts(6, 3, pad_left=True)
    real[1] = 0
    logits = model(ids, attention_mask=real).logits
    assert logits.dtype == dtype
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_keeps_padding_finite_and_without_influence(attention, half):
    model = tiny(**WORLD, num_hidden_layers=2, attn_implementation=attention).float()
    ids, real, _ = texts(9, 5, pad_left=True)
    with torch.autocast("cpu", half):
        logits = model(ids, attention_mask=real).logits
        ids[real == 0] = 20
        again = model(ids, attention_mask=real).logits
    assert logits.isfinite().all()
    assert torch.equal(logits[real == 1], again[real == 1])
    exact = model(ids, attention_mask=real).logits
    torch.testing.assert_close(logits[real == 1].float(), exact[real == 1], rtol=0, atol=0.1)


@pytest.mark.parametrize("shape", SHAPES)
def test_eager_attention_is_the_fused_one_and_has_second_derivatives(shape):
    fused, eager = tiny(**shape), tiny(**shape, attn_implementation="eager")
    ids, real, _ = texts(9, 5, pad_left=True)
    for more in ({}, {"attention_mask": real}):
        a, b = fused(ids, **more).logits, eager(ids, **more).logits
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    weight = eager.model.layers[0].self_attn.qkv_proj.weight
    (first,) = torch.autograd.grad(eager(ids).logits.square().sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), weight)
    assert second.abs().sum() > 0


def test_body_states_are_what_the_head_reads():
    model = tiny(**WORLD)
    ids, real, _ = texts(6, 3, pad_left=False)
    states = model.model(ids, attention_mask=real).last_hidden_state
    assert torch.equal(
        model.get_output_embeddings()(states), model(ids, attention_mask=real).logits
    )


def test_a_saved_folder_loads_bit_for_bit(tmp_path):
    torch.manual_seed(3)
    model = WindowedLM(WindowedConfig(**WORLD, num_hidden_layers=2, eos_token_id=1))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, WindowedLM)
    assert (loaded.config.window, loaded.config.sinks, loaded.config.eos_token_id) == (2, 5, 1)
    own = model.state_dict()
    assert own.keys() == loaded.state_dict().keys()
    assert all(torch.equal(own[name], value) for name, value in loaded.state_dict().items())
    ids, real, _ = texts(6, 3, pad_left=True)
    assert torch.equal(model(ids, attention_mask=real).logits, loaded(ids, real).logits)
    body = AutoModel.from_pretrained(tmp_path)
    assert isinstance(body, WindowedModel)
    assert torch.equal(body.embed_positions.weight, model.model.embed_positions.weight)


def test_a_deep_copy_is_equal_and_apart():
    model = tiny(**WORLD)
    twin = copy.deepcopy(model)
    ids = torch.tensor([[3, 4, 5, 6]])
    before = model(ids).logits
    assert torch.equal(before, twin(ids).logits)
    with torch.no_grad():
        twin.lm_head.bias += 1
    assert torch.equal(before, model(ids).logits)


def test_generate_is_greedy_decoding():
    model = tiny(**WORLD, pad_token_id=0)
    ids, real, _ = texts(5, 3, pad_left=True)
    got = model.generate(ids, attention_mask=real, max_new_tokens=4, do_sample=False)
    for _ in range(4):
        last = model(ids, attention_mask=real).logits[:, -1].argmax(-1, keepdim=True)
        ids, real = torch.cat([ids, last], 1), torch.cat([real, torch.ones_like(last)], 1)
    assert torch.equal(got, ids)


def test_what_cannot_work_is_refused():
    with pytest.raises(Failure, match="make it a multiple"):
        WindowedConfig(num_attention_heads=5)
    with pytest.raises(Failure, match="window must be at least 1"):
        WindowedConfig(window=0)
    model = tiny(max_position_embeddings=8)
    with pytest.raises(Failure, match="position 8 is beyond the 8"):
        model(torch.full((1, 9), 3))
    with pytest.raises(Failure, match="attention_mask covers 3 tokens"):
        model(torch.full((1, 4), 3), attention_mask=torch.ones(1, 3))
