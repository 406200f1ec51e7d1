"""Packing: sequences end to end in a row say what each says alone, or the model is refused."""

import copy
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from stillroom.core import Failure
from stillroom.data.text import collate
from stillroom.losses.divergences import jsd
from stillroom.losses.per_row import per_row
from stillroom.models.adapters import adapted
from stillroom.models.bodies import Body
from stillroom.models.cut import Early
from stillroom.models.packing import OneRow, Packed, Padded, placed
from stillroom.models.text import CausalLM
from stillroom.models.view import narrow, narrowed
from stillroom.nets.scorer import Scorer

V, EOS = 40, 1
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 2, "max_position_embeddings": 64}
GROUPED = SIZES | {"num_key_value_heads": 1, "head_dim": 8}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
KINDS = {
    "llama": GROUPED,
    "gemma3_text": GROUPED | {"sliding_window": 4, "layer_types": MIXED},
    "qwen2": SIZES | {"num_key_value_heads": 1},
    "mistral": GROUPED | {"sliding_window": 3},
    "gpt2": {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 64}
    | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_layout = pytest.mark.parametrize("layout", [Packed, OneRow])
needs_peft = pytest.mark.extra("lora")
PAIRS = [
    ([5, 6, 7, 8], [9, 10, 11, 12, 13, 14, 15, EOS]),
    ([14], [15, EOS]),
    ([16, 17, 18], [19, 20, EOS]),
    ([21, 22], [23, 24, 25, 26, EOS]),
    ([27], [EOS]),
]


@pytest.fixture
def exact(monkeypatch):
    """Norms, rotations and softmax run in float32 whatever a model's dtype: here in float64."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def batch_of(side="right", pairs=PAIRS):
    return collate(pairs, torch.arange(len(pairs)), 0, side=side)


BATCH = batch_of()


def network(kind="llama", attention="sdpa", dtype=torch.float64, **sizes: Any):
    config = AutoConfig.for_model(
        kind, vocab_size=V, pad_token_id=0, eos_token_id=EOS, bos_token_id=None,
        attn_implementation=attention, **KINDS.get(kind, SIZES) | sizes,
    )  # fmt: skip
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(config).to(dtype)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            noise = 0.3 * torch.randn(weight.shape, generator=draw, dtype=torch.float64)
            weight.copy_(noise + ("norm" in name and name.endswith("weight")))
    return CausalLM(made.eval())


def laid(lm, layout):
    """A twin that reads so, whatever a probe would say."""
    twin = copy.deepcopy(lm)
    twin.layout = layout
    return twin


def close(one, other, within=1e-10):
    assert one.shape == other.shape
    assert (one - other).abs().max() <= within * other.abs().max() > 0


# ---- where sequences stand


def test_a_batch_by_hand():
    pairs = [([11], [12, 13, 14, 15]), ([21], [22]), ([31], [32, 33]), ([41], [42, 43])]
    for side in ("right", "left"):
        layout = Packed(batch_of(side, pairs))
        ids = [[11, 12, 13, 14, 15], [21, 22, 31, 32, 33], [0, 0, 41, 42, 43]]
        positions = [[0, 1, 2, 3, 4], [0, 1, 0, 1, 2], [0, 0, 0, 1, 2]]
        assert layout.inputs["input_ids"].tolist() == ids
        assert layout.inputs["position_ids"].tolist() == positions
        assert {*layout.inputs} == {"input_ids", "position_ids", "use_cache"}
        assert layout.inputs["use_cache"] is False
        read = layout.inputs["input_ids"][..., None].double()
        assert layout.at_rows(read).flatten().tolist() == [11, 12, 13, 14, 21, 31, 32, 41, 42]
        batch = batch_of(side, pairs)
        assert torch.equal(layout.everywhere(read)[..., 0], (batch.ids * batch.real).double())


def test_one_row_holds_the_real_tokens_alone():
    inputs = OneRow(BATCH).inputs
    assert inputs["input_ids"].shape == (1, int(BATCH.real.sum()))
    assert sorted(inputs["input_ids"][0].tolist()) == sorted(BATCH.ids[BATCH.real].tolist())
    assert int((inputs["position_ids"] == 0).sum()) == BATCH.size


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_no_two_sequences_meet_and_no_row_is_wasted(lengths):
    width = max(1, *lengths) if len(lengths) > 1 else max(1, lengths[0])
    starts, (rows, wide) = placed(lengths, width)
    taken = [[s // width, s + i] for s, n in zip(starts, lengths, strict=True) for i in range(n)]
    assert all(slot // width == row for row, slot in taken)
    assert len({slot for _, slot in taken}) == len(taken) == sum(lengths)
    assert max([row for row, _ in taken], default=0) < rows <= max(1, sum(n > 0 for n in lengths))
    used = sorted(sum(row == r for row, _ in taken) for r in range(rows))
    assert wide == width
    assert len(used) < 2 or used[0] + used[1] > width  # the two emptiest would not fit together


# ---- packed is unpacked


def told(lm, batch=BATCH):
    """States at the rows, of all real positions, and gradients of all parameters."""
    lm.zero_grad()
    said = lm(batch)
    every = lm.states(batch)[batch.real]
    wave = torch.arange(said["hidden"].numel(), dtype=torch.float64).cos()
    (said["hidden"].flatten() @ wave + every.square().mean()).backward()
    grads = {n: p.grad for n, p in lm.named_parameters() if p.grad is not None}
    return {"hidden": said["hidden"], "states": every, **grads}


@every_kind
@every_layout
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("again", [False, True])
def test_states_and_gradients_are_those_of_padded_batches(exact, kind, layout, attention, again):
    lm = network(kind, attention)
    packed = laid(lm, layout)
    if again:
        packed.train().checkpointing()
    wanted, found = told(lm), told(packed)
    assert wanted.keys() == found.keys()
    assert len(found) > 10
    for name, value in found.items():
        close(value, wanted[name])


@needs_peft
@every_layout
def test_adapters(exact, layout):
    lm = adapted(network(), rank=3)
    with torch.no_grad():
        for i, p in enumerate(lm.parameters()):
            p.copy_(0.2 * torch.arange(p.numel()).add(i).sin().view(p.shape))
    wanted = told(lm)
    lm.layout = layout
    for name, value in told(lm).items():
        close(value, wanted[name])


@every_layout
def test_a_view_of_the_vocabulary_and_a_head_that_is_not_known(exact, layout):
    lm, teacher = network(), network("gpt2")
    for one in (lm, teacher):
        narrow(one, BATCH.ids.unique())
    packed = laid(lm, layout)
    with narrowed(lm, packed, teacher):
        one, other = (
            per_row(lambda s, t, labels: jsd(s, t), m(BATCH), teacher(BATCH), BATCH.labels)
            for m in (lm, packed)
        )
    close(one, other)
    lm.head_known = packed.head_known = False
    close(packed(BATCH)["logits"], lm(BATCH)["logits"])


@every_layout
def test_padding_changes_nothing(layout):
    packed = laid(network(), layout)
    left = batch_of("left")
    assert torch.equal(packed(left)["hidden"], packed(BATCH)["hidden"])
    assert torch.equal(packed.states(left)[left.real], packed.states(BATCH)[BATCH.real])
    strange = BATCH.add(ids=BATCH.ids.where(BATCH.real, 33))
    assert torch.equal(packed.states(strange), packed.states(BATCH))
    assert packed.states(BATCH)[~BATCH.real].abs().max() == 0


@every_layout
def test_a_row_of_padding_only(exact, layout):
    packed = laid(network(), layout)
    others = BATCH.owner != 2
    hole = BATCH.add(real=BATCH.real & (torch.arange(BATCH.size) != 2)[:, None])
    hole = hole.add_rows(rows=BATCH.rows[others])
    close(packed(hole)["hidden"], packed(BATCH)["hidden"][others])
    assert packed.states(hole)[2].abs().max() == 0
    nothing = BATCH.add(real=torch.zeros_like(BATCH.real))
    assert torch.equal(packed.states(nothing), torch.zeros(*BATCH.ids.shape, 16).double())


# ---- what is made of a packed model


def test_trunks_and_copies_pack_too(exact):
    lm = network("gemma3_text")
    lm.packing()
    assert lm.layout is Packed
    made = [lm, lm.snapshot(), lm.body(), lm.body(num_hidden_layers=2), Early(lm, 2).lm]
    assert [one.layout for one in made] == [Packed] * 5
    assert [type(one) for one in made[2:4]] == [Body] * 2
    for body in made[2:4]:
        plain = copy.deepcopy(body)
        plain.layout = Padded
        close(Scorer(body.double()).body.states(BATCH)[BATCH.real], plain.states(BATCH)[BATCH.real])
        assert body.states(BATCH)[~BATCH.real].abs().max() == 0
    plain = network()
    assert all(b.layout is Padded for b in (plain.body(), plain.body(num_hidden_layers=1)))


@needs_peft
def test_speakers_on_one_base_pack_as_the_first_does():
    lm = adapted(network(), rank=2)
    lm.packing()
    made = [lm.base(), lm.body(), lm.snapshot(), lm.body(num_hidden_layers=1)]
    assert [one.layout for one in made] == [Packed] * 4


# ---- the probe


@every_kind
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_tells_texts_apart_is_let_through(kind, attention, dtype):
    drops = "attn_pdrop" if kind == "gpt2" else "attention_dropout"
    lm = network(kind, attention, dtype, **{drops: 0.5}).train()
    draws = torch.get_rng_state()
    lm.packing()
    assert lm.layout is Packed
    assert all(m.training for m in lm.modules())
    assert torch.equal(torch.get_rng_state(), draws)
    body = lm.body()
    body.packing()
    assert body.layout is Packed


def changed(lm, forward):
    """``forward(real, inputs)`` stands for the trunk's own, ``real``, where texts are packed."""
    trunk = lm.model.base_model
    real = trunk.forward

    def instead(**inputs):
        return real(**inputs) if "attention_mask" in inputs else forward(real, inputs)

    trunk.forward = instead
    return lm


def no_positions(real, inputs):
    return real(input_ids=inputs["input_ids"], use_cache=False)


def one_text_a_row(real, inputs):
    return real(**inputs, attention_mask=torch.ones_like(inputs["input_ids"]))


def own_mask(real, inputs):
    """What packing is often made of: a block mask, which knows of no window."""
    place = inputs["position_ids"]
    text = (place == 0).cumsum(1)
    seen = (text[:, :, None] == text[:, None]) & (place[:, :, None] >= place[:, None])
    return real(**inputs, attention_mask=seen[:, None])


def last_state_goes_on(real, inputs):
    out = real(**inputs)
    out.last_hidden_state = out.last_hidden_state + 0.3 * out.last_hidden_state.roll(1, 1)
    return out


def after_even_tokens(real, inputs):
    """Leaks into a text if the one before it begins with an even token."""
    out, ids = real(**inputs), inputs["input_ids"]
    for row, begins in enumerate(inputs["position_ids"] == 0):
        starts = begins.nonzero().flatten().tolist()
        for before, start in itertools.pairwise(starts):
            out.last_hidden_state[row, start:] += ids[row, before] % 2 == 0
    return out


@pytest.mark.parametrize(
    "leak", [no_positions, one_text_a_row, last_state_goes_on, after_even_tokens]
)
@pytest.mark.parametrize("trunk", [False, True])
def test_what_mixes_texts_up_is_refused(leak, trunk):
    lm = changed(network(), leak)
    if trunk:
        lm = Body(lm.model.base_model, 16)
    with pytest.raises(Failure, match=r"packing: llama with 'sdpa' attention does not tell .* out"):
        lm.packing()
    assert lm.layout is Padded


def test_a_mask_that_knows_of_no_window_is_refused_where_there_is_one():
    changed(network("llama"), own_mask).packing()
    with pytest.raises(Failure, match="gemma3_text with 'sdpa'"):
        changed(network("gemma3_text"), own_mask).packing()


@pytest.mark.parametrize("window", [None, 3])
def test_what_counts_places_itself_is_refused(window):
    with pytest.raises(Failure, match="windowed with 'sdpa'"):
        network("windowed", window=window).packing()


def test_a_kernel_that_knows_texts_in_single_rows_alone_reads_one_row(exact):
    lm = network("gemma3_text")
    wanted = told(lm)

    def forward(real, inputs):
        alone = len(inputs["input_ids"]) == 1
        return real(**inputs) if alone else one_text_a_row(real, inputs)

    changed(lm, forward).packing()
    assert lm.layout is OneRow
    for name, value in told(lm).items():
        close(value, wanted[name])


@pytest.mark.parametrize(
    ("sizes", "longest"),
    [
        ({"sliding_window": 4096}, 8),
        ({"sliding_window": 20}, 25),
        ({"sliding_window": None, "max_position_embeddings": 6}, 6),
    ],
)
def test_the_probe_is_as_long_as_a_window_asks_and_a_context_lets(sizes, longest):
    read = []
    lm = network("mistral", **sizes)
    lm.model.base_model.register_forward_pre_hook(
        lambda _m, _a, inputs: read.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    lm.packing()
    assert max(read) == longest
