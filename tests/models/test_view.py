"""Views of the vocabulary against dense logits: losses, gradients, samples, what ships, errors."""

import copy
import json
import shutil
from dataclasses import dataclass

import pytest
import torch
import worlds
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from stillroom import catalogue
from stillroom.config.build import Parts, build
from stillroom.config.recipe import make
from stillroom.core import Failure, Head, Signals, Term
from stillroom.data.text import Example, Renderer, TextData
from stillroom.engine.settings import Optimizer
from stillroom.engine.training import train
from stillroom.evaluation.suite import Suite
from stillroom.losses.per_row import per_row
from stillroom.models import cut, text
from stillroom.models.heads import head_of
from stillroom.models.text import CausalLM
from stillroom.models.view import fit, narrow, narrowed
from stillroom.rollouts.sampling import Sampling, sample
from stillroom.teachers.local import Local
from stillroom.teachers.recorded import Recorded

V, PAD, EOS = 41, 0, 1
IDS = torch.tensor([0, 1, 4, 5, 9, 17, 18, 30, 40])
SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"max_position_embeddings": 32}


def model(kind="windowed", seed=1, width=8) -> CausalLM:
    """Both kinds compute in float64 throughout; the head of a gpt2 is its embedding."""
    more = {
        "windowed": {"intermediate_size": 16},
        "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    }
    torch.manual_seed(seed)
    made = text.build(kind, V, EOS, PAD, **SIZES | {"hidden_size": width} | more[kind]).double()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.3)
    return made


def data(seed=0, known=IDS[2:]) -> TextData:
    draw = torch.Generator().manual_seed(seed)
    examples = []
    for prompt, answer in worlds.LENGTHS:
        ids = known[torch.randint(len(known), (prompt + answer,), generator=draw)].tolist()
        examples.append(Example("", "", tuple(ids[:prompt]), (*ids[prompt:], EOS)))
    return TextData(examples, PAD)


def job(name, student, teacher=None, **changes):
    method = catalogue.load(name)
    told = {"optimizer": Optimizer(name="sgd"), "clip": None, "lr": 0.5, **changes}
    return worlds.job(
        method(**told.pop("fields", {})),
        worlds.World(kind="text", exact=True),
        student=student,
        teachers={"teacher": Recorded() if teacher is None else Local(teacher)},
        streams={"train": data()},
        **told,
    )


# ---- the oracle: all logits, those outside at -inf


@dataclass(frozen=True)
class Masked(Head):
    def finished(self, products: Tensor) -> Tensor:
        outside = torch.ones(V, dtype=torch.bool)
        outside[IDS] = False
        return super().finished(products).masked_fill(outside, -torch.inf)


class Dense(CausalLM):
    @property
    def head(self) -> Head:
        return Masked(**vars(head_of(self.model)))


def twins(kind="windowed", seed=1, width=8) -> tuple[CausalLM, CausalLM]:
    """The same weights twice: with a view, and dense with the other logits at -inf."""
    one = model(kind, seed, width)
    other = Dense(copy.deepcopy(one.model))
    narrow(one, IDS)
    other.model.get_output_embeddings().requires_grad_(False)
    return one, other


# ---- losses


def log_probs(hidden, head):
    """Log-probabilities over IDS, from logits of all tokens, with the formula written out."""
    z = hidden @ head.weight.T
    z = head.scale * (z if head.bias is None else z + head.bias)
    z = z if head.soft_cap is None else head.soft_cap * torch.tanh(z / head.soft_cap)
    p = torch.zeros_like(z)
    p[:, IDS] = z[:, IDS].exp()
    return (p[:, IDS] / p.sum(1, keepdim=True)).log()


def by_hand(name, student, teacher, labels):
    place = {int(token): i for i, token in enumerate(IDS)}
    at = torch.tensor([place[int(label)] for label in labels])
    ce = -student[torch.arange(len(at)), at]
    if name == "seqkd":
        return ce
    if name == "kd":  # at temperature 1
        return 0.7 * (teacher.exp() * (teacher - student)).sum(1) + 0.3 * ce
    middle = (0.25 * teacher.exp() + 0.75 * student.exp()).log()
    left, right = ((x.exp() * (x - middle)).sum(1) for x in (teacher, student))
    return 0.25 * left + 0.75 * right


FIELDS = {"kd": {"temperature": 1.0, "label_weight": 0.3}, "gkd": {"beta": 0.25}, "seqkd": {}}
HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.7},
    "soft-cap": {"soft_cap": 3.0},
    "all": {"bias": True, "scale": 1.3, "soft_cap": 4.0},
}


