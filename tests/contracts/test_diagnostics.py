"""What every diagnostic of the catalogue must keep, walking the files: nobody lists any here."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
from ranges import edges, hints, members, refused

from stillroom import catalogue
from stillroom.config.recipe import method_of
from stillroom.config.values import checked
from stillroom.core import Diagnostic, Failure, Needs
from stillroom.evaluation.suite import Suite, evaluators
from stillroom.reports.fields import described, read_docstring

NAMES = list(catalogue.names("diagnostics"))
each_name = pytest.mark.parametrize("name", NAMES)


def loaded(name: str) -> Any:
    return catalogue.load(name, "diagnostics")


def fields_with(values: Any) -> list[Any]:
    """Each name and field with each value that a function of its hint yields."""
    return [
        pytest.param(name, field, value, id=f"{name}-{field}-{value}")
        for name in NAMES
        for field, hint in hints(loaded(name)).items()
        for value in values(hint)
    ]


def test_there_are_diagnostics() -> None:
    assert {"teacher_hacking", "domain_draft"} <= set(NAMES)
    assert not set(NAMES) & set(catalogue.names("methods"))


@each_name
def test_a_diagnostic_is_one_frozen_dataclass_with_defaults_for_all(name: str) -> None:
    cls = loaded(name)
    assert issubclass(cls, Diagnostic)
    assert cls() == cls()
    assert cls.__dataclass_params__.frozen
    with pytest.raises(TypeError, match="positional"):
        cls(1)


@each_name
def test_its_body_states_the_literals_and_the_listing_reads_the_same(name: str) -> None:
    cls, row = loaded(name), catalogue.row(name)
    assert set(catalogue.TOLD) <= set(vars(cls))
    assert isinstance(cls.needs, Needs)
    told = {
        k: sorted(v) if isinstance(v, frozenset | set) else v for k, v in vars(cls.needs).items()
    }
    assert row["needs"] == told
    assert row["kind"] == "diagnostic"
    assert (row["modality"], row["family"]) == (cls.modality, cls.family)
    assert row["paper"] == (cls.paper and {**vars(cls.paper), "url": cls.paper.url})


@each_name
def test_what_it_reads_is_what_evaluators_give(name: str) -> None:
    assert loaded(name).needs.metrics <= set(Suite(evaluators(), {}).columns())


@each_name
def test_its_docstring_has_a_formula_and_where_it_differs_from_its_paper(name: str) -> None:
    first, body, told = read_docstring(inspect.getdoc(loaded(name)) or "")
    assert first.endswith((".", ":"))
    assert [code for code in re.findall(r"``([^`]+)``", body) if re.search(r"[(|=+*/]", code)]
    assert re.search(r"^Differences: ", body, re.MULTILINE)
    assert set(told) == set(hints(loaded(name)))
    assert all(field["says"] for field in described(loaded(name)))


@each_name
def test_every_number_has_a_range(name: str) -> None:
    for field, hint in hints(loaded(name)).items():
        for kind, marks in members(hint):
            assert kind not in (int, float) or marks, f"{field} may be any number"


@pytest.mark.parametrize(("name", "field", "value"), fields_with(refused))
def test_a_value_out_of_range_is_refused_by_the_name_of_its_field(
    name: str, field: str, value: Any
) -> None:
    with pytest.raises(Failure, match=rf"^{name}\.{field}: "):
        checked(loaded(name), {field: value}, name)


@pytest.mark.parametrize(("name", "field", "value"), fields_with(edges))
def test_the_ends_of_a_range_are_allowed(name: str, field: str, value: Any) -> None:
    assert getattr(checked(loaded(name), {field: value}, name), field) == value


@each_name
def test_a_recipe_does_not_take_it_for_a_method(name: str) -> None:
    with pytest.raises(Failure, match=rf"method\.name: '{name}' is a diagnostic; .* a method here"):
        method_of(name)
    assert name not in catalogue.fitting(set(catalogue.SIGNALS))
