"""Students cut from a model: against the whole with hooks, a cache, a search by brute force."""

import itertools

import pytest
import torch
import worlds
from transformers import AutoConfig, AutoModelForCausalLM

from stillroom.core import Failure
from stillroom.data.text import Example, TextData
from stillroom.models.cut import Uniform, cut, same, search, skipped
from stillroom.models.text import CausalLM
from stillroom.models.text import load as load_text
from stillroom.rollouts.sampling import Sampling, sample

V, EOS, LAYERS = 40, 1, 6
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
NARROW = SIZES | {"num_key_value_heads": 1, "head_dim": 8}
S, F = "sliding_attention", "full_attention"
KINDS = {
    "llama": SIZES,
    "gemma3_text": NARROW | {"sliding_window": 3, "layer_types": [S, S, F, S, F, S]},
    "qwen3": NARROW,
    "gpt2": {"n_embd": 16, "n_layer": LAYERS, "n_head": 2, "n_positions": 64}
    | {"initializer_range": 0.2},
    "windowed": {k: v for k, v in SIZES.items() if k != "initializer_range"} | {"window": 3},
}
LISTS = {"gpt2": "transformer.h"}
every_kind = pytest.mark.parametrize("kind", KINDS)
CUTS = [[0, 1, 2, 3, 4, 5], [0, 2, 5], [1, 2, 4], [3], [0, 1, 2], [3, 4, 5]]
every_cut = pytest.mark.parametrize("layers", CUTS, ids=str)
IDS = torch.tensor([[5, 6, 7, 8, 9, 30, 31, 32, 11, 12], [13, 4, 4, 39, 2, 8, 9, 10, 21, 3]])


def model(kind, **changes):
    config = AutoConfig.for_model(
        kind, vocab_size=V, pad_token_id=0, eos_token_id=EOS, bos_token_id=None,
        **KINDS[kind] | changes,
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).double().eval()


def stack_of(whole, kind):
    return whole.get_submodule(LISTS.get(kind, "model.layers"))


@torch.no_grad()
def logits(one, ids=IDS):
    return one(input_ids=ids, use_cache=False).logits


def without(whole, kind, dropped, ids=IDS):
    """Logits of the whole, the output of each dropped layer replaced by its input."""

    def through(_module, args, kwargs, out):
        given = args[0] if args else kwargs["hidden_states"]
        return (given, *out[1:]) if isinstance(out, tuple) else given

    stack = stack_of(whole, kind)
    handles = [stack[i].register_forward_hook(through, with_kwargs=True) for i in dropped]
    try:
        return logits(whole, ids)
    finally:
        for handle in handles:
            handle.remove()


def rest(layers):
    return [i for i in range(LAYERS) if i not in layers]


@every_kind
@every_cut
def test_a_cut_model_is_the_whole_with_the_others_left_out(kind, layers):
    whole = model(kind)
    wanted, full = without(whole, kind, rest(layers)), logits(whole)
    made = cut(whole, layers)
    torch.testing.assert_close(logits(made), wanted)
    with skipped(whole, rest(layers)):
        torch.testing.assert_close(logits(whole), wanted)
    assert torch.equal(logits(whole), full)
    assert made.config.num_hidden_layers == len(layers)
    if rest(layers):
        assert (wanted - full).abs().max() > 1e-2  # the layers that go do something


@every_kind
def test_what_is_cut_is_no_part_of_the_whole(kind):
    whole = model(kind)
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    made = cut(whole, [1, 4])
    mine = {p.data_ptr() for p in made.parameters()}
    assert not mine & {p.data_ptr() for p in whole.parameters()}
    with torch.no_grad():
        for p in made.parameters():
            p.zero_()
    assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items())
    assert whole.config.num_hidden_layers == LAYERS
    tied = whole.get_output_embeddings().weight is whole.get_input_embeddings().weight
    assert tied == (made.get_output_embeddings().weight is made.get_input_embeddings().weight)


@every_kind
@every_cut
def test_text_with_a_cache_is_text_without(kind, layers):
    made = cut(model(kind), layers)
    prompt, found = IDS[:1], IDS[:1]
    for _ in range(12):
        found = torch.cat([found, logits(made, found)[:, -1:].argmax(-1)], 1)
    plain = found[0, prompt.shape[1] :].tolist()
    lm = CausalLM(made, stop_ids=[])
    told = Sampling(temperature=0, max_new_tokens=12)
    assert sample(lm, prompt.tolist(), torch.tensor([0]), seed=0, sampling=told) == [plain]
    texts = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    theirs = made.generate(prompt, attention_mask=torch.ones_like(prompt), **texts)
    assert theirs[0, prompt.shape[1] :].tolist() == plain


