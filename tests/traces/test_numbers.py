"""Numbers as they are written, against values worked out by hand."""

from fractions import Fraction as F

import pytest

from stillroom.traces.numbers import close, numbers, value


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1,200.00", 1200),
        ("$5", 5),
        ("-$5", -5),
        ("$-5", -5),
        ("US$1,000", 1000),
        ("5 apples", 5),
        ("25kg", 25),
        ("3/4 of it", F(3, 4)),
        ("-3 / 4", F(-3, 4)),
        ("1 1/2 cups", F(3, 2)),
        (r"-\frac{3}{4}", F(-3, 4)),
        ("2.5e-3", F(1, 400)),
        (r"2 \times 10^{3}", 2000),
        ("1.5 x 10^-2", F(3, 200)),
        ("26.", 26),
        (".5", F(1, 2)),
        ("\u22127", -7),
        ("x=-3", -3),
        ("- 3", 3),
        ("50%", 50),
        ("50 percent", 50),
        ("1/0", None),
        ("none", None),
        ("abc12", None),
        ("1e999999999", None),
        ("9" * 5000, None),
    ],
)
def test_value(text, wanted):
    assert value(text) == wanted


def test_percent_is_divided_only_when_asked():
    assert value("50%", percent=True) == value(r"50\%", percent=True) == F(1, 2)
    assert value("50", percent=True) == 50


def test_a_minus_behind_a_number_is_a_difference():
    assert [value(n) for n in numbers("10-5=5, (3)-2, is -4; 5 - -6")] == [
        10,
        5,
        5,
        3,
        2,
        -4,
        5,
        -6,
    ]
    assert [value(n) for n in numbers("1,234,567 and 1,2,3 at $2.50.")] == [
        1234567,
        1,
        2,
        3,
        F(5, 2),
    ]


def test_tolerances_include_their_boundary():
    assert close(F(11), F(10), relative=0.125, absolute=1)
    assert not close(F(11), F(10))
    assert close(F(9), F(8), relative=0.125)
    assert not close(F(9), F(8), relative=0.12)
    assert not close(F(8), F(9), relative=0.11)  # a share of the second, the gold one: 0.99
    assert close(F(-8), F(-9), relative=0.1250)
