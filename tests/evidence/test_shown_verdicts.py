"""Verdicts of packaged claims as ``list``, ``show`` and the pages of methods tell them."""

import json

import pytest

from stillroom import catalogue, outcomes
from stillroom.reports import claims
from stillroom.reports.pages import method_page

pytestmark = pytest.mark.extra("claims")


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """An empty folder in the place of the packaged claims."""
    folder = tmp_path / "claims"
    folder.mkdir()
    monkeypatch.setattr(outcomes, "CLAIMS", folder)
    return folder


@pytest.fixture
def verdicts(say, claim_file, shelf, fake):
    """A claim for each verdict, two that held, one changed since, one that was never run."""
    for name, margin, longer in [
        ("held-1", 0.0, None),
        ("held-2", 0.1, None),
        ("open", 0.3, None),
        ("refuted", 3.0, None),
        ("changed", 0.0, "words"),
    ]:
        (shelf / f"{name}.yaml").write_bytes(claim_file(margin=margin, longer=longer).read_bytes())
        assert say("claim", shelf / f"{name}.yaml")[0] == 0
    with (shelf / "changed.yaml").open("a") as file:
        file.write("# another thought\n")
    (shelf / "new.yaml").write_bytes(claim_file().read_bytes())
    return shelf


def test_list_and_show_tell_the_verdicts(say, verdicts):
    rows = {row["name"]: row for row in json.loads(say("list", "--json")[1])}
    assert rows["seqkd"]["verdict"] == "2 held, 1 undecided, 1 not held, 2 untested"
    assert rows["kd"]["verdict"] == "untested"
    assert "2 held, 1 undecided, 1 not held, 2 untested" in say("list")[1]
    _, out, _ = say("show", "seqkd")
    told = " ".join(out.split())
    assert "Verdict: 2 held, 1 undecided, 1 not held, 2 untested." in told
    assert "Six steps give a higher validity than two." in told
    assert "95 % interval [" in told
    claims = {
        claim["name"]: claim for claim in json.loads(say("show", "seqkd", "--json")[1])["claims"]
    }
    assert {name: claim["verdict"] for name, claim in claims.items()} == {
        "changed": "untested",
        "held-1": "held",
        "held-2": "held",
        "new": "untested",
        "open": "undecided",
        "refuted": "not held",
    }


def test_the_page_of_a_method_has_a_line_a_claim(verdicts):
    row = catalogue.row("seqkd")
    page = method_page(row, catalogue.load("seqkd"))
    section = page.partition("## Claims")[2]
    assert "Verdict: **2 held, 1 undecided, 1 not held, 2 untested**." in section
    assert section.count("### ") == 6
    claim = section.partition("### held-2: held\n")[2].partition("### ")[0]
    assert "Six steps give a higher validity than two. (none, section 0)" in claim
    # differences 0.4 and 0.44: mean 0.42, reach 12.7062 * 0.02
    interval = "+0.42, 95 % interval [+0.1659, +0.6741] over 2 seeds; claimed: more than 0.1 higher"
    assert f"**held: validity of long less that of short {interval}.**" in claim
    assert "| mean ± sd | long | short |" in claim
    assert "| modes | 0.5000 ± 0.0000 | 1.500 ± 0.000 |" in claim
    assert "It shows nothing." in claim
    assert "### new: untested\n\n`stillroom claim new` runs it." in section


def test_a_partial_run_alone_leaves_the_method_untested(say, claim_file, shelf, fake):
    (shelf / "some.yaml").write_bytes(claim_file(seeds=3).read_bytes())
    say("claim", shelf / "some.yaml", "--seeds", 2)
    assert catalogue.row("seqkd")["verdict"] == "untested"


def test_a_table_of_all_claims_tells_effect_and_time():
    """Seconds by hand: two seeds of 3 and 5, and three tuning runs at their mean of 4."""
    arm = {
        "spent": {"cpu_seconds": {"by_seed": [3.0, 5.0], "mean": 4.0}},
        "tried": [{"by_seed": [0.1, 0.2]}, {"by_seed": [0.3]}],
    }
    gap = {"mean": -0.25, "low": -0.5, "high": -0.125}
    first = {"difference": gap, "seeds": 2, "arms": {"a": arm, "b": {**arm, "tried": []}}}
    told = {
        "name": "a-b", "method": "a", "compare": ["a", "b"], "metric": "nll", "sign": "lower",
        "margin": 0, "verdict": "not held", "first": first,
    }  # fmt: skip
    head, rule, line = claims.table([{"name": "z", "verdict": "untested"}, told]).split("\n")
    assert head.count("|") == rule.count("|") == line.count("|") == 9
    assert line.startswith("| [a-b](a.md#a-b-not-held) | nll, a less b | -0.25 |")
    assert line.endswith("| -0.5 to -0.125 | < 0 | not held | 2 | 28 |")
