"""Sampling: the numbers behind it, how a token is drawn, and whole answers against a slow loop."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from stillroom.core import Failure
from stillroom.models.text import CausalLM
from stillroom.rollouts.sampling import Sampling, pick, sample, uniform

V, STOPS = 12, [1, 7]
SIZES = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
KINDS = {
    "llama": SIZES | {"initializer_range": 0.3},
    "gemma3_text": SIZES
    | {"num_key_value_heads": 1, "head_dim": 4, "sliding_window": 4, "initializer_range": 0.3}
    | {"layer_types": ["sliding_attention", "full_attention"]},
    "windowed": SIZES | {"window": 3, "sinks": 2, "embedding_initializer_range": 1.0},
}
every_kind = pytest.mark.parametrize("kind", KINDS)
PROMPTS = [[3, 4, 5, 6, 8, 9, 10, 11, 3], [4], [5, 6, 10]]
IDS = torch.tensor([70, 3, 12])


def model(kind="llama"):
    config = AutoConfig.for_model(
        kind, vocab_size=V, pad_token_id=0, eos_token_id=STOPS, bos_token_id=None, **KINDS[kind]
    )
    torch.manual_seed(0)
    return CausalLM(AutoModelForCausalLM.from_config(config).double().eval())


# ---- uniform numbers


def splitmix(seed, *counters):
    """The same hash in Python's unbounded integers."""

    def mix(x):
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    golden = 0x9E3779B97F4A7C15
    state = mix((seed + golden) % 2**64)
    for counter in counters:
        state = mix((state + counter * golden + golden) % 2**64)
    return (state >> 11) / 2**53


@given(st.integers(0, 2**53), st.lists(st.integers(0, 2**40), max_size=4))
def test_uniform_is_splitmix_of_each_counter_in_turn(seed, counters):
    assert float(uniform(seed, *counters)) == splitmix(seed, *counters)


def test_the_first_number_of_splitmix_64():
    # the generator with state 0 gives 0xE220A8397B1DCDAF first; ours mixes the seed likewise
    assert float(uniform(0)) == (0xE220A8397B1DCDAF >> 11) / 2**53


@pytest.mark.parametrize("axis", ["seed", "id", "copy", "position"])
def test_uniform_is_uniform_along_every_counter(axis):
    n, k = 4000, torch.arange(4000)
    drawn = {
        "seed": lambda: torch.stack([uniform(s, 5, 0, 3) for s in range(n)]),
        "id": lambda: uniform(0, k, 0, 3),
        "copy": lambda: uniform(0, 5, k, 3),
        "position": lambda: uniform(0, 5, 0, k),
    }[axis]()
    assert drawn.min() >= 0
    assert drawn.max() < 1
    above = (torch.arange(1, n + 1) / n - drawn.sort().values).abs().max()
    assert above * math.sqrt(n) < 1.63  # Kolmogorov and Smirnov, 1 percent
    # neighbours are independent: 8 x 8 cells, 63 degrees of freedom
    cells = (drawn[:-1] * 8).long() * 8 + (drawn[1:] * 8).long()
    expected = (n - 1) / 64
    chi2 = ((torch.bincount(cells, minlength=64) - expected) ** 2 / expected).sum()
    assert chi2 < 92  # 1 percent


def test_uniform_does_not_depend_on_what_is_drawn_beside_it():
    ids, copies, places = torch.arange(50), torch.arange(4), torch.arange(9)
    all_of_them = uniform(7, ids[:, None, None], copies[:, None], places)
    assert all_of_them.shape == (50, 4, 9)
    assert all_of_them.unique().numel() == 50 * 4 * 9
    assert torch.equal(uniform(7, ids[[31, 2]][:, None], 3, places), all_of_them[[31, 2], 3])
    assert not torch.equal(uniform(8, ids[:, None, None], copies[:, None], places), all_of_them)


# ---- one token

