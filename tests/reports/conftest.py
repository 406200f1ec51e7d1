"""Run folders built by code, as the engine leaves them: one arm, and three arms."""

import json
import math
import random
from pathlib import Path

import pytest
import yaml

from stillroom.reports.html import write_report

STEPS = 600
HOSTILE = (
    "</div><script>alert(1)</script><img src=x onerror=alert(2)> & \x1b[31m \u202egnp.exe \ud800"
)
COLUMNS = {
    "nll": {"label": "nats a token, held out", "better": "lower"},
    "rouge_l": {"label": "ROUGE-L, held out", "better": "higher"},
    "length": {"label": "tokens an answer", "better": None},
    "kl": {"label": "nats a token, from the teacher", "better": "lower"},
}
ROWS = [
    {"name": "start", "kind": "start", "values": {"nll": 3.4412, "rouge_l": 0.0712, "length": 64}},
    {
        "name": "seqkd",
        "kind": "baseline",
        "values": {"nll": 2.0171, "rouge_l": 0.231, "length": 41.2},
    },
    {
        "name": "gad",
        "kind": "method",
        "values": {"nll": 2.1904, "rouge_l": 0.2885, "length": 38.75},
    },
    {"name": "teacher", "kind": "teacher", "values": {"nll": 1.5, "rouge_l": 0.41, "length": None}},
]
RECIPE = {
    "name": "copycat",
    "about": "A teacher of few words.\nTwo ways to learn from it.\n\nThe critic sees no logits.",
    "method": {"name": "gad", "group": 8, "warmup": 0.3},
    "student": {"model": None, "dtype": "float32", "lm": {"model_type": "gpt2", "n_layer": 2}},
    "teacher": {
        "recorded": False,
        "api": "big-model",
        "base_url": "https://me:hunter2@example.org/v1",
        "terms": "research | only",
    },
    "data": {
        "train": "prompts.jsonl",
        "test": None,
        "hold_out": 100,
        "columns": {},
        "licence": "CC-BY-4.0",
    },
    "train": {"steps": STEPS, "batch": 32, "lr": {"student": 1e-5, "critic": 1e-5}},
    "eval": {"every": 100, "metrics": ["likelihood", "generation"], "select": "nll"},
    "run": {"seed": 0, "out": "runs/first"},
}
LEDGER = {
    "files": [{"file": "prompts.jsonl", "rows": 4096, "sha256": "ab" * 32}],
    "rows": {"train": 3896, "validation": 100, "test": 100},
    "left_out": {},
    "licence": "CC-BY-4.0",
}
ENVIRONMENT = {
    "packages": {"torch": "2.13.0", "transformers": "5.23.0"},
    "dtype": "bf16",
    "threads": 2,
    "commit": None,
    "platform": "Linux x86_64",
}


def metrics(seed: int, method: str) -> list[dict]:
    """Log lines of a run: falling losses with noise, a critic for gad, evaluation every 100."""
    noise, lines = random.Random(seed), []
    for step in range(STEPS + 1):
        fall = math.exp(-step / (150 + 40 * seed))
        if step % 100 == 0:
            lines.append(
                {
                    "step": step,
                    "validation/nll": 2 + 1.44 * fall,
                    "validation/rouge_l": 0.3 - 0.2 * fall,
                    "validation/length": 38 + 26 * fall,
                    "time/evaluate": 2.5,
                }
            )
        if step == 0:
            continue
        line = {
            "step": step,
            "loss/student/loss": 1 + 2 * fall + noise.gauss(0, 0.15),
            "lr/student": 1e-5 * (1 - step / 700),
            "grad_norm/student": abs(noise.gauss(1, 0.2)),
            "time/teacher": 0.08,
            "time/train": 0.3,
        }
        if method == "gad":
            line |= {
                "loss/critic/loss": 0.69 * fall + 0.2,
                "lr/critic": 1e-5,
                "grad_norm/critic": 0.5,
                "time/generate": 0.9,
                "gad/critic_accuracy": 0.5 + 0.3 * (1 - fall) + noise.gauss(0, 0.05),
                "gad/reward": noise.gauss(0, 1) - fall,
            }
        lines.append(line)
    return lines


def samples(arm: str) -> list[dict]:
    poem = "First line\n    indented line\n\tand a tab"
    return [
        {
            "step": step,
            "prompt": prompt,
            "reference": f"The teacher says:\n{poem}",
            "student": "the the the the" if step == 0 else f"{arm} says:\n{poem}",
        }
        for step in (0, STEPS)
        for prompt in ("Write a short poem about rain, in three lines.", "What is 17 * 3?", HOSTILE)
    ]


def write_arm(path: Path, recipe: dict, seed: int) -> None:
    path.mkdir(parents=True)
    method = recipe["method"]["name"]
    result = {
        "steps": STEPS,
        "selected_step": 500,
        "seconds": 810.0,
        "cpu_seconds": 1502.25,
        "tokens": {"trained": 1_234_567, "generated": 210_000},
        "data": LEDGER,
    }
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    (path / "environment.json").write_text(json.dumps(ENVIRONMENT))
    (path / "result.json").write_text(json.dumps(result))
    (path / "metrics.jsonl").write_text(
        "".join(f"{json.dumps(m)}\n" for m in metrics(seed, method))
    )
    (path / "samples.jsonl").write_text("".join(f"{json.dumps(s)}\n" for s in samples(path.name)))
    (path / "student").mkdir()


def write_table(path: Path, rows: list[dict], notes: tuple[str, ...] = ()) -> None:
    table = {"rows": rows, "columns": COLUMNS, "notes": list(notes)}
    (path / "table.json").write_text(json.dumps(table))


def one_arm(path: Path) -> Path:
    write_arm(path, RECIPE, seed=0)
    write_table(path, ROWS, ("Table on 100 test prompts, greedy text.",))
    return path


def three_arms(path: Path) -> Path:
    path.mkdir()
    names = ("seqkd", "gad", "gad-cold")
    arms = {name: {"method": {"name": name.removesuffix("-cold")}} for name in names}
    recipe = {**{k: v for k, v in RECIPE.items() if k != "method"}, "name": "bakeoff", "arms": arms}
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    (path / "environment.json").write_text(json.dumps(ENVIRONMENT))
    write_table(path, ROWS, ("Table on 100 test prompts, greedy text.", "One seed."))
    for seed, name in enumerate(names):
        write_arm(path / "arms" / name, {**RECIPE, **arms[name]}, seed)
    return path


@pytest.fixture
def run_path(tmp_path: Path) -> Path:
    """A finished run of one arm, ``gad``."""
    return one_arm(tmp_path / "copycat")


@pytest.fixture
def arms_path(tmp_path: Path) -> Path:
    """A finished run of three arms."""
    return three_arms(tmp_path / "bakeoff")


@pytest.fixture(scope="session", params=[one_arm, three_arms], ids=["one arm", "three arms"])
def report(request, tmp_path_factory) -> Path:
    """The page of a run of either kind, drawn once; not to be changed."""
    return write_report(request.param(tmp_path_factory.mktemp("runs") / "run"))
