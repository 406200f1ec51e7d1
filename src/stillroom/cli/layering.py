"""``stillroom show layers``: names, kinds and shapes of a network's layers, or of a recipe's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

from stillroom.failures import Failure

EXAMPLES = 2
"""How many are read; the first axis of a shape is B where it is as long."""


def layers(names: Sequence[str], *, as_json: bool) -> None:
    """Print the layers that methods can read features of, by the names that fields take."""
    from rich.console import Console
    from rich.table import Table

    from stillroom.models.layers import layers as found

    if len(names) != 1:
        raise Failure(
            "show layers: give one recipe, saved folder or model: stillroom show layers "
            f"RECIPE.yaml; got {', '.join(names) or 'none'}"
        )
    told = {who: found(model, batch) for who, model, batch in _networks(names[0])}
    if as_json:
        plain = {who: [vars(layer) for layer in own] for who, own in told.items()}
        typer.echo(json.dumps(plain, indent=2))
        return
    for who, own in told.items():
        table = Table("layer", "kind", "says", title=who, title_justify="left", box=None)
        for layer in own:
            table.add_row(layer.name, layer.kind, _spoken(layer.shape))
        Console().print(table)


def _spoken(shape: Sequence[int] | None) -> str:
    if shape is None:
        return "nothing"
    first, *rest = shape or (0,)
    return f"[{', '.join(['B' if first == EXAMPLES else str(first), *map(str, rest)])}]"


def _networks(name: str) -> Iterator[tuple[str, Any, Any]]:
    """Who speaks, the network, and examples that it can read."""
    from stillroom.config.recipe import PACKAGED
    from stillroom.models import classes
    from stillroom.models.sources import resolved

    if Path(name).suffix in (".yaml", ".yml") or (PACKAGED / f"{name}.yaml").is_file():
        yield from _of_recipe(name)
        return
    source = resolved(name)
    if classes.saved(source):
        yield name, *_classifier(Path(source))
    else:
        yield name, *_language_model(source)


def _of_recipe(name: str) -> Iterator[tuple[str, Any, Any]]:
    """Student and teachers in this process; what is trained first has its shape alone."""
    from stillroom.config.build import Parts, build
    from stillroom.config.recipe import read
    from stillroom.teachers.local import Local
    from stillroom.teachers.routed import each

    job = build(read(name), Parts(ask=False), ready=False)
    batch = job.streams["train"].batch(range(min(EXAMPLES, len(job.streams["train"]))))
    yield "student", job.student, batch
    for who, teacher in each(job.teachers):
        if isinstance(teacher, Local):
            yield who, teacher.network, batch


def _classifier(folder: Path) -> tuple[Any, Any]:
    import torch

    from stillroom.core import Batch
    from stillroom.models import classes

    made: Any = classes.load(folder)
    x = torch.zeros(EXAMPLES, *made.network.told["inputs"])
    return made, Batch(x=x, id=torch.arange(EXAMPLES))


def _language_model(source: str) -> tuple[Any, Any]:
    import torch

    from stillroom.data.text import collate
    from stillroom.models import text

    model = text.load(source)
    pairs = [([model.stop_ids[0]], [model.stop_ids[0]])] * EXAMPLES
    return model, collate(pairs, torch.arange(EXAMPLES), model.stop_ids[0])
