"""What every public function of losses/divergences.py promises; nobody lists them."""

import doctest
import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics import contract, note
from torch import Tensor

from stillroom.core import Failure
from stillroom.losses import divergences

FUNCTIONS = {
    name: function
    for name, function in inspect.getmembers(divergences, inspect.isfunction)
    if function.__module__ == divergences.__name__ and not name.startswith("_")
}
every = pytest.mark.parametrize("f", FUNCTIONS.values(), ids=FUNCTIONS)
seeds = st.integers(0, 2**31)
INF = math.inf


def pair(seed: int = 0, shape: tuple[int, ...] = (4, 7), scale: float = 3.0) -> tuple[Tensor, ...]:
    noise = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=noise, dtype=torch.float64) * scale for _ in "st")


def gradients(f, student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
    """Of both sides; the student's must be the same where the teacher stands still."""
    inputs = [student.detach().requires_grad_(), teacher.detach().requires_grad_()]
    both = torch.autograd.grad(f(*inputs).sum(), inputs)
    (alone,) = torch.autograd.grad(f(inputs[0], teacher.detach()).sum(), inputs[0])
    close = 1e-12 if student.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(alone, both[0], rtol=close, atol=close)
    return both


def test_there_are_divergences():
    assert {"forward_kl", "reverse_kl", "jsd", "total_variation"} <= set(FUNCTIONS)


@every
def test_arguments_stand_in_the_one_order(f):
    parameters = list(inspect.signature(f).parameters.values())
    assert [p.name for p in parameters[:2]] == ["student", "teacher"]
    assert all(
        p.kind is p.KEYWORD_ONLY and p.default is not inspect.Parameter.empty
        for p in parameters[2:]
    )


@every
def test_docstring_holds_one_hand_value_that_is_true(f):
    (case,) = doctest.DocTestFinder(recurse=False).find(f, globs=dict(vars(divergences)))
    values = [example for example in case.examples if example.want]
    assert len(values) == 1
    assert float(values[0].want) > 0
    outcome = doctest.DocTestRunner(verbose=False).run(case)
    assert (outcome.attempted, outcome.failed) == (len(case.examples), 0)


@every
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (0, 5), (3, 1)])
def test_last_axis_is_consumed(f, shape):
    assert f(*pair(shape=shape)).shape == shape[:-1]


@every
@given(seed=seeds, scale=st.floats(0, 30))
def test_never_negative(f, seed, scale):
    assert (f(*pair(seed, scale=scale)) >= -1e-13).all()


@every
@given(seed=seeds)
def test_zero_at_equality_and_only_there(f, seed):
    student, teacher = pair(seed)
    torch.testing.assert_close(f(student, student + 5), torch.zeros(4).double(), atol=1e-13, rtol=0)
    assert (f(student, teacher) > 1e-6).all()


@every
@given(seed=seeds)
def test_a_constant_added_to_logits_changes_nothing(f, seed):
    student, teacher = pair(seed)
    shifts = torch.randn(2, 4, 1, generator=torch.Generator().manual_seed(seed)).double() * 50
    torch.testing.assert_close(f(student + shifts[0], teacher + shifts[1]), f(student, teacher))


@every
@given(seed=seeds)
def test_order_of_classes_changes_nothing(f, seed):
    student, teacher = pair(seed)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(f(student[:, order], teacher[:, order]), f(student, teacher))


@every
def test_rows_do_not_see_each_other(f):
    student, teacher = pair()
    alone = torch.stack([f(s, t) for s, t in zip(student, teacher, strict=True)])
    torch.testing.assert_close(f(student, teacher), alone)
    inputs = student.requires_grad_()
    (gradient,) = torch.autograd.grad(f(inputs, teacher)[1], inputs)
    assert gradient[1].abs().max() > 0
    assert not gradient[[0, 2, 3]].any()


@every
def test_gradient_is_the_slope(f):
    assert torch.autograd.gradcheck(f, [x.requires_grad_() for x in pair(shape=(3, 5), scale=1.5)])


@every
def test_gradient_for_the_student_alone_is_the_slope(f):
    student, teacher = pair(shape=(3, 5), scale=1.5)
    alone = (lambda s: f(s, teacher), [student.requires_grad_()])
    assert torch.autograd.gradcheck(*alone, nondet_tol=1e-12)
    assert torch.autograd.gradgradcheck(*alone, nondet_tol=1e-12)


