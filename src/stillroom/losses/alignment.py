"""Alignment across tokenizers: two tokenisations of one text, as byte offsets, to chunks.

Knows no tokenizer: what bytes an id stands for is told by ``data.spelling``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.core import Failure


def chunks(ends_a: Tensor, ends_b: Tensor) -> tuple[Tensor, Tensor]:
    """Chunks of tokens that cover the same bytes in two tokenisations (cross-tokenizer alignment).

    A chunk ends where a token ends on both sides, and nowhere between: the chunks are the finest
    that both tokenisations agree on. Chunk k has the tokens ``stops[k - 1]`` to before
    ``stops[k]``, with ``stops[-1] = 0``; each token is in one chunk. A token of no bytes (BOS,
    EOS) is a chunk of its own where both sides have it at the same place after the same number of
    such tokens; where one side alone has it, it belongs to the chunk after it, at the end to the
    last. Equal tokenisations give chunks of one token.

    ``ends_a`` [m], ``ends_b`` [n], the byte after each token, never falling -> ``stops_a`` [c],
    ``stops_b`` [c], rising; c = 0 where a side has no token.

    Raises:
        Failure: the two do not end at the same byte, so they are not of one text.
    """
    lengths = [int(ends[-1]) if len(ends) else 0 for ends in (ends_a, ends_b)]
    if lengths[0] != lengths[1]:
        raise Failure(
            f"alignment: one tokenisation covers {lengths[0]} bytes and the other {lengths[1]}; "
            "give both of the same text, and see 'stillroom show tokenizers' for texts that do "
            "not come back"
        )
    many = len(ends_a) + len(ends_b) + 1
    keys_a, keys_b = _numbered(ends_a, many), _numbered(ends_b, many)
    stops_a = torch.isin(keys_a, keys_b).nonzero().squeeze(1) + 1
    stops_b = torch.isin(keys_b, keys_a).nonzero().squeeze(1) + 1
    stops_a[-1:], stops_b[-1:] = len(ends_a), len(ends_b)
    return stops_a, stops_b


def _numbered(ends: Tensor, many: int) -> Tensor:
    """One number for a byte and how many tokens before end there too; below ``many`` of these."""
    place = torch.arange(len(ends), device=ends.device)
    return ends.long() * many + place - torch.searchsorted(ends, ends)


def chunk_logp(logp: Tensor, stops: Tensor) -> Tensor:
    """Log-probability of each chunk: the sum over its tokens (chain rule).

    ``log p(chunk k) = sum_{i = stops[k - 1]}^{stops[k] - 1} log p(token i | those before)``

    ``logp`` [m], in nats, ``stops`` [c] of the same side from ``chunks`` -> [c], at least float32.
    It is the probability that the model writes these tokens, and so at most that it writes these
    bytes, which others may spell too.
    """
    values = logp.to(torch.promote_types(logp.dtype, torch.float32))
    if not len(stops):  # of which segment_reduce finds no shortest
        return values[:0]
    lengths = stops.diff(prepend=stops.new_zeros(1))
    return torch.segment_reduce(values, "sum", lengths=lengths, axis=0)


def meeting(starts_a: Tensor, starts_b: Tensor) -> tuple[Tensor, Tensor]:
    """Places at which two tokenisations stand after the same bytes, and say what comes next.

    ``starts_a`` [m], ``starts_b`` [n], the byte before each place, never falling -> places of a
    [k] and of b [k], rising. Places after the same byte (a token of no bytes lies between) go
    together in order. Equal tokenisations meet everywhere.
    """
    many = len(starts_a) + len(starts_b) + 1
    keys_a, keys_b = _numbered(starts_a, many), _numbered(starts_b, many)
    places_a = torch.isin(keys_a, keys_b).nonzero().squeeze(1)
    return places_a, torch.isin(keys_b, keys_a).nonzero().squeeze(1)


def merged(logits: Tensor, classes: Tensor, count: int) -> Tensor:
    """Scores of classes of tokens: the log of what the tokens of each have together.

    ``z_c = log sum_{v in c} exp(z_v)``, so that ``softmax(z_c)`` are the classes' probabilities
    among all that have a class.

    ``logits`` [n, V], ``classes`` [W] in -1..count-1, each class at least once -> [n, count], in
    float32 or better. Columns from W on (a head that is padded), and tokens of class -1, are left
    out. Where each class is one token its score stays as it is, to the bit.
    """
    scores = logits[:, : len(classes)].to(torch.promote_types(logits.dtype, torch.float32))
    index = classes.masked_fill(classes < 0, count).expand_as(scores)
    most = scores.new_full((len(scores), count + 1), -torch.inf)
    most = most.scatter_reduce(-1, index, scores.detach(), "amax")
    shares = (scores - most.gather(-1, index)).exp()
    sums = torch.zeros_like(most).scatter_add(-1, index, shares)
    return (sums.log() + most)[:, :count]
