"""Recipes whose teacher is behind a server that scores tokens: live, kept, and probed before."""

import json
from pathlib import Path
from typing import Any

import liars
import pytest
import torch
import yaml
from servers import Server
from speakers import Canned, Model, tiny

import stillroom.store.arrays as arrays_module
from stillroom.cli import main
from stillroom.config.build import Parts, build
from stillroom.config.recipe import read
from stillroom.core import Failure
from stillroom.engine.training import train
from stillroom.losses.sparse import top_k
from stillroom.store.arrays import Arrays
from stillroom.teachers.served import Served
from stillroom.teachers.stored import Stored

pytest.importorskip("httpx2", reason="the extra 'api' is not installed")
pytestmark = pytest.mark.extra("api")

KEY = "sk-planted-0123456789abcdef"
ROWS = [
    {"prompt": f"say {i} {'very ' * (i % 3)}loud", "completion": f" {i} it is"} for i in range(8)
]
TOKENS = sum(len(row["prompt"]) + len(row["completion"]) + 1 for row in ROWS)
KD = {"name": "kd", "temperature": 1.0}


@pytest.fixture(scope="module")
def network():
    return tiny()


@pytest.fixture
def place(monkeypatch, tmp_path, network) -> Path:
    """A folder with the served model's tokenizer and rows of data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("STILLROOM_DEBUG", "")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("STILLROOM_DATA", raising=False)
    network[1].save_pretrained("tokenizer")
    rows(ROWS)
    return tmp_path


@pytest.fixture
def server(place, network):
    with Server(Model(*network, "tiny")) as running:
        yield running


def rows(told: list[dict[str, Any]]) -> None:
    Path("rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in told), encoding="utf-8")


def written(teacher: dict[str, Any], **more: Any) -> str:
    sizes = {"model_type": "windowed", "max_position_embeddings": 128}
    told = {
        "method": KD,
        "student": {"lm": sizes, "tokenizer": "tokenizer"},
        "teacher": teacher,
        "data": {"train": "rows.jsonl"},
        "sampling": {"max_new_tokens": 8},
        "train": {"steps": 3, "batch": 3, "tokens_per_micro": 64},
        **more,
    }
    Path("told.yaml").write_text(yaml.safe_dump(told), encoding="utf-8")
    return "told.yaml"


def recipe(teacher: dict[str, Any], **more: Any) -> Any:
    return read(written(teacher, **more))


def api(server: Server, **more: Any) -> dict[str, Any]:
    told = {"api": "openai:tiny", "base_url": server.url, "signals": "topk:5"}
    return {k: v for k, v in {**told, "tokenizer": "tokenizer", **more}.items() if v is not None}


def losses(job: Any, folder: Path) -> list[float]:
    train(job, folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss/student/loss"] for line in lines if "lr/student" in line]


def test_the_student_learns_from_a_server_on_its_own_answers(server, place):
    """gkd asks about sequences that no data hold."""
    job = build(recipe(api(server), method={"name": "gkd", "on_policy": 1.0}))
    assert isinstance(job.teachers["teacher"], Served)
    assert not server.asked
    found = losses(job, place / "run")
    assert len(found) == 3
    assert all(loss > 0 and torch.isfinite(torch.tensor(loss)) for loss in found)
    sent = [tuple(body["prompt"]) for _, body in server.seen]
    data = {(*e.prompt_ids, *e.completion_ids) for e in job.streams["train"].examples}
    assert len(sent) == 9
    assert not data & set(sent)
    held = [p for p in (place / "run").rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]
    assert not held


def test_training_from_kept_scores_is_training_from_the_server(server, place):
    live = losses(build(recipe(api(server))), place / "live")
    kept = build(recipe(api(server, store="store")))
    assert isinstance(kept.teachers["teacher"], Stored)
    assert losses(kept, place / "kept") == pytest.approx(live, rel=1e-3)
    server.speaker = Canned(str, "tiny")  # what is kept is not asked for again
    assert losses(build(recipe(api(server, store="store"))), place / "again") == pytest.approx(
        live, rel=1e-3
    )
    alone = {"signals": "topk:5", "store": "store"}
    assert losses(build(recipe(alone)), place / "alone") == pytest.approx(live, rel=1e-3)


def test_what_is_kept_is_what_the_model_behind_it_says(server, network):
    job = build(recipe(api(server, store="store")))
    batch = job.streams["train"].batch([5, 0, 3])
    told = job.teachers["teacher"](batch).sparse
    with torch.no_grad():
        flat = torch.cat([
            network[0](ids[real].unsqueeze(0)).logits[0]
            for ids, real in zip(batch.ids, batch.real, strict=True)
        ])  # fmt: skip
    starts = torch.tensor([0, *batch.real.sum(1).cumsum(0).tolist()])[batch.owner]
    own = top_k(flat[starts + batch.rows % batch.ids.shape[1]], 5)
    assert (told.ids == own.ids).all()
    torch.testing.assert_close(told.logp, own.logp, rtol=2**-10, atol=0)
    torch.testing.assert_close(told.tail, own.tail, rtol=2**-10, atol=0)


def test_what_was_scored_before_an_end_is_not_asked_again(server, monkeypatch):
    """A kill at the worst moment: after a shard's file, before its line."""
    monkeypatch.setattr(arrays_module, "SHARD", 1)  # a shard a sequence
    real, done = Arrays._write, []

    def write(self, file, tensors):
        if len(done) == 4:
            (self.folder / file).write_bytes(b"half")
            raise KeyboardInterrupt
        real(self, file, tensors)
        done.append(file)

    told = api(server, store="store", concurrency=1)
    monkeypatch.setattr(Arrays, "_write", write)
    with pytest.raises(KeyboardInterrupt):
        build(recipe(told))
    monkeypatch.setattr(Arrays, "_write", real)
    before = sum(server.asked.values())
    job = build(recipe(told))
    assert len(job.teachers["teacher"].arrays) == len(ROWS)
    assert sum(server.asked.values()) - before == len(ROWS) - 3  # the first array is the shared one


