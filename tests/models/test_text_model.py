"""Language models as signals: the head and its probe, padding, trunks, saving, errors."""

import itertools

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from stillroom.core import Failure
from stillroom.data.text import collate
from stillroom.losses.per_row import per_row
from stillroom.losses.policy import label_logp
from stillroom.models import text
from stillroom.models.text import CausalLM

V, EOS = 40, 1
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
NARROW = SIZES | {"num_key_value_heads": 1, "head_dim": 8}
KINDS = {
    "llama": SIZES,
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "qwen2": SIZES | {"num_key_value_heads": 1},
    "qwen3": NARROW,
    "gemma2": NARROW | {"sliding_window": 4, "final_logit_softcapping": 30.0},
    "gemma3_text": NARROW | {"sliding_window": 4},
    "cohere": SIZES | {"num_key_value_heads": 2, "logit_scale": 0.0625},
    "granite": SIZES | {"logits_scaling": 8.0},
    "phi": SIZES,
    "windowed": SIZES | {"window": 3, "sinks": 2},
}
every_kind = pytest.mark.parametrize("kind", KINDS)
PAIRS = [([5, 6, 7, 8], [9, 10, 11, 12, 13, EOS]), ([14], [15, EOS]), ([16, 17, 18], [19, 20, EOS])]


def model(kind, **changes):
    config = AutoConfig.for_model(
        kind, vocab_size=V, pad_token_id=0, eos_token_id=EOS, bos_token_id=None, **KINDS[kind]
    )
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, p in made.named_parameters():
            if name.endswith("bias"):
                p.normal_(std=0.3)  # what is initialised as 0 would hide being left out
    return made.eval()


def batch_of(side="right", pad=0):
    return collate(PAIRS, torch.arange(len(PAIRS)), pad, side=side)


def told_by_model(made, batch):
    """Logits at the supervised rows, by the model's own forward over one text at a time."""
    found = []
    for prompt, completion in PAIRS:
        ids = torch.tensor([prompt + completion])
        logits = made(ids, position_ids=torch.arange(ids.shape[1])[None]).logits[0]
        found.append(logits[len(prompt) - 1 : len(prompt) + len(completion) - 1])
    return torch.cat(found)


def nll(student, teacher, labels):
    return -label_logp(student, labels)


# ---- the head


@every_kind
def test_hidden_and_head_give_the_model_s_own_logits_and_gradients(kind):
    made = model(kind)
    lm, batch = CausalLM(made), batch_of()
    assert lm.signals == {"hidden", "features", "text", "weights"}
    said = lm(batch)
    assert set(said) == {"hidden", "head"}
    wanted = told_by_model(made, batch)
    torch.testing.assert_close(said.logits, wanted, rtol=1e-4, atol=1e-5)
    own = per_row(nll, said, None, batch.labels)
    theirs = nn.functional.cross_entropy(wanted, batch.labels, reduction="none")
    torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-5)
    parameters = list(made.parameters())
    factors = torch.linspace(-1, 2, len(own))
    pairs = zip(
        torch.autograd.grad((factors * own).sum(), parameters, allow_unused=True),
        torch.autograd.grad((factors * theirs).sum(), parameters, allow_unused=True),
        strict=True,
    )
    for mine, theirs in pairs:
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_the_cases_are_what_they_stand_for():
    heads = {kind: CausalLM(model(kind)).head for kind in KINDS}
    tied = model("gpt2")
    assert tied.lm_head.weight is tied.transformer.wte.weight
    assert heads["gemma2"].soft_cap == 30.0
    assert heads["gemma3_text"].soft_cap is None
    assert (heads["cohere"].scale, heads["granite"].scale) == (0.0625, 0.125)
    assert heads["phi"].bias.abs().max() > 0.1
    assert heads["llama"].bias is None


def test_a_soft_cap_that_small_logits_hide_is_found(monkeypatch):
    made = model("gemma2")
    batch = batch_of()
    capped = told_by_model(made, batch)
    plain = CausalLM(model("gemma2", final_logit_softcapping=None))
    # on a tiny model the two cannot be told apart at the probe's own tolerance
    torch.testing.assert_close(plain(batch).logits, capped, rtol=1e-4, atol=1e-4)
    # a config that says nothing of the cap, as of an architecture that we do not know
    monkeypatch.setattr(made, "config", made.config.__class__.from_dict(made.config.to_dict()))
    monkeypatch.setattr(made.config, "final_logit_softcapping", None)
    forward = type(made).forward

    def still_capped(self, *args, **inputs):
        out = forward(self, *args, **inputs)
        out.logits = 30 * torch.tanh(out.logits / 30)
        return out

    monkeypatch.setattr(type(made), "forward", still_capped)
    lm = CausalLM(made)
    assert lm.signals == {"logits", "text", "weights"}
    assert set(lm(batch)) == {"logits"}
    torch.testing.assert_close(lm(batch).logits, capped, rtol=1e-4, atol=1e-5)


