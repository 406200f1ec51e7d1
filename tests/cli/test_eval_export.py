"""``eval``, ``compare`` and ``export`` on tiny models: what they print, write and refuse."""

import json
import os
import stat
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stillroom import api
from stillroom.cli import main
from stillroom.config.recipe import make

LM = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
}
ROWS = [
    {"prompt": f"say {i}:", "completion": f" well, {i} and {i + 1} #### {i + 2}"} for i in range(24)
]
needs_torchmetrics = pytest.mark.skipif(not find_spec("torchmetrics"), reason="no extra 'eval'")


def lines(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with rows and two finished runs, ``a`` and ``b``, the latter of two arms."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "rows.jsonl").write_text(lines(ROWS))
    (folder / "rows.jsonl.ledger.json").write_text(json.dumps({"dropped": {"refusal": 2}}))
    told = {
        "method": "seqkd",
        "student": {"lm": LM, "vocab_size": 320},
        "teacher": {"recorded": True},
        "data": {"train": "rows.jsonl", "hold_out": 4},
        "train": {"steps": 3, "batch": 4, "lr": 0.01},
        "eval": {"every": 2, "samples": 2, "metrics": ["likelihood"]},
        "sampling": {"max_new_tokens": 8},
    }
    arms = {"slow": {"train": {"lr": 1e-3}}, "fast": {"train": {"lr": 0.1}}}
    for name, more in {"a": {}, "b": {"arms": arms}}.items():
        api.run(make({**told, "name": name, **more}, folder=folder), folder / name)
    return folder


@pytest.fixture
def say(monkeypatch, capsys, tmp_path, place):
    """Gives words to the command line in an empty folder beside the runs; code, out and err."""
    for name in ("a", "b", "rows.jsonl"):
        (tmp_path / name).symlink_to(place / name)
    monkeypatch.chdir(tmp_path)
    for name in ("STILLROOM_DATA", "LLAMA_CPP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))

    def told(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stillroom", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return told


def well(told: tuple[int, str, str]) -> str:
    code, out, err = told
    assert code == 0, err
    return out


def refused(told: tuple[int, str, str], *words: str) -> None:
    code, _, err = told
    assert code == 2
    for word in words:
        assert word in err, err


# eval


def loss(folder: Path, rows) -> tuple[float, float]:
    """Nats a token and bits a byte of the answers, by transformers' own loss."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    total, count, size = 0.0, 0, 0
    for row in rows:
        prompt, answer = (tokenizer(row[c]).input_ids for c in ("prompt", "completion"))
        answer = [*answer, tokenizer.eos_token_id]
        labels = torch.tensor([[-100] * len(prompt) + answer])
        with torch.no_grad():
            mean = model(input_ids=torch.tensor([prompt + answer]), labels=labels).loss
        total += float(mean) * len(answer)
        count += len(answer)
        size += len(row["completion"].encode())
    return total / count, total / size / 0.6931471805599453


@needs_torchmetrics
def test_eval_measures_a_run_on_a_file(say, place):
    told = json.loads(
        well(say("eval", "a", "--data", "rows.jsonl", "--max-new-tokens", "6", "--json"))
    )
    student, teacher = told["rows"]
    nll, bits = loss(place / "a" / "student", ROWS)
    assert student["values"]["nll"] == pytest.approx(nll, rel=1e-5)
    assert student["values"]["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    assert student["values"]["length"] <= 6
    for name in ("perplexity", "exact_match", "rouge_l", "bleu", "distinct_2"):
        assert name in student["values"]
        assert name in told["columns"]
    assert "answer_match" not in told["columns"]
    assert set(teacher["values"]) == {
        "length",
        "eos_rate",
        "distinct_1",
        "distinct_2",
        "repetition",
    }
    assert told["data"]["rows"]["test"] == len(ROWS)


def test_eval_prints_a_table_and_writes_its_numbers(say, tmp_path):
    words = ("--data", "rows.jsonl", "--metrics", "exact_match, likelihood", "--limit", "5")
    words = (*words, "--max-new-tokens", "8", "--out", "told.json")
    out = well(say("eval", "b/arms/fast", *words, "eval.answer='#+ (.*)'"))
    for word in ("perplexity ↓", "answer_match ↑", "fast", "5 rows of rows.jsonl", "greedy"):
        assert word in out
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["recipe"]["eval"]["answer"] == "#+ (.*)"


def test_eval_holds_a_model_against_a_live_teacher(say):
    words = ("--data", "rows.jsonl", "--metrics", "agreement,likelihood", "--json")
    same = json.loads(well(say("eval", "a", *words, "--teacher", "a")))["rows"]
    assert same[0]["values"]["kl"] == pytest.approx(0, abs=1e-6)
    assert same[0]["values"]["agreement"] == 1
    assert same[0]["values"]["nll"] == same[1]["values"]["nll"]
    other = json.loads(well(say("eval", "a", *words, "--teacher", "b/arms/fast")))["rows"]
    assert other[0]["values"]["kl"] > 1e-3


def test_eval_refuses_a_teacher_with_another_tokenizer(say, tmp_path, place):
    for part in (AutoModelForCausalLM, AutoTokenizer):
        part.from_pretrained(place / "a" / "student").save_pretrained(tmp_path / "other")
    file = tmp_path / "other" / "tokenizer.json"
    told = json.loads(file.read_text())
    vocab = told["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    file.write_text(json.dumps(told))
    words = ("--data", "rows.jsonl", "--metrics", "agreement", "--teacher", "other")
    refused(say("eval", "a", *words), "teacher.model: 'other' has another tokenizer")


def test_eval_answers_are_greedy_unless_told(say):
    def lengths(*more: str) -> dict:
        words = ("--data", "rows.jsonl", "--metrics", "generation", "--max-new-tokens", "6")
        return json.loads(well(say("eval", "a", *words, "--json", *more)))["rows"][0]["values"]

    assert lengths("--seed", "1") == lengths("--seed", "2")
    drawn = ("--temperature", "1")
    assert lengths(*drawn, "--seed", "1") != lengths(*drawn, "--seed", "2")


def test_eval_of_columns_with_other_names(say, tmp_path):
    renamed = [{"question": row["prompt"], "answer": row["completion"]} for row in ROWS]
    (tmp_path / "other.jsonl").write_text(lines(renamed))
    columns = "data.columns={prompt: '{{ question }}', completion: '{{ answer }}'}"
    words = ("--metrics", "likelihood", "--json")
    one = json.loads(well(say("eval", "a", "--data", "other.jsonl", *words, columns)))
    other = json.loads(well(say("eval", "a", "--data", "rows.jsonl", *words)))
    assert one["rows"] == other["rows"]


WRONG = {
    "no model": (
        ("./nowhere", "--data", "rows.jsonl"),
        ["./nowhere"],
    ),
    "no file": (("a", "--data", "row.jsonl"), ["there is no file row.jsonl"]),
    "an unknown metric": (
        ("a", "--data", "rows.jsonl", "--metrics", "likelyhood"),
        ["no 'likelyhood'", "did you mean 'likelihood'?"],
    ),
    "a number's name": (
        ("a", "--data", "rows.jsonl", "--metrics", "bleu"),
        ["no 'bleu'; 'overlap' gives this number"],
    ),
    "no answers to compare with": (
        ("a", "--data", "asked.jsonl"),
        ["asked.jsonl, line 1", "'completion'"],
    ),
    "a run of several arms": (
        ("b", "--data", "rows.jsonl"),
        ["several arms", "b/arms/fast, b/arms/slow"],
    ),
    "agreement with nobody": (
        ("a", "--data", "rows.jsonl", "--metrics", "agreement"),
        ["agreement compares logits"],
    ),
    "neither data nor tasks": (("a",), ["--data", "--lm-eval"]),
    "both": (("a", "--data", "rows.jsonl", "--lm-eval", "x"), ["--data", "--lm-eval"]),
    "a folder to write into": (("a", "--data", "rows.jsonl", "--out", "a"), ["--out: a"]),
    "a folder that is not there": (
        ("a", "--data", "rows.jsonl", "--out", "x/y.json"),
        ["--out: x/y.json"],
    ),
    "an answer longer than the model reads": (
        ("a", "--data", "long.jsonl", "--metrics", "likelihood"),
        ["long.jsonl, line 1", "context of 96", "max_completion_tokens"],
    ),
    "a negative temperature": (
        ("a", "--data", "rows.jsonl", "--temperature", "-1"),
        ["sampling.temperature", "greater than or equal to 0"],
    ),
    "changes of a task's data": (
        ("a", "--lm-eval", "x", "data.form=alpaca"),
        ["data.form=alpaca", "--data"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_eval_refuses(say, tmp_path, case):
    (tmp_path / "asked.jsonl").write_text(lines([{"prompt": "say"}]))
    (tmp_path / "long.jsonl").write_text(lines([{"prompt": "say", "completion": "word " * 200}]))
    words, told = WRONG[case]
    refused(say("eval", *words), *told)


def test_eval_of_a_run_that_has_no_student_yet(say, tmp_path):
    (tmp_path / "young").mkdir()
    (tmp_path / "young" / "recipe.yaml").write_text("name: young\n")
    refused(say("eval", "young", "--data", "rows.jsonl"), "young is a run without a student yet")


# lm-eval

TASK = """
task: parrot
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{ prompt }}}}"
doc_to_choice: [" well, 0", " zzz"]
doc_to_target: 0
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.mark.slow
@pytest.mark.extra("harness")
@pytest.mark.filterwarnings("ignore")  # other people's
def test_lm_eval_measures_our_model_on_a_local_task(say, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="the extra 'harness' is not installed")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    (tmp_path / "tasks").mkdir()
    file = (tmp_path / "rows.jsonl").resolve()
    (tmp_path / "tasks" / "parrot.yaml").write_text(TASK.format(file=file))
    refused(say("eval", "a", "--lm-eval", "parot", "--include", "tasks"), "did you mean 'parrot'?")
    refused(say("eval", "a", "--lm-eval", "parrot", "--include", "none"), "--include", "none")
    words = ("eval", "a", "--lm-eval", "parrot", "--include", "tasks", "--limit", "4")
    out = well(say(*words, "--out", "told.json"))
    assert "|parrot|" in out.replace(" ", "")
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["n-samples"]["parrot"]["effective"] == 4
    wanted = [likelier(tmp_path / "a" / "student", row["prompt"]) for row in ROWS[:4]]
    assert told["results"]["parrot"]["acc,none"] == sum(wanted) / 4


