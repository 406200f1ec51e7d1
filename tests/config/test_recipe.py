"""From words to a checked recipe: changes, arms, tiny, and what is written down."""

import json
from pathlib import Path

import pytest
import yaml

from stillroom.config.recipe import PACKAGED, find_data, make, read
from stillroom.core import Failure
from stillroom.methods.gad import GAD
from stillroom.methods.seqkd import SeqKD
from stillroom.schedules import Rate

BASE = """
method: {name: gad, group: 4, warmup: 0.5}
student: {lm: {model_type: windowed}}
teacher: {recorded: true}
data: {train: rows.jsonl}
train: {steps: 10, lr: {student: 1e-3, default: 1e-2}}
tiny:
  train: {steps: 2}
  arms: {slow: {train: {steps: 3}}, extra: {run: {seed: 5}}}
arms:
  plain:
    method: {name: seqkd}
    train: {lr: 2e-3}
  slow: {train: {steps: 20}, method: {group: 2}}
  same:
"""


@pytest.fixture
def base(tmp_path) -> str:
    (tmp_path / "base.yaml").write_text(BASE)
    return str(tmp_path / "base.yaml")


def test_a_recipe_is_read_with_its_defaults(base, tmp_path):
    told = read(base)
    assert told.name == "base"
    assert told.folder == tmp_path
    assert told.method == GAD(group=4, warmup=0.5)
    assert told.train.steps == 10
    assert told.train.batch == 32
    assert told.sampling.temperature == 1.0


def test_arms_change_the_recipe_key_by_key(base):
    arms = read(base).arms
    assert list(arms) == ["plain", "slow", "same"]
    assert arms["slow"].method == GAD(group=2, warmup=0.5)
    assert arms["slow"].train.steps == 20
    assert arms["slow"].train.lr == {"student": 1e-3, "default": 1e-2}
    assert arms["same"].method == read(base).method
    assert arms["same"].name == "same"
    assert not arms["same"].arms


def test_another_method_starts_from_its_own_defaults(base):
    plain = read(base).arms["plain"]
    assert plain.method == SeqKD()
    assert plain.train.steps == 10
    assert plain.train.lr == 2e-3


def test_tiny_is_one_more_change_arms_included(base):
    told = read(base, tiny=True)
    assert told.train.steps == 2
    assert {name: arm.train.steps for name, arm in told.arms.items()} == {
        "plain": 2,
        "slow": 3,
        "same": 2,
        "extra": 2,
    }
    assert told.arms["slow"].method.group == 2
    assert told.arms["extra"].run.seed == 5
    assert read(base).train.steps == 10


def test_tiny_of_a_recipe_that_has_none_is_told(tmp_path):
    (tmp_path / "long.yaml").write_text("method: gad\ntrain: {steps: 10000}\n")
    with pytest.raises(Failure, match=r"long.yaml has no 'tiny' section"):
        read(str(tmp_path / "long.yaml"), tiny=True)


def test_changes_on_the_command_line_come_last(base):
    told = read(base, ["train.steps=7", "arms.slow.train.steps=8", "run.seed=3"], tiny=True)
    steps = {name: arm.train.steps for name, arm in told.arms.items()}
    assert (told.train.steps, steps["plain"], steps["slow"]) == (7, 7, 8)
    assert {arm.run.seed for arm in told.arms.values()} == {3, 5}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("2.5E4", 2.5e4),
        ("3", 3.0),
        ("{peak: 1e-2, warmup: 5}", Rate(peak=1e-2, warmup=5)),
        ("[{peak: 1, until: 2}, {peak: 2}]", [Rate(peak=1, until=2), Rate(peak=2)]),
        ("{student: {peak: 1}, default: .5}", {"student": Rate(peak=1), "default": 0.5}),
    ],
)
def test_a_change_is_yaml_in_which_1e_3_is_a_number(base, text, value):
    assert read(base, [f"train.lr={text}"]).train.lr == value


def test_a_change_may_make_a_section_and_empty_a_value(base):
    told = read(base, ["eval.every=null", "method=seqkd", "arms=null", "data.columns.prompt=x=y"])
    assert told.eval.every is None
    assert told.method == SeqKD()
    assert not told.arms
    assert told.data.columns == {"prompt": "x=y"}


def test_what_is_written_down_makes_the_same_recipe(base, tmp_path):
    told = read(base)
    written = yaml.safe_load(yaml.safe_dump(told.resolved()))
    arms = written.pop("arms")
    again = make(written, folder=tmp_path)
    assert again.resolved() == written
    for name, arm in told.arms.items():
        assert make(arms[name], folder=tmp_path).resolved() == arm.resolved()
    assert again.method == told.method
    assert again.train == told.train
    json.dumps(written)


def test_a_method_of_ones_own_keeps_its_module(tmp_path, monkeypatch):
    (tmp_path / "workshop").mkdir()
    (tmp_path / "workshop" / "own.py").write_text(
        "from dataclasses import dataclass\n"
        "from stillroom.core import Method\n\n\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Own(Method):\n"
        '    """Nothing yet."""\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    told = make({"method": {"name": "workshop.own"}, "train": {"steps": 1}}, folder=tmp_path)
    assert told.resolved()["method"] == {"name": "workshop.own"}


def test_the_tiny_of_a_recipe_belongs_to_its_top(base):
    with pytest.raises(Failure, match="tiny: a recipe has no such key"):
        read(base, ["arms.plain.tiny.train.steps=1"])


@pytest.mark.parametrize("file", sorted(PACKAGED.glob("*.yaml")), ids=lambda file: file.stem)
def test_packaged_recipes_are_whole(file: Path):
    told = read(file.stem)
    assert told.about
    assert told.arms
    tiny = read(file.stem, tiny=True)
    for name, arm in tiny.arms.items():
        small, whole = arm.train, told.arms[name].train
        if whole.steps != 0:  # an arm that does not learn is as small as can be
            assert (small.steps or small.cpu_seconds) < (whole.steps or whole.cpu_seconds)


def test_data_are_sought_as_given_beside_the_recipe_and_in_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("here", "beside", "data"):
        (tmp_path / place).mkdir()
    beside = tmp_path / "beside"
    monkeypatch.delenv("STILLROOM_DATA", raising=False)
    with pytest.raises(Failure, match=r"data.train: there is no file rows\.jsonl .*STILLROOM_DATA"):
        find_data("rows.jsonl", beside, "data.train")
    monkeypatch.setenv("STILLROOM_DATA", str(tmp_path / "data"))
    (tmp_path / "data" / "rows.jsonl").touch()
    assert find_data("rows.jsonl", beside, "data.train") == tmp_path / "data" / "rows.jsonl"
    (beside / "rows.jsonl").touch()
    assert find_data("rows.jsonl", beside, "data.train") == beside / "rows.jsonl"
    assert find_data("data/rows.jsonl", beside, "data.train") == Path("data/rows.jsonl")