GRID = 20000
EVEN = (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID


def shares(logits, sampling, u=EVEN):
    """How often each token is drawn, over numbers that fill [0, 1) evenly."""
    drawn = pick(logits.expand(len(u), -1), u, sampling)
    return torch.bincount(drawn, minlength=len(logits)) / len(u)


def by_definition(logits, sampling):
    """Probabilities by the words of the definitions, in plain Python."""
    weight = [math.exp(x / sampling.temperature) for x in logits.tolist()]
    best = sorted(range(len(weight)), key=lambda v: -weight[v])[: sampling.top_k]
    mass, kept = 0.0, []
    for v in best:  # the fewest likeliest tokens whose mass reaches top_p
        kept.append(v)
        mass += weight[v] / sum(weight[b] for b in best)
        if mass >= sampling.top_p:
            break
    total = sum(weight[v] for v in kept)
    return torch.tensor([weight[v] / total if v in kept else 0.0 for v in range(len(weight))])


RULES = [
    {},
    {"temperature": 0.5},
    {"temperature": 3.0},
    {"top_k": 1},
    {"top_k": 4},
    {"top_k": 50},
    {"top_p": 0.5},
    {"top_p": 0.9},
    {"top_p": 1e-6},
    {"temperature": 2.0, "top_k": 5, "top_p": 0.7},
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_tokens_are_drawn_as_the_definitions_say(rule):
    logits = torch.randn(9, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2
    wanted = by_definition(logits, Sampling(**rule))
    found = shares(logits, Sampling(**rule))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1.5 / GRID)
    assert torch.equal(found > 0, wanted > 0.5 / GRID)


def test_frequencies_pass_a_chi_square_test_on_real_draws():
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5])
    n = 10000
    found = shares(logits, Sampling(temperature=0.8), uniform(11, torch.arange(n), 0, 0)) * n
    expected = (logits / 0.8).softmax(-1) * n
    assert ((found - expected) ** 2 / expected).sum() < 13.28  # 4 degrees of freedom, 1 percent


def test_the_edge_of_top_p_by_hand():
    logits = torch.tensor([0.25, 0.5, 0.25]).log()
    assert (shares(logits, Sampling(top_p=0.5)) > 0).tolist() == [False, True, False]
    assert (shares(logits, Sampling(top_p=0.51)) > 0).tolist() == [True, True, False]
    assert (shares(logits, Sampling(top_p=0.76)) > 0).tolist() == [True, True, True]


def test_no_temperature_takes_the_likeliest_whatever_the_number():
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, -1.0, 1.9]])
    for u in (0.0, 0.999):
        assert pick(logits, torch.full((2,), u), Sampling(temperature=0)).tolist() == [1, 0]


@pytest.mark.parametrize("rule", [{}, {"top_k": 3}, {"top_p": 0.9}, {"temperature": 0.1}], ids=str)
def test_a_token_that_is_ruled_out_is_never_drawn(rule):
    never = torch.tensor([-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf])
    edges = torch.tensor([0.0, 2.0**-53, 1 - 2.0**-53], dtype=torch.float64)
    found = shares(never, Sampling(**rule), torch.cat([EVEN, edges]))
    assert found[[0, 2, 4]].tolist() == [0, 0, 0]


def kept_by_sorting(logits, sampling):
    """[V] float64 probabilities after temperature, ``top_k`` and ``top_p``, from a sorted row."""
    p = (logits.double() / sampling.temperature).softmax(-1)
    order = p.argsort(descending=True)[: sampling.top_k]
    share = p[order] / p[order].sum()
    order = order[share.cumsum(0) - share < sampling.top_p]
    kept = torch.zeros_like(p)
    kept[order] = p[order] / p[order].sum()
    return kept


