"""uld and span_kd: against plain loops in float64, and gkd where the tokenizers are equal."""

import math

import pytest
import torch
import worlds

from stillroom.core import Failure
from stillroom.core.signals import Signals
from stillroom.data.common import common
from stillroom.data.retelling import Retelling
from stillroom.data.text import Renderer, TextData, collate
from stillroom.engine.checks import check_needs
from stillroom.losses.per_row import per_row
from stillroom.losses.transport import sorted_distance
from stillroom.methods.gkd import GKD
from stillroom.methods.kd import KD
from stillroom.methods.span_kd import SpanKD
from stillroom.methods.uld import ULD
from stillroom.teachers.foreign import Foreign
from stillroom.teachers.recorded import Recorded

TEXT = worlds.World(kind="text", exact=True)


def loss_of(method, words, *, given=1.0):
    """Terms of a batch, the student, its signals and the teacher's."""
    student, teacher = TEXT.student(), TEXT.foreign(words)
    batch = TEXT.data().batch(range(worlds.EXAMPLES))
    batch = batch.add_rows(given=torch.full_like(batch.mask, given))
    own, other = student(batch), teacher(batch)
    return method.loss(own, other, batch, {}), student, own, other, batch


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_sorted_distance_by_hand_and_by_its_bounds():
    draw = torch.Generator().manual_seed(0)
    p, q = (3 * torch.randn(6, v, dtype=torch.float64, generator=draw) for v in (5, 9))
    found = sorted_distance(p, q)
    for row in range(6):
        ordered = [sorted(x[row].softmax(-1).tolist(), reverse=True) for x in (p, q)]
        pairs = zip(ordered[0] + [0.0] * 4, ordered[1], strict=True)
        assert float(found[row]) == pytest.approx(sum(abs(a - b) for a, b in pairs))
    close(sorted_distance(q, p), found)
    close(sorted_distance(p[:, torch.randperm(5)], q[:, torch.randperm(9)]), found)
    assert ((found >= 0) & (found <= 2)).all()
    sure, even = torch.tensor([[60.0, 0, 0, 0]]).double(), torch.zeros(1, 4).double()
    close(sorted_distance(sure, even), torch.tensor([2 * (1 - 1 / 4)]).double())
    assert sorted_distance(p, p[:, [4, 0, 3, 1, 2]]).abs().max() < 1e-15


def test_the_largest_alone_miss_at_most_twice_what_is_left():
    draw = torch.Generator().manual_seed(1)
    p, q = (2 * torch.randn(40, v, dtype=torch.float64, generator=draw) for v in (30, 50))
    whole = sorted_distance(p, q)
    for k in (1, 3, 10, 29):
        part = sorted_distance(p, q, largest=k)
        left = torch.stack([1 - x.softmax(-1).topk(k).values.sum(-1) for x in (p, q)]).amax(0)
        assert (part <= whole + 1e-12).all()
        assert (whole - part <= 2 * left + 1e-12).all()
        assert k > 10 or (part - whole).abs().max() > 1e-6
    close(sorted_distance(p, q, largest=50), whole)


