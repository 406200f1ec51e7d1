"""Runs of a claim: made once, kept, taken up again, equal in time, read back."""

import json

import pytest

from stillroom.config.cases import read_claim
from stillroom.engine import training
from stillroom.evidence import runs
from stillroom.evidence.trial import Trial

pytestmark = pytest.mark.extra("claims")


def judged(file, **options):
    return Trial(case=read_claim(str(file)), seeds=2, **options).judge()


@pytest.fixture
def steps(monkeypatch):
    """Counts the training steps that are taken; ``limit`` kills the process after so many."""
    seen = {"taken": 0, "limit": None}
    step = training._Training._step

    def counted(self):
        if seen["taken"] == seen["limit"]:
            raise KeyboardInterrupt
        seen["taken"] += 1
        return step(self)

    monkeypatch.setattr(training._Training, "_step", counted)
    return seen


def test_a_claim_end_to_end_and_what_is_kept_is_not_run_twice(claim_file, steps, cache):
    heard = []
    first = judged(claim_file(), tell=heard.append)
    assert steps["taken"] == 2 * (6 + 2)
    assert len(heard) == 4
    assert first["arms"]["long"]["spent"]["steps"]["by_seed"] == [6, 6]
    assert first["arms"]["long"]["numbers"].keys() >= {"validity", "modes", "forward_kl", "nll"}
    assert first["arms"]["long"]["recipe"]["train"]["steps"] == 6
    assert first["arms"]["short"]["spent"]["tokens_trained"]["mean"] > 0
    json.dumps(first, allow_nan=False)
    # another claim with the same run under another name
    other = {"arms": {"same": {}, "more": {}}, "compare": ["more", "same"]}
    again = judged(claim_file(**other, budget={"steps": {"same": 6, "more": 7}}), tell=heard.append)
    assert steps["taken"] == 2 * (6 + 2) + 2 * 7
    assert again["arms"]["same"]["numbers"] == first["arms"]["long"]["numbers"]
    assert [line.endswith("(kept)") for line in heard[4:]] == [False, True] * 2
    folders = [place for place in (cache / "stages").iterdir() if place.is_dir()]
    assert len(folders) == 6
    assert not [name for f in folders for name in ("student", "checkpoints") if (f / name).exists()]


def test_a_killed_claim_goes_on_in_the_middle_of_a_run(claim_file, steps):
    unbroken = judged(claim_file())
    steps.update(taken=0, limit=11)  # within the third run: 6 + 2 + 3 of 6
    case = read_claim(str(claim_file()))
    with pytest.raises(KeyboardInterrupt):
        Trial(case=case, seeds=2, again=1).judge()
    steps["limit"] = None
    resumed = Trial(case=case, seeds=2, again=1)
    told = resumed.judge()
    assert steps["taken"] == 2 * (6 + 2)
    assert resumed.made == 2
    assert told["difference"] == unbroken["difference"]


def test_anew_is_anew(claim_file, steps):
    judged(claim_file())
    judged(claim_file(), again=1)
    assert steps["taken"] == 4 * (6 + 2)


def test_other_code_data_or_settings_are_another_run(claim_file, monkeypatch, tmp_path):
    rows = tmp_path / "rows.jsonl"
    text = '{"prompt": "a2 a3 a2 a2 :", "completion": "w1"}\n'
    rows.write_text(text)
    data = {"train": str(rows), "validation": str(rows), "test": str(rows)}
    places = []

    def stage(name, make, **inputs):
        places.append(json.dumps(inputs, sort_keys=True, default=str))
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "stage", stage)

    def place(**changes):
        recipe = read_claim(str(claim_file(metric="nll", **changes))).arms["long"]
        with pytest.raises(KeyboardInterrupt):
            runs.kept(recipe, 0)
        return places[-1]

    told = {"changes": {"data": {**data, "world": None}, "eval": {"metrics": ["likelihood"]}}}
    before = place(**told)
    assert place(**told) == before
    assert place(**told, sentence="Another sentence.") == before
    assert place(**told, budget={"steps": 5}) != before
    rows.write_text(text * 2)
    assert place(**told) != before
    rows.write_text(text)
    monkeypatch.setattr(runs, "code_of", lambda method: "other")
    assert place(**told) != before


def test_equal_cpu_seconds_are_about_equal(claim_file):
    arms = {"long": {"train": {"batch": 32}}, "short": {"train": {"batch": 8}}}
    file = claim_file(
        arms=arms,
        budget={"cpu_seconds": "long"},
        changes={"train": {"steps": 40}, "eval": {"every": None}},
    )
    told = judged(file)
    ours, theirs = (told["arms"][arm]["spent"] for arm in ("long", "short"))
    pairs = zip(ours["cpu_seconds"]["by_seed"], theirs["cpu_seconds"]["by_seed"], strict=True)
    for first, second in pairs:
        assert first <= second < 1.2 * first  # past the end by less than one step in forty
    assert ours["steps"]["by_seed"] == [40, 40]
    assert min(theirs["steps"]["by_seed"]) > 40  # smaller batches, so more of them


def test_the_number_of_a_run_that_keeps_its_best_student_is_that_students(claim_file, cache):
    changes = {"eval": {"select": "validity"}, "train": {"lr": 0.5}}
    case = read_claim(str(claim_file(changes=changes, arms={"long": {}, "short": {}})))
    run, _ = runs.kept(case.arms["long"], 0)
    best, step = run["validation"]["validity"], run["selected_step"]
    again, _ = runs.kept(case.arms["long"], 0)
    assert again == run
    (file,) = cache.rglob("metrics.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    read = {x["step"]: x["validation/validity"] for x in lines if "validation/validity" in x}
    assert best == max(read.values())
    assert read[step] == best
