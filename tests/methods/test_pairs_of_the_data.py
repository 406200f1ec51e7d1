"""Pairs of answers: every setting against formulas on the model's own words, and its limits."""

import math
from typing import Any

import pytest
import torch
import worlds

from stillroom.core import Batch, Failure, Setup
from stillroom.data.text import collate
from stillroom.engine.settings import Optimizer
from stillroom.methods.preference import Preference
from stillroom.methods.seqkd import SeqKD

TEXT = worlds.World(kind="text", exact=True, texts=frozenset({"rejected"}))
WEIGHTS = torch.tensor([1.0, 0.0, 0.25, 2.0])


def log_sigmoid(z):
    return -torch.log1p(torch.exp(-z))


# By setting: the method, and its loss of one pair by sums s, means m, sums of the start r.
SETTINGS: dict[str, tuple[Preference, Any]] = {
    "dpo": (Preference(beta=0.3), lambda s, m, r: -log_sigmoid(0.3 * (s[0] - r[0] - s[1] + r[1]))),
    "dpo, smoothed": (
        Preference(beta=0.3, smoothing=0.2),
        lambda s, m, r: (
            -0.8 * log_sigmoid(0.3 * (s[0] - r[0] - s[1] + r[1]))
            - 0.2 * log_sigmoid(-0.3 * (s[0] - r[0] - s[1] + r[1]))
        ),
    ),
    "ipo": (
        Preference(shape="squared", beta=0.2),
        lambda s, m, r: (s[0] - s[1] - (r[0] - r[1]) - 2.5) ** 2,
    ),
    "simpo": (
        Preference(reference=False, mean=True, beta=2.0, margin=1.0),
        lambda s, m, r: -log_sigmoid(2 * (m[0] - m[1]) - 1),
    ),
    "hinge": (
        Preference(shape="hinge", reference=False, mean=True, beta=1.0, margin=0.05),
        lambda s, m, r: torch.relu(0.05 - m[0] + m[1]),
    ),
    "slic": (
        Preference(shape="hinge", reference=False, beta=1.0, margin=2.0),
        lambda s, m, r: torch.relu(2.0 - s[0] + s[1]),
    ),
    **{
        f"redi {alpha}": (
            Preference(shape="linear", reference=False, mean=True, beta=1.0, alpha=alpha),
            lambda s, m, r, alpha=alpha: -m[0] + alpha * m[1],
        )
        for alpha in (0.0, 0.5, 1.0)
    },
}


class Fake:
    """A run of networks that nobody trains; the reference is another than the student."""

    def __init__(self, student: Any, reference: Any) -> None:
        self.student, self.reference, self.logged = student, reference, {}

    def ask(self, player: str, batch: Batch) -> Any:
        assert player == "reference"
        with torch.no_grad():
            return self.reference(batch)

    def log(self, **values: torch.Tensor) -> None:
        self.logged |= values


def pairs(n: int = 4) -> Batch:
    return TEXT.data().batch(range(n))


def reference() -> Any:
    return TEXT._network(seed=3, width=8)


def update(method: Preference, batch: Batch, student: Any) -> tuple[Any, Fake]:
    run: Any = Fake(student, reference())
    (told,) = method.updates(run, method.prepare(run, batch))
    return told, run


def token_logps(network: Any, batch: Batch, i: int) -> list[torch.Tensor]:
    """Of the answer's tokens, one at a time, by the model itself."""
    ids = batch.ids[i][batch.real[i]]
    logp = network.model(ids[None]).logits[0].log_softmax(-1)
    return [logp[t - 1, ids[t]] for t in range(int(batch.prompt[i]), len(ids))]


def said(network: Any, batch: Batch) -> tuple[list[torch.Tensor], list[int]]:
    """Log-probability of each answer, and how many tokens it has."""
    tokens = [token_logps(network, batch, i) for i in range(batch.size)]
    return [sum(t, torch.zeros(())) for t in tokens], [len(t) for t in tokens]


def by_hand(told: Any, student: Any, batch: Batch) -> torch.Tensor:
    halves = batch, batch.rejected
    (own, before), found = ([said(net, h) for h in halves] for net in (student, reference())), []
    for i in range(batch.size):
        s = [half[0][i] for half in own]
        m = [half[0][i] / half[1][i] for half in own]
        found.append(told(s, m, [half[0][i].detach() for half in before]))
    return torch.stack(found)