class HalvedHead(LlamaForCausalLM):
    """The head reads half of the state; seen from the head itself, nothing is amiss."""

    def forward(self, *args, **inputs):
        head = self.lm_head
        handle = head.register_forward_pre_hook(lambda _m, read: (read[0] * 0.5,), prepend=True)
        try:
            return super().forward(*args, **inputs)
        finally:
            handle.remove()


def halved(made):
    made.__class__ = HalvedHead


def wrapped(made):
    made.lm_head = nn.Sequential(made.lm_head)


class Adapted(nn.Linear):
    """A low-rank adapter as it begins: its second matrix is zero, so that it changes nothing."""

    def __init__(self, base):
        super().__init__(base.in_features, base.out_features, bias=False)
        self.weight = base.weight
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return super().forward(x) + self.up(self.down(x))


def adapted(made):
    made.lm_head = Adapted(made.lm_head)


@pytest.mark.parametrize("change", [halved, wrapped, adapted])
def test_a_head_that_is_no_known_formula_is_called_whole(change):
    made = model("llama")
    change(made)
    lm, batch = CausalLM(made.eval()), batch_of("left")
    assert "hidden" not in lm.signals
    with torch.no_grad():
        for name, p in made.lm_head.named_parameters():
            if name == "up.weight":
                p.normal_()  # the adapter has learned
    said = lm(batch)
    assert set(said) == {"logits"}
    torch.testing.assert_close(said.logits, told_by_model(made, batch), rtol=1e-4, atol=1e-5)
    per_row(nll, said, None, batch.labels).sum().backward()
    assert all(p.grad is not None for p in made.parameters())


def test_the_probe_leaves_no_trace():
    made = model("llama").train()
    made.model.layers[0].eval()
    flags = [m.training for m in made.modules()]
    draws = torch.get_rng_state()
    CausalLM(made)
    assert [m.training for m in made.modules()] == flags
    assert not made.lm_head._forward_pre_hooks
    assert all(p.grad is None for p in made.parameters())
    assert torch.equal(torch.get_rng_state(), draws)


# ---- padding and positions


@every_kind
def test_padding_on_either_side_changes_nothing(kind):
    lm = CausalLM(model(kind))
    found = [lm(batch_of(side, pad)).logits for side, pad in [("right", 0), ("left", 0)]]
    found.append(lm(batch_of("left", 23)).logits)  # what stands there does not matter
    for one, other in itertools.pairwise(found):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head_known", [True, False])
def test_positions_are_always_passed(head_known):
    lm = CausalLM(model("llama"))
    lm.head_known = head_known
    seen = []
    lm.model.model.register_forward_pre_hook(
        lambda _m, _a, inputs: seen.append(inputs["position_ids"]), with_kwargs=True
    )
    batch = batch_of("left")
    lm(batch)
    lm.body().states(batch)
    assert len(seen) == 2
    assert all(torch.equal(positions, batch.positions) for positions in seen)
    moved = batch.add(positions=batch.positions * 2)
    assert (lm(moved).logits - lm(batch).logits).abs().max() > 1e-6


# ---- what a model says of itself


@pytest.mark.parametrize(
    ("generation", "config", "wanted"),
    [
        ([1, 7, 9], 2, (1, 7, 9)),
        (3, 2, (3,)),
        (None, 2, (2,)),
        (None, [2, 4], (2, 4)),
        (0, 2, (0,)),
    ],
)
def test_all_stop_ids_of_generation_count(generation, config, wanted):
    made = model("llama")
    made.config.eos_token_id, made.generation_config.eos_token_id = config, generation
    assert CausalLM(made).stop_ids == wanted
    assert CausalLM(made, stop_ids=[8]).stop_ids == (8,)


def test_no_stop_id_is_none():
    made = model("llama")
    made.config.eos_token_id = made.generation_config.eos_token_id = None
    assert CausalLM(made).stop_ids == ()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_context_is_what_the_config_says(kind):
    assert CausalLM(model(kind)).context == 64


# ---- trunks


@pytest.mark.parametrize("kind", ["llama", "gpt2", "windowed"])
def test_a_trunk_without_changes_is_an_equal_copy_that_stands_apart(kind):
    lm = CausalLM(model(kind))
    body, batch = lm.body(), batch_of()
    states = body.states(batch)
    assert body.width == states.shape[-1] == 16
    assert torch.equal(states.flatten(0, 1)[batch.rows], lm(batch).hidden)
    own = {p.data_ptr() for p in lm.parameters()}
    assert own.isdisjoint(p.data_ptr() for p in body.parameters())


