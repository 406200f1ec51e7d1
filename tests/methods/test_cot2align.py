"""cot2align: each term against plain loops in float64, and what its players are."""

import math
from types import SimpleNamespace

import pytest
import torch
import worlds

from stillroom.core import Setup, Signals
from stillroom.engine.checks import check_needs
from stillroom.methods.cot2align import CoT2Align
from stillroom.nets.projectors import Projectors
from stillroom.teachers.local import Local

TEXT = worlds.World(kind="text", exact=True, texts=frozenset({"cot"}))
LAYERS = ("embedding", "last")


def setting(method, world=TEXT):
    """A run of one batch as the method sees it, and its players."""
    student, teacher = world.student(), world.teacher(method)
    student.taps = teacher.network.taps = LAYERS
    batch = world.data().batch(range(worlds.EXAMPLES))
    torch.manual_seed(3)
    players = method.players(Setup(student, {"teacher": teacher}, batch, worlds.EXAMPLES))
    run = SimpleNamespace(student=student, teacher=teacher, players=players)
    return run, batch


def terms_of(method, world=TEXT):
    run, batch = setting(method, world)
    (update,) = method.updates(run, batch)
    return {term.name: term for term in update.terms}, run, batch, update


def states(said, batch):
    """By layer, a list of states of each example that count, by looking at every row."""
    found = {layer: [[] for _ in range(batch.size)] for layer in LAYERS}
    for row in range(len(batch.rows)):
        if batch.mask[row] > 0:
            for layer in LAYERS:
                i = int(batch.owner[row])
                found[layer][i].append((float(batch.mask[row]), said.features[layer][row]))
    return found


def told_states(said, size, projectors):
    found = {layer: [[] for _ in range(size)] for layer in LAYERS}
    for row, i in enumerate(said.answer.owner.tolist()):
        for place, layer in enumerate(LAYERS):
            matrix = projectors.maps[place].weight
            found[layer][i].append((1.0, matrix @ said.answer.features[layer][row]))
    return found


def moved(u, v, kind, eps, rounds):
    """Sinkhorn by scaling rows and columns of exp(-C / eps) in turn."""
    costs = []
    for _, x in u:
        if kind == "softmax":
            scores = [math.exp(float(x @ y) / len(x) ** 0.5) for _, y in v]
            costs.append([1 - s / sum(scores) for s in scores])
        else:
            costs.append([1 - float(x @ y) / float(x.norm() * y.norm()) for _, y in v])
    cost = torch.tensor(costs).double()
    a, b = (torch.tensor([w for w, _ in z]).double() for z in (u, v))
    a, b, kernel = a / a.sum(), b / b.sum(), (-cost / eps).exp()
    right = torch.ones(len(v)).double()
    for _ in range(rounds):
        left = a / (kernel @ right)
        right = b / (kernel.T @ left)
    return float((left[:, None] * kernel * right * cost).sum())


@torch.no_grad()
def distances(run, batch, mine, theirs, method):
    halves = {"plain": batch, "cot": batch.cot}
    u = states(run.student(halves[mine]), halves[mine])
    told = told_states(run.teacher(halves[theirs]), batch.size, run.players["projectors"])
    how = (method.cost, method.eps, method.iterations)
    return [
        sum(moved(u[layer][i], told[layer][i], *how) for layer in LAYERS) for i in range(batch.size)
    ]


@pytest.mark.parametrize("cost", ["softmax", "cosine"])
def test_transport_terms_by_plain_loops(cost):
    method = CoT2Align(alpha=0.3, ot_weight=2.0, crc_weight=0.5, cst_weight=3.0, cost=cost)
    found, run, batch, _ = terms_of(method)
    wanted = {"ot": ("plain", "plain"), "crc": ("plain", "cot"), "cst": ("cot", "cot")}
    seen = []
    for name, pair in wanted.items():
        term, told = found[name], distances(run, batch, *pair, method)
        assert term.over == "examples"
        assert term.weight == pytest.approx(0.3 * getattr(method, f"{name}_weight"))
        assert term.value.tolist() == pytest.approx(told, rel=1e-7)
        seen.append(term.value.tolist())
    assert seen[0] != seen[1] != seen[2]


@pytest.mark.parametrize("half", ["", "cot."])
def test_text_and_distance_of_both_answers_by_plain_loops(half):
    method = CoT2Align(alpha=0.3, kd_weight=2.0)
    found, run, batch, _ = terms_of(method)
    part = batch.cot if half else batch
    said, told = run.student(part).logits.detach(), run.teacher(part)
    text, far = found[f"{half}text"], found[f"{half}distance"]
    assert (text.over, far.over) == (f"{half}mask", f"{half}examples")
    assert (text.weight, far.weight) == (pytest.approx(0.35), pytest.approx(0.3))
    nll = [-float(said[r].log_softmax(-1)[part.labels[r]]) for r in range(len(said))]
    assert text.value.tolist() == pytest.approx(nll)
    theirs = told.answer.head.logits(told.answer.hidden)
    for i in range(part.size):
        mine = [r for r in range(len(said)) if part.owner[r] == i]
        others = [r for r in range(len(theirs)) if told.answer.owner[r] == i]
        each = []
        for r, q in zip(mine, others, strict=False):  # the t-th with the t-th
            p = [sorted(x.softmax(-1).tolist(), reverse=True) for x in (said[r], theirs[q])]
            short, long = sorted(p, key=len)
            short = short + [0.0] * (len(long) - len(short))
            each.append(sum(abs(x - y) for x, y in zip(short, long, strict=True)))
        assert float(far.value[i].detach()) == pytest.approx(sum(each) / len(each), rel=1e-7)


