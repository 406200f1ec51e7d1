"""Features of language models: states of named layers at the rows of a batch."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from stillroom.core import Failure
from stillroom.data.text import collate
from stillroom.models.adapters import adapted
from stillroom.models.heads import mode
from stillroom.models.packing import OneRow, Packed, Padded
from stillroom.models.text import CausalLM

V, EOS = 40, 1
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 2, "max_position_embeddings": 64}
NARROW = SIZES | {"num_key_value_heads": 1, "head_dim": 8}
KINDS = {
    "llama": (SIZES, "model.layers.{}"),
    "gemma3_text": (NARROW | {"sliding_window": 4}, "model.layers.{}"),
    "gpt2": ({"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 64}, "transformer.h.{}"),
    "qwen2": (SIZES | {"num_key_value_heads": 1}, "model.layers.{}"),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
PAIRS = [([5, 6, 7, 8], [9, 10, 11, 12, 13, EOS]), ([14], [15, EOS]), ([16, 17, 18], [19, 20, EOS])]


def network(kind, *taps):
    config = AutoConfig.for_model(
        kind, vocab_size=V, pad_token_id=0, eos_token_id=EOS, bos_token_id=None, **KINDS[kind][0]
    )
    torch.manual_seed(0)
    made = CausalLM(AutoModelForCausalLM.from_config(config)).eval()
    made.taps = taps
    return made


def batch_of(side="right"):
    return collate(PAIRS, torch.arange(len(PAIRS)), 0, side=side)


def one_by_one(model, read):
    """What ``read(outputs)`` gives at the rows, of one text at a time, by the model's forward."""
    found = []
    for prompt, completion in PAIRS:
        ids = torch.tensor([prompt + completion])
        places = torch.arange(ids.shape[1])[None]
        said = read(model(ids, position_ids=places, output_hidden_states=True), ids)[0]
        found.append(said[len(prompt) - 1 : -1])
    return torch.cat(found)


@every_kind
@pytest.mark.parametrize("layout", [Padded, Packed])
@pytest.mark.parametrize("side", ["left", "right"])
def test_features_are_the_model_s_own_states_at_the_rows(kind, layout, side):
    layers = [KINDS[kind][1].format(i) for i in (0, 1)]
    lm = network(kind, "embedding", *layers, "last")
    lm.layout = layout
    said = lm(batch_of(side)).features
    assert list(said) == ["embedding", *layers, "last"]
    rows = sum(len(c) for _, c in PAIRS)
    assert {tuple(x.shape) for x in said.values()} == {(rows, 16)}
    embed = lm.model.get_input_embeddings()
    close(said["embedding"], one_by_one(lm.model, lambda out, ids: embed(ids)))
    for i, layer in enumerate(layers):
        close(said[layer], one_by_one(lm.model, lambda out, _, i=i: out.hidden_states[i + 1]))
    close(said["last"], one_by_one(lm.model, lambda out, _: out.hidden_states[-1]))
    assert torch.equal(said["last"], lm(batch_of(side)).hidden)


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_one_row_alone_gives_the_same():
    lm, taps = network("llama", "embedding", "model.layers.1"), {}
    for layout in (Packed, OneRow):
        lm.layout = layout
        taps[layout] = lm(batch_of()).features
    for name, value in taps[Packed].items():
        assert value.shape == taps[OneRow][name].shape


def test_without_taps_nothing_is_said_and_no_hook_stays():
    lm = network("llama")
    assert "features" not in lm(batch_of())
    lm.taps = ("embedding", "model.layers.0.self_attn")  # which gives its weights as well
    assert {x.shape for x in lm(batch_of()).features.values()} == {(11, 16)}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.modules())
    assert {"features", "hidden"} <= lm.signals


def test_gradients_pass_also_where_layers_are_computed_again():
    """Those of the model's own states, up to the layer that is read and no further."""
    plain = network("llama")
    own = one_by_one(plain.model, lambda out, _: torch.cat(out.hidden_states[:3:2], -1))
    own.pow(3).sum().backward()
    wanted = {k: p.grad for k, p in plain.model.model.named_parameters()}
    assert wanted["layers.1.mlp.up_proj.weight"].abs().max() > 0
    assert wanted["layers.2.mlp.up_proj.weight"] is None
    for again in (False, True):
        lm = network("llama", "embedding", "model.layers.1").train()
        if again:
            lm.checkpointing()
        sum(x.pow(3).sum() for x in lm(batch_of()).features.values()).backward()
        for name, p in lm.model.model.named_parameters():
            torch.testing.assert_close(p.grad, wanted[name], rtol=1e-4, atol=1e-6)


def test_a_layer_that_is_unknown_or_says_no_states_is_refused():
    lm = network("llama", "model.layer.0")
    with pytest.raises(Failure, match=r"no layer 'model.layer.0'; did you mean 'model.layers.0'"):
        lm(batch_of())
    lm.taps = ("lm_head",)  # is not run: the head is applied to the rows alone
    with pytest.raises(Failure, match="'lm_head' says no state of each token"):
        lm(batch_of())
    lm = network("gemma3_text", "model.layers.0.self_attn.q_norm")
    with pytest.raises(Failure, match=r"q_norm' says no state .*got \[3, "):
        lm(batch_of())


def test_a_model_whose_head_is_not_known_gives_none():
    lm = network("llama")
    lm.head_known = False
    assert "features" not in lm.signals
    assert "logits" in lm.signals


@pytest.mark.extra("lora")
def test_an_adapter_and_its_base_have_taps_of_their_own():
    pytest.importorskip("peft")
    plain = network("llama")
    wanted = copy.deepcopy(plain)
    student = adapted(plain)
    base = student.base()
    student.taps, wanted.taps = ("last",), ("model.layers.0",)
    base.taps = ("model.layers.0",)
    with mode(student, training=False), torch.no_grad():
        for p in student.parameters():
            p.add_(0.1)
        assert list(student(batch_of()).features) == ["last"]
        close(
            base(batch_of()).features["model.layers.0"],
            wanted(batch_of()).features["model.layers.0"],
        )
        student.taps = ("model.layers.0",)
        far = student(batch_of()).features["model.layers.0"]
    assert (far - wanted(batch_of()).features["model.layers.0"]).abs().max() > 0.01
    assert "features" in student.signals
