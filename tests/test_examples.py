"""Every example fits on a screen and runs as it stands, in a folder of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(file.stem for file in FOLDER.glob("*.py"))
LINES, SECONDS = 40, 120


def output(name: str, place: Path) -> str:
    """What an example prints; any warning is an error."""
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
    return told.stdout


def numbers(said: str) -> list[float]:
    return [float(found) for found in re.findall(r"\d\.\d+", said)]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_has_at_most_forty_lines(name: str) -> None:
    assert len((FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= LINES


def test_the_plain_loop_imports_nothing_of_this_project() -> None:
    assert "stillroom" not in (FOLDER / "00_no_abstractions.py").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    assert output(name, tmp_path)


@pytest.mark.slow
def test_the_plain_loop_prints_a_student_near_its_teacher(tmp_path: Path) -> None:
    teacher, student = numbers(output("00_no_abstractions", tmp_path))
    assert teacher > 0.9
    assert student > teacher - 0.1


@pytest.mark.slow
def test_the_small_cnn_learns_and_leaves_a_report(tmp_path: Path) -> None:
    start, distilled = numbers(output("kd_classes", tmp_path))[:2]
    assert distilled > start + 0.2
    assert (tmp_path / "runs" / "kd" / "report.html").is_file()
