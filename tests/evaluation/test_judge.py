"""The first critic judges all arms alike; answers in several copies; the test split alone."""

import json

import pytest
import torch
from worlds import EOS, PAD, World

from stillroom.api import run
from stillroom.config.build import build
from stillroom.config.recipe import make
from stillroom.core import Failure
from stillroom.data.text import TextData
from stillroom.evaluation import critic, generation, judge
from stillroom.evaluation.judge import Judge
from stillroom.evaluation.suite import Suite, View
from stillroom.models import text
from stillroom.models.cut import cut
from stillroom.nets.pooled import fit
from stillroom.rollouts.sampling import Sampling

WORLD = World(kind="text", exact=True)


class Keep:
    """A store of stages that notes what it was asked for."""

    def __init__(self, folder):
        self.folder, self.asked, self.made = folder, [], 0

    def __call__(self, name, make, **inputs):
        key = json.dumps([name, inputs])
        if key not in self.asked:
            place = self.folder / str(len(self.asked))
            place.mkdir(parents=True)
            make(place)
            self.made += 1
            self.asked.append(key)
        return self.folder / str(self.asked.index(key))


def lm(seed=0, layers=3):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
    sizes |= {"num_hidden_layers": layers, "max_position_embeddings": 64}
    return text.build("windowed", 11, EOS, PAD, **sizes).double()


def judged(keep, start=None, data=None, budget=10_000, **sampling):
    told = {"renderer": None, "budget": budget, "sampling": Sampling(max_new_tokens=4, **sampling)}
    return Judge((start or lm()).snapshot(), data or WORLD.data("train").data, keep, **told)


def view(student, by=None, *, copies=1, budget=10_000, split="test", **sampling):
    told = Sampling(max_new_tokens=4, **sampling)
    return View(
        players={"student": student},
        data=WORLD.data(split).data,
        sampling=told,
        copies=copies,
        budget=budget,
        judge=by,
    )


# ---- copies


