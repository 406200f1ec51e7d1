"""Draft models for speculative decoding: which way of distilling gets more tokens accepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from stillroom.core import Diagnostic, Failure, Findings, Needs, Paper, Past
from stillroom.evaluation.drafting import COLUMNS as MEASURED
from stillroom.evaluation.drafting import GAMMA

COLUMNS: dict[str, tuple[str, str | None]] = {
    **MEASURED,
    "tokens_a_call": ("tokens a call of the target, reckoned from acceptance", "higher"),
    "speed_up": ("times as fast as the target alone", "higher"),
    "texts": ("different texts of the target that it learned from", None),
    "passes": ("over them", None),
}


@dataclass(frozen=True, kw_only=True)
class DomainDraft(Diagnostic):
    """Compares students as draft models: acceptance, tokens a call of the target, speed-up.

    The teacher p is the target that the student q drafts ``gamma`` tokens for. A token is accepted
    with probability ``alpha = mean sum_v min(p_v, q_v) = 1 - mean TV(p, q)``, on the target's own
    text; greedy decoding accepts ``1[argmax p = argmax q]``. If tokens were accepted independently,
    a call of the target would write ``tau = (1 - alpha^(gamma + 1)) / (1 - alpha)`` tokens, and
    decoding be ``tau / (1 + gamma c)`` times as fast. How many a call really writes is counted by
    the evaluator ``drafting``, for its own gamma.

    Runs are arms: the target's text alone (``seqkd``: black box) or all its scores (``kd``: white
    box); several passes over stored text (offline), or each query once (online). Each is held
    against the first.

    Differences: an online arm is one pass over the target's text in the order in which it came. The
    paper's draft proposes and the target verifies, which writes text of the same law. Gamma and
    cost are unconfirmed.

    Args:
        gamma: tokens of a draft.
        cost: c, the time of a step of the draft over that of a step of the target.
    """

    paper = Paper(
        "2503.07807", "Hong et al., 2025", "Training Domain Draft Models for Speculative Decoding: "
        "Best Practices and Insights"
    )  # fmt: skip
    needs = Needs(
        teacher={"logits"}, metrics={"acceptance", "greedy_acceptance", "block_efficiency"}
    )
    modality = "text"
    family = "draft-model"

    gamma: Annotated[int, Ge(1)] = 4
    cost: Annotated[float, Ge(0)] = 0.1

    def read(self, runs: Sequence[Past]) -> Findings:
        rows = {run.name: self._row(run) for run in runs}
        first, *others = rows
        base = rows[first]["acceptance"]
        sentences = [
            f"{name}: acceptance {rows[name]['acceptance']:.4f}, "
            f"{rows[name]['acceptance'] / base - 1:+.1%} beside {first}"
            for name in others
        ]
        best = max(rows, key=lambda name: rows[name]["speed_up"])
        sentences.append(
            f"{best} drafts best: {rows[best]['speed_up']:.2f} times as fast as the target alone, "
            f"where a step of the draft costs {self.cost:g} of the target's"
        )
        return Findings(COLUMNS, rows, sentences)

    def _row(self, run: Past) -> dict[str, float]:
        test, data = run.result["test"], run.result["data"]
        if missing := [name for name in MEASURED if name not in test]:
            raise Failure(
                f"{run.name}: its test split told no {', '.join(missing)}; add drafting to "
                "eval.metrics, and run it again"
            )
        told = {name: test[name] for name in MEASURED}
        if self.gamma != GAMMA:
            del told["block_efficiency"]
        tau = tokens_a_call(told["acceptance"], self.gamma)
        seen, there = run.result["steps"] * run.recipe["train"]["batch"], data["rows"]["train"]
        return {
            **told,
            "tokens_a_call": tau,
            "speed_up": tau / (1 + self.gamma * self.cost),
            "texts": min(seen, there),
            "passes": seen / there,
        }


def tokens_a_call(alpha: float, gamma: int) -> float:
    """``(1 - alpha^(gamma + 1)) / (1 - alpha) = 1 + alpha + ... + alpha^gamma``."""
    return sum(alpha**i for i in range(gamma + 1))
