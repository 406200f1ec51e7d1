"""V_kD against sums in Python; what its projector and its targets must keep within a run."""

import math
from dataclasses import replace
from types import SimpleNamespace

import launch
import pytest
import torch
from worlds import World, broken_off, gap, job, plain_sgd, steps

from stillroom.core import Batch, Failure, Signals
from stillroom.methods.kd import KD
from stillroom.methods.vkd import VkD
from stillroom.nets.projectors import Orthogonal

N, C, D, E = 4, 3, 5, 7
POINTS = World(kind="classes")
EXACT = World(kind="classes", exact=True, change=launch.weighed)


def draw(*shape, seed=0):
    made = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(shape, generator=made, dtype=torch.float64)


def run_of(student, teacher, projector, gather=lambda value: value):
    """As much of a run as the method touches."""
    return SimpleNamespace(
        student=lambda batch: student,
        teacher=lambda batch: teacher,
        gather=gather,
        players={"student": torch.nn.Identity(), "projector": projector},
    )


def said(logits, features):
    return Signals(logits=logits, features={"last": features})


def layer_norm(row):
    mean = sum(row) / len(row)
    spread = math.sqrt(sum((v - mean) ** 2 for v in row) / len(row) + 1e-5)
    return [(v - mean) / spread for v in row]


def huber(u):
    return u * u / 2 if abs(u) < 1 else abs(u) - 0.5


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("distance", ["smooth_l1", "l2"])
@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_value_and_gradient_by_hand(distance, shape):
    torch.manual_seed(0)
    projector = Orthogonal(D, E)
    z, scores = draw(N, D, *shape).requires_grad_(), draw(N, C, seed=1).requires_grad_()
    t, theirs = draw(N, E, *shape, seed=2), draw(N, C, seed=3)
    batch = Batch(id=torch.arange(N), labels=torch.tensor([0, 2, 1, 2]), mask=torch.ones(N))
    method = VkD(
        feature_weight=0.7, soft_weight=0.4, label_weight=0.3, temperature=2.0, distance=distance
    )
    run = run_of(said(scores, z), said(theirs, t), projector)
    (update,) = method.updates(run, method.prepare(run, batch))
    assert update.players == ("student", "projector")
    found = sum(term.weight * term.value for term in update.terms)

    p = projector.matrix().detach()
    pooled, target = (x.detach().flatten(2).mean(2) if shape else x.detach() for x in (z, t))
    for i in range(N):
        apart = [
            sum(float(p[k, j] * pooled[i, j]) for j in range(D)) - n
            for k, n in enumerate(layer_norm(target[i].tolist()))
        ]
        each = [huber(u) if distance == "smooth_l1" else u * u for u in apart]
        assert max(abs(u) for u in apart) > 1 > min(abs(u) for u in apart)
        q, r = ((x[i].detach() / 2).softmax(0).tolist() for x in (scores, theirs))
        hard = -math.log(scores[i].detach().softmax(0)[batch.labels[i]])
        wanted = 0.7 * sum(each) / E + 0.4 * 4 * kl(r, q) + 0.3 * hard
        assert found[i].item() == pytest.approx(wanted, rel=1e-12)
        # d/dz: P^T of the clipped (or doubled) difference, shared among places
        bent = [max(-1.0, min(1.0, u)) if distance == "smooth_l1" else 2 * u for u in apart]
        slope = [0.7 / E * sum(float(p[k, j]) * bent[k] for k in range(E)) for j in range(D)]
        (gradient,) = torch.autograd.grad(found[i], z, retain_graph=True)
        torch.testing.assert_close(gradient[i].flatten(1).sum(1) if shape else gradient[i],
                                   torch.tensor(slope, dtype=torch.float64))  # fmt: skip