def draw(*shape, seed):
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return made.requires_grad_()


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("kind", HEADS)
def test_loss_and_gradient_are_those_of_renormalised_logits(name, kind):
    hidden, theirs = draw(7, 5, seed=0), draw(7, 6, seed=1)
    labels = IDS[torch.tensor([0, 3, 8, 2, 2, 5, 1])]
    told = HEADS[kind] | {"bias": draw(V, seed=2) if "bias" in HEADS[kind] else None}
    heads = Head(draw(V, 5, seed=3), **told), Head(draw(V, 6, seed=4), **told)
    mine, other = (head.narrowed(IDS) for head in heads)
    method = catalogue.load(name)(**FIELDS[name])
    batch = type("", (), {"labels": labels})
    found = method.loss(
        Signals(hidden=hidden, head=mine), Signals(hidden=theirs, head=other), batch, {}
    )
    assert isinstance(found, Term)
    wanted = by_hand(name, log_probs(hidden, heads[0]), log_probs(theirs, heads[1]), labels)
    torch.testing.assert_close(found.value, wanted, rtol=1e-12, atol=1e-12)
    factors = torch.linspace(-1, 2, 7, dtype=torch.float64)
    pairs = [
        torch.autograd.grad((factors * value).sum(), [hidden, theirs], allow_unused=True)
        for value in (found.value, wanted)
    ]
    for one, same in zip(*pairs, strict=True):
        assert (one is None) == (same is None)
        if one is not None:
            torch.testing.assert_close(one, same, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["kd", "gkd", "seqkd", "gad"])
@pytest.mark.parametrize("kind", ["windowed", "gpt2"])
def test_whole_steps_are_those_of_dense_logits(name, kind):
    teachers = (None, None) if name in ("seqkd", "gad") else twins(seed=2, width=12)
    told = {"gkd": {"on_policy": 1.0}, "gad": {"group": 2, "warmup": 0.3, "kl_weight": 0.1}}
    runs = [
        worlds.steps(job(name, one, teacher, fields=told.get(name, {})))
        for one, teacher in zip(twins(kind), teachers, strict=True)
    ]
    assert worlds.gap(runs[0].logs, runs[1].logs) < 1e-9
    begun = runs[0].states[0]["networks"]
    assert worlds.gap(begun, runs[1].states[0]["networks"]) == 0
    assert worlds.gap(begun["student"], runs[0].final["student"]) > 1e-2
    assert worlds.gap(runs[0].final, runs[1].final) < 1e-9
    head = "model.lm_head.weight"
    assert torch.equal(runs[0].final["student"][head], begun["student"][head])
    if kind == "windowed":
        embedding = "model.model.embed_tokens.weight"
        assert worlds.gap(begun["student"][embedding], runs[0].final["student"][embedding]) > 0


# ---- sampling


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 3.0},
        {"top_k": 3},
        {"top_p": 0.6},
        {"top_k": 5, "top_p": 0.9, "temperature": 0.7},
    ],
)
def test_samples_are_those_of_dense_logits(told):
    one, other = twins()
    prompts, ids = [[4, 5, 2, 3], [39], [9, 9]], torch.tensor([5, 2, 9])
    told = Sampling(max_new_tokens=12, **told)
    with narrowed(one):
        mine = sample(one, prompts, ids, 20, seed=3, sampling=told)
    assert mine == sample(other, prompts, ids, 20, seed=3, sampling=told)
    seen = {token for answer in mine for token in answer}
    assert seen <= set(IDS.tolist())
    assert len(seen) > (4 if told.temperature else 0)


def test_outside_of_training_all_tokens_are_drawn():
    one, _ = twins()
    whole = sample(one, [[4, 5]], IDS[:1], 50, seed=3, sampling=Sampling(max_new_tokens=12))
    assert {token for answer in whole for token in answer} - set(IDS.tolist())


# ---- evaluation and what ships


def measured(student, teacher, folder, **changes):
    made = job("gkd", student, teacher, lr=1.0, steps=4, every=2, samples=0, **changes)
    splits = {"validation": data(3), "test": data(4, torch.arange(2, V))}
    metrics = ("likelihood", "agreement", "generation")
    suite = Suite(metrics, splits, teachers=made.teachers, sampling=made.sampling)
    return train(type(made)(**{**vars(made), "suite": suite}), folder), suite


