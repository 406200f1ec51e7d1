"""``stillroom claim`` as people use it."""

import json
import os
import re

import pytest

from stillroom.config.cases import read_claim
from stillroom.outcomes import CLAIMS

pytestmark = pytest.mark.extra("claims")


def told_in(file):
    return json.loads(file.read_text())


def test_the_first_full_run_counts_and_later_ones_are_listed(say, claim_file, fake, tmp_path):
    file = claim_file(seeds=3)
    place = tmp_path / "quick.result.json"
    code, out, err = say("claim", file, "--seeds", 2)
    assert code == 0
    assert "A partial run of 2 seeds, which does not count" in err
    told = told_in(place)
    assert told["first"] is None
    assert [run["full"] for run in told["reruns"]] == [False]
    assert "The first full run, which counts" in say("claim", file)[2]
    first = told_in(place)["first"]
    assert first["difference"]["by_seed"] == pytest.approx([0.4, 0.44, 0.48])
    assert first["verdict"] == "held"
    fake["long"] = -5.0
    _, out, err = say("claim", file, "--fresh")
    assert re.search(r"A further run; the first, of .*, counts \(held\)", err)
    assert "not held: validity of long less that of short -4.56" in out
    told = told_in(place)
    assert told["first"] == first
    assert [run["verdict"] for run in told["reruns"]] == ["held", "not held"]
    assert [run["full"] for run in told["reruns"]] == [False, True]


def test_a_changed_claim_starts_anew_and_says_so(say, claim_file, fake, tmp_path):
    say("claim", claim_file())
    before = told_in(tmp_path / "quick.result.json")
    _, _, err = say("claim", claim_file(margin=2))
    assert "the claim was changed since earlier runs, which count no more" in err
    told = told_in(tmp_path / "quick.result.json")
    assert told["first"]["verdict"] == "not held"
    assert told["reruns"] == []
    (earlier,) = told["earlier"]
    assert (earlier["sha256"], earlier["first"]) == (before["sha256"], before["first"])


def test_what_is_kept_is_not_recorded_twice(say, claim_file, tmp_path):
    file = claim_file()
    say("claim", file)
    before = (tmp_path / "quick.result.json").read_text()
    _, out, err = say("claim", file)
    assert "Recorded already on" in err
    assert (tmp_path / "quick.result.json").read_text() == before
    assert "validity of long less that of short" in out
    _, _, err = say("claim", file, "--fresh")
    assert "A further run" in err
    told = told_in(tmp_path / "quick.result.json")
    assert told["reruns"][0]["difference"] == told["first"]["difference"]


def test_the_table_has_every_number_of_both_arms_and_of_every_seed(say, claim_file, fake):
    grid = [{"key": "train.lr", "times": [1, 2]}]
    _, out, _ = say("claim", claim_file(grid=grid, select="validity"))
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "Six steps give a higher validity than two." in lines
    assert "validity 0.6300 ± 0.0424 0.2100 ± 0.0141 0.6000 0.6600 | 0.2000 0.2200" in lines
    assert "modes 0.5000 ± 0.0000 1.500 ± 0.000 0.5000 0.5000 | 1.500 1.500" in lines
    assert "cpu_seconds 12 ± 0 4 ± 0 12 12 | 4 4" in lines
    assert "tokens_trained 30 ± 0 10 ± 0 30 30 | 10 10" in lines
    assert "tried for long, chosen by validity on the validation split" in " ".join(lines)
    assert lines[-1] == "It shows nothing."


def test_json_is_the_record_and_nothing_else(say, claim_file, fake, tmp_path):
    code, out, _ = say("claim", claim_file(), "--json")
    assert code == 0
    assert json.loads(out) == told_in(tmp_path / "quick.result.json")["first"]
    assert json.loads(out)["environment"]["packages"]["torch"]


def test_out_is_elsewhere_and_so_is_a_claim_that_lies_where_nobody_may_write(
    say, claim_file, fake, tmp_path, monkeypatch
):
    file = claim_file()
    say("claim", file, "--out", tmp_path / "new" / "place")
    assert (tmp_path / "new" / "place" / "quick.result.json").is_file()
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(os, "access", lambda place, how: place != tmp_path)
    monkeypatch.chdir(tmp_path / "here")
    say("claim", file)
    assert not (tmp_path / "quick.result.json").exists()
    assert (tmp_path / "here" / "quick.result.json").is_file()


def test_a_file_that_is_no_result_is_not_overwritten(say, claim_file, fake, tmp_path):
    (tmp_path / "quick.result.json").write_text("[]")
    code, _, err = say("claim", claim_file())
    assert code == 2
    assert "quick.result.json is no result of a claim" in err
    assert (tmp_path / "quick.result.json").read_text() == "[]"


def test_tiny_runs_and_writes_nothing(say, claim_file, tmp_path, cache):
    code, out, err = say("claim", claim_file(longer="it is long"), "--tiny")
    assert code == 0
    assert "over 2 seeds" in out
    assert "Tiny: it works, and says nothing of the claim." in err
    assert "More than four minutes" not in err
    assert [file.name for file in tmp_path.iterdir()] == ["quick.yaml"]
    assert list(cache.iterdir()) == []


def test_bad_words_end_with_a_sentence(say, claim_file):
    code, _, err = say("claim", "nothere")
    assert code == 2
    assert "there is no claim 'nothere'" in err
    code, _, err = say("claim", claim_file(), "--seeds", 1)
    assert code == 2
    assert "--seeds" in err


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(file.stem for file in CLAIMS.glob("*.yaml")))
def test_every_packaged_claim_runs_tiny(say, name, tmp_path):
    files = [recipe.data.train for recipe in read_claim(name).arms.values() if recipe.data.train]
    if files and not os.environ.get("STILLROOM_DATA"):
        pytest.skip(f"STILLROOM_DATA is not set: the folder with {files[0]}")
    code, out, err = say("claim", name, "--tiny")
    assert code == 0, err
    assert "95 % interval" in out
    assert list(tmp_path.iterdir()) == []