def likelier(folder: Path, prompt: str) -> bool:
    """Whether the first choice is likelier than the second, all its tokens counted."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    scores = []
    for choice in (" well, 0", " zzz"):
        before, after = tokenizer(prompt).input_ids, tokenizer(choice).input_ids
        logits = model(torch.tensor([before + after])).logits[0].log_softmax(-1)
        places = range(len(before) - 1, len(before) + len(after) - 1)
        scores.append(sum(float(logits[i, t]) for i, t in zip(places, after, strict=True)))
    return scores[0] > scores[1]


# compare


def test_compare_prints_a_table_and_writes_a_page(say, tmp_path):
    out = well(say("compare", "a", "b", "--out", "both.html"))
    for word in (
        "b/slow",
        "b/fast",
        "nll ↓",
        "cpu_seconds",
        "tokens",
        "train.lr",
        "page: both.html",
    ):
        assert word in out
    assert "Test data differ" not in out  # the same rows were held out
    assert "data A" not in out
    page = (tmp_path / "both.html").read_text()
    assert "b/fast" in page
    assert "validation/nll" in page


def test_compare_tells_apart_what_was_tested_on_other_rows(say, tmp_path):
    told = {
        "method": "seqkd",
        "student": {"model": "a"},
        "teacher": {"recorded": True},
        "data": {"train": "rows.jsonl", "hold_out": 3},
        "train": {"steps": 1, "batch": 2},
        "eval": {"metrics": ["likelihood"], "samples": 0},
    }
    api.run(make({**told, "name": "c"}, folder=tmp_path), tmp_path / "c")
    out = well(say("compare", "a", "c"))
    assert "Test data differ" in out
    assert (tmp_path / "compare.html").is_file()


def test_compare_refuses(say, tmp_path):
    (tmp_path / "young").mkdir()
    (tmp_path / "young" / "recipe.yaml").write_text("method: seqkd\n")
    refused(say("compare", "a", "young"), "young is unfinished", "result.json")
    refused(say("compare", "a", "rows.jsonl"), "no run folder")
    refused(say("compare", "a", "a"), "given twice")
    refused(say("compare", "a", "b", "--out", "rows.jsonl"), "--out", ".html")
    assert not (tmp_path / "compare.html").exists()


# export


def test_card_of_a_run_tells_how_its_answers_were_collected(place):
    card = (place / "a" / "student" / "README.md").read_text()
    assert "How the answers in rows.jsonl were collected:" in card
    assert "| dropped.refusal | 2 |" in card
    assert "library_name: transformers" in card


FRESH = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
model, tokenizer = (c.from_pretrained(folder) for c in (AutoModelForCausalLM, AutoTokenizer))
ids = tokenizer("say 3:", return_tensors="pt").input_ids
print(model.dtype, model.generate(ids, max_new_tokens=12, do_sample=False)[0].tolist())
"""


