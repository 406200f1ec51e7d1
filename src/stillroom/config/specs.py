"""What a recipe says of networks, teachers and data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A model by hub name or folder; the options go to ``from_pretrained``.

    ``lm`` makes a language model with fresh weights from a config instead: ``model_type`` (of
    ``transformers``, or ``windowed``) and its sizes. Its tokenizer is a byte-level BPE of
    ``vocab_size`` entries trained on the training text, or the one named.
    """

    model: str | None = None
    dtype: Dtype = "float32"
    revision: str | None = None
    device_map: str | None = None
    trust_remote_code: bool = False
    lm: dict[str, Any] | None = None
    vocab_size: Annotated[int, Ge(300)] = 4096
    tokenizer: str | None = None


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """``recorded: true`` (its answers are the data's completions), or a model in this process."""

    recorded: bool = False
    model: str | None = None
    dtype: Dtype = "float32"
    revision: str | None = None
    device_map: str | None = None
    trust_remote_code: bool = False
    terms: str | None = None
    """Under which terms the teacher's text or weights may be used; shown in the model card."""


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Where the rows come from and which are kept.

    Files are sought as given, beside the recipe, and under ``STILLROOM_DATA``.

    Args:
        train: JSON Lines with ``prompt`` and ``completion``, or ``messages``.
        validation: a file of the same kind; or ``hold_out`` rows of ``train``.
        test: likewise.
        hold_out: rows that become validation, and as many that become test.
        columns: Jinja templates that make ``prompt`` and ``completion`` from other columns.
        max_prompt_tokens: longer prompts are left out, and counted.
        max_completion_tokens: longer answers, the end token included, are left out, and counted.
        world: a made-up world instead of files (``marked_orders``), and its options.
        licence: shown in the model card.
    """

    train: str | None = None
    validation: str | None = None
    test: str | None = None
    hold_out: Annotated[int, Ge(1)] | None = None
    columns: dict[str, str] = field(default_factory=dict)
    max_prompt_tokens: Annotated[int, Ge(1)] | None = None
    max_completion_tokens: Annotated[int, Gt(1)] | None = None
    world: dict[str, Any] | None = None
    licence: str | None = None