def test_a_budget_holds_over_all_runs_and_keeps_what_it_bought(server):
    bound = TOKENS // 2
    told = api(server, store="store", budget_tokens=bound, concurrency=2)
    for _ in range(2):  # the second has nothing left to spend
        with pytest.raises(Failure, match=r"the budget is reached: [\d,]+ tokens are spent"):
            build(recipe(told))
        spent = server.tokens.total()
        assert bound - 40 < spent <= bound
    most = TOKENS + len(ROWS)
    job = build(recipe(api(server, store="store", budget_tokens=most + spent)))
    assert len(job.teachers["teacher"].arrays) == len(ROWS)
    assert spent < most < server.tokens.total() <= most + spent


def test_a_live_budget_ends_the_run_before_it_is_passed(server, place):
    job = build(recipe(api(server, budget_tokens=100)))
    with pytest.raises(Failure, match="the budget is reached"):
        train(job, place / "run")
    assert 0 < server.tokens.total() <= 100


def test_a_live_budget_is_for_one_process(server, monkeypatch):
    monkeypatch.setattr("stillroom.config.served.Processes", lambda: type("P", (), {"world": 2}))
    build(recipe(api(server)))
    with pytest.raises(Failure, match="none counts what the others spend"):
        build(recipe(api(server, budget_tokens=100)))


def test_answers_that_the_data_lack_are_written_and_then_scored(server):
    rows([*ROWS[:3], {"prompt": "and now"}])
    told = {"sampling": {"max_tokens": 4, "temperature": 0.0}, "keep_truncated": True}
    job = build(recipe(api(server, store="store", endpoint="completions", **told)))
    assert len(job.streams["train"].examples) == 4
    assert len(job.teachers["teacher"].arrays) == 4
    kinds = [isinstance(body["prompt"], str) for _, body in server.seen]
    assert kinds == [True, False, False, False, False]


def test_a_check_asks_nobody(server):
    build(recipe(api(server)), Parts(ask=False))
    build(recipe(api(server, store="store")), Parts(ask=False))
    assert not server.asked


