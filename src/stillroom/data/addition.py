"""Addition digit by digit: a made-up text world with chains of thought and two tokenizers.

A row is a prompt ``47+85=``, its answer ``132``, and ``cot``, the same answer after the columns
from the right, each with what was carried: ``7+5=12;4+8+1=13;132``.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from stillroom.core import Failure

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, EOS = 0, 1
SIGNS = "0123456789+=;"
EVALUATED = 256
"""Rows of validation and of test."""

Row = dict[str, str]


@dataclass(frozen=True)
class Addition:
    """Sums of two numbers of as many digits each, zeros in front included.

    A tenth of all sums, drawn by ``world_seed``, is for validation and test, the others for
    training, so that what learns the one, with whatever seed, has not seen the other.

    Args:
        world_seed: draws which sums are never trained on.
        digits: of each number.
        rows: of the training split; validation and test have 256 each.
        chunk: digits that a token holds at most, from the left: 1 or 2.
        written: what the completion is; ``both`` has each training row twice, with the sum and
            with the chain of thought, for a teacher that has learned both.
    """

    world_seed: int = 0
    digits: int = 3
    rows: int = 4096
    chunk: int = 1
    written: Literal["sum", "cot", "both"] = "sum"

    def __post_init__(self) -> None:
        if not 2 <= self.digits <= 3:
            raise Failure(f"digits must be 2 or 3, got {self.digits}")
        if self.chunk not in (1, 2):
            raise Failure(f"chunk must be 1 or 2, got {self.chunk}")
        most = 10 ** (2 * self.digits) * 9 // 10
        if not 1 <= self.rows <= most:
            raise Failure(f"rows must be from 1 to {most}, got {self.rows}")

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A token a sign, or one for two digits that follow each other."""
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        pairs = ["".join(pair) for pair in itertools.product(SIGNS[:10], repeat=2)]
        words = ["<pad>", "<eos>", *SIGNS, *(pairs if self.chunk == 2 else [])]
        ids = {word: i for i, word in enumerate(words)}
        made = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))  # of other signs
        part = Regex(f"[0-9]{{{self.chunk}}}|.")
        made.pre_tokenizer = pre_tokenizers.Split(part, "isolated")
        made.decoder = decoders.ByteLevel()  # tokens end to end, and it tells their bytes
        return PreTrainedTokenizerFast(
            tokenizer_object=made,
            pad_token="<pad>",
            eos_token="<eos>",
            clean_up_tokenization_spaces=False,
        )

    def splits(self, seed: int) -> dict[str, list[Row]]:
        """Rows by split, drawn with ``1000 + seed``."""
        count = 10**self.digits
        parted = torch.randperm(count**2, generator=torch.Generator().manual_seed(self.world_seed))
        kept, trained = parted[: count**2 // 10], parted[count**2 // 10 :]
        draw = torch.Generator().manual_seed(1000 + seed)
        trained = trained[torch.randperm(len(trained), generator=draw)[: self.rows]]
        kept = kept[torch.randperm(len(kept), generator=draw)[: 2 * EVALUATED]]
        forms = ("sum", "cot") if self.written == "both" else (self.written,)
        train = [self._row(n, form) for n in trained.tolist() for form in forms]
        tests = [self._row(n, "sum") for n in kept.tolist()]
        return {"train": train, "validation": tests[:EVALUATED], "test": tests[EVALUATED:]}

    def _row(self, number: int, form: str) -> Row:
        texts = worked(*divmod(number, 10**self.digits), self.digits)
        return {**texts, "completion": texts["cot"] if form == "cot" else texts["completion"]}


def worked(a: int, b: int, digits: int) -> Row:
    """Prompt, answer and chain of thought of one sum.

    >>> worked(47, 85, 2)
    {'prompt': '47+85=', 'completion': '132', 'cot': '7+5=12;4+8+1=13;132'}
    """
    told = [f"{n:0{digits}}" for n in (a, b)]
    steps, carry = [], 0
    for x, y in zip(*(map(int, reversed(n)) for n in told), strict=True):
        total = x + y + carry
        steps.append(f"{x}+{y}{'+1' if carry else ''}={total}")
        carry = total // 10
    chain = ";".join([*steps, str(a + b)])
    return {"prompt": f"{told[0]}+{told[1]}=", "completion": str(a + b), "cot": chain}