@pytest.mark.parametrize("budget", [10_000, 30, 1])
def test_copies_stand_side_by_side_and_the_first_is_the_only_one_of_before(budget):
    many, one = view(lm(), copies=3, budget=budget), view(lm())
    answers = many.answers()
    assert len(answers) == 3 * len(many.data)
    assert answers[::3] == one.answers()
    assert answers[1::3] != answers[::3]
    done = 0
    for theirs, own in many.answered():
        assert own.size == 3 * theirs.size
        for i in range(own.size):
            tokens, prompt = own.ids[i][own.real[i]].tolist(), int(own.prompt[i])
            example = many.data.examples[int(theirs.id[i // 3])]
            assert int(own.id[i]) == int(theirs.id[i // 3])
            assert tuple(tokens[:prompt]) == example.prompt_ids
            assert tokens[prompt:] == answers[done]
            done += 1
    assert done == len(answers)


def test_numbers_of_copies_are_means_over_sets_of_one_answer_a_prompt():
    many = view(lm(), copies=2)
    told = generation.measure(many)
    halves = []
    for i in range(2):
        alone = view(lm())
        alone._answers = many.answers()[i::2]
        halves.append(generation.measure(alone))
    assert told == pytest.approx({k: (halves[0][k] + halves[1][k]) / 2 for k in told})


def test_a_critic_is_asked_of_every_copy():
    class Length(torch.nn.Module):
        def forward(self, batch):
            return batch.real.sum(1).double() ** 2

    many = view(lm(), copies=3)
    many.players = {**many.players, "critic": Length()}
    gaps = []
    for i, example in enumerate(many.data.examples):
        prompt, whole = len(example.prompt_ids), len(example.completion_ids)
        for answer in many.answers()[3 * i : 3 * i + 3]:
            gaps.append((prompt + whole) ** 2 - (prompt + len(answer)) ** 2)
    told = critic.measure(many)
    assert told["critic_gap"] == pytest.approx(sum(gaps) / len(gaps))
    wins = [1 if g > 0 else 0.5 if g == 0 else 0 for g in gaps]
    assert told["critic_accuracy"] == pytest.approx(sum(wins) / len(wins))


# ---- the judge


def features(model, pairs):
    """Means of the states after two of three layers over each answer, one text at a time."""
    body, found = cut(model.model, [0, 1]).base_model, []
    for prompt, answer in pairs:
        ids = torch.tensor([[*prompt, *answer]])
        states = body(input_ids=ids).last_hidden_state[0]
        found.append(states[len(prompt) :].mean(0))
    return torch.stack(found)


def pairs_of(seen):
    examples = [e for e in seen.data.examples for _ in range(seen.copies)]
    theirs = [(e.prompt_ids, e.completion_ids) for e in examples]
    own = [(e.prompt_ids, a) for e, a in zip(examples, seen.answers(), strict=True)]
    return theirs, own


@torch.no_grad()
@pytest.mark.parametrize("budget", [10_000, 1])
def test_its_numbers_are_those_worked_out_text_by_text(tmp_path, budget):
    start, student = lm(0), lm(1)
    seen = view(student, judged(Keep(tmp_path), start, budget=budget), copies=2, budget=budget)
    told = judge.measure(seen)
    began = View(players={"student": start}, data=WORLD.data("train").data)
    began.sampling = Sampling(max_new_tokens=4)
    weight, _ = fit(*(features(start, side) for side in pairs_of(began)), 10.0)
    theirs, own = (features(start, side) for side in pairs_of(seen))
    gap = (theirs - own) @ weight
    assert told["first_critic_gap"] == pytest.approx(float(gap.mean()), rel=1e-6)
    wins = (gap > 0).double() + (gap == 0).double() / 2
    assert told["first_critic_accuracy"] == pytest.approx(float(wins.mean()))
    nats, tokens = 0.0, 0
    for prompt, answer in pairs_of(seen)[1]:
        logp = start.model(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
        nats -= sum(float(logp[len(prompt) - 1 + k, t]) for k, t in enumerate(answer))
        tokens += len(answer)
    assert told["base_nll"] == pytest.approx(nats / tokens, rel=1e-9)
    assert judge.teacher(seen)["base_nll"] != pytest.approx(told["base_nll"], rel=1e-3)


def test_fresh_critics_judge_prompts_that_they_were_not_fitted_to():
    # each prompt's pairs differ in a feature of its own: known by heart, it tells nothing of others
    own_place = torch.eye(10).double().repeat_interleave(3, 0)
    nothing = torch.zeros(30, 10).double()
    assert judge.fresh(own_place, nothing, copies=3) == 0.5
    shared = torch.cat([own_place, torch.ones(30, 1).double()], 1)
    assert judge.fresh(shared, torch.zeros(30, 11).double(), copies=3) == 1.0
    # the first half tells them apart by one feature, the second by its contrary
    side = torch.tensor([1.0] * 15 + [-1.0] * 15).double()[:, None]
    assert judge.fresh(side, -side, copies=3) == 0.0


def test_it_is_fitted_once_for_all_that_start_alike(tmp_path):
    keep = Keep(tmp_path)
    one = judged(keep).critic[0]
    hotter = judged(keep, temperature=0.9)
    assert torch.equal(hotter.critic[0], one)
    assert torch.equal(hotter.critic[0], one)
    assert keep.made == 1
    assert not torch.equal(judged(keep, start=lm(5)).critic[0], one)
    data = WORLD.data("train").data
    assert not torch.equal(judged(keep, data=TextData(data.examples[1:], PAD)).critic[0], one)
    assert keep.made == 3
    anew = Keep(tmp_path / "anew")
    assert torch.equal(judged(anew, temperature=0.2).critic[0], one)
    assert anew.made == 1
    assert judge.won(torch.tensor([1.0, -2.0, 0.0, 3.0])) == (1 + 0 + 0.5 + 1) / 4


def test_it_reads_without_touching_the_start(tmp_path):
    start = lm()
    before = {k: v.clone() for k, v in start.state_dict().items()}
    by = judged(Keep(tmp_path), start)
    judge.measure(view(lm(1), by))
    assert all(torch.equal(v, before[k]) for k, v in start.state_dict().items())
    assert len(start.model.model.layers) == 3
    assert not by.start.training


def test_it_is_measured_on_the_test_split_alone(tmp_path):
    splits = {name: WORLD.data(name).data for name in ("validation", "test")}
    told = {"sampling": Sampling(max_new_tokens=4), "judge": judged(Keep(tmp_path)), "copies": 2}
    suite = Suite(["judge", "generation"], splits, **told)
    players = {"student": lm(1)}
    assert set(suite.measure(players, "validation")) == set(generation.COLUMNS)
    assert set(suite.measure(players, "test")) == {*judge.COLUMNS, *generation.COLUMNS}
    assert set(suite.columns("validation")) == set(generation.COLUMNS)
    assert suite.view(players, "validation").copies == 1
    assert suite.view(players, "test").copies == 2


def test_what_it_cannot_judge_is_told(tmp_path):
    with pytest.raises(Failure, match="language model"):
        judge.ready(view(lm()))
    few = view(lm(), judged(Keep(tmp_path)))
    few.data = TextData(few.data.examples[:1], PAD)
    with pytest.raises(Failure, match="two test prompts"):
        judge.ready(few)


# ---- in a run

RECIPE = {
    "name": "arms",
    "method": {"name": "gad", "group": 2, "warmup": 0.0, "pooled": {"replay": 16}},
    "student": {"lm": {"model_type": "windowed", "window": 2, "sinks": 5, "num_hidden_layers": 2}},
    "teacher": {"recorded": True},
    "data": {"world": {"name": "marked_orders", "prompts": 64}, "cut_completion_tokens": 5},
    "train": {"steps": 2, "batch": 4, "lr": 1e-3},
    "eval": {"every": 1, "metrics": ["likelihood", "judge"], "copies": 2, "samples": 1},
    "sampling": {"max_new_tokens": 5},
    "run": {"threads": 1},
    "arms": {
        "sft": {"method": {"name": "seqkd"}, "train": {"steps": 3, "batch": 8}},
        "warm": {
            "method": {"name": "seqkd"},
            "train": {"steps": 0},
            "sampling": {"temperature": 0.5},
        },
        "gad": {},
    },
}


@pytest.mark.slow
def test_all_arms_are_judged_by_one_critic_and_an_arm_of_no_steps_is_the_start(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    done = run(make(RECIPE, folder=tmp_path), tmp_path / "run")
    judges = (tmp_path / "cache" / "stages").glob("judge-*")
    assert len([place for place in judges if place.suffix != ".lock"]) == 1
    rows = {row["name"]: row["values"] for row in done.table}
    numbers = set(judge.COLUMNS)
    assert all(numbers <= set(rows[name]) for name in ("start", "sft", "warm", "gad"))
    assert set(rows["teacher"]) & numbers == {"base_nll"}
    # the same student at another temperature: its own texts alone are others
    warm, start = rows["warm"], rows["start"]
    assert warm["nll"] == start["nll"]
    assert warm["base_nll"] < start["base_nll"]
    assert done.results["warm"].info["steps"] == 0
    again = build(make(RECIPE, folder=tmp_path).arms["warm"])
    again.student.load(done.results["warm"].folder / "student")
    with torch.no_grad():
        told = again.suite.measure({"student": again.student}, "test")
    assert told == pytest.approx({k: v for k, v in warm.items() if k != "cpu_seconds"})


def test_a_run_cannot_be_stopped_by_what_only_the_test_split_tells(tmp_path):
    told = {**RECIPE, "eval": {**RECIPE["eval"], "stop": {"first_critic_gap": 1.0}}, "arms": {}}
    with pytest.raises(Failure, match=r"eval.stop.first_critic_gap: no metric gives"):
        build(make(told, folder=tmp_path))
