"""Claim files: read strictly, refused in sentences."""

import hashlib

import pytest

from stillroom.config.cases import read_claim, varied
from stillroom.config.recipe import make
from stillroom.core import Failure
from stillroom.outcomes import CLAIMS


def test_a_claim_is_both_arms_with_the_budget_filled_in(claim_file):
    file = claim_file(changes={"train": {"batch": 8}})
    case = read_claim(str(file))
    assert case.name == "quick"
    assert case.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert {arm: recipe.train.steps for arm, recipe in case.arms.items()} == {"long": 6, "short": 2}
    assert {recipe.train.batch for recipe in case.arms.values()} == {8}
    assert (case.arms["long"].train.lr, case.arms["short"].train.lr) == (0.01, 0.02)
    assert case.points("long") == [{}]


def test_one_number_of_steps_is_for_both_arms(claim_file):
    arms = read_claim(str(claim_file(budget={"steps": 7}))).arms
    assert {recipe.train.steps for recipe in arms.values()} == {7}


def test_tiny_shrinks_the_recipe_and_forgets_the_budget(claim_file):
    arms = read_claim(str(claim_file()), tiny=True).arms
    assert {recipe.train.steps for recipe in arms.values()} == {1}


def test_an_arm_begins_with_the_arm_of_that_name_in_the_recipe(claim_file):
    arms = {"seqkd": {"train": {"batch": 16}}, "mine": {}}
    told = {"recipe": "quickstart", "arms": arms, "compare": ["mine", "seqkd"]}
    case = read_claim(str(claim_file(**told, budget={"steps": 5})))
    methods = {arm: type(recipe.method).__name__ for arm, recipe in case.arms.items()}
    assert methods == {"mine": "GAD", "seqkd": "SeqKD"}
    assert case.arms["seqkd"].eval.select == "nll"
    assert case.arms["seqkd"].train.batch == 16


def test_a_recipe_beside_the_claim_is_found(claim_file, tmp_path, monkeypatch):
    (tmp_path / "small.yaml").write_text(
        "method: seqkd\ndata: {world: {name: marked_orders}}\nstudent: {lm: {model_type: llama}}\n"
        "teacher: {recorded: true}\ntrain: {steps: 3}\neval: {metrics: [marked_orders]}\n"
    )
    monkeypatch.chdir(tmp_path.parent)
    case = read_claim(str(claim_file(recipe="small.yaml")))
    assert case.arms["long"].student.lm == {"model_type": "llama"}
    assert case.arms["long"].folder == tmp_path


def test_the_grid_is_every_combination_with_the_same_multiples_of_each_arms_own(claim_file):
    rates = {"key": {"long": "train.lr", "short": "train.lr"}, "times": [0.5, 2]}
    batches = {"key": "train.batch", "values": [8, 16]}
    case = read_claim(str(claim_file(grid=[rates, batches], select="nll")))
    for arm, rate in {"long": 0.01, "short": 0.02}.items():
        assert [list(point.values()) for point in case.points(arm)] == [
            [rate * 0.5, 8],
            [rate * 0.5, 16],
            [rate * 2, 8],
            [rate * 2, 16],
        ]


def test_a_key_may_go_through_lists_and_defaults():
    recipe = read_claim("gad-equal-epochs").arms["gad"]
    changed = varied(recipe, {"train.lr.student.1.peak": 0.5, "method.kl_weight": 0.25})
    assert [rate.peak for rate in changed.train.rates("student")] == [0.01, 0.5]
    assert changed.method.kl_weight == 0.25
    assert recipe.method.kl_weight == 0.001


def test_what_is_not_turned_stays_as_it_was():
    recipe = read_claim("gad-frozen-critic").arms["frozen"]
    assert varied(recipe, {}).resolved() == recipe.resolved()


