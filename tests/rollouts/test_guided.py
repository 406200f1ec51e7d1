"""Two networks that write together: against a slow loop, and against the law of whole sequences."""

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import cast

import pytest
import torch
import worlds
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from stillroom.core import Failure
from stillroom.data.text import completions_of, prompts_of
from stillroom.engine import run as engine
from stillroom.methods.kd import KD
from stillroom.methods.seqkd import SeqKD
from stillroom.models.heads import head_of
from stillroom.models.text import CausalLM
from stillroom.models.view import narrow, narrowed
from stillroom.rollouts.guided import Guided, Interleaved, Mixed
from stillroom.rollouts.sampling import Sampling, sample, uniform
from stillroom.teachers.local import Local
from stillroom.teachers.recorded import Recorded

V, STOPS = 12, [1, 2, 7]
SIZES = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
KINDS = {
    "llama": {"initializer_range": 0.3},
    "windowed": {"window": 3, "sinks": 2, "embedding_initializer_range": 1.0},
}
PROMPTS = [[3, 4, 5, 6, 8, 9, 10, 11, 3], [4], [5, 6, 10]]
IDS = torch.tensor([70, 3, 12])
every_kind = pytest.mark.parametrize("kind", KINDS)


def model(seed, kind="llama", vocab=V, stops=STOPS, scale=1.0, **changes):
    told = {**SIZES, **KINDS[kind], "pad_token_id": 0, "bos_token_id": None, **changes}
    config = AutoConfig.for_model(kind, vocab_size=vocab, eos_token_id=stops, **told)
    torch.manual_seed(seed)
    made = CausalLM(AutoModelForCausalLM.from_config(config).double().eval(), stops)
    head_of(made.model).weight.data.mul_(scale)
    return made


def pair(rule, kind="llama", **told):
    return Guided(model(0, kind, **told), model(1, kind, **told, hidden_size=12), rule)


def next_logits(lm, ids):
    """The last row, without a cache."""
    place = torch.arange(len(ids))[None]
    with torch.no_grad():
        return lm.model(torch.tensor([ids]), position_ids=place).logits[0, -1]


# ---- the student's own draws, and the guide's


SAMPLINGS = [{}, {"temperature": 1.5, "top_k": 9, "top_p": 0.95}]
SILENT = [(Interleaved(top_k=V, temperature=0), told) for told in SAMPLINGS] + [
    (Mixed(share=0), {})
]


@every_kind
@pytest.mark.parametrize(("rule", "told"), SILENT, ids=str)
def test_a_guide_without_a_say_leaves_the_students_own_samples(kind, rule, told):
    both, sampling = pair(rule, kind), Sampling(**told, max_new_tokens=14)
    found = both.sample(PROMPTS, IDS, 6, seed=5, sampling=sampling)
    assert found.tokens == sample(both.student, PROMPTS, IDS, 6, seed=5, sampling=sampling)
    ((name, values),) = found.notes.items()
    assert len(values) == sum(map(len, found.tokens))
    assert (values == {"replaced": 0.0, "importance": 1.0}[name]).all()


def test_with_one_token_kept_and_no_temperature_the_guide_writes_greedily():
    both = pair(Interleaved(top_k=1, temperature=0))
    greedy = Sampling(temperature=0, max_new_tokens=14)
    found = both.sample(PROMPTS, IDS, 3, seed=9, sampling=replace(greedy, temperature=2.0))
    assert found.tokens == sample(both.guide, PROMPTS, IDS, 3, seed=0, sampling=greedy)
    assert found.tokens != sample(both.student, PROMPTS, IDS, 3, seed=0, sampling=greedy)
    assert 0 < found.notes["replaced"].mean() < 1


def test_a_guide_that_writes_all_gives_its_own_samples():
    both, told = pair(Mixed(share=1.0)), Sampling(max_new_tokens=14)
    found = both.sample(PROMPTS, IDS, 4, seed=3, sampling=told)
    assert found.tokens == sample(both.guide, PROMPTS, IDS, 4, seed=3, sampling=told)


# ---- token by token, the whole text read anew for each


def softmax(logits, temperature=1.0):
    exps = [math.exp(x / temperature) for x in logits]
    return [x / sum(exps) for x in exps]