def greedy(folder: Path) -> str:
    asked = [sys.executable, "-c", FRESH, str(folder)]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_export_says_the_same_in_a_fresh_process(say, tmp_path, place):
    assert "out loads with from_pretrained" in well(say("export", "a", "--out", "out"))
    assert greedy(tmp_path / "out") == greedy(place / "a" / "student")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "generation_config.json", "tokenizer.json", "README.md"} <= names
    assert "dropped.refusal | 2" in (tmp_path / "out" / "README.md").read_text()


def test_export_changes_the_type_of_the_weights(say, tmp_path, place):
    well(say("export", "a", "--out", "half", "--dtype", "bfloat16"))
    made, whole = (AutoModelForCausalLM.from_pretrained(p) for p in ("half", place / "a/student"))
    assert made.dtype == torch.bfloat16
    for one, other in zip(made.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other.bfloat16())


def test_export_of_a_bare_model_says_that_nothing_is_known(say, tmp_path, place):
    bare = tmp_path / "bare"
    for part in (AutoModelForCausalLM, AutoTokenizer):
        part.from_pretrained(place / "a" / "student").save_pretrained(bare)
    well(say("export", str(bare), "--out", "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: unknown" in card
    assert "Written from bare by stillroom" in card
    assert str(tmp_path) not in card


def test_export_refuses(say, tmp_path, place):
    (tmp_path / "there").mkdir()
    refused(say("export", "a", "--out", "there"), "there is there already")
    refused(say("export", "./nowhere", "--out", "out"), "cannot load the model './nowhere'")
    refused(say("export", "b", "--out", "out"), "several arms")
    model = AutoModelForCausalLM.from_pretrained(place / "a" / "student")
    model.model.norm.weight.data[0] = 1e6
    AutoTokenizer.from_pretrained(place / "a" / "student").save_pretrained(tmp_path / "loud")
    model.save_pretrained(tmp_path / "loud")
    refused(say("export", "loud", "--out", "out", "--dtype", "float16"), "norm", "bfloat16")
    assert list((tmp_path / "there").iterdir()) == []
    assert left(tmp_path) == {"loud", "there"}


def left(folder: Path) -> set[str]:
    """What lies in the folder of a test beside what was there."""
    return {p.name for p in folder.iterdir()} - {
        "a",
        "b",
        "rows.jsonl",
        "bin",
        "llama.cpp",
        "cache",
    }


CONVERTER = """#!{python}
import json, pathlib, sys
folder, *words = sys.argv[1:]
told = dict(zip(words[::2], words[1::2]))
config = json.loads((pathlib.Path(folder) / "config.json").read_text())
if {fails}:
    pathlib.Path(told["--outfile"]).write_text("half")
    print("loading", file=sys.stderr)
    sys.exit("ERROR: LlamaForCausalLM is too small")
pathlib.Path(told["--outfile"]).write_text(f"GGUF {{config['hidden_size']}} {{told['--outtype']}}")
"""


def converter(folder: Path, *, fails: bool) -> None:
    folder.mkdir()
    file = folder / "convert_hf_to_gguf.py"
    file.write_text(CONVERTER.format(python=sys.executable, fails=fails))
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def test_export_to_gguf_by_a_converter_on_the_path(say, tmp_path, monkeypatch):
    converter(tmp_path / "bin", fails=False)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    well(say("export", "a", "--out", "out", "--to", "gguf", "--dtype", "float16"))
    assert (tmp_path / "out" / "out.gguf").read_text() == "GGUF 16 f16"
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"out.gguf", "README.md"}
    assert left(tmp_path) == {"out"}


def test_export_to_gguf_by_the_folder_that_is_named(say, tmp_path, monkeypatch):
    converter(tmp_path / "llama.cpp", fails=False)
    monkeypatch.setenv("LLAMA_CPP", "llama.cpp")
    well(say("export", "a", "--out", "out", "--to", "gguf"))
    assert (tmp_path / "out" / "out.gguf").read_text() == "GGUF 16 f32"


def test_converter_that_fails_leaves_nothing_and_is_quoted(say, tmp_path, monkeypatch):
    converter(tmp_path / "llama.cpp", fails=True)
    monkeypatch.setenv("LLAMA_CPP", "llama.cpp")
    told = say("export", "a", "--out", "out", "--to", "gguf")
    refused(told, "exit status 1", "LlamaForCausalLM is too small", "nothing was written")
    assert left(tmp_path) == set()


def test_without_a_converter_it_says_how_to_get_one(say, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    told = say("export", "a", "--out", "out", "--to", "gguf")
    refused(told, "git clone https://github.com/ggml-org/llama.cpp", "--outfile out.gguf")
    monkeypatch.setenv("LLAMA_CPP", "elsewhere")
    refused(say("export", "a", "--out", "out", "--to", "gguf"), "LLAMA_CPP is elsewhere")
    assert left(tmp_path) == set()