def test_an_equal_distribution_pulls_nowhere():
    p = torch.randn(4, 7, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(sorted_distance(p, p.detach()).sum(), p)
    assert slope.abs().max() == 0


@pytest.mark.parametrize("pairing", ["index", "bytes"])
def test_uld_row_by_row(pairing):
    method = ULD(weight=0.7, temperature=1.3, pairing=pairing)
    (text, far), _, own, other, batch = loss_of(method, worlds.THEIRS)
    said, told = own.logits.detach(), other[pairing]
    close(text.value, -said.log_softmax(-1).gather(-1, batch.labels[:, None]).squeeze(-1))
    assert (far.over, far.weight) == ("examples", 0.7)
    scores = told.head.logits(told.hidden)
    for i in range(batch.size):
        rows = [r for r in range(len(said)) if batch.owner[r] == i and told.paired[r]]
        each = [float(sorted_distance(said[[r]] / 1.3, scores[[r]] / 1.3)) for r in rows]
        assert float(far.value[i].detach()) == pytest.approx(
            sum(each) / max(1, len(each)), rel=1e-9
        )
    assert told.paired.sum() < len(said) or pairing == "index"


def test_uld_counts_no_masked_token():
    method = ULD()
    student, teacher = TEXT.student(), TEXT.foreign(worlds.THEIRS)
    batch = TEXT.data().batch(range(worlds.EXAMPLES))
    out = torch.arange(len(batch.mask)) % 2 == 0
    batch = batch.add_rows(mask=torch.where(out, 0.0, batch.mask))
    far = method.loss(student(batch), teacher(batch), batch, {})[1].value
    told = teacher(batch)["index"]
    scores, said = told.head.logits(told.hidden), student(batch).logits.detach()
    rows = [r for r in range(len(said)) if batch.owner[r] == 5 and not out[r] and told.paired[r]]
    assert rows
    each = [float(sorted_distance(said[[r]], scores[[r]])) for r in rows]
    assert float(far[5].detach()) == pytest.approx(sum(each) / len(each), rel=1e-9)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_span_kd_with_equal_tokenizers_is_gkd(beta):
    """Also where a sample is spelled as the tokenizer would not, and ends or does not."""
    tokenizer, student = worlds.spelling(worlds.OURS), TEXT.student()
    renderer = Renderer(tokenizer, [worlds.EOS])
    texts = [("abcd", "dabcc"), ("c", "ab"), ("da", "abcabc")]
    data = TextData([renderer.example({"prompt": p, "completion": c}) for p, c in texts], 0)
    a, b = tokenizer.convert_tokens_to_ids(["a", "b"])
    answers = [data.examples[0].completion_ids, (a, b, worlds.EOS), (a, b, b, a)]
    prompts = [e.prompt_ids for e in data.examples]
    batch = collate(list(zip(prompts, answers, strict=True)), torch.arange(3), 0)
    network = TEXT.foreign(worlds.OURS).network
    teacher = Foreign(network, Retelling(renderer, renderer, [data]))
    own = student(batch)
    batch = batch.add_rows(given=torch.ones(len(batch.rows)))
    method = SpanKD(beta=beta, label_weight=0.0)
    value = method.loss(own, teacher(batch), batch, {}).value
    same = per_row(GKD(beta=beta).objective, own, network(batch), batch.labels)
    close(value, same)
    assert float(value.detach().abs().min()) > 0
    slopes = [
        torch.autograd.grad(each.sum(), list(student.parameters()), retain_graph=True)
        for each in (value, same)
    ]
    for mine, theirs in zip(*slopes, strict=True):
        close(mine, theirs)


def masses(logits, groups, t):
    """Probability of each group of ids, renormalised over all groups."""
    p = (logits.double() / t).softmax(-1)
    sums = [float(sum(p[i] for i in ids)) for ids in groups]
    return [x / sum(sums) for x in sums]


@pytest.mark.parametrize("given", [1.0, 0.0])
def test_span_kd_row_by_row(given):
    """At meeting places classes by ``common``, within tokens the pieces spelled out, by loops."""
    t, w = 1.4, 0.3
    method = SpanKD(temperature=t, label_weight=w)
    term, _, own, other, batch = loss_of(method, worlds.THEIRS, given=given)
    said, ours, theirs = own.logits.detach(), worlds.OURS, worlds.THEIRS
    stops = ([ours.index(worlds.END)], [theirs.index(worlds.END)])
    told = common(worlds.spelling(ours), worlds.spelling(theirs), stops)
    groups = [
        [[i for i, c in enumerate(x.tolist()) if c == k] for k in range(told.count)]
        for x in (told.own, told.other)
    ]
    pieces = {
        u: [ours[i] for i in worlds.spelling(ours)(u).input_ids] for u in theirs if u.isalpha()
    }
    seen = {"bytes": 0, "within": 0, "none": 0}
    for row in range(len(said)):
        label = float(said[row].double().log_softmax(-1)[batch.labels[row]])
        kind = next((k for k in ("bytes", "within") if other[k].paired[row]), "none")
        seen[kind] += 1
        far = 0.0
        if kind != "none":
            scores = other[kind].head.logits(other[kind].hidden[[row]])[0]
        if kind == "bytes":
            q, p = masses(said[row], groups[0], t), masses(scores, groups[1], t)
        elif kind == "within":
            begun = begun_by(batch, other, row)
            fits = {u: x for u, x in pieces.items() if x[: len(begun)] == begun}
            nexts = sorted({x[len(begun)] for x in fits.values() if len(x) > len(begun)})
            chances = (scores.double() / t).softmax(-1)
            of = dict.fromkeys([*nexts, None], 0.0)
            for u, x in fits.items():
                of[x[len(begun)] if len(x) > len(begun) else None] += float(
                    chances[theirs.index(u)]
                )
            whole = sum(of.values())
            p = [of[v] / whole for v in nexts] + [max(of[None] / whole, 1e-6)]
            p = [x / sum(p) for x in p]
            own_p = (said[row].double() / t).softmax(-1)
            q = [float(own_p[ours.index(v)]) for v in nexts]
            q.append(1 - sum(q))
        if kind != "none":
            far = t**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a)
        share = w * given
        assert float(term.value[row].detach()) == pytest.approx(
            (1 - share) * far - share * label, rel=1e-8
        )
    assert min(seen.values()) > 0, seen


