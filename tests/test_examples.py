"""Every example fits on a screen and runs as it stands, in a folder of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(file.stem for file in FOLDER.glob("*.py"))
LINES, SECONDS = 40, 120


@cache
def run(name: str) -> tuple[str, list[str]]:
    """What an example prints, and the files that it leaves; any warning is an error."""
    with tempfile.TemporaryDirectory() as place:
        told = subprocess.run(
            [sys.executable, "-W", "error", str(FOLDER / f"{name}.py")],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=place,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        assert told.returncode == 0, told.stderr
        return told.stdout, [str(f.relative_to(place)) for f in Path(place).rglob("*")]


def numbers(said: str) -> list[float]:
    return [float(found) for found in re.findall(r"\d\.\d+", said)]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_has_at_most_forty_lines(name: str) -> None:
    assert len((FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= LINES


def test_the_plain_loop_imports_nothing_of_this_project() -> None:
    assert "stillroom" not in (FOLDER / "00_no_abstractions.py").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_and_prints_what_came_of_it(name: str) -> None:
    assert len(numbers(run(name)[0])) >= 2


@pytest.mark.slow
def test_the_plain_loop_prints_a_student_near_its_teacher() -> None:
    teacher, student = numbers(run("00_no_abstractions")[0])
    assert teacher > 0.9
    assert student > teacher - 0.1


@pytest.mark.slow
def test_the_small_cnn_learns_and_leaves_a_report() -> None:
    said, files = run("kd_classes")
    start, distilled = numbers(said)[:2]
    assert distilled > start + 0.2
    assert "runs/kd/report.html" in files
