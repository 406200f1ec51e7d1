"""Loss, d_hidden and d_head from given hidden states: ours, others', and the bare products."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import fresh, measure, write
from benchmarks.arms import Arm, Bare, present
from benchmarks.oracle import BOUNDS, Inputs, inputs, truth


@dataclass(frozen=True)
class Case:
    """What is measured together.

    ``units``: with the processor's own bfloat16 instructions. ``kept``: memory that was freed stays
    with the process.
    """

    rows: int
    vocab: int
    width: int
    divergences: tuple[str, ...]
    dtype: str = "float32"
    units: bool = True
    kept: bool = False

    @property
    def name(self) -> str:
        more = " without units" * (not self.units) + " kept" * self.kept
        sizes = f"V={self.vocab} d={self.width} N={self.rows}"
        return f"{'+'.join(self.divergences)} {sizes} {self.dtype}{more}"

    @property
    def env(self) -> dict[str, str]:
        """Of its process, beside what is the same for all."""
        return (fresh.KEPT if self.kept else {}) | ({} if self.units else fresh.WITHOUT_BF16)


DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")
WITH_LABELS = ("forward_kl", "forward_kl+labels")
FULL = [
    *(Case(n, 32_000, d, (f,)) for d in (2048, 640) for n in (256, 512) for f in DIVERGENCES),
    *(Case(128, 262_144, 640, (f,)) for f in DIVERGENCES),
    *(Case(n, v, 640, WITH_LABELS) for n, v in ((256, 32_000), (128, 262_144))),
    *(Case(n, v, 640, ("jsd",), kept=True) for n, v in ((256, 32_000), (128, 262_144))),
    *(
        Case(256, 32_000, 640, (f,), "bfloat16", units)
        for units in (False, True)
        for f in ("forward_kl", "jsd")
    ),
]
QUICK = [Case(16, 512, 32, (f,)) for f in DIVERGENCES]
QUICK += [Case(16, 512, 32, WITH_LABELS), Case(16, 512, 32, ("jsd",), "bfloat16", units=False)]


def main() -> None:
    """Measures all cases and writes ``head.json``."""
    told = measure.arguments(__doc__)
    cases = [case for case in (QUICK if told.quick else FULL) if told.only in case.name]
    done = []
    for case in cases:
        print(f"\n{case.name}", flush=True)
        found = fresh.call("head.measured", env=case.env, case=asdict(case), repeats=told.repeats)
        done.append({**asdict(case), **found})
        write.json_file(told.out / "head.json", {"what": __doc__, "cases": done})
    wrong = [d for d in done for arm in d["arms"] if arm["refused"] and arm["name"] == "stillroom"]
    if wrong:
        raise SystemExit(f"stillroom itself was refused: {json.dumps(wrong)}")


def measured(case: Mapping[str, Any], repeats: int, arms: Mapping[str, Arm] | None = None) -> Any:
    """Errors and times of every arm of a case (``arms``, or those that are installed)."""
    told = Case(**{**case, "divergences": tuple(case["divergences"])})
    x = inputs(told.rows, told.vocab, told.width, told.dtype)
    rows: list[dict[str, Any]] = []
    timed: dict[str, Callable[[], object]] = {}
    for divergence in told.divergences:
        checked = _checked(x, divergence, arms or present(divergence))
        for row in checked:
            _tell(row)
            if not row["refused"]:
                arm = (arms or present(divergence))[row["name"]]
                timed[f"{row['name']}: {divergence}"] = _timed(x, divergence, arm)
        rows += checked
    bare = Bare(x, torch.float32 if not told.units else x.hidden.dtype)
    spent = measure.interleaved({"bare": bare, **timed}, repeats)
    for row in rows:
        if not row["refused"]:
            took = spent[f"{row['name']}: {row['divergence']}"]
            row["seconds"] = measure.spread(took)
            row["ratio"] = measure.against(spent["bare"], took)
            less, _, label = row["divergence"].partition("+")
            if label and (alone := spent.get(f"{row['name']}: {less}")):
                row["alone"] = measure.against(alone, took)
            print(f"  {row['name']:15} {row['divergence']:18} {_words(row['ratio'])}")
    return {
        "arms": rows,
        "bare": {"seconds": measure.spread(spent["bare"]), "layouts": bare.layouts},
        "repeats": repeats,
        "environment": measure.environment(fresh.SAME_FOR_ALL | told.env),
    }


def _checked(x: Inputs, divergence: str, arms: Mapping[str, Arm]) -> list[dict[str, Any]]:
    """A row an arm: its errors against float64, and whether they are too large to be timed."""
    true, bound = truth(x, divergence), BOUNDS[x.hidden.dtype]
    rows = []
    for name, arm in arms.items():
        errors = true.errors(*gradients(x, divergence, arm))
        good = all(error <= bound for error in errors.values())  # a nan is no good
        rows.append(
            {
                "name": name,
                "divergence": divergence,
                "errors": errors,
                "bound": bound,
                "refused": not good,
            }
        )
    return rows


def gradients(x: Inputs, divergence: str, arm: Arm) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, d_hidden and d_head as a training step gets them: from no gradients to whole ones."""
    x.hidden.grad = x.weight.grad = None
    loss = arm(x, divergence)
    loss.backward()
    got: tuple[Any, Any] = (x.hidden.grad, x.weight.grad)
    x.hidden.grad = x.weight.grad = None
    return loss, *got


def _timed(x: Inputs, divergence: str, arm: Arm) -> Callable[[], object]:
    return lambda: gradients(x, divergence, arm)


def _tell(row: Mapping[str, Any]) -> None:
    errors = ", ".join(f"{name} {error:.1e}" for name, error in row["errors"].items())
    said = "REFUSED" if row["refused"] else "checked"
    print(f"  {said} {row['name']} {row['divergence']}: errors {errors}", flush=True)


def _words(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f} x bare ({ratio['low']:.2f} to {ratio['high']:.2f})"


if __name__ == "__main__":
    main()