def drawn(weights, u):
    total = 0.0
    for token, weight in enumerate(weights):
        total += weight
        if total > u:
            return token
    raise AssertionError


def slow_choice(rule, own, other, u, v):
    """The token, and what is noted of it."""
    q, p = softmax(own), softmax(other)
    if isinstance(rule, Mixed):
        token = drawn(p if v < rule.share else q, u)
        return token, q[token] / (rule.share * p[token] + (1 - rule.share) * q[token])
    good = sorted(range(len(p)), key=lambda y: -p[y])[: rule.top_k]
    if (token := drawn(q, u)) in good:
        return token, 0.0
    return drawn(softmax(other, rule.temperature), v), 1.0


def slowly(both, prompt, id, copy, seed, limit):
    ids, notes = list(prompt), []
    for t in range(limit):
        own, other = (next_logits(lm, ids).tolist() for lm in (both.student, both.guide))
        u, v = float(uniform(seed, id, copy, t)), float(uniform(seed, id, copy, t, 1))
        token, noted = slow_choice(both.rule, own, other, u, v)
        ids, notes = [*ids, token], [*notes, noted]
        if token in STOPS:
            break
    return ids[len(prompt) :], notes


RULES = [Interleaved(top_k=3, temperature=0.7), Interleaved(top_k=1), Mixed(share=0.4)]


@every_kind
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_answers_and_notes_are_those_of_a_slow_loop_without_caches(kind, rule, monkeypatch):
    both, dropped = pair(rule, kind), []
    select = DynamicCache.batch_select_indices
    monkeypatch.setattr(
        DynamicCache,
        "batch_select_indices",
        lambda self, kept: (dropped.append(kept.tolist()), select(self, kept))[1],
    )
    found = both.sample(PROMPTS, IDS, 6, seed=5, sampling=Sampling(max_new_tokens=14))
    wanted = [
        slowly(both, prompt, int(id), copy, 5, 14)
        for prompt, id in zip(PROMPTS, IDS, strict=True)
        for copy in range(6)
    ]
    assert found.tokens == [tokens for tokens, _ in wanted]
    ((_, values),) = found.notes.items()
    expected = torch.tensor([x for _, notes in wanted for x in notes])
    torch.testing.assert_close(values.float(), expected, rtol=1e-5, atol=0)
    assert len(expected.unique()) > 1
    assert dropped  # finished rows left both caches on the way
    assert dropped[::2] == dropped[1::2]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_an_answer_does_not_depend_on_its_company(rule):
    both, told = pair(rule), Sampling(max_new_tokens=8)
    together = both.sample(PROMPTS, IDS, 3, seed=1, sampling=told)
    ((_, noted),) = together.notes.items()
    parts = noted.split([sum(map(len, together.tokens[3 * i : 3 * i + 3])) for i in range(3)])
    for i in (2, 0):
        alone = both.sample([PROMPTS[i]], IDS[i : i + 1], 3, seed=1, sampling=told)
        assert alone.tokens == together.tokens[3 * i : 3 * i + 3]
        torch.testing.assert_close(next(iter(alone.notes.values())), parts[i])
    assert both.sample(PROMPTS, IDS, 1, seed=1, sampling=told).tokens == together.tokens[::3]
    assert both.sample(PROMPTS, IDS, 3, seed=2, sampling=told).tokens != together.tokens


def test_equals_of_the_last_token_that_is_good_enough_are_kept():
    own = torch.eye(4) * 100  # row i is sure of token i
    other = torch.tensor([1.0, 3.0, 2.0, 2.0]).expand(4, -1)
    told = {1: [1, 0, 1, 1], 2: [1, 0, 0, 0], 3: [1, 0, 0, 0], 4: [0, 0, 0, 0]}
    for k, wanted in told.items():
        rule = Interleaved(top_k=k, temperature=0)
        token, notes = rule.choose(own, other, torch.full((4, 2), 0.5), Sampling())
        assert notes["replaced"].tolist() == wanted
        assert token.tolist() == [1 if w else i for i, w in enumerate(wanted)]


# ---- the law of whole sequences: all of them, on 3 tokens of which the last ends

MANY, LONG = 30_000, 3


def little(rule):
    told = {"vocab": 3, "stops": [2], "scale": 3.0}
    return pair(rule, "windowed", **told)