@pytest.mark.parametrize("weighs", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_by_the_models_own_words(name, weighs):
    method, told = SETTINGS[name]
    student = TEXT.student()
    batch = pairs().add(weight=WEIGHTS) if weighs else pairs()
    found, _ = update(method, batch, student)
    (term,) = found.terms
    assert (term.over, term.weight) == ("examples", 1.0)
    assert found.players == ("student",)
    wanted = by_hand(told, student, batch) * (WEIGHTS if weighs else 1)
    torch.testing.assert_close(term.value, wanted, rtol=1e-9, atol=1e-12)
    weights = list(student.parameters())
    slopes = [list(torch.autograd.grad(v.mean(), weights)) for v in (term.value, wanted)]
    assert worlds.gap(*slopes) < 1e-9
    assert max(float(s.abs().max()) for s in slopes[0]) > 1e-4


@pytest.mark.parametrize("over", ["tokens", "answers"])
def test_the_anchor_is_cross_entropy_with_the_chosen_answer(over):
    student, batch = TEXT.student(), pairs().add(weight=WEIGHTS)
    method = Preference(anchor=0.7, anchor_over=over)
    found, _ = update(method, batch, student)
    text = found.terms[1]
    assert text.weight == 0.7
    sums, counts = said(student, batch)
    weights = WEIGHTS.tolist()
    if over == "tokens":
        total = sum(w * s for w, s in zip(weights, sums, strict=True))
        wanted = -total / sum(counts)
        assert text.over == "mask"
    else:
        means = [w * s / n for w, s, n in zip(weights, sums, counts, strict=True)]
        wanted = -sum(means) / len(means)
        assert text.over == "examples"
    torch.testing.assert_close(text.value.mean(), wanted, rtol=1e-9, atol=0)
    assert len(update(Preference(), batch, student)[0].terms) == 1


def slopes(value: torch.Tensor, student: Any) -> list[torch.Tensor]:
    return list(torch.autograd.grad(value, list(student.parameters()), retain_graph=True))


def redi(alpha: float) -> Preference:
    return Preference(shape="linear", reference=False, mean=True, beta=1.0, alpha=alpha)


def test_redi_without_the_rejected_answer_is_fine_tuning_on_the_chosen_one():
    student, batch = TEXT.student(), pairs(1)
    found, _ = update(redi(0.0), batch, student)
    plain = SeqKD().loss(student(batch), None, batch, {}).value.mean()
    torch.testing.assert_close(found.terms[0].value[0], plain)
    assert worlds.gap(*(slopes(v, student) for v in (found.terms[0].value[0], plain))) < 1e-12


def test_equal_answers_have_no_gradient_where_both_weigh_alike():
    student, batch = TEXT.student(), pairs()
    same = batch.add(rejected=TEXT.data().batch(range(4)))
    for method in (redi(1.0), Preference(), Preference(shape="squared")):
        value = update(method, same, student)[0].terms[0].value.sum()
        assert max(float(s.abs().max()) for s in slopes(value, student)) < 1e-12
    left = update(redi(0.5), same, student)[0].terms[0].value.sum()
    assert max(float(s.abs().max()) for s in slopes(left, student)) > 1e-3


def test_simpo_at_a_small_beta_is_symmetric_redi():
    """-log sigmoid(beta D) = log 2 - beta D / 2 + O(beta^2)."""
    student, batch, beta = TEXT.student(), pairs(), 1e-6
    simpo = Preference(reference=False, mean=True, beta=beta)
    values = [update(m, batch, student)[0].terms[0].value.mean() for m in (simpo, redi(1.0))]
    small, linear = (slopes(v, student) for v in values)
    assert worlds.gap([2 / beta * s for s in small], linear) < 1e-5
    assert max(float(s.abs().max()) for s in linear) > 1e-2


def test_the_other_way_round_the_pull_is_the_opposite():
    student, batch = TEXT.student(), pairs()
    bare = {k: v for k, v in batch.items() if k != "rejected"}
    turned = Batch(bare)
    turned.row_fields = batch.row_fields
    turned = batch.rejected.add(rejected=turned)
    both = [update(redi(1.0), b, student)[0].terms[0].value.sum() for b in (batch, turned)]
    one, other = (slopes(v, student) for v in both)
    assert worlds.gap(one, [-s for s in other]) < 1e-12


def test_a_reference_is_made_where_it_is_asked_for_alone():
    setup: Any = Setup(TEXT.student(), {}, pairs(), 8)
    assert not Preference(reference=False).players(setup)
    (frozen,) = Preference().players(setup).values()
    assert not any(p.requires_grad for p in frozen.parameters())
    assert worlds.gap(frozen.state_dict(), setup.student.state_dict()) == 0
    batch = pairs()
    assert Preference(reference=False).prepare(Any, batch) is batch


def test_the_reference_stays_what_the_student_was():
    run = worlds.steps(worlds.job(Preference(beta=0.5), TEXT, steps=3, keep=4, every=1))
    start = run.states[0]["networks"]
    assert worlds.gap(run.final["reference"], start["student"]) == 0
    assert worlds.gap(run.final["student"], start["student"]) > 0
    first = run.logs[0]
    assert first["loss/student/preference"] == pytest.approx(math.log(2))
    assert first["preference/margin"] == pytest.approx(0, abs=1e-12)
    assert run.logs[2]["preference/margin"] > 0


def test_what_is_recorded():
    student, batch = TEXT.student(), pairs()
    hinge, _ = SETTINGS["hinge"]
    _, run = update(hinge, batch, student)
    (own, n), (other, m) = (said(student, half) for half in (batch, batch.rejected))
    chosen, rejected = (
        [(a / b).item() for a, b in zip(*h, strict=True)] for h in [(own, n), (other, m)]
    )
    assert run.logged["preference/chosen"].tolist() == pytest.approx(chosen)
    assert run.logged["preference/rejected"].tolist() == pytest.approx(rejected)
    gaps = [a - b for a, b in zip(chosen, rejected, strict=True)]
    assert run.logged["preference/margin"].tolist() == pytest.approx(gaps)
    assert run.logged["preference/accuracy"].tolist() == [float(g > 0) for g in gaps]
    active = [float(g < 0.05) for g in gaps]
    assert run.logged["preference/active"].tolist() == active
    assert 0 < sum(active) < 4, "the margin must part the pairs"
    sums = update(SETTINGS["slic"][0], batch, student)[1].logged
    assert sums["preference/chosen"].tolist() == pytest.approx(chosen), (
        "a token's, whatever D is of"
    )
    assert "preference/active" not in update(Preference(), batch, student)[1].logged
    same = batch.add(rejected=TEXT.data().batch(range(4)))
    assert set(update(hinge, same, student)[1].logged["preference/accuracy"].tolist()) == {0.5}


def test_masked_rows_and_earlier_turns_are_no_part_of_a_score():
    batch, method = pairs(), redi(1.0)
    first = batch.owner != torch.cat([torch.tensor([-1]), batch.owner[:-1]])
    later = batch.add(prompt=batch.prompt + 1)  # as if the first token had been an earlier turn
    masked = batch.add_rows(mask=torch.where(first, 0.0, 1.0))
    logp = torch.arange(1.0, 1 + len(batch.rows))
    whole, *fewer = (method.scored(b, logp) for b in (batch, later, masked))
    assert torch.equal(*fewer)
    assert not torch.equal(whole, fewer[0])


@pytest.mark.parametrize("parts", [2, 8])
def test_weights_of_pairs_are_the_same_in_micro_batches(parts):
    def weighing(batch: Batch) -> Batch:
        return batch.add(weight=(batch.id % 3).float())

    world = worlds.World(kind="text", exact=True, change=weighing)
    method = Preference(anchor=0.5)
    told = {"steps": 2, "batch": 8, "lr": 0.5, "clip": None, "optimizer": Optimizer(name="sgd")}
    whole, split, plain = (
        worlds.steps(worlds.job(method, w, **told, tokens_per_micro=most))
        for w, most in ((world, 10_000), (world, 100 if parts == 2 else 1), (TEXT, 10_000))
    )
    assert worlds.gap(whole.final, split.final) < 1e-10
    assert worlds.gap(whole.final, plain.final) > 1e-3


def test_smoothing_is_of_the_sigmoid():
    with pytest.raises(Failure, match="hinge has no labels to smooth"):
        Preference(shape="hinge", smoothing=0.1)


def test_rows_without_a_rejected_answer_are_refused():
    world = worlds.World(kind="text")
    plain = worlds.job(SeqKD(), world).streams
    with pytest.raises(Failure, match=r"Preference learns from rejected of each row"):
        worlds.steps(worlds.job(Preference(), world, streams=plain))


def test_left_padding_changes_no_score():
    batch = pairs()
    ids = [row[real].tolist() for row, real in zip(batch.ids, batch.real, strict=True)]
    told = [(row[:p], row[p:]) for row, p in zip(ids, batch.prompt.tolist(), strict=True)]
    left = collate(told, batch.id, worlds.PAD, side="left").add(rejected=batch.rejected)
    student = TEXT.student()
    values = [update(redi(0.5), b, student)[0].terms[0].value for b in (batch, left)]
    assert worlds.gap(*values) < 1e-12