def begun_by(batch, other, row):
    """The student's tokens since the last place that met, as words."""
    met = max(
        r for r in range(row) if other["bytes"].paired[r] and batch.owner[r] == batch.owner[row]
    )
    return [worlds.OURS[int(i)] for i in batch.labels[met:row]]


def test_a_step_on_its_own_answers_learns_from_the_teacher_alone():
    def logs(**told):
        return worlds.steps(worlds.job(SpanKD(**told), TEXT, steps=2)).logs

    assert logs(on_policy=1.0, label_weight=0.9) == logs(on_policy=1.0, label_weight=0.1)
    assert logs(label_weight=0.9) != logs(label_weight=0.1)


def test_other_tokens_are_never_cut_to_the_first_columns():
    """Without ``foreign`` heads of other widths are taken for padded ones."""
    student, wide = TEXT.student(), TEXT.foreign(worlds.THEIRS)
    batch = TEXT.data().batch([0, 1])
    told = wide(batch)["bytes"]
    seen = []

    def objective(own, other, labels):
        seen.append((own.shape[-1], other.shape[-1]))
        return own.sum(-1) * 0 + other.sum(-1)

    def both(**how):
        return per_row(objective, student(batch), told, batch.labels, **how)

    both(foreign=True), both()
    wide_logits = Signals(logits=told.head.logits(told.hidden))
    per_row(objective, student(batch), wide_logits, batch.labels, foreign=True)
    with torch.no_grad():
        both(foreign=True)
    a, b = len(worlds.OURS), len(worlds.THEIRS)
    assert a != b
    assert {*seen} == {(a, b), (min(a, b), min(a, b))}
    assert seen[-1] == seen[0] == (a, b)


def test_who_gives_spans_gives_them_alone():
    foreign, student = TEXT.foreign(worlds.THEIRS), TEXT.student()
    check_needs(ULD(), student, {"teacher": foreign})
    with pytest.raises(Failure, match=r"KD needs sparse .* gives \['features', 'spans', 'text'\]"):
        check_needs(KD(), student, {"teacher": foreign})
    with pytest.raises(Failure, match="spans"):
        check_needs(ULD(), student, {"teacher": Recorded()})
    with pytest.raises(Failure, match="spans"):
        check_needs(SpanKD(), student, {"teacher": Recorded()})
