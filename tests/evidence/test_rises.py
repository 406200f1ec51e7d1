"""Claims about how far a number rose again over the validations."""

import json

import pytest

from stillroom.config.cases import read_claim
from stillroom.core import Failure
from stillroom.evidence.runs import read_run
from stillroom.evidence.trial import Trial

pytestmark = pytest.mark.extra("claims")


def folder(place, readings):
    lines = [
        {"step": 0, "validation/nll": readings[0], "time/evaluate": 1.0},
        {"step": 1, "loss/student/loss": 9.0},
        *({"step": i, "validation/nll": x} for i, x in enumerate(readings[1:], start=1)),
    ]
    told = {"steps": 9, "selected_step": 1, "cpu_seconds": 1.0, "tokens": {}, "notes": []}
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (place / "result.json").write_text(json.dumps({**told, "test": {"nll": 5.0}}))
    return place


@pytest.mark.parametrize(
    ("readings", "rise"), [([4.0, 2.0, 1.5, 3.0], 1.5), ([4.0, 3.0], 0.0), ([1.0, 3.0], 2.0)]
)
def test_a_rise_is_the_last_reading_less_the_least(tmp_path, readings, rise):
    run = read_run(folder(tmp_path, readings))
    assert run["rises"] == {"nll": rise}
    assert run["validation"] == {"nll": readings[1]}  # of the student that was kept
    assert run["test"] == {"nll": 5.0}


def test_a_last_reading_that_is_not_finite_is_none(tmp_path):
    assert read_run(folder(tmp_path, [2.0, float("nan")]))["rises"] == {"nll": None}


def test_a_claim_compares_them(claim_file, cache):
    case = read_claim(str(claim_file(metric="rise/nll")))
    assert not case.picks_highest
    told = Trial(case=case, seeds=2).judge()
    found = {arm: told["arms"][arm]["numbers"]["rise/nll"]["by_seed"] for arm in ("long", "short")}
    wanted = []
    for place in sorted(cache.glob("stages/*/metrics.jsonl")):
        lines = [json.loads(line) for line in place.read_text().splitlines()]
        read = [line["validation/nll"] for line in lines if "validation/nll" in line]
        wanted.append(read[-1] - min(read))
    assert len(wanted) == 4
    assert sorted(found["long"] + found["short"]) == pytest.approx(sorted(wanted))
    by_seed = [a - b for a, b in zip(found["long"], found["short"], strict=True)]
    assert told["difference"]["by_seed"] == pytest.approx(by_seed)


def test_it_picks_no_settings_and_knows_its_numbers(claim_file):
    with pytest.raises(Failure, match="metric: there is no 'rise/nlls'"):
        read_claim(str(claim_file(metric="rise/nlls")))
    grid = [{"key": "train.lr", "times": [1]}]
    with pytest.raises(Failure, match="select: there is no 'rise/nll'"):
        read_claim(str(claim_file(metric="rise/nll", select="rise/nll", grid=grid)))
