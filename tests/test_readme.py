"""The README's Python runs, and what it names is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from stillroom import catalogue

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_its_python_runs(tmp_path):
    """Every Python block, in a fresh folder."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks
    for block in blocks:
        ran = subprocess.run(
            [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
        assert "report.html" in ran.stdout


def test_its_links_lead_somewhere():
    """Every relative link is a file or folder of the repository."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_it_lists_every_method():
    """The table of methods names each of them."""
    listed = re.findall(r"^\| \[(\w+)\]", README, re.M)
    assert sorted(listed) == list(catalogue.names("methods"))


def test_it_lists_every_pipeline():
    """The table of pipelines names each of them."""
    listed = re.findall(r"^\| \[`(\w+)`\]", README, re.M)
    assert sorted(listed) == list(catalogue.names("pipelines"))