@torch.no_grad()
def measure(suite, student):
    return suite.measure({"student": student}, "test")


@torch.no_grad()
def teacher_of(suite, student):
    return suite.teacher({"student": student}, "test")


def test_evaluation_is_that_of_the_same_weights_without_a_view(tmp_path):
    one, teacher = model(), model(seed=2, width=12)
    narrow(one, IDS)
    narrow(teacher, IDS)
    result, suite = measured(one, teacher, tmp_path / "run")
    _, bare = measured(model(), model(seed=2, width=12), tmp_path / "bare")
    assert result.start == measure(bare, model())
    place = tmp_path / "run" / "student"
    loaded = CausalLM(AutoModelForCausalLM.from_pretrained(place, dtype=torch.float64))
    assert loaded.head.weight.shape == (V, 8)
    assert result.test == measure(bare, loaded)
    assert result.test["nll"] != result.start["nll"]
    assert teacher_of(suite, one) == teacher_of(bare, one)
    assert result.student.head.ids is None  # also in the hands of the caller


def test_what_is_saved_is_the_whole_model(tmp_path):
    one, bare = model(), model()
    before = one.state_dict().keys()
    narrow(one, IDS)
    with narrowed(one):
        one(data().batch([0]))
        assert one.state_dict().keys() == before
        one.save(tmp_path / "narrow")
    loaded = text.load(str(tmp_path / "narrow"))
    assert worlds.gap(dict(loaded.state_dict()), dict(bare.float().state_dict())) == 0
    assert loaded.view is None


def test_a_run_taken_up_again_is_the_unbroken_one(tmp_path):
    def made():
        one, teacher = twins()[0], twins(seed=2, width=12)[0]
        return job("gkd", one, teacher, steps=4, fields={"on_policy": 1.0})

    whole, again = worlds.broken_off(made, 2, tmp_path)
    assert worlds.gap(whole.final, again.final) == 0
    assert whole.logs[2:] == again.logs[2:]


# ---- cost