def test_a_snapshot_is_a_frozen_copy():
    lm, batch = CausalLM(model("llama")).train(), batch_of()
    before = lm(batch).hidden
    frozen = lm.snapshot()
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not any(m.training for m in frozen.modules())
    assert all(p.requires_grad for p in lm.parameters())
    with torch.no_grad():
        for p in lm.parameters():
            p.add_(0.1)
    assert torch.equal(frozen(batch).hidden, before)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text", "windowed"])
@pytest.mark.parametrize("layers", [1, 3])
def test_a_trunk_of_another_depth_is_fresh(kind, layers):
    lm = CausalLM(model(kind).double())
    body, batch = lm.body(num_hidden_layers=layers), batch_of()
    assert body.states(batch).dtype == torch.float64
    assert len(body.network.layers) == layers
    assert len(lm.model.base_model.layers) == 2
    assert not torch.equal(
        body.network.embed_tokens.weight, lm.model.base_model.embed_tokens.weight
    )
    kinds = getattr(body.network.config, "layer_types", ["none"] * layers)
    assert len(kinds) == layers
    before = getattr(lm.model.config, "layer_types", ["none"] * 2)
    assert kinds == [before[0], before[1], before[0]][:layers]


def test_a_trunk_of_another_width():
    lm = CausalLM(model("gpt2"))
    body = lm.body(hidden_size=24)  # GPT-2 itself calls it n_embd
    assert body.width == body.states(batch_of()).shape[-1] == 24
    assert CausalLM(model("windowed")).body(window=None).network.config.window is None


@pytest.mark.parametrize("wrong", ["layers", "save_pretrained"])
def test_a_change_that_the_config_does_not_know_is_refused(wrong):
    with pytest.raises(Failure, match=rf"critic: LlamaConfig has no {wrong}; it has .*hidden_size"):
        CausalLM(model("llama")).body(**{wrong: 3})


def test_sizes_that_make_no_trunk_are_refused():
    with pytest.raises(Failure, match="critic: these sizes make no model"):
        CausalLM(model("windowed")).body(num_attention_heads=3)
    with pytest.raises(Failure, match=r"critic: these sizes(.|\n)*not a multiple"):
        CausalLM(model("llama")).body(hidden_size=15)


def test_a_fresh_trunk_keeps_the_attention_of_the_student():
    lm = CausalLM(model("llama"))
    lm.model.set_attn_implementation("eager")
    assert lm.body(num_hidden_layers=1).network.config._attn_implementation == "eager"


# ---- saving, loading, building


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3_text"])
def test_a_saved_student_loads_bit_for_bit(kind, tmp_path):
    lm = CausalLM(model(kind))
    lm.save(tmp_path)
    again = text.load(str(tmp_path))
    assert torch.equal(again(batch_of()).logits, lm(batch_of()).logits)
    assert again.stop_ids == lm.stop_ids
    with torch.no_grad():
        for p in lm.parameters():
            p.zero_()
    lm.load(tmp_path)
    assert torch.equal(again(batch_of()).logits, lm(batch_of()).logits)


@pytest.mark.parametrize(
    ("dtype", "wanted"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_a_model_is_loaded_in_the_dtype_that_is_asked_for(dtype, wanted, tmp_path):
    CausalLM(model("llama")).save(tmp_path)
    lm = text.load(str(tmp_path), dtype=dtype)
    assert {p.dtype for p in lm.parameters()} == {wanted}
    said = lm(batch_of())
    assert said.hidden.dtype == wanted
    assert lm.head_known


def test_what_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(Failure, match=r"cannot load the model '.*nothing'"):
        text.load(str(tmp_path / "nothing"))
    with pytest.raises(Failure, match="no 'float23'; did you mean 'float32'"):
        text.load(str(tmp_path), dtype="float23")


def test_a_model_is_built_from_sizes():
    lm = text.build("llama", V, EOS, 0, **SIZES)
    assert lm.model.config.vocab_size == V
    assert lm.stop_ids == (EOS,)
    assert lm.model.config.pad_token_id == 0
    assert text.build("gpt2", V, EOS, 0, hidden_size=8, num_attention_heads=2).head_known


@pytest.mark.parametrize(
    ("kind", "sizes", "told"),
    [
        ("lama", {}, r"student\.lm\.model_type: 'lama' is unknown .*did you mean 'llama'"),
        ("llama", {"hiden_size": 8}, r"student\.lm: LlamaConfig has no hiden_size"),
        ("llama", {"hidden_size": "x"}, r"student\.lm: these sizes make no model"),
        ("llama", {"hidden_size": 15, "num_attention_heads": 2}, "not a multiple"),
        ("windowed", {"hidden_size": 15}, "15 cannot be shared by 2 heads"),
    ],
)
def test_sizes_that_make_no_model_are_refused(kind, sizes, told):
    with pytest.raises(Failure, match=told):
        text.build(kind, V, EOS, 0, **sizes)