WRONG = {
    "hidden": ({"signals": "hidden"}, "a server gives topk:K alone, and hidden was asked for"),
    "sampled": ({"signals": "sampled:5", "store": "s"}, "and sampled:5 was asked for"),
    "no tokenizer": ({"tokenizer": None}, "name the one that the served model has"),
    "tokenizer alone": ({"signals": None}, "goes with a teacher's 'api' and 'signals' alone"),
    "all tokens": ({"signals": "topk:98"}, "topk:98: k must be between 1 and 97"),
    "none there": ({"tokenizer": "bare"}, "'bare' has no tokenizer that can be loaded"),
    "other words": ({"tokenizer": "other"}, "'other' has another tokenizer than the student"),
    "other words kept": ({"tokenizer": "other", "store": "s"}, "'other' has another tokenizer"),
    "two": ({"model": "tokenizer", "store": "s"}, "name one of teacher.model and teacher.api"),
    "no price": ({"budget_usd": 1.0}, "teacher.price"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_go_with_a_server_is_refused_before_it_is_asked(server, network, case):
    changes, says = WRONG[case]
    liars.other_words(network[1]).save_pretrained("other")
    Path("bare").mkdir()
    with pytest.raises(Failure, match=says):
        build(recipe(api(server, **changes)))
    assert not server.asked


def test_methods_that_need_more_and_a_view_are_refused(server):
    with pytest.raises(Failure, match="a temperature of 2 softens all scores"):
        build(recipe(api(server), method={"name": "kd", "temperature": 2.0}))
    with pytest.raises(Failure, match="features"):
        build(recipe(api(server), method="rkd"))
    tiny(seed=3)[0].save_pretrained("student")
    tiny()[1].save_pretrained("student")
    with pytest.raises(Failure, match="are of the whole vocabulary"):
        build(recipe(api(server), student={"model": "student", "vocab": "view", "view_size": 40}))
    assert not server.asked


def test_a_store_of_another_server_is_refused_with_what_differs(server):
    build(recipe(api(server, store="store")))
    with pytest.raises(Failure, match=r"base_url is 'http://127\.0\.0\.1:\d+/v1' there"):
        build(recipe(api(server, store="store", base_url="http://127.0.0.1:9/v1")))
    with pytest.raises(Failure, match=r"holds no topk:3 \(it holds: topk:5 of tiny\)"):
        build(recipe({"signals": "topk:3", "store": "store"}))


@pytest.fixture
def say(monkeypatch, capsys):
    """Gives words to ``stillroom``; returns whether it ended well, and what it said on both."""

    def told(*words: str) -> tuple[bool, str, str]:
        monkeypatch.setattr("sys.argv", ["stillroom", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, error = capsys.readouterr()
        return not ended.value.code, out, " ".join(error.split())

    return told


def asks(server: Server) -> list[str]:
    where = ["--teacher", "openai:tiny", "--base-url", server.url, "--tokenizer", "tokenizer"]
    return [*where, "--store", "store", "--signals", "topk:5"]


def test_scores_are_collected_for_a_file_or_a_recipe(server, say):
    well, out, _ = say("collect", "rows.jsonl", *asks(server))
    assert well
    assert "topk:5 of 8 sequences in store/signals/" in out
    assert sum(server.asked.values()) == 8
    assert {body["prompt_logprobs"] for _, body in server.seen} == {5}
    well, out, _ = say("collect", written(api(server)), *asks(server))
    assert well
    assert "told: topk:5 of 8 sequences" in out
    assert sum(server.asked.values()) == 8  # a file is read as a plain recipe reads it
    build(recipe({"signals": "topk:5", "store": "store"}))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--budget-tokens", "60"], "the budget is reached"),
        (["--budget-usd", "1"], "needs a price"),
        (["--budget-usd", "0.00001", "--price", "1,1"], "the budget is reached"),
        (["--price", "1"], "--price: expected IN,OUT"),
        (["--signals", "logits"], "a server gives topk:K alone"),
        (["--teacher", "tokenizer"], "go with --teacher openai:MODEL"),
        (["--key-env", "NO_SUCH_KEY"], "no key in the environment variable NO_SUCH_KEY"),
    ],
)
def test_collect_refuses_what_does_not_go(server, say, more, says):
    well, _, error = say("collect", "rows.jsonl", *asks(server), *more)
    assert not well
    assert says in error
    assert server.tokens.total() <= 60


def lines(out: str) -> dict[str, list[str]]:
    marks = ("passed", "FAILED")
    return {m: [line.split(":")[0] for line in out.splitlines() if m in line] for m in marks}


def test_a_live_check_of_a_truthful_server_passes(server, say):
    for told in (api(server), api(server, store="store")):
        well, out, _ = say("check", written(told), "--live")
        assert well
        assert (len(lines(out)["passed"]), lines(out)["FAILED"]) == (5, [])
        assert "Everything fits; no step was taken." in out


@pytest.mark.parametrize("lie", ["Shifted", "Renormalised", "Heated", "Few", "Deaf"])
def test_a_live_check_finds_a_liar_out_and_tells_all_lines_first(server, say, network, lie):
    server.speaker = getattr(liars, lie)(*network, "tiny")
    well, out, error = say("check", written(api(server)), "--live")
    assert not well
    told = lines(out)
    assert len(told["passed"] + told["FAILED"]) == 5
    assert f"the served teacher did not pass {len(told['FAILED'])} of its tests" in error
    assert told["FAILED"][0].removeprefix("FAILED ") in error
    assert "Everything fits" not in out


def test_without_live_nothing_is_asked_and_arms_share_one_probe(server, say):
    arms = {"a": {}, "b": {"train": {"steps": 2}}}
    well, out, _ = say("check", written(api(server), arms=arms))
    assert well
    assert not server.asked
    well, out, _ = say("check", written(api(server), arms=arms), "--live")
    assert well
    assert len(lines(out)["passed"]) == 5


def test_a_live_check_of_a_server_that_writes_shows_an_answer(server, say):
    server.speaker = Canned(lambda prompt: "[Paris], of course", "tiny")
    told = api(server, signals=None, tokenizer=None, store="store")
    well, out, _ = say("check", written(told, method="seqkd"), "--live")
    assert well
    assert "said '[Paris], of course'" in out
    assert sum(server.asked.values()) == 1
    server.faults = {"unauthorised": 1.0}
    well, _, error = say("check", written(told, method="seqkd"), "--live")
    assert not well
    assert "the server refuses the key in OPENAI_API_KEY" in error
    assert KEY not in error


def test_a_live_check_without_a_server_says_that_there_is_nothing_to_ask(place, say):
    well, out, _ = say("check", written({"recorded": True}, method="seqkd"), "--live")
    assert well
    assert "there is nothing to ask" in out