class Shapes(TorchDispatchMode):
    """Notes the shape of each tensor that is made while it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, torch.Size]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        outs = out if isinstance(out, tuple | list) else [out]
        self.seen += [(str(func), x.shape) for x in outs if isinstance(x, Tensor)]
        return out


def shapes_of_steps(student, teacher, view):
    method, batch = catalogue.load("kd")(), data().batch(range(4))
    found = []
    for _ in range(2):
        with narrowed(*[student, teacher][: 2 * view]), Shapes() as shapes:
            method.loss(student(batch), teacher(batch), batch, {}).value.sum().backward()
        student.zero_grad()
        found.append(shapes.seen)
    return found


def test_no_step_makes_all_columns_or_copies_the_rows_again():
    student, teacher = model("gpt2"), model("gpt2", seed=2, width=12)
    teacher.requires_grad_(False)
    narrow(student, IDS)
    narrow(teacher, IDS)
    wide = [shape for _, shape in shapes_of_steps(student, teacher, view=False)[1]]
    assert any(shape[-1:] == (V,) for shape in wide)  # what it looks for is there without a view
    first, second = shapes_of_steps(student, teacher, view=True)
    copies = [[s for op, s in part if "index" in op and len(s) == 2] for part in (first, second)]
    rows = [torch.Size([len(IDS), 8]), torch.Size([len(IDS), 12])]
    assert [s for s in copies[0] if s in rows] == rows
    assert not [s for s in copies[1] if s in rows]
    assert not [x for x in second if V in x[1]]


def test_rows_follow_the_head_where_it_is_written_to_and_belong_to_one_model():
    one, other = model(), model(seed=5)
    narrow(one, IDS)
    with narrowed(one):
        before = one.head.weight
        assert one.head.weight is before
        twin = copy.deepcopy(one)
        one.load_state_dict(other.state_dict())
        assert torch.equal(one.head.weight, other.head.weight[IDS])
        assert torch.equal(twin.head.weight, before)
        one.float()
        assert one.head.weight.dtype == torch.float32


# ---- when it is on


def test_it_is_on_within_the_block_alone():
    one, plain = model(), model(seed=2)
    narrow(one, IDS)
    outer = torch.nn.ModuleList([plain, one])
    assert one.head.ids is None
    with narrowed(outer, one):
        assert torch.equal(one.head.ids, IDS)
        assert plain.head.ids is None
        with narrowed(one):
            pass
        assert torch.equal(one.head.ids, IDS)
    assert one.head.ids is None
    with pytest.raises(ZeroDivisionError), narrowed(one):
        _ = 1 / 0
    assert one.head.ids is None


# ---- errors


def nothing(student, teacher, labels):
    return student.sum(-1)


def test_sides_with_other_tokens_are_refused():
    hidden = draw(2, 5, seed=0)
    head = Head(draw(V, 5, seed=1))
    sides = [
        Signals(hidden=hidden, head=head),
        Signals(hidden=hidden, head=head.narrowed(IDS)),
        Signals(hidden=hidden, head=head.narrowed(IDS[1:])),
        Signals(hidden=hidden, head=head.narrowed(IDS + torch.tensor([0] * 8 + [-1]))),
        Signals(logits=draw(2, V, seed=2)),
    ]
    for one in sides:
        for other in sides:
            if one is other or {"logits", "head"} <= set(one) | set(other):
                continue
            with pytest.raises(Failure, match="not the same ones; narrow both"):
                per_row(nothing, one, other, None)
    for one in sides[1:4]:
        with pytest.raises(Failure, match="the student scores all tokens and the teacher"):
            per_row(nothing, sides[4], one, None)
        same = Signals(hidden=hidden, head=head.narrowed(one["head"].ids.clone()))
        assert len(per_row(nothing, one, same, None)) == 2


@pytest.mark.parametrize("stranger", [2, 16, 39, 41, 1000])
def test_a_label_outside_is_refused(stranger):
    head = Head(draw(V, 5, seed=1)).narrowed(IDS)
    labels = torch.tensor([4, stranger, 40])
    with pytest.raises(Failure, match=rf"1 of 3 labels .* such as {stranger};"):
        per_row(nothing, Signals(hidden=draw(3, 5, seed=0), head=head), None, labels)


def test_logits_outside_of_per_row_are_refused():
    one = model()
    narrow(one, IDS)
    batch = data().batch([0])
    assert one(batch).logits.shape[1] == V
    with narrowed(one), pytest.raises(Failure, match="are not token ids"):
        _ = one(batch).logits


def unknown_head() -> CausalLM:
    inner = model().model
    inner.lm_head = torch.nn.Sequential(inner.lm_head)
    return CausalLM(inner)


def test_a_head_that_is_not_known_is_refused():
    with pytest.raises(Failure, match="not the matrix"):
        narrow(unknown_head(), IDS)
    with pytest.raises(Failure, match="not the matrix"):
        fit([model(), unknown_head()], [data()], renderer(), size=4)


# ---- which tokens


def tokenizer(size=V):
    names = ["pad", "eos", "unk", *(f"w{i}" for i in range(3, size))]
    made = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="unk"))
    made.pre_tokenizer = Whitespace()
    told = {"eos_token": "eos", "pad_token": "pad", "unk_token": "unk"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **told)


def renderer(stops=(EOS, 33)):
    return Renderer(tokenizer(), stops)


def texts(*pairs):
    return TextData([Example("", "", *pair) for pair in pairs], PAD)


def ids_of(size, *pairs, models=None, render=None):
    models = models or [model()]
    fit(models, [texts(pair) for pair in pairs], render or renderer(), size=size)
    assert all(torch.equal(one.view.ids, models[0].view.ids) for one in models)
    return models[0].view.ids.tolist()


def test_a_view_holds_text_stop_ids_and_special_tokens_and_is_filled_from_below():
    pairs = ((20, 7), (5, EOS)), ((40,), (7, 4, EOS))
    given = [0, 1, 2, 4, 5, 7, 20, 33, 40]
    assert ids_of(1, *pairs) == given
    assert ids_of(9, *pairs) == given
    assert ids_of(12, *pairs) == sorted([*given, 3, 6, 8])
    assert ids_of(1000, *pairs) == list(range(V))


def test_a_view_holds_what_all_models_have():
    short = renderer()
    short.tokenizer = tokenizer(38)
    assert ids_of(1000, ((5,), (1,)), render=short) == list(range(38))
    wide = Renderer(tokenizer(60), [EOS])
    wide.tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    assert ids_of(1000, ((5,), (1,)), render=wide) == list(range(V))
    padded = model()
    padded.model.resize_token_embeddings(50)
    assert ids_of(1000, ((5,), (1,)), models=[padded, model()], render=wide) == list(range(V))


def test_a_token_that_the_head_does_not_score_is_refused():
    with pytest.raises(Failure, match=f"token 50, but the head of .* has {V} rows"):
        ids_of(4, ((5, 50), (1,)))


# ---- recipes


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe whose student is a folder; ``section={...}`` replaces entries."""
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    rows = [{"prompt": "w5 w9", "completion": f"w{i} w17"} for i in (4, 18, 30)]
    held = [{"prompt": "w22", "completion": "w23"}]
    for name, told in {"train": rows, "test": held}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    config = AutoConfig.for_model(
        "llama", vocab_size=V, eos_token_id=EOS, pad_token_id=PAD, bos_token_id=None, **SIZES
    )
    for name in ("small", "large"):
        torch.manual_seed(len(name))
        config.num_hidden_layers = {"small": 2, "large": 3}[name]
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / name)
        tokenizer().save_pretrained(tmp_path / name)
    told = {
        "method": {"name": "kd"},
        "student": {"model": str(tmp_path / "small"), "vocab": "view", "view_size": 3},
        "teacher": {"model": str(tmp_path / "large")},
        "data": {"train": "train.jsonl", "test": "test.jsonl"},
        "train": {"steps": 2, "batch": 3, "lr": 0.01},
        "eval": {"metrics": ["likelihood", "agreement"], "every": None, "samples": 1},
        "sampling": {"max_new_tokens": 4},
    }

    def made(**sections):
        changed = {k: {**v, **sections.get(k, {})} for k, v in told.items()}
        return make({**sections, **changed}, folder=tmp_path)

    return made