@every
@pytest.mark.parametrize("scale", [0.0, 3.0, 100.0])
def test_value_and_gradient_for_the_student_alone_are_those_for_both(f, scale):
    student, teacher = pair(shape=(20, 50), scale=scale)
    gradients(f, student, teacher)
    leaf = student.requires_grad_()
    torch.testing.assert_close(f(leaf, teacher).detach(), f(student.detach(), teacher))
    value = f(leaf, teacher)
    weights = torch.arange(20.0).double()
    first, again = (torch.autograd.grad(value, leaf, weights, retain_graph=True)[0] for _ in "12")
    torch.testing.assert_close(first, again, rtol=1e-10, atol=1e-10)
    (half,) = torch.autograd.grad(f(leaf.bfloat16(), teacher).sum(), leaf)
    assert half.isfinite().all()


@every
def test_both_sides_receive_a_gradient_in_each_row(f):
    for gradient in gradients(f, *pair()):
        assert (gradient.abs().max(-1).values > 1e-6).all()


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_at_ten_thousand(f, dtype):
    big = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, 1e4], [1e4, 1e4, -1e4]], dtype=dtype)
    for student, teacher in [(big, big.roll(1, -1)), (big, big), (big, torch.zeros_like(big))]:
        assert f(student, teacher).isfinite().all()
        assert all(g.isfinite().all() for g in gradients(f, student, teacher))