def test_the_teacher_s_features_get_no_gradient_and_a_constant_vector_stays_finite():
    torch.manual_seed(0)
    projector, z = Orthogonal(D, E), draw(N, D).requires_grad_()
    t, theirs = torch.ones(N, E, dtype=torch.float64, requires_grad=True), draw(N, C, seed=3)
    batch = Batch(id=torch.arange(N), labels=torch.zeros(N, dtype=torch.long), mask=torch.ones(N))
    run, method = run_of(said(draw(N, C), z), said(theirs, t), projector), VkD()
    with torch.no_grad():
        prepared = method.prepare(run, batch)
    assert torch.equal(prepared.wanted, torch.zeros(N, E, dtype=torch.float64))
    (update,) = method.updates(run, prepared)
    sum(term.value.sum() for term in update.terms).backward()
    assert t.grad is None
    assert z.grad is not None
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("norm", ["standardise", "whiten"])
def test_statistics_are_those_of_all_processes(norm):
    """Two halves, each with what both gather, are prepared as the whole is."""
    theirs, t = draw(8, C), draw(8, E, seed=1)
    mask = torch.tensor([1.0, 0.5, 0.0, 1.0, 1.0, 1.0, 0.25, 1.0], dtype=torch.float64)
    method, every = VkD(norm=norm, eps=0.1), {"wanted": t, "mask": mask}

    def prepared(part, gather):
        batch = Batch(id=torch.arange(8)[part], mask=mask[part])
        run = run_of(None, said(theirs[part], t[part]), None, gather)
        return method.prepare(run, batch).wanted

    def joined(value):
        return every["wanted"] if value.dim() == 2 else every["mask"]

    whole = prepared(slice(0, 8), lambda value: value)
    halves = [prepared(part, joined) for part in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(torch.cat(halves), whole)
    alone = prepared(slice(0, 4), lambda value: value)
    assert (alone - whole[:4]).abs().max() > 0.01


@pytest.mark.parametrize("norm", ["standardise", "whiten"])
def test_an_example_that_does_not_count_moves_no_other_s_target(norm):
    mask, t = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0]), draw(5, E)
    batch = Batch(id=torch.arange(5), mask=mask)
    found = []
    for other in (t, torch.where(mask[:, None] > 0, t, 100.0)):
        run = run_of(None, said(draw(5, C), other), None)
        found.append(VkD(norm=norm).prepare(run, batch).wanted[mask > 0])
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("norm", ["none", "layer", "standardise", "whiten"])
def test_one_batch_equals_its_micro_batches_whatever_the_norm(norm):
    whole = steps(plain_sgd(VkD(norm=norm), EXACT))
    for budget in (5, 1):
        split = steps(plain_sgd(VkD(norm=norm), EXACT, tokens_per_micro=budget))
        assert max(gap(whole.logs, split.logs), gap(whole.final, split.final)) < 1e-9


@pytest.mark.parametrize("maps", [False, True])
def test_the_projector_is_orthogonal_after_steps_and_after_taking_up(maps, tmp_path):
    world = replace(POINTS, maps=maps)
    told = {"steps": 30, "lr": 0.05}
    whole, again = broken_off(lambda: job(VkD(), world, **told), 15, tmp_path)
    assert gap(whole.states, again.states) == 0
    first, last = (again.states[at]["networks"]["projector"] for at in (0, 30))
    assert gap(first, last) > 0.1
    made = Orthogonal(8, 12)
    made.load_state_dict(last)
    p = made.matrix().detach()
    assert (p.T @ p - torch.eye(8, dtype=p.dtype)).abs().max() < 1e-6


@pytest.mark.parametrize(("projector", "moves"), [("fixed", False), ("linear", True)])
def test_the_projectors_that_it_is_compared_with(projector, moves):
    run = steps(job(VkD(projector=projector), POINTS, steps=20, every=1, keep=21))
    assert ("lr/projector" in run.logs[0]) == moves
    state = [run.states[at]["networks"]["projector"] for at in (0, 20)]
    assert (gap(*state) > 0) == moves
    if moves:
        p = state[1]["weight"]
        assert (p.T @ p - torch.eye(8, dtype=p.dtype)).abs().max() > 0.1


def test_without_features_it_is_kd():
    vkd = VkD(feature_weight=0.0, temperature=3.0)
    assert set(steps(plain_sgd(vkd, EXACT)).final) == {"student"}
    ours = steps(plain_sgd(vkd, EXACT, lr=0.1)).final
    theirs = steps(plain_sgd(KD(temperature=3.0, label_weight=0.5), EXACT, lr=0.2)).final
    assert gap(ours, theirs) < 1e-12


def test_nothing_to_learn_is_refused():
    with pytest.raises(Failure, match="nothing is learned"):
        VkD(feature_weight=0.0, soft_weight=0.0, label_weight=0.0)