KNOB = {"key": "train.lr", "values": [0.1]}
REFUSED = {
    "unknown key": ({"margins": 1}, r"margins: Claim has no such field; did you mean 'margin'\?"),
    "unknown method": ({"method": "seqdk"}, r"no 'seqdk'; did you mean 'seqkd'\?"),
    "no sentence": ({"sentence": None}, r"sentence: missing"),
    "sign": ({"sign": "more"}, r"sign: must be 'higher' or 'lower', got 'more'"),
    "margin": ({"margin": -1}, r"margin: must be greater than or equal to 0, got -1"),
    "one seed": ({"seeds": 1}, r"seeds: must be greater than or equal to 2, got 1"),
    "three arms": (
        {"arms": {"long": {}, "short": {}, "third": {}}},
        r"compare: names both arms.*\['long', 'short'\].*long, short, third",
    ),
    "arm misspelt": ({"compare": ["long", "shrt"]}, r"compare: names both arms.*'shrt'"),
    "same arm": ({"compare": ["long", "long"]}, r"compare: names both arms"),
    "metric": ({"metric": "validty"}, r"metric: there is no 'validty'; did you mean 'validity'\?"),
    "select": ({"select": "nl"}, r"select: there is no 'nl'; did you mean 'nll'\?"),
    "no direction": ({"select": "length_gap"}, r"select: 'length_gap' is neither better"),
    "grid without select": ({"grid": [KNOB]}, r"select: a grid needs a number"),
    "no budget": ({"budget": {}}, r"budget: give either 'steps' or 'cpu_seconds'"),
    "two budgets": (
        {"budget": {"steps": 3, "cpu_seconds": "long"}},
        r"budget: give either 'steps' or 'cpu_seconds'",
    ),
    "time of no arm": (
        {"budget": {"cpu_seconds": "lng"}},
        r"budget.cpu_seconds: there is no arm 'lng'; did you mean 'long'\?",
    ),
    "steps of one arm": (
        {"budget": {"steps": {"long": 3}}},
        r"budget.steps: says nothing of the arm 'short'; it has long",
    ),
    "steps of a third arm": (
        {"budget": {"steps": {"long": 3, "short": 3, "thrd": 3}}},
        r"budget.steps: there is no arm 'thrd'",
    ),
    "knob without values": (
        {"grid": [{"key": "train.lr"}], "select": "nll"},
        r"grid.*: give either 'values' or 'times'",
    ),
    "no such setting": (
        {"grid": [{"key": "train.rl", "values": [1]}], "select": "nll"},
        r"train.rl: the recipe has no such key; did you mean 'train.lr'\?",
    ),
    "place past the end": (
        {"grid": [{"key": "train.optimizer.betas.2", "values": [1]}], "select": "nll"},
        r"train.optimizer.betas.2: the recipe has no such key",
    ),
    "times of a word": (
        {"grid": [{"key": "train.precision", "times": [2]}], "select": "nll"},
        r"grid.times: train.precision of the arm 'long' is 'fp32', and no number",
    ),
    "value out of range": (
        {"grid": [{"key": "train.batch", "values": [0]}], "select": "nll"},
        r"train.batch: must be greater than or equal to 1, got 0",
    ),
    "changes that do not fit": (
        {"changes": {"train": {"bach": 3}}},
        r"train.bach: Train has no such field; did you mean 'batch'\?",
    ),
    "no recipe": ({"recipe": "quickstrat"}, r"no recipe 'quickstrat'; did you mean 'quickstart'\?"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_claim_that_is_not_as_it_must_be_is_refused_in_a_sentence(claim_file, case):
    changes, sentence = REFUSED[case]
    with pytest.raises(Failure, match=sentence) as told:
        read_claim(str(claim_file(**changes)))
    assert "quick.yaml: " in str(told.value)


def test_no_claim_of_that_name_and_no_mapping(tmp_path):
    with pytest.raises(Failure, match=r"no claim 'gad-equal-tim'; did you mean 'gad-equal-time'\?"):
        read_claim("gad-equal-tim")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(Failure, match=r"expected a mapping of method, paper, .*, got list"):
        read_claim(str(tmp_path / "list.yaml"))


@pytest.mark.parametrize("name", sorted(file.stem for file in CLAIMS.glob("*.yaml")))
def test_every_packaged_claim_can_be_read(name):
    case = read_claim(name)
    assert case.claim.seeds >= 5
    whose = (case.claim.method, str(case.claim.recipe))  # a recipe may be a paper of its own
    assert name.startswith(whose)
    assert "not show" in case.claim.about
    counts = {len(case.points(arm)) for arm in case.arms}
    assert len(counts) == 1, "both arms are tuned alike"


def test_a_grid_does_not_reach_a_model_that_is_trained_first(tmp_path):
    recipe = make(
        {
            "method": "kd",
            "student": {"net": {"kind": "mlp"}},
            "teacher": {"trained": {"student": {"net": {"kind": "mlp"}}, "steps": 9}},
            "data": {"items": {"name": "digits"}},
            "train": {"steps": 4, "lr": 0.01, "batch": 16},
        },
        folder=tmp_path,
    )
    changed = varied(recipe, {"train.lr": 0.5, "train.steps": 3})
    assert (changed.train.lr, changed.train.steps) == (0.5, 3)
    assert changed.teacher.trained.train["lr"] == 0.01
    assert changed.teacher.trained.train["batch"] == 16
    assert varied(changed, {"train.lr": 0.7}).teacher.trained.train["lr"] == 0.01
