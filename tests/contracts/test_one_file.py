"""A new method is one new file: nothing else is edited, and everything knows it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import stillroom

TESTS = Path(__file__).parent.parent
HALF_L2 = '''"""Half the squared distance of two distributions."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt
from torch import Tensor

from stillroom.core import Needs
from stillroom.methods._bases import LogitMethod


@dataclass(frozen=True, kw_only=True)
class HalfL2(LogitMethod):
    """Match probabilities by half the squared distance to the teacher's.

    ``1/2 * sum_c (softmax(student / T)_c - softmax(teacher / T)_c)^2``

    Args:
        temperature: T; higher shows more of the teacher's small probabilities.
    """

    paper = None
    needs = Needs(teacher={"logits"}, student={"logits"})
    modality = "any"
    family = "logits"

    temperature: Annotated[float, Gt(0)] = 1.0

    def objective(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        assert teacher is not None
        T = self.temperature
        return ((student / T).softmax(-1) - (teacher / T).softmax(-1)).square().sum(-1) / 2
'''
CLI = "import sys; from stillroom.cli import main; main()"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with one file more."""
    root = tmp_path_factory.mktemp("root")
    junk = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(stillroom.__file__).parent, root / "stillroom", ignore=junk)
    assert len(HALF_L2.splitlines()) < 40
    (root / "stillroom" / "methods" / "half_l2.py").write_text(HALF_L2, encoding="utf-8")
    return root


def python(root: Path, *args: str) -> str:
    """What a fresh interpreter says that finds the copy before anything installed."""
    told = subprocess.run(
        [sys.executable, *args],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    return told.stdout


@pytest.mark.slow
def test_the_listing_has_it(root: Path) -> None:
    rows = {row["name"]: row for row in json.loads(python(root, "-c", CLI, "list", "--json"))}
    assert rows["half_l2"]["summary"].startswith("Match probabilities by half the squared distance")
    assert rows["half_l2"]["needs"]["teacher"] == ["logits"]
    assert "half_l2" in python(root, "-c", CLI, "list", "--teacher", "logits")
    assert "half_l2" not in python(root, "-c", CLI, "list", "--teacher", "text")


@pytest.mark.slow
def test_it_is_shown_with_its_formula_and_range(root: Path) -> None:
    shown = python(root, "-c", CLI, "show", "half_l2")
    assert "softmax(student / T)_c - softmax(teacher / T)_c" in shown
    assert "> 0" in shown


@pytest.mark.slow
def test_its_page_and_the_index_are_generated(root: Path, tmp_path: Path) -> None:
    python(root, "-m", "stillroom.reports.pages", str(tmp_path))
    page = (tmp_path / "half_l2.md").read_text(encoding="utf-8")
    assert page.startswith("# half_l2")
    assert "| `temperature` | `float` | > 0 | `1.0` |" in page
    assert "[half_l2](half_l2.md)" in (tmp_path / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_contracts_of_methods_hold_for_it(root: Path) -> None:
    contracts = str(TESTS / "contracts" / "test_methods.py")
    options = ("-q", "-k", "half_l2", "-p", "no:cacheprovider")
    said = python(root, "-m", "pytest", contracts, *options)
    passed = int(said.rsplit(" passed", 1)[0].split()[-1])
    assert passed > 20
    assert "failed" not in said


@pytest.mark.slow
def test_a_file_that_breaks_a_contract_is_found(root: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(root, tmp_path / "root")
    worse = HALF_L2.replace("Annotated[float, Gt(0)]", "float")
    (broken / "stillroom" / "methods" / "half_l2.py").write_text(worse, encoding="utf-8")
    contracts = str(TESTS / "contracts" / "test_methods.py")
    with pytest.raises(AssertionError, match="temperature may be any number"):
        python(broken, "-m", "pytest", contracts, "-q", "-k", "half_l2 and range")