@contract
@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(f, dtype):
    student, teacher = (x.to(dtype) for x in pair(shape=(16, 500)))
    value = f(student, teacher)
    assert value.dtype == torch.float32
    exact = f(student.double(), teacher.double())
    assert exact.dtype == torch.float64
    worst = ((value - exact).abs() / (1 + exact.abs())).max().item()
    note(f.__name__, "bf16", worst, 1e-5)
    # against logits that were never rounded: bfloat16 keeps 8 bits of them, float16 11
    close = {torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(value.double(), f(*pair(shape=(16, 500))), atol=0, rtol=close)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_token_that_both_rule_out_is_as_if_absent(f, dtype):
    kept = [0, 2, 3, 5, 6]
    student, teacher = (x.to(dtype) for x in pair())
    expected = f(student[:, kept], teacher[:, kept])
    expected_gradients = gradients(f, student[:, kept], teacher[:, kept])
    student[:, [1, 4]] = teacher[:, [1, 4]] = -INF
    torch.testing.assert_close(f(student, teacher), expected)
    for found, wanted in zip(gradients(f, student, teacher), expected_gradients, strict=True):
        torch.testing.assert_close(found[:, kept], wanted)
        assert not found[:, [1, 4]].any()


@every
def test_other_number_of_classes_is_refused(f):
    with pytest.raises(Failure, match=r"\[4, 7\].*\[4, 1\]"):
        f(torch.zeros(4, 7), torch.zeros(4, 1))


# ---- what each of them is: sums in plain Python


def softmax(logits: Tensor) -> list[float]:
    weights = [math.exp(z) for z in logits.tolist()]
    return [w / sum(weights) for w in weights]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def skewed(s: list[float], t: list[float], beta: float) -> float:
    m = [beta * b + (1 - beta) * a for a, b in zip(s, t, strict=True)]
    return beta * kl(t, m) + (1 - beta) * kl(s, m)


def mixed(p: list[float], q: list[float], weight: float) -> list[float]:
    return [weight * a + (1 - weight) * b for a, b in zip(p, q, strict=True)]


ORACLES = {
    "forward_kl": lambda s, t: kl(t, s),
    "reverse_kl": lambda s, t: kl(s, t),
    "jsd": lambda s, t: skewed(s, t, 0.5),
    "jeffreys": lambda s, t: kl(t, s) + kl(s, t),
    "skew_forward_kl": lambda s, t: kl(t, mixed(t, s, 0.1)),
    "skew_reverse_kl": lambda s, t: kl(s, mixed(s, t, 0.1)),
    "alpha_divergence": lambda s, t: (
        2 * sum((math.sqrt(a) - math.sqrt(b)) ** 2 for a, b in zip(s, t, strict=True))
    ),
    "total_variation": lambda s, t: sum(max(a - b, 0) for a, b in zip(s, t, strict=True)),
}


@contract
@pytest.mark.parametrize("name", ORACLES)
def test_equals_the_sum_over_classes(name):
    student, teacher = pair()
    rows = zip(student, teacher, strict=True)
    wanted = [ORACLES[name](softmax(s), softmax(t)) for s, t in rows]
    found = FUNCTIONS[name](student, teacher)
    worst = (found - torch.tensor(wanted, dtype=torch.float64)).abs().max().item()
    note(name, "oracle", worst, 1e-12)


@contract
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradient_for_the_student_equals_differences_of_values(name):
    f, (student, teacher), step = FUNCTIONS[name], pair(shape=(3, 5), scale=1.5), 1e-6
    (found,) = torch.autograd.grad(f(student.requires_grad_(), teacher).sum(), student)
    moves = torch.eye(5, dtype=torch.float64)[:, None] * step
    slopes = (f(student + moves, teacher) - f(student - moves, teacher)) / (2 * step)
    note(name, "gradient", (found - slopes.T).abs().max().item(), 1e-8)


@pytest.mark.parametrize("beta", [0.1, 0.25, 0.9])
def test_jsd_mixes_the_teacher_in_with_beta(beta):
    student, teacher = pair(shape=(7,))
    wanted = skewed(softmax(student), softmax(teacher), beta)
    assert divergences.jsd(student, teacher, beta=beta).item() == pytest.approx(wanted)


@given(seed=seeds, scale=st.floats(0, 100))
def test_jsd_is_symmetric_and_at_most_log_two(seed, scale):
    student, teacher = pair(seed, scale=scale)
    value = divergences.jsd(student, teacher)
    torch.testing.assert_close(value, divergences.jsd(teacher, student))
    assert (value <= math.log(2) + 1e-12).all()


def test_jsd_ends_are_the_two_kl_divergences_by_definition():
    student, teacher = pair()
    forward, reverse = divergences.forward_kl, divergences.reverse_kl
    torch.testing.assert_close(divergences.jsd(student, teacher, beta=0), forward(student, teacher))
    torch.testing.assert_close(divergences.jsd(student, teacher, beta=1), reverse(student, teacher))
    # the formula itself tends to 0, with the KL divergences as slopes
    near = divergences.jsd(student, teacher, beta=1e-7) / 1e-7
    torch.testing.assert_close(near, forward(student, teacher), rtol=1e-3, atol=0)


def test_every_divergence_has_an_oracle():
    assert set(ORACLES) == set(FUNCTIONS)


@pytest.mark.parametrize("alpha", [0.3, 0.8])
def test_alpha_weighs_what_its_formula_says(alpha):
    student, teacher = pair(shape=(7,))
    s, t = softmax(student), softmax(teacher)
    overlap = sum(b**alpha * a ** (1 - alpha) for a, b in zip(s, t, strict=True))
    wanted = {
        "skew_forward_kl": kl(t, mixed(t, s, alpha)),
        "skew_reverse_kl": kl(s, mixed(s, t, alpha)),
        "alpha_divergence": (1 - overlap) / (alpha * (1 - alpha)),
    }
    for name, value in wanted.items():
        assert FUNCTIONS[name](student, teacher, alpha=alpha).item() == pytest.approx(value), name


def test_ends_of_alpha_are_the_two_kl_divergences():
    student, teacher = pair()
    forward, reverse = (
        f(student, teacher) for f in (divergences.forward_kl, divergences.reverse_kl)
    )
    alpha = divergences.alpha_divergence
    pairs = [
        (divergences.skew_forward_kl(student, teacher, alpha=0), forward),
        (divergences.skew_reverse_kl(student, teacher, alpha=0), reverse),
        (alpha(student, teacher, alpha=1), forward),
        (alpha(student, teacher, alpha=0), reverse),
    ]
    for found, wanted in pairs:
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    near = alpha(student, teacher, alpha=1 - 1e-7), alpha(student, teacher, alpha=1e-7)
    torch.testing.assert_close(
        torch.stack(near), torch.stack([forward, reverse]), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("name", ["skew_forward_kl", "skew_reverse_kl", "alpha_divergence"])
@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_an_alpha_outside_is_refused(name, alpha):
    with pytest.raises(Failure, match=f"{name}.*{alpha}"):
        FUNCTIONS[name](*pair(), alpha=alpha)
    if "skew" in name:
        with pytest.raises(Failure, match=r"\[0, 1\), got 1"):
            FUNCTIONS[name](*pair(), alpha=1)


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan])
def test_jsd_refuses_a_beta_outside(beta):
    with pytest.raises(Failure, match=str(beta)):
        divergences.jsd(*pair(), beta=beta)


def test_disjoint_support_is_infinite_for_kl_and_bounded_for_the_others():
    student, teacher = torch.tensor([0.0, -INF]), torch.tensor([-INF, 0.0])
    assert divergences.forward_kl(student, teacher) == INF
    assert divergences.reverse_kl(student, teacher) == INF
    assert divergences.jeffreys(student, teacher) == INF
    assert divergences.total_variation(student, teacher) == 1
    assert divergences.alpha_divergence(student, teacher) == 4
    for skewed_kl in (divergences.skew_forward_kl, divergences.skew_reverse_kl):
        assert skewed_kl(student, teacher).item() == pytest.approx(-math.log(0.1))
    assert divergences.jsd(student, teacher).item() == pytest.approx(math.log(2))