def uneven(batch):
    weights = torch.tensor([1.0, 0.0, 0.5, 1.0, 1.0])
    return batch.add_rows(mask=weights[batch.labels % 5])


def test_masked_rows_are_in_no_sequence_and_others_weigh_as_much_as_they_count():
    world = worlds.World(kind="text", exact=True, texts=frozenset({"cot"}), change=uneven)
    method = CoT2Align(cost="cosine")
    found, run, batch, _ = terms_of(method, world)
    assert (batch.mask == 0).any()
    whole = terms_of(method)[0]["crc"].value
    assert found["crc"].value.tolist() == pytest.approx(
        distances(run, batch, "plain", "cot", method), rel=1e-7
    )
    assert (found["crc"].value - whole).abs().max() > 1e-3


def test_rows_of_earlier_turns_are_in_no_sequence():
    method = CoT2Align()
    run, batch = setting(method)
    (plain,) = method.updates(run, batch)
    first = int((batch.owner == 0).sum())
    assert int(batch.prompt[1]) > 1
    at = batch.ids.shape[1]  # the first place of the second example, within its prompt
    extra = batch.add_rows(
        rows=torch.cat([batch.rows[:first], torch.tensor([at]), batch.rows[first:]]),
        labels=torch.cat([batch.labels[:first], batch.ids[1, 1:2], batch.labels[first:]]),
        mask=torch.ones(len(batch.rows) + 1),
    )
    (more,) = method.updates(run, extra)
    for one, other in zip(plain.terms, more.terms, strict=True):
        if one.name in ("ot", "crc", "cst", "distance"):
            torch.testing.assert_close(one.value, other.value)
    assert len(more.terms[0].value) == len(plain.terms[0].value) + 1


@pytest.mark.parametrize("unroll", [False, True])
def test_gradients_reach_student_and_projectors_and_no_teacher(unroll):
    method = CoT2Align(unroll=unroll, cost="cosine", kd_weight=0.0)
    found, run, _, update = terms_of(method)
    assert update.players == ("student", "projectors")
    sum(found[name].value.sum() for name in ("ot", "crc", "cst")).backward()
    for network in (run.student.model.model, run.players["projectors"]):
        for name, p in network.named_parameters():
            assert p.grad is not None, name
            assert p.grad.abs().max() > 0, name
    assert all(p.grad is None for p in run.teacher.network.parameters())
    assert "distance" not in found


def test_the_plan_s_own_gradient_is_another():
    grads = []
    for unroll in (False, True):
        found, run, _, _ = terms_of(CoT2Align(unroll=unroll))
        found["cst"].value.sum().backward()
        grads.append(run.players["projectors"].maps[1].weight.grad)
    assert (grads[0] - grads[1]).abs().max() > 1e-6


@pytest.mark.parametrize(
    "off", [{"alpha": 0.0}, {"ot_weight": 0.0, "crc_weight": 0.0, "cst_weight": 0.0}]
)
def test_what_has_no_weight_is_not_made(off):
    found, run, _, update = terms_of(CoT2Align(**off))
    assert run.players == {}
    assert update.players == ("student",)
    assert {"text", "cot.text"} <= set(found)
    assert ("distance" in found) == ("alpha" not in off)
    part = terms_of(CoT2Align(ot_weight=0.0))[0]
    assert "ot" not in part
    assert {"crc", "cst"} <= set(part)


def test_projectors_bring_each_layer_to_the_student_s_width():
    run, batch = setting(CoT2Align())
    net = run.players["projectors"]
    assert [tuple(p.shape) for p in net.parameters()] == [(8, 12), (8, 12)]
    assert all(p.dtype == torch.float64 for p in net.parameters())
    told = run.teacher(batch).answer.features
    made = net(told)
    for place, layer in enumerate(LAYERS):
        torch.testing.assert_close(made[layer], told[layer] @ net.maps[place].weight.T)
    half = Projectors({"last": torch.zeros(1, 4).bfloat16()}, {"last": torch.zeros(1, 6)})
    assert half.maps[0].weight.dtype == torch.float32
    assert half({"last": torch.zeros(3, 6).bfloat16()})["last"].dtype == torch.float32


def test_a_teacher_of_whose_states_nothing_is_known_is_refused():
    method = CoT2Align()
    student, teacher = TEXT.student(), TEXT.teacher(method)
    check_needs(method, student, {"teacher": teacher})
    teacher.signals = frozenset({"spans", "text"})
    with pytest.raises(Exception, match="CoT2Align needs features"):
        check_needs(method, student, {"teacher": teacher})
    with pytest.raises(Exception, match="CoT2Align needs spans"):
        check_needs(method, student, {"teacher": Local(TEXT.student())})


def test_a_foreign_teacher_tells_its_own_rows_with_their_examples():
    run, batch = setting(CoT2Align())
    said, told = run.teacher(batch), run.teacher.retelling(batch)
    alone = run.teacher.network(told.batch)
    assert isinstance(said.answer, Signals)
    assert said.answer.owner.tolist() == told.batch.owner.tolist()
    assert len(said.answer.owner) != len(batch.rows)
    for layer in LAYERS:
        assert torch.equal(said.answer.features[layer], alone.features[layer])
    assert torch.equal(said.answer.hidden, alone.hidden)
    assert not any("features" in said[name] for name in ("bytes", "index", "within"))
