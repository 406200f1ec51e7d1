"""Top-k with its rest, and draws: against brute force over the vocabulary."""

import math

import pytest
import torch

from stillroom.core import Failure, Head, Signals, Sparse
from stillroom.losses import divergences
from stillroom.losses.per_row import per_row
from stillroom.losses.policy import label_logp
from stillroom.losses.sparse import draws, top_k

N, V, D = 7, 12, 4
ANY = [
    divergences.forward_kl,
    divergences.reverse_kl,
    divergences.jsd,
    divergences.jeffreys,
    divergences.skew_forward_kl,
    divergences.skew_reverse_kl,
    divergences.alpha_divergence,
    divergences.total_variation,
]


def logits(seed: int, rows: int = N, vocab: int = V) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(rows, vocab, dtype=torch.float64, generator=draw)


def merged(probabilities: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Classes of one row by hand: the named tokens, then all others added up."""
    rows = []
    for row, named in zip(probabilities, ids.tolist(), strict=True):
        rest = sum(row[v] for v in range(len(row)) if v not in named)
        rows.append(torch.stack([*(row[v] for v in named), rest]))
    return torch.stack(rows)


@pytest.mark.parametrize("divergence", ANY, ids=lambda f: f.__name__)
def test_a_divergence_to_top_k_is_that_of_the_merged_classes(divergence):
    student, teacher = logits(0).requires_grad_(), logits(1)
    told = top_k(teacher, 3)
    found = divergence(student, told)
    classes = [merged(x.softmax(-1), told.ids).log() for x in (student, teacher)]
    wanted = divergence(*classes)
    torch.testing.assert_close(found, wanted)
    assert (found <= divergence(student, teacher) + 1e-12).all()  # data processing
    slopes = (torch.autograd.grad(value.sum(), student)[0] for value in (found, wanted))
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("divergence", ANY, ids=lambda f: f.__name__)
def test_top_k_of_all_tokens_but_one_says_all(divergence):
    student, teacher = logits(2).requires_grad_(), logits(3)
    pairs = [divergence(student, top_k(teacher, V - 1)), divergence(student, teacher)]
    torch.testing.assert_close(*pairs)
    torch.testing.assert_close(*(torch.autograd.grad(v.sum(), student)[0] for v in pairs))


def test_empty_places_name_no_token():
    student, teacher = logits(4), logits(5)
    told = top_k(teacher, 3)
    empty = torch.full((N, 2), -math.inf, dtype=torch.float64)
    longer = Sparse({
        **told,
        "ids": torch.cat([told.ids, torch.zeros(N, 2, dtype=torch.long)], -1),
        "logp": torch.cat([told.logp, empty], -1),
    })  # fmt: skip
    for divergence in ANY:
        torch.testing.assert_close(divergence(student, longer), divergence(student, told))
    few = draws(teacher, torch.rand(N, 5))
    more = Sparse({
        **few,
        "ids": torch.cat([few.ids, torch.zeros(N, 2, dtype=torch.long)], -1),
        "logp": torch.cat([few.logp, empty], -1),
    })  # fmt: skip
    pair = (divergences.forward_kl(student, told) for told in (few, more))
    torch.testing.assert_close(*pair)


def test_draws_count_what_was_drawn():
    teacher, uniform = logits(6), torch.rand(N, 40, generator=torch.Generator().manual_seed(0))
    told = draws(teacher, uniform)
    below = teacher.softmax(-1).cumsum(-1)
    for row in range(N):
        drawn = [int((below[row] <= u).sum()) for u in uniform[row].tolist()]
        counts = {v: drawn.count(v) for v in drawn}
        pairs = zip(told.ids[row].tolist(), told.logp[row].exp().tolist(), strict=True)
        assert {v: round(w * 40) for v, w in pairs if w} == counts
    torch.testing.assert_close(told.logp.exp().sum(-1), torch.ones(N, dtype=torch.float64))


@pytest.mark.parametrize("proposal", [1.0, 0.8, 1.3])
def test_forward_kl_of_draws_has_the_gradient_of_forward_kl_on_average(proposal):
    """Of 10,000 pictures of one distribution; the bound is five standard errors of each entry."""
    student = logits(7, 1).requires_grad_()
    teacher, times = logits(8, 1), 10_000
    many = draws(
        teacher.expand(times, V),
        torch.rand(times, 8, generator=torch.Generator().manual_seed(1)),
        proposal=proposal,
    )
    total = many.logp.exp().sum(-1).mean()
    weights = torch.zeros(times, V, dtype=torch.float64)
    weights.scatter_add_(-1, many.ids, many.logp.exp())
    spread = weights.std(0) / times**0.5
    assert ((weights.mean(0) - teacher.softmax(-1)[0]).abs() < 5 * spread + 1e-12).all()
    value = divergences.forward_kl(student.expand(times, V), many).mean()
    slope = torch.autograd.grad(value, student)[0][0]
    torch.testing.assert_close(slope, total * student.softmax(-1)[0].detach() - weights.mean(0))


def test_draws_serve_forward_kl_alone_and_what_is_sparse_no_other_temperature():
    student, told = logits(9), draws(logits(10), torch.rand(N, 5))
    assert divergences.jsd(student, told, beta=0.0).shape == (N,)
    for divergence in ANY[1:]:
        with pytest.raises(Failure, match="draws of a teacher give forward KL"):
            divergence(student, told)
    assert told / 1.0 is told
    for sparse, word in ((told, "draws"), (top_k(logits(10), 2), "the largest")):
        with pytest.raises(Failure, match=f"gives {word} alone"):
            sparse / 2.0


@pytest.mark.parametrize("k", [0, V, V + 1])
def test_k_must_leave_a_rest(k):
    with pytest.raises(Failure, match=rf"topk:{k}: k must be between 1 and {V - 1}"):
        top_k(logits(0), k)


@pytest.mark.parametrize("most_rows", [3, 256])
@pytest.mark.parametrize("vocab", [V - 2, V, V + 3])
@pytest.mark.parametrize("kind", ["topk", "sampled"])
@pytest.mark.parametrize("objective", ["held", "learns", "mixed"])
def test_through_the_head_as_on_dense_logits(monkeypatch, most_rows, vocab, kind, objective):
    monkeypatch.setattr("stillroom.losses._one_pass.MOST_ROWS", most_rows)
    draw = torch.Generator().manual_seed(2)
    hidden, weight = (
        torch.randn(size, D, dtype=torch.float64, generator=draw).requires_grad_()
        for size in (N, V)
    )
    teacher, labels = logits(11, vocab=vocab), torch.arange(N) % (V - 2)
    uniform = torch.rand(N, 6, generator=draw)
    told = top_k(teacher, 4) if kind == "topk" else draws(teacher, uniform)
    factor = torch.ones((), dtype=torch.float64, requires_grad=objective == "learns")

    def loss(s, t, y):
        value = factor * divergences.forward_kl(s, t)
        return value - label_logp(s, y) if objective == "mixed" else value

    found = per_row(loss, Signals(hidden=hidden, head=Head(weight)), Signals(sparse=told), labels)
    width = min(V, vocab)
    wanted = loss((hidden @ weight.T)[:, :width], told.below(width), labels)
    torch.testing.assert_close(found, wanted)
    learning = [hidden, weight]
    slopes = (torch.autograd.grad(v.mean(), learning) for v in (found, wanted))
    torch.testing.assert_close(*slopes)
    with torch.no_grad():
        still = per_row(
            loss, Signals(hidden=hidden, head=Head(weight)), Signals(sparse=told), labels
        )
    torch.testing.assert_close(still, wanted.detach())


def test_what_says_nothing_of_tokens_beyond_a_shorter_head_keeps_the_rest():
    """A token that only the teacher's longer head has is dropped, and names none of the others."""
    told = Sparse(
        ids=torch.tensor([[5, 0]]),
        logp=torch.tensor([[0.2, 0.3]]).log(),
        tail=torch.tensor([0.5]).log(),
        vocab=6,
    ).below(3)
    student = torch.tensor([[0.5, 0.3, 0.2]]).log()
    # left: token 0 with .3, the rest with .5, hence .375 and .625; the student has .5 and .5
    wanted = 0.375 * math.log(0.375 / 0.5) + 0.625 * math.log(0.625 / 0.5)
    assert float(divergences.forward_kl(student, told)) == pytest.approx(wanted, rel=1e-6)


def test_a_token_that_is_ruled_out_is_never_drawn():
    """Not by the smallest of numbers, nor by the largest below 1."""
    teacher = torch.tensor([[-math.inf, 0.0, 0.0, -math.inf]])
    told = draws(teacher, torch.tensor([[0.0, 0.25, 0.75, 1 - 2**-24]]))
    assert told.ids.tolist() == [[1, 2]]
    assert told.logp.exp().tolist() == [[0.5, 0.5]]