SEEN = [0, 1, 2, 4, 5, 9, 17, 18, 30]


def test_a_recipe_narrows_student_and_teacher_to_its_training_text(recipe, tmp_path):
    made = build(recipe())
    teacher = made.teachers["teacher"].network
    assert made.student.view.ids.tolist() == teacher.view.ids.tolist() == SEEN
    assert build(recipe(student={"vocab": "full"})).student.view is None
    wider = build(recipe(student={"view_size": 11})).student.view.ids.tolist()
    assert wider == sorted([*SEEN, 3, 6])
    head = copy.deepcopy(made.student.head.weight)
    result = train(made, tmp_path / "run")
    assert torch.equal(result.student.head.weight, head)
    assert result.test["nll"] < 5  # of a word that the view lacks


def test_healing_and_the_search_over_layers_are_narrowed_too(recipe, tmp_path, monkeypatch):
    widths = []

    def watched(model, *args, **told):
        widths.append((len(model.head.weight), model.training))
        return search(model, *args, **told)

    search = cut.search
    monkeypatch.setattr("stillroom.config.students.search", watched)
    healed = []
    monkeypatch.setattr(
        "stillroom.config.build.train", lambda job, place: healed.append(job) or train(job, place)
    )
    told = {"from": str(tmp_path / "large"), "layers": "search", "keep": 2}
    changes = {"model": None, "cut": told, "heal": 1}
    made = build(recipe(student=changes))
    assert [width for width, _ in widths] == [len(SEEN)]
    assert [job.student.view.ids.tolist() for job in healed] == [SEEN]
    assert made.student.view.ids.tolist() == SEEN
    assert made.student.head.ids is None
    build(recipe(student=changes | {"view_size": 10}))
    assert [width for width, _ in widths] == [len(SEEN), 10]
    build(recipe(student=changes | {"vocab": "full"}))
    assert [width for width, _ in widths] == [len(SEEN), 10, V]


@pytest.mark.extra("lora")
def test_an_adapter_and_the_base_that_teaches_it_have_the_same_view(recipe, tmp_path):
    pytest.importorskip("peft")
    told = recipe(student={"lora": {"rank": 2}}, teacher={"model": None, "base": True})
    made = build(told)
    views = [one.view for one in (made.student, made.teachers["teacher"].network)]
    assert [view.ids.tolist() for view in views] == [SEEN, SEEN]
    result = train(made, tmp_path / "run")
    assert result.student.head.ids is None
    assert result.start["kl"] == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "student").vocab_size == V


def test_what_cannot_be_narrowed_is_refused_before_anything_is_made(recipe, tmp_path):
    with pytest.raises(Failure, match=r"student\.vocab: a view freezes the head"):
        build(recipe(student={"model": None, "lm": {"model_type": "llama"}}))
    parts = Parts(student=model(), teacher=Local(model()), splits={"train": data()})
    with pytest.raises(Failure, match=r"student\.vocab: a view is of text"):
        build(recipe(), parts)
    with pytest.raises(Failure, match=r"student\.vocab: the head of"):
        build(recipe(), Parts(student=unknown_head(), tokenizer=tokenizer()))
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
