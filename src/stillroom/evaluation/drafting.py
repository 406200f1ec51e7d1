"""How well the student drafts for its teacher: what speculative decoding would accept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from stillroom.core import Batch, Failure, Signals, Teacher
from stillroom.data.text import collate, prompts_of
from stillroom.evaluation.suite import View, mean
from stillroom.losses.divergences import total_variation
from stillroom.losses.per_row import per_row
from stillroom.models.text import CausalLM
from stillroom.rollouts.sampling import Sampling, numbers, pick, sample, uniform
from stillroom.teachers.local import Local

GAMMA = 4
"""Tokens that are drafted before the teacher is called."""
PROMPTS = 64
"""Of the split, how many are answered by the loop."""
COLUMNS = {
    "acceptance": (
        "drafted tokens that are kept, sum_v min(p_v, q_v) on the teacher's text",
        "higher",
    ),
    "greedy_acceptance": ("likeliest token is the teacher's likeliest, on its own text", "higher"),
    "block_efficiency": (f"tokens a call of the teacher, drafts of {GAMMA}", "higher"),
}

Tokens = list[int]


def ready(view: View) -> None:
    """Raises Failure where the teacher gives no logits, or answers cannot be drafted."""
    teacher = view.teachers.get("teacher")
    if teacher is None or "logits" not in teacher.signals:
        raise Failure("eval.metrics: drafting compares logits, and this teacher gives none")
    told = view.sampling
    if told.temperature == 0 or told.max_new_tokens <= GAMMA:
        raise Failure(
            "eval.metrics: drafting samples at sampling.temperature, which must be above 0, and "
            f"answers of more than {GAMMA} tokens; got a temperature of {told.temperature:g} and "
            f"max_new_tokens {told.max_new_tokens}"
        )


def measure(view: View) -> dict[str, float]:
    """Acceptance by sampling, ``1 - TV(p, q)``, and greedy; tokens a call of the teacher.

    Means over the tokens of the teacher's text: its own samples to the prompts of the split where
    it is a language model in this process, else the data's answers, which are then its text. All at
    ``sampling.temperature``, without ``top_p`` and ``top_k``. Tokens a call are counted, not
    reckoned: the loop of ``drafted`` answers the first prompts of the split.
    """
    teacher, T = view.teachers["teacher"], view.sampling.temperature

    def kept(student: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        same = (student.argmax(-1) == target.argmax(-1)).to(student.dtype)
        return torch.stack([1 - total_variation(student / T, target / T), same], -1)

    said = [per_row(kept, view.student(b), teacher(b), b.labels) for b in _written(view, teacher)]
    prompts = [prompt for batch in view.batches() for prompt in prompts_of(batch)][:PROMPTS]
    id = torch.cat([batch.id for batch in view.batches()]).cpu()[:PROMPTS]
    answers, calls = drafted(view, prompts, id)
    return {
        "acceptance": mean([s[:, 0] for s in said]),
        "greedy_acceptance": mean([s[:, 1] for s in said]),
        "block_efficiency": sum(map(len, answers)) / calls,
    }


def _written(view: View, teacher: Teacher) -> Iterator[Batch]:
    """The teacher's text on the prompts of the split."""
    network = teacher.network if isinstance(teacher, Local) else None
    for batch in view.batches():
        if not isinstance(network, CausalLM):
            yield batch
            continue
        prompts = prompts_of(batch)
        told = sample(network, prompts, batch.id, seed=view.seed, sampling=_plain(view.sampling))
        pairs = list(zip(prompts, told, strict=True))
        yield collate(pairs, batch.id.cpu(), _pad(view)).to(batch.id.device)


def drafted(view: View, prompts: Sequence[Tokens], id: Tensor) -> tuple[list[Tokens], int]:
    """Answers by speculative decoding, and how many times the teacher was called for them.

    The student drafts ``GAMMA`` tokens, ``verified`` keeps some and adds one, and again, as long as
    a whole block has room in ``max_new_tokens`` and no stop id came.
    """
    answers: list[Tokens] = [[] for _ in prompts]
    most, stops, calls, turn = view.sampling.max_new_tokens, set(view.student.stop_ids), 0, 0
    while waiting := [
        i
        for i, answer in enumerate(answers)
        if len(answer) + GAMMA < most and not stops & set(answer[-1:])
    ]:
        texts = [[*prompts[i], *answers[i]] for i in waiting]
        for i, new in zip(waiting, _block(view, texts, id[waiting], turn), strict=True):
            answers[i] += new
        calls, turn = calls + len(waiting), turn + 1
    return answers, calls


def _block(view: View, texts: Sequence[Tokens], id: Tensor, turn: int) -> Iterator[Tokens]:
    """What one call of the teacher adds to each text; cut after a stop id."""
    seed = int(uniform(view.seed, turn) * 2**53)
    how = replace(_plain(view.sampling), max_new_tokens=GAMMA)
    drafts = sample(view.student, texts, id, seed=seed, sampling=how)
    # what stands after a draft that ended is cut off below, whatever becomes of it
    whole = [[*draft, *[_pad(view)] * (GAMMA + 1 - len(draft))] for draft in drafts]
    batch = collate(list(zip(texts, whole, strict=True)), id, _pad(view))

    def chances(speaker: Callable[[Batch], Signals]) -> Tensor:
        device = next(view.student.parameters()).device
        said = [speaker(part).logits for part in batch.to(device).split(view.budget)]
        scores = torch.cat(said).cpu().double() / view.sampling.temperature
        return scores.softmax(-1).unflatten(0, (len(texts), GAMMA + 1))

    target, draft = chances(view.teachers["teacher"]), chances(view.student)
    proposed = torch.tensor(whole)[:, :GAMMA]
    u = numbers(seed, id, 1, GAMMA + 1, 1)  # a stream of their own, beside that of the drafts
    kept, added = verified(target, draft[:, :GAMMA], proposed, u)
    stops = view.student.stop_ids
    for tokens, k, token in zip(whole, kept.tolist(), added.tolist(), strict=True):
        made = [*tokens[:k], token]
        yield made[: next((i + 1 for i, t in enumerate(made) if t in stops), len(made))]


def verified(target: Tensor, draft: Tensor, proposed: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """How many drafted tokens are kept [B], and the token that comes after them [B].

    Token ``v`` is kept with probability ``min(1, p_v / q_v)``; the first that is not is replaced by
    one of ``norm(max(p - q, 0))``, and after all of them one of p comes. What is written so has the
    law of p (Leviathan et al., arXiv 2211.17192; Chen et al., 2302.01318).

    Args:
        target: [B, g + 1, V] probabilities p of the teacher before and after each drafted token.
        draft: [B, g, V] probabilities q that the tokens were drafted by.
        proposed: [B, g] drafted tokens.
        u: [B, g + 1] uniform numbers; the last of each picks the token that comes after.
    """
    p, q = (side.gather(-1, proposed[..., None]).squeeze(-1) for side in (target[:, :-1], draft))
    count = (u[:, :-1] * q < p).long().cumprod(1).sum(1)
    own = torch.cat([draft, torch.zeros_like(draft[:, :1])], 1)  # after the last, p alone counts
    at = (torch.arange(len(count)), count)
    rest = (target[at] - own[at]).clamp_min(0)
    rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, target[at])  # equal but for rounding
    return count, pick(rest.log(), u[:, -1], Sampling())


def _plain(told: Sampling) -> Sampling:
    return replace(told, top_p=1.0, top_k=None)


def _pad(view: View) -> int:
    return view.renderer.pad_id if view.renderer else 0