def law(both, token_law):
    """Each sequence with its probability, ``token_law(q, p)`` at every place."""
    found, open_ = {}, {(): 1.0}
    for _ in range(LONG):
        longer = {}
        for said, mass in open_.items():
            logits = [next_logits(lm, [0, 1, *said]) for lm in (both.student, both.guide)]
            q, p = (softmax(row.tolist()) for row in logits)
            for token, share in enumerate(token_law(q, p)):
                ends = token == 2 or len(said) + 1 == LONG
                (found if ends else longer)[(*said, token)] = mass * share
        open_ = longer
    assert sum(found.values()) == pytest.approx(1.0)
    return found


def interleaved(k, temperature):
    def of(q, p):
        good = sorted(range(3), key=lambda y: -p[y])[:k]
        refused = 1 - sum(q[y] for y in good)
        sharper = [x ** (1 / temperature) for x in p]
        return [
            (q[y] if y in good else 0.0) + refused * sharper[y] / sum(sharper) for y in range(3)
        ]

    return of


def mixed(a):
    return lambda q, p: [(1 - a) * x + a * y for x, y in zip(q, p, strict=True)]


def alone(q, _p):
    return q


def chi_square(found, wanted):
    """Of counts; and its 1 percent bound, by Wilson and Hilferty."""
    cells = [y for y, mass in wanted.items() if mass > 0]
    value = sum((found.get(y, 0) - MANY * wanted[y]) ** 2 / (MANY * wanted[y]) for y in cells)
    assert set(found) <= set(cells)
    df = len(cells) - 1
    return value, df * (1 - 2 / (9 * df) + 2.326 * math.sqrt(2 / (9 * df))) ** 3


@cache
def many(rule):
    both = little(rule)
    told = Sampling(max_new_tokens=LONG)
    said = both.sample([[0, 1]], torch.tensor([4]), MANY, seed=11, sampling=told)
    return both, [tuple(tokens) for tokens in said.tokens], said.notes


def counted(sequences):
    found = {}
    for y in sequences:
        found[y] = found.get(y, 0) + 1
    return found


LAWS = [
    (Interleaved(top_k=1, temperature=0.6), interleaved(1, 0.6)),
    (Interleaved(top_k=2), interleaved(2, 1.0)),
    (Mixed(share=0.3), mixed(0.3)),
]


@pytest.mark.parametrize(("rule", "token_law"), LAWS, ids=["greedy", "two", "mixed"])
def test_sequences_come_as_often_as_the_law_of_their_tokens_says(rule, token_law):
    both, sequences, _ = many(rule)
    wanted = law(both, token_law)
    assert len(wanted) == 1 + 2 + 4 * 3
    value, bound = chi_square(counted(sequences), wanted)
    assert value < bound
    other, bound = chi_square(counted(sequences), law(both, alone))
    assert other > 10 * bound  # what the student alone writes is something else


def test_importance_weights_make_the_students_law_of_mixed_samples():
    both, sequences, notes = many(Mixed(share=0.3))
    weights = notes["importance"].split([len(y) for y in sequences])
    of_whole = torch.stack([w.prod() for w in weights]).double()
    assert notes["importance"].max() <= 1 / 0.7 + 1e-6
    for y, mass in law(both, alone).items():
        part = torch.tensor([x == y for x in sequences]).double() * of_whole
        error = abs(part.mean() - mass) / (part.std() / math.sqrt(MANY))
        assert error < 4
    assert abs(of_whole.mean() - 1) < 4 * of_whole.std() / math.sqrt(MANY)


# ---- vocabularies


def test_in_a_view_both_write_its_tokens():
    both = pair(Interleaved(top_k=2, temperature=0.5))
    view, told = torch.tensor([0, 1, 3, 5, 7, 8]), Sampling(max_new_tokens=14)
    for lm in (both.student, both.guide):
        narrow(lm, view)
    with narrowed(both.student, both.guide):
        found = both.sample(PROMPTS, IDS, 3, seed=5, sampling=told)
        everyone = replace(both, rule=Interleaved(top_k=len(view)))
        silent = everyone.sample(PROMPTS, IDS, 3, seed=5, sampling=told)
        assert silent.tokens == sample(both.student, PROMPTS, IDS, 3, seed=5, sampling=told)
    assert {t for answer in found.tokens for t in answer} <= set(view.tolist())
    assert silent.tokens != found.tokens
    with narrowed(both.student), pytest.raises(Failure, match="6 tokens and its guide the whole"):
        both.sample(PROMPTS, IDS, 3, seed=5, sampling=told)


