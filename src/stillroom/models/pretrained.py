"""Networks that others made: image classifiers of timm, sequence classifiers of transformers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from stillroom.extras import extra
from stillroom.failures import Failure

TIMM = "timm:"
"""What a name of timm begins with where a recipe tells of a model."""


@dataclass(frozen=True, kw_only=True)
class Timm:
    """A network of ``timm`` by name, its ends made to fit the data.

    Args:
        model: its name there, like ``resnet18`` or ``vit_tiny_patch16_224``.
        pretrained: whether it has the weights that timm downloads for it.
    """

    kind: ClassVar[str] = "timm"
    model: str
    pretrained: bool = False

    def make(self, shape: Any) -> nn.Module:
        """A module from ``x`` [B, channels, height, width] to logits [B, C]."""
        if len(shape.inputs) != 3:
            raise Failure(
                f"timm reads images [channels, height, width], and these examples are "
                f"{list(shape.inputs)}"
            )
        ends = {"in_chans": shape.inputs[0], "num_classes": shape.classes}
        return _of_timm(self.model, pretrained=self.pretrained, **ends)


class Worded(nn.Module):
    """A sequence classifier of ``transformers`` as a module from token ids [B, L] to logits [B, C].

    What is padding is told by its id, the config's ``pad_token_id``. Layers have the model's own
    names after ``model.``: ``model.bert.encoder.layer.0``.
    """

    def __init__(self, model: Any, tokenizer: Any = None) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        if model.config.pad_token_id is None:
            raise Failure("its config has no pad_token_id, by which padding is told from words")

    def forward(self, x: Tensor) -> Tensor:
        real = (x != self.model.config.pad_token_id).long()
        return self.model(input_ids=x, attention_mask=real).logits

    def save(self, folder: Path) -> None:
        """The model, and its tokenizer where it brought one, as ``from_pretrained`` loads them."""
        self.model.save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)


def known(name: str) -> bool:
    """Whether a name is timm's, or a folder holds a sequence classifier of transformers."""
    return name.startswith(TIMM) or any(
        one.endswith("ForSequenceClassification") for one in _config(name).get("architectures", ())
    )


def network(name: str, classes: int | None = None) -> nn.Module:
    """The module behind a name that is ``known``, or a folder of transformers, with its weights.

    Args:
        name: of timm, after ``timm:``, or a folder.
        classes: where it has another number, its head has fresh weights; None leaves it as it is.

    Raises:
        Failure: it cannot be loaded.
    """
    if name.startswith(TIMM):
        return _of_timm(name.removeprefix(TIMM), pretrained=True)
    told = {} if classes is None else {"num_labels": classes, "ignore_mismatched_sizes": True}
    try:
        model = AutoModelForSequenceClassification.from_pretrained(name, **told)
    except (OSError, ValueError) as error:
        raise Failure(f"{name}: transformers cannot load a classifier of it: {error}") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError):
        tokenizer = None  # the data name theirs
    return Worded(model, tokenizer)


def of_transformers(name: str) -> bool:
    """Whether a folder holds a model of transformers, of whatever kind."""
    return "model_type" in _config(name)


def _config(name: str) -> dict[str, Any]:
    file = Path(name) / "config.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _of_timm(name: str, **told: Any) -> nn.Module:
    package: Any = extra("timm", "timm", why=f"the network {name!r}")
    try:
        return package.create_model(name, **told)
    except RuntimeError as error:  # what timm raises for a name that it does not know
        raise Failure(f"timm:{name}: {error}") from error
