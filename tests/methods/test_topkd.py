"""TopKD: its terms against loops over a batch, and what they must not see."""

import math
from typing import Any

import pytest
import torch
from numerics import contract, note
from torch.nn import functional as F
from worlds import gap

from stillroom.core import Batch, Signals
from stillroom.losses.divergences import forward_kl
from stillroom.losses.top_scaled import parted_cosine, top_scaled
from stillroom.methods.topkd import TopKD

N, C = 7, 5
LABELS = torch.tensor([0, 3, 2, 1, 3, 0, 1])
MASK = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.5, 1.0, 1.0])


def draw(seed: int = 0) -> Any:
    made = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(N, C, generator=made, dtype=torch.float64)


def terms(student, teacher, mask=None, **told: Any) -> dict[str, torch.Tensor]:
    n = len(student)
    mask = torch.ones(n) if mask is None else mask
    batch = Batch(id=torch.arange(n), labels=LABELS[:n], mask=mask)
    said: Any = TopKD(**told).loss(Signals(logits=student), Signals(logits=teacher), batch, {})
    return {term.name: term.value for term in said}


def contrast_by_loops(s, t, tau, *, normalised, out=lambda i, j: False) -> list[float]:
    def alike(i, j):
        dot = sum(a * b for a, b in zip(s[i], t[j], strict=True))
        return dot / tau / (math.hypot(*s[i]) * math.hypot(*t[j]) if normalised else 1)

    found = []
    for i in range(len(s)):
        others = [j for j in range(len(s)) if j == i or not out(i, j)]
        rows = math.log(sum(math.exp(alike(i, j)) for j in others))
        columns = math.log(sum(math.exp(alike(j, i)) for j in others))
        found.append((rows + columns) / 2 - alike(i, i))
    return found


OUT = {
    (False, False): lambda i, j: False,
    (True, False): lambda i, j: LABELS[i] == LABELS[j],
    (False, True): lambda i, j: MASK[j] == 0,
    (True, True): lambda i, j: LABELS[i] == LABELS[j] or MASK[j] == 0,
}


@contract
@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("label_aware", [True, False])
def test_the_contrast_by_loops(normalised, masked, label_aware):
    s, t, mask = draw().requires_grad_(), draw(1), MASK if masked else None
    told = {"contrast_temperature": 0.7, "normalised": normalised, "label_aware": label_aware}
    found = terms(s, t, mask, **told)["contrast"]
    out = OUT[label_aware, masked]

    def loops(rows):
        return contrast_by_loops(rows, t.tolist(), 0.7, normalised=normalised, out=out)

    note("topkd", "oracle", gap(found.tolist(), loops(s.tolist())), 1e-12)
    (slope,) = torch.autograd.grad(found.sum(), s)
    wanted, step = torch.zeros_like(s), 1e-5
    for i in range(N):
        for c in range(C):
            moved = torch.zeros_like(s)
            moved[i, c] = step
            up, down = (sum(loops((s + k * moved).tolist())) for k in (1, -1))
            wanted[i, c] = (up - down) / (2 * step)
    note("topkd", "gradient", gap(slope, wanted), 1e-7)


def test_its_terms_are_label_match_and_contrast():
    s, t = draw(), draw(1)
    told = {"top": 2, "gain": 0.4, "shift": 0.3, "margin": 0.2, "positive": 0.7, "negative": 0.6}
    found = terms(s, t, **told)
    assert list(found) == ["label", "match", "contrast"]
    torch.testing.assert_close(found["label"], F.cross_entropy(s, LABELS, reduction="none"))
    target = top_scaled(t, LABELS, 2, gain=0.4, shift=0.3, margin=0.2)
    assert not torch.equal(target, t)
    wanted = parted_cosine(s, target, 2, positive=0.7, negative=0.6)
    torch.testing.assert_close(found["match"], wanted)
    softened = terms(s, t, **told, match="kl", temperature=3.0)["match"]
    torch.testing.assert_close(softened, 9 * forward_kl(s / 3, target / 3))
    assert list(terms(s, t, match_weight=0.0)) == ["label", "contrast"]
    assert list(terms(s, t, contrast_weight=0.0)) == ["label", "match"]
    weights: dict[str, Any] = {"label_weight": 0.2, "match_weight": 0.3, "contrast_weight": 0.4}
    batch = Batch(id=torch.arange(N), labels=LABELS, mask=torch.ones(N))
    said: Any = TopKD(**weights).loss(Signals(logits=s), Signals(logits=t), batch, {})
    assert [term.weight for term in said] == [0.2, 0.3, 0.4]


@pytest.mark.parametrize("off", [{"top": 0}, {"gain": 0.0}])
def test_without_top_or_gain_it_is_plain_distillation(off: Any):
    s, t = draw(), draw(1)
    assert (t.argmax(-1) != LABELS).any()
    found = terms(s, t, match="kl", temperature=3.0, **off)["match"]
    torch.testing.assert_close(found, 9 * forward_kl(s / 3, t / 3))


def test_the_order_of_classes_is_nothing():
    s, t, order = draw(), draw(1), torch.tensor([3, 1, 4, 0, 2])
    batch = Batch(id=torch.arange(N), labels=order.argsort()[LABELS], mask=torch.ones(N))
    own, theirs = (Signals(logits=z[:, order]) for z in (s, t))
    for match in ("tdl", "kl"):
        found: Any = TopKD(top=2, match=match).loss(own, theirs, batch, {})
        wanted = terms(s, t, top=2, match=match)
        assert len(wanted) == 3
        for term in found:
            torch.testing.assert_close(term.value, wanted[term.name])


def test_a_number_added_to_all_logits_counts_unless_they_are_centred():
    s, t = draw(), draw(1)
    for moved in ((s + 2, t), (s, t + 2)):
        for name in ("match", "contrast"):
            plainly = terms(s, t, top=2)[name]
            assert (terms(*moved, top=2)[name] - plainly).abs().max() > 0.01
            centred = terms(s, t, top=2, centred=True)[name]
            torch.testing.assert_close(terms(*moved, top=2, centred=True)[name], centred)
        torch.testing.assert_close(terms(*moved, centred=True)["label"], terms(s, t)["label"])


def test_the_student_s_scale_is_seen_by_its_label_alone():
    s, t = draw(), draw(1)
    one, ten = terms(s, t, top=2), terms(10 * s, t, top=2)
    for name in ("match", "contrast"):
        torch.testing.assert_close(one[name], ten[name])
    assert (one["label"] - ten["label"]).abs().min() > 1e-3


def test_a_batch_of_one_has_no_contrast():
    s = draw()[:1].requires_grad_()
    value = terms(s, draw(1)[:1])["contrast"]
    assert value.tolist() == [0.0]
    assert not torch.autograd.grad(value.sum(), s)[0].any()


def test_an_example_that_does_not_count_is_nobody_s_negative():
    s, t = draw(), draw(1)
    other = t.clone()
    other[2] = -other[2] + 1
    found, again = (terms(s, z, MASK)["contrast"] for z in (t, other))
    counted = MASK > 0
    torch.testing.assert_close(found[counted], again[counted])
    plainly = [terms(s, z)["contrast"] for z in (t, other)]
    assert (plainly[0] - plainly[1]).abs()[counted].max() > 1e-3