WIDTHS = [1, 2, 127, 128, 129, 1000, 5003]  # blocks of tokens that come out even, and do not
WIDE_RULES = [
    {},
    {"temperature": 0.3},
    {"top_k": 200},
    {"top_p": 0.9},
    {"top_k": 900, "top_p": 0.5},
]
LEAST, MOST = 2.0**-53, 1 - 2.0**-53


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rule", WIDE_RULES, ids=str)
def test_each_token_is_the_one_whose_interval_holds_the_number(width, rule):
    spread = torch.tensor([[0.0], [0.5], [6.0]])  # flat rows need all their tokens, steep ones few
    logits = torch.randn(3, width, generator=torch.Generator().manual_seed(width)) * spread
    u = torch.cat([EVEN[::100], torch.tensor([0.0, LEAST, MOST], dtype=torch.float64)])
    drawn = torch.stack([pick(logits, u_of_all.expand(3), Sampling(**rule)) for u_of_all in u], 1)
    for row, tokens in zip(logits[1:], drawn[1:], strict=True):  # of equals any may be kept
        p = kept_by_sorting(row, Sampling(**rule))
        above = p.cumsum(0)
        assert (above[tokens] - p[tokens] <= u + 1e-6).all()
        assert (u <= above[tokens] + 1e-6).all()
        assert (p[tokens] > 0).all()
        wanted = torch.searchsorted(above, u * above[-1], right=True)
        assert (tokens != wanted).sum() <= 2  # float32's rounding, where they meet
    counts = kept_by_sorting(logits[0], Sampling(**rule)).count_nonzero()
    assert len(drawn[0].unique()) <= counts
    assert (drawn[0].diff() >= 0)[: len(EVEN[::100]) - 1].all()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rule", WIDE_RULES, ids=str)
