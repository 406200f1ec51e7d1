"""Log-probabilities of given tokens, as a server's ``prompt_logprobs`` tell them (vLLM's form).

One entry a token of the prompt, null for the first. An entry maps ids to ``logprob``, ``rank`` and
``decoded_token`` of the K likeliest tokens given those before, and of the token that stands there
where it is none of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from stillroom.core import Failure, Sparse

Row = list[tuple[int, float]]
"""Ids and log-probabilities of the likeliest tokens at one place."""
SLACK = 1e-3
"""By how much rounded probabilities may sum to more than 1."""
BROKEN = "\N{REPLACEMENT CHARACTER}"
"""Stands in decoded tokens for bytes that are no character of their own."""
REST = 2.0**-24
"""The least that is left for all other tokens: single precision knows no better."""


def entries_of(choice: Mapping[str, Any], count: int) -> list[Any]:
    """The entries of a reply's choice for a prompt of ``count`` tokens.

    Raises:
        Failure: there are none, or not one a token.
    """
    told = choice.get("prompt_logprobs")
    if not isinstance(told, list):
        has = ", ".join(sorted(name for name, value in choice.items() if value is not None))
        raise Failure(
            f"the reply has no prompt_logprobs (it has: {has}), so this server tells nothing of "
            "given tokens; take one that does, as vLLM, or leave 'signals' out and learn from its "
            "text"
        )
    if len(told) != count:
        raise Failure(
            f"{len(told)} prompt_logprobs came for {count} tokens: the server added some (a BOS?) "
            "or left some out; ids must reach its model as they were sent"
        )
    return told


def largest(entry: Any, token: int, k: int, vocab: int) -> Row:
    """Ids and log-probabilities of an entry's ``k`` likeliest tokens, the likeliest first.

    Args:
        entry: of the place where ``token`` stands.
        token: which stands beside the ``k`` where it is none of them.
        k: how many were asked for.
        vocab: ids are below this.

    Raises:
        Failure: it is not as the protocol has it.
    """
    try:
        told = {int(i): float(one["logprob"]) for i, one in entry.items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise Failure(f"an entry is no map of ids to 'logprob': {entry!r:.120}") from None
    if strange := [i for i in told if not 0 <= i < vocab]:
        raise Failure(
            f"id {strange[0]} came, and the tokenizer has ids below {vocab}: name the one that "
            "the served model has as teacher.tokenizer"
        )
    if not all(p <= SLACK for p in told.values()):
        raise Failure(f"log-probabilities must be 0 at most, got {max(told.values())}")
    if token not in told:
        raise Failure(
            f"the entry at a token {token} tells nothing of it (it has {sorted(told)[:5]} ...): "
            "the entries stand at other places, or it is none of vLLM's form"
        )
    rest = {i: p for i, p in told.items() if i != token}
    if len(told) == k + 1 and told[token] <= min(rest.values()) + SLACK:
        told = rest
    if len(told) != k:
        raise Failure(
            f"{len(told)} tokens came where the {k} likeliest were asked for, and that which "
            "stands there: ask for as many as the server gives (vLLM: --max-logprobs)"
        )
    if (whole := math.fsum(map(math.exp, told.values()))) > 1 + SLACK:
        raise Failure(f"the probabilities of {k} tokens sum to {whole:.4f}: they are none")
    return sorted(told.items(), key=lambda pair: -pair[1])


def rows_of(
    choice: Mapping[str, Any], ids: Sequence[int], places: Iterable[int], k: int, vocab: int
) -> list[Row]:
    """What a reply to the prompt ``ids`` says of the token after each of ``places``.

    Raises:
        Failure: as ``entries_of`` and ``largest``.
    """
    told = entries_of(choice, len(ids))
    return [largest(told[i + 1], ids[i + 1], k, vocab) for i in places]


def sparse_of(rows: Sequence[Row], k: int, vocab: int) -> Sparse:
    """Rows of the ``k`` likeliest tokens as tensors (sparse top-k).

    ``ids`` [n, k], ``logp`` [n, k], and ``tail = log(1 - sum_k exp(logp))`` [n] in double
    precision, at least log(2^-24).
    """
    logp = torch.tensor([[p for _, p in row] for row in rows], dtype=torch.float64).view(-1, k)
    tail = (-torch.expm1(logp.logsumexp(-1))).clamp_min(REST).log()
    found = torch.tensor([[i for i, _ in row] for row in rows], dtype=torch.long).view(-1, k)
    return Sparse(ids=found, logp=logp.float(), tail=tail.float(), vocab=vocab)


def maps(entry: Any) -> bool:
    """Whether an entry maps ids to what is said of them."""
    return isinstance(entry, Mapping) and all(isinstance(one, Mapping) for one in entry.values())


def word(entry: Mapping[str, Any], i: int) -> str:
    """An id of an entry as the server decodes it."""
    return str(entry[str(i)].get("decoded_token"))


def written_of(choice: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a reply's choice says of the tokens that were written (``logprobs``).

    Raises:
        Failure: nothing.
    """
    found = choice.get("logprobs")
    first = found.get("top_logprobs") or [None] if isinstance(found, Mapping) else [None]
    if isinstance(found, Mapping) and isinstance(first[0], Mapping) and found.get("tokens"):
        return found
    raise Failure("the reply has no 'logprobs' of the tokens that were written")


def apart(few: Mapping[Any, float], many: Mapping[Any, float]) -> float:
    """Half the sum of |difference| of probabilities, over the tokens of the first."""
    return sum(abs(math.exp(p) - math.exp(many.get(i, -math.inf))) for i, p in few.items()) / 2


def alike(mine: str, theirs: Any) -> bool:
    """Whether two say the same token; a space before it and pieces of characters aside."""
    if BROKEN in mine:
        return True
    return isinstance(theirs, str) and theirs.lstrip(" ") == mine.lstrip(" ")