@every_kind
@every_cut
def test_what_is_saved_is_what_was_cut(kind, layers, tmp_path):
    made = cut(model(kind), layers)
    CausalLM(made).save(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert torch.equal(logits(loaded), logits(made))
    same(CausalLM(made.float()), load_text(str(tmp_path)))
    types = KINDS[kind].get("layer_types")
    if types:
        assert loaded.config.layer_types == [types[i] for i in layers]


def test_a_cut_of_a_cut_is_a_cut():
    whole = model("gemma3_text")
    twice = cut(cut(whole, [0, 2, 3, 5]), [1, 3])
    assert torch.equal(logits(twice), logits(cut(whole, [2, 5])))


def test_a_saved_model_that_differs_is_refused(tmp_path):
    made = CausalLM(cut(model("llama"), [0, 3]).float())
    made.save(tmp_path)
    same(made, load_text(str(tmp_path)))
    other = load_text(str(tmp_path))
    with torch.no_grad():
        other.model.model.layers[1].mlp.down_proj.weight.mul_(1.5)
    with pytest.raises(Failure, match="takes its layers by number"):
        same(made, other)


def test_layers_that_are_made_by_number_are_refused(tmp_path):
    whole = model("gpt2", scale_attn_by_inverse_layer_idx=True).float()
    first, later = (CausalLM(cut(whole, layers)) for layers in ([0, 1], [0, 3]))
    first.save(tmp_path)
    same(first, load_text(str(tmp_path)))  # these keep their numbers
    later.save(tmp_path)
    with pytest.raises(Failure, match="GPT2LMHeadModel takes its layers by number"):
        same(later, load_text(str(tmp_path)))


@pytest.mark.parametrize("layers", [[], [6], [0, 6], [-1], [-1, 2], [2, 2], [3, 1]])
def test_layers_that_are_none_are_refused(layers):
    with pytest.raises(Failure, match=r"cut\.layers: expected some of 0 to 5 in rising order"):
        cut(model("llama"), layers)


def test_a_model_with_two_lists_of_layers_is_refused():
    whole = model("llama")
    whole.model.second = torch.nn.ModuleList(torch.nn.Identity() for _ in range(LAYERS))
    with pytest.raises(Failure, match=r"has 2 lists of 6 layers.* give the folder"):
        cut(whole, [0])


# ---- the search


def text(count=10):
    draw = torch.Generator().manual_seed(3)
    examples = []
    for prompt, answer in itertools.islice(itertools.cycle(worlds.LENGTHS), count):
        ids = torch.randint(2, V, (prompt + answer,), generator=draw).tolist()
        examples.append(Example("", "", tuple(ids[:prompt]), (*ids[prompt:], EOS)))
    return TextData(examples, 0)


def mean_kl(whole, kind, dropped, data, examples):
    """KL(whole || rest) a token, text by text, with the formula written out."""
    total, count = 0.0, 0
    for example in data.examples[:examples]:
        ids = torch.tensor([[*example.prompt_ids, *example.completion_ids]])
        places = range(len(example.prompt_ids) - 1, ids.shape[1] - 1)
        p = logits(whole, ids)[0].softmax(-1)
        q = without(whole, kind, dropped, ids)[0].softmax(-1)
        for t in places:
            total += float((p[t] * (p[t] / q[t]).log()).sum())
            count += 1
    return total / count


def useless(whole, kind, layer):
    """Makes a layer add nothing to what it is given."""
    for name, p in stack_of(whole, kind)[layer].named_parameters():
        if any(part in name for part in ("o_proj", "down_proj", "c_proj")):
            p.data.zero_()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3_text"])
@pytest.mark.parametrize("planted", [0, 3, 5])
def test_a_useless_layer_goes_first(kind, planted):
    whole = model(kind)
    useless(whole, kind, planted)
    found = search(CausalLM(whole), text(), keep=LAYERS - 2, tokens=20)
    assert found["removed"][0] == planted
    assert found["kl"][0] == pytest.approx(0, abs=1e-9)
    assert found["kl"][1] > 1e-3
    assert planted not in found["layers"]


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_each_removal_is_the_cheapest_of_all(kind):
    whole, data = model(kind), text()
    # examples come in fours until there are enough supervised tokens: 14 + 14 >= 20, so eight
    lengths = [answer + 1 for _, answer in worlds.LENGTHS]
    assert sum(lengths[:4]) < 20 <= sum(lengths)
    found = search(CausalLM(whole).train(), data, keep=2, tokens=20)
    gone = []
    for removed, kl in zip(found["removed"], found["kl"], strict=True):
        costs = {
            layer: mean_kl(whole.eval(), kind, [*gone, layer], data, 8)
            for layer in range(LAYERS)
            if layer not in gone
        }
        assert removed == min(costs, key=lambda layer: costs[layer])
        assert kl == pytest.approx(costs[removed], rel=1e-9)
        gone.append(removed)
    assert found["layers"] == sorted(set(range(LAYERS)) - set(gone))
    assert len(gone) == LAYERS - 2


def test_the_search_leaves_the_model_as_it_was():
    lm = CausalLM(model("llama")).train()
    lm.model.model.layers[0].eval()
    flags, before = [m.training for m in lm.modules()], logits(lm.model)
    stack = list(lm.model.model.layers)
    search(lm, text(), keep=4, tokens=5)
    assert [m.training for m in lm.modules()] == flags
    assert all(a is b for a, b in zip(stack, lm.model.model.layers, strict=True))
    assert torch.equal(logits(lm.model), before)
    assert all(p.grad is None for p in lm.parameters())


def test_layers_come_back_after_an_error():
    whole = model("llama")
    before = list(whole.model.layers)
    with pytest.raises(ZeroDivisionError), skipped(whole, [1, 2]):
        _ = 1 / 0
    assert all(a is b for a, b in zip(before, whole.model.layers, strict=True))


@pytest.mark.parametrize("keep", [6, 7])
def test_keeping_all_layers_is_no_search(keep):
    with pytest.raises(Failure, match=r"cut\.keep: the model has 6 layers, so keep fewer than"):
        search(CausalLM(model("llama")), text(), keep=keep, tokens=5)


def test_an_even_guess_gives_every_token_the_same():
    data = text()
    batch = data.batch([0, 1])
    for kind in ("llama", "gpt2"):
        said = Uniform(CausalLM(model(kind)))(batch)
        torch.testing.assert_close(
            said.logits.softmax(-1), torch.full((len(batch.rows), V), 1 / V, dtype=torch.float64)
        )