def test_no_number_draws_a_token_without_probability(width, rule):
    likely = sorted({0, width // 2, width - 1})
    for told in ([at] for at in likely), [likely], [[width // 3]], [likely[:2]]:
        for tokens in told:
            logits = torch.full((4, width), -torch.inf)
            logits[:, tokens] = torch.rand(len(tokens), generator=torch.Generator().manual_seed(1))
            u = torch.tensor([0.0, LEAST, 0.5, MOST], dtype=torch.float64)
            drawn = pick(logits, u, Sampling(**rule)).tolist()
            assert {*drawn} <= {*tokens}
            if "top_p" not in rule:
                assert (drawn[0], drawn[-1]) == (tokens[0], tokens[-1])


def test_rounding_at_the_end_of_a_block_draws_no_token_without_probability():
    # sums of a block in float32 and in float64 differ: numbers between fall into neither
    logits = torch.full((1, 512), -torch.inf)
    logits[0, 3:100:7] = torch.randn(14, generator=torch.Generator().manual_seed(0))
    logits[0, 300] = 0.0
    p = kept_by_sorting(logits[0], Sampling())
    edge = p[:128].sum()
    u = edge + torch.linspace(-1e-6, 1e-6, 2001, dtype=torch.float64)
    drawn = pick(logits.expand(len(u), -1), u, Sampling())
    assert {*drawn.tolist()} == {94, 300}


def test_rows_are_left_as_they_were():
    logits = torch.randn(2, 300, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    for rule in WIDE_RULES:
        pick(logits, torch.tensor([0.2, 0.9]), Sampling(**rule))
    assert torch.equal(logits, before)


# ---- whole answers


def slowly(lm, prompt, id, copy, seed, sampling):
    """One answer, the whole text read anew for each token."""
    ids = list(prompt)
    for t in range(sampling.max_new_tokens):
        read = torch.tensor([ids])
        logits = lm.model(read, position_ids=torch.arange(len(ids))[None]).logits[0, -1:]
        token = int(pick(logits, uniform(seed, id, copy, torch.tensor([t])), sampling))
        ids.append(token)
        if token in STOPS:
            break
    return ids[len(prompt) :]


@every_kind
@pytest.mark.parametrize("rule", [{}, {"temperature": 1.5, "top_k": 9, "top_p": 0.95}], ids=str)
def test_answers_are_those_of_a_slow_loop_without_a_cache(kind, rule, monkeypatch):
    lm, dropped = model(kind), []
    select = DynamicCache.batch_select_indices

    def noted(self, kept):
        dropped.append(len(kept))
        return select(self, kept)

    monkeypatch.setattr(DynamicCache, "batch_select_indices", noted)
    told = Sampling(**rule, max_new_tokens=14)
    found = sample(lm, PROMPTS, IDS, 6, seed=5, sampling=told)
    with torch.no_grad():
        wanted = [
            slowly(lm, prompt, int(id), copy, 5, told)
            for prompt, id in zip(PROMPTS, IDS, strict=True)
            for copy in range(6)
        ]
    assert found == wanted
    ends = {answer[-1] for answer in found}
    assert ends >= set(STOPS)  # both stop ids came
    assert dropped  # finished rows were left out on the way
    assert dropped == sorted(dropped, reverse=True)
    assert not any(token in STOPS for answer in found for token in answer[:-1])


@every_kind
def test_an_answer_does_not_depend_on_the_others(kind):
    lm, told = model(kind), Sampling(max_new_tokens=8)
    together = sample(lm, PROMPTS, IDS, 3, seed=1, sampling=told)
    for i in (2, 0):
        alone = sample(lm, [PROMPTS[i]], IDS[i : i + 1], 3, seed=1, sampling=told)
        assert alone == together[3 * i : 3 * i + 3]
    fewer = sample(lm, PROMPTS, IDS, 1, seed=1, sampling=told)
    assert fewer == together[::3]
    assert sample(lm, PROMPTS, IDS, 3, seed=1, sampling=told) == together
    assert sample(lm, PROMPTS, IDS, 3, seed=2, sampling=told) != together
    assert sample(lm, PROMPTS, IDS + 1, 3, seed=1, sampling=told) != together


def test_a_prompt_is_read_once_for_all_its_samples(monkeypatch):
    lm, read = model(), []
    real = lm.next_logits
    monkeypatch.setattr(
        lm, "next_logits", lambda ids, *rest: (read.append(tuple(ids.shape)), real(ids, *rest))[1]
    )
    sample(lm, PROMPTS, IDS, 5, seed=0, sampling=Sampling(max_new_tokens=3))
    assert read[:2] == [(3, 9), (15, 1)]
    assert len(read) == 3


def test_without_a_known_head_answers_are_the_same():
    lm, told = model(), Sampling(max_new_tokens=6)
    before = sample(lm, PROMPTS, IDS, 2, seed=0, sampling=told)
    lm.head_known = False
    assert sample(lm, PROMPTS, IDS, 2, seed=0, sampling=told) == before


@every_kind
def test_greedy_answers_are_those_of_generate(kind):
    lm = model(kind)
    length = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (length - len(p)) + p for p in PROMPTS])
    real = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in PROMPTS])
    whole = lm.model.generate(
        ids, attention_mask=real, max_new_tokens=9, do_sample=False, eos_token_id=STOPS
    )
    wanted = []
    for row in whole[:, length:].tolist():
        ends = [i + 1 for i, token in enumerate(row) if token in STOPS]
        wanted.append(row[: ends[0] if ends else len(row)])
    told = Sampling(temperature=0, max_new_tokens=9)
    assert sample(lm, PROMPTS, IDS, seed=0, sampling=told) == wanted


def test_an_answer_ends_at_the_limit():
    lm = model()
    lm.stop_ids = ()
    found = sample(lm, PROMPTS, IDS, 2, seed=0, sampling=Sampling(max_new_tokens=5))
    assert [len(answer) for answer in found] == [5] * 6


def test_modes_are_kept_and_no_graph_is_made():
    lm = model().train()
    lm.model.model.layers[0].eval()
    flags = [m.training for m in lm.modules()]
    lm.model.model.layers[1].self_attn.attention_dropout = 0.9  # counts in train mode only
    found = sample(lm, PROMPTS, IDS, seed=0, sampling=Sampling(max_new_tokens=4))
    assert [m.training for m in lm.modules()] == flags
    assert found == sample(model(), PROMPTS, IDS, seed=0, sampling=Sampling(max_new_tokens=4))


def test_what_does_not_fit_the_context_is_refused():
    lm = model()
    told = r"a prompt of 9 tokens and max_new_tokens 56 exceed the context of 64: shorten"
    with pytest.raises(Failure, match=told):
        sample(lm, PROMPTS, IDS, seed=0, sampling=Sampling(max_new_tokens=56))
    lm.stop_ids = ()
    found = sample(lm, [PROMPTS[0]], IDS[:1], seed=0, sampling=Sampling(max_new_tokens=55))
    assert len(found[0]) == 55
