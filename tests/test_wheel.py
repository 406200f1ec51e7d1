"""The built wheel holds everything: recipes run from it, away from the source tree."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stillroom.config.recipe import read

ROOT = Path(__file__).parent.parent
RECIPES = sorted(file.stem for file in (ROOT / "src/stillroom/recipes").glob("*.yaml"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder into which the wheel was installed, without its dependencies."""
    made, place = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("site")
    build = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(made), str(ROOT)]
    subprocess.run([sys.executable, *build], check=True, capture_output=True)
    (wheel,) = made.glob("*.whl")
    into = ["-m", "pip", "install", "--no-deps", "--no-index", "--target", str(place), str(wheel)]
    subprocess.run([sys.executable, *into], check=True, capture_output=True)
    return place


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs_from_the_wheel(installed, recipe, tmp_path):
    """Tiny: every stage of every arm, the table, the report."""
    if recipe != "quickstart" and not os.environ.get("STILLROOM_DATA"):
        pytest.skip("STILLROOM_DATA is not set: the folder with instructions/, gsm8k/, geography/")
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    environment["STILLROOM_CACHE"] = str(tmp_path / "cache")  # an earlier run answers nothing
    where = "import stillroom; print(stillroom.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert found.stdout.startswith(str(installed))
    command = ["-m", "stillroom", "run", recipe, "--tiny", "--out", "done"]
    ran = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert "report: done/report.html" in ran.stdout
    assert "teacher" in ran.stdout
    page = (tmp_path / "done/report.html").read_text(encoding="utf-8")
    assert "<svg" in page
    arms = {arm.name for arm in (tmp_path / "done/arms").iterdir()}
    assert arms == set(read(recipe).arms)
    for arm in arms:
        assert (tmp_path / f"done/arms/{arm}/student/model.safetensors").is_file()
