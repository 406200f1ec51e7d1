"""How well an adversarial method's critic tells held-out teacher text from the student's."""

from __future__ import annotations

import torch

from stillroom.evaluation.suite import View, mean

COLUMNS = {
    "critic_accuracy": ("critic prefers the teacher, held-out pairs", None),
    "critic_gap": ("critic's score, teacher minus student", None),
}


def measure(view: View) -> dict[str, float]:
    """Pairs that the teacher's answer wins over the student's, and the mean gap of their scores.

    Both answer the same prompt; a tie counts a half. Nothing for methods without a critic.
    """
    if "critic" not in view.players:
        return {}
    critic = view.players["critic"]
    gaps = [
        critic(theirs).repeat_interleave(view.copies) - critic(own)
        for theirs, own in view.answered()
    ]
    return {
        "critic_accuracy": mean([(torch.sign(gap) + 1) / 2 for gap in gaps]),
        "critic_gap": mean(gaps),
    }