def test_of_heads_of_different_width_both_columns_count():
    both = pair(Interleaved(top_k=V, temperature=0.0))
    wider = model(1, vocab=V + 5, hidden_size=12)
    with torch.no_grad():
        head_of(wider.model).weight[V:] = 50.0  # no tokens, whatever they score
    told = Sampling(max_new_tokens=9)
    found = replace(both, guide=wider).sample(PROMPTS, IDS, 2, seed=5, sampling=told)
    assert found.tokens == sample(both.student, PROMPTS, IDS, 2, seed=5, sampling=told)
    found = Guided(wider, both.guide, Interleaved()).sample(PROMPTS, IDS, seed=0, sampling=told)
    assert max(map(max, found.tokens)) < V


# ---- what is refused


@pytest.mark.parametrize("told", [{"temperature": 0.5}, {"top_p": 0.9}, {"top_k": 3}], ids=str)
def test_mixed_sampling_that_is_not_plain_is_refused(told):
    with pytest.raises(Failure, match="temperature 1 with nothing cut off; got"):
        pair(Mixed()).sample(PROMPTS, IDS, seed=0, sampling=Sampling(**told))


def test_the_context_of_both_must_hold_the_answer():
    both = pair(Mixed())
    both = replace(both, guide=model(1, max_position_embeddings=16))
    with pytest.raises(Failure, match="max_new_tokens 8 exceed the context of 16"):
        both.sample(PROMPTS, IDS, seed=0, sampling=Sampling(max_new_tokens=8))


# ---- in a run

EXACT = worlds.World(kind="text", exact=True)


def in_a_run(teacher, **rollout):
    """What a rollout of the first step gives, and the batch that it was made of."""
    seen = []

    @dataclass(frozen=True, kw_only=True)
    class Guiding(SeqKD):
        def prepare(self, run, batch):
            seen[:] = batch, run.rollout(batch, 2, **rollout)
            return batch

    worlds.steps(worlds.job(Guiding(), EXACT, teachers=teacher, steps=1, max_new_tokens=6))
    return seen


@pytest.mark.parametrize("tokens", [engine.ROLLOUT_TOKENS, 50])
def test_what_the_rule_notes_goes_along_with_the_rows_of_its_answers(tokens, monkeypatch):
    monkeypatch.setattr(engine, "ROLLOUT_TOKENS", tokens)
    rule, teacher = Mixed(share=0.4), cast(Local, EXACT.teacher(KD()))
    batch, made = in_a_run({"teacher": Recorded(), "raw": teacher}, guide=rule, by="raw")
    both = Guided(EXACT.student(), cast(CausalLM, teacher.network), rule)
    for i, (prompt, id) in enumerate(zip(prompts_of(batch), batch.id, strict=True)):
        seed, told = int(uniform(0, 0) * 2**53), Sampling(max_new_tokens=6)
        alone = both.sample([prompt], id[None], 2, seed=seed, sampling=told)
        part = made.part(2 * i, 2 * i + 2)
        assert completions_of(part) == alone.tokens
        assert part.labels.tolist() == [t for answer in alone.tokens for t in answer]
        torch.testing.assert_close(part.importance, alone.notes["importance"], rtol=1e-6, atol=0)


def test_a_guide_without_a_say_makes_the_batch_of_the_student():
    teacher = {"teacher": EXACT.teacher(KD())}
    _, silent = in_a_run(teacher, guide=Interleaved(top_k=11))
    _, plain = in_a_run(teacher)
    assert set(silent) - set(plain) == {"replaced"}
    assert all(torch.equal(silent[name], plain[name]) for name in plain)


@pytest.mark.parametrize("teacher", [Recorded(), EXACT.foreign(worlds.THEIRS)], ids=["text", "own"])
def test_a_teacher_that_cannot_read_along_is_refused(teacher):
    with pytest.raises(Failure, match=r"'teacher' cannot guide .* takes a language model in this"):
        in_a_run({"teacher": teacher}, guide=Mixed())
