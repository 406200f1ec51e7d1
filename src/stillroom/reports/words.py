"""Recipe sections, durations and sample texts in the words of a reader."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any


def visible(text: Any) -> str:
    """Text that is safe to write: lone surrogates and control characters become escapes.

    Line feeds and tabs stay. Marks that turn the direction of writing are shown, not obeyed.
    """
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in {"Cc", "Cs", "Cf"} or c in "\u200c\u200d"
        else c.encode("unicode_escape", "surrogatepass").decode()
        for c in str(text).replace("\r\n", "\n")
    )  # fmt: skip


def pairs(value: Any) -> str:
    """A section in one line, without what is absent or empty: ``lm tiny, vocab_size 512``."""
    if isinstance(value, Mapping):
        told = {key: inner for key, inner in value.items() if inner not in (None, {}, [], "")}
        return ", ".join(f"{key} {_inner(inner)}" for key, inner in told.items())
    if isinstance(value, list | tuple):
        return ", ".join(_inner(item) for item in value)
    return str(value)


def _inner(value: Any) -> str:
    return f"({pairs(value)})" if isinstance(value, Mapping | list | tuple) else str(value)


def student(spec: Any) -> str:
    """``google/gemma-3-270m cut to 4 layers`` or ``a new gpt2 (n_layer 2, n_embd 64)``.

    And how it came by from there: healed, by adapters, on a part of the vocabulary.
    """
    if not isinstance(spec, Mapping):
        return pairs(spec) if spec else "not named"
    told = [_base(spec)]
    if heal := spec.get("heal"):
        told.append(f"healed for {heal['steps'] if isinstance(heal, Mapping) else heal} steps")
    if near := spec.get("near"):
        told.append(f"moved by {near:g} of the way towards the teacher's weights")
    if lora := spec.get("lora"):
        told.append(f"learned by LoRA adapters of rank {lora.get('rank')}, merged into the weights")
    if spec.get("vocab") == "view":
        told.append("learned on the part of its vocabulary that occurs, with a frozen head")
    return ", ".join(told)


def _base(spec: Mapping[str, Any]) -> str:
    if cut := spec.get("cut"):
        layers = cut.get("layers")
        kept = f"{len(layers)} layers" if isinstance(layers, list) else f"layers {layers}"
        kept = f"{cut['keep']} layers that a search chose" if layers == "search" else kept
        return f"{cut.get('from', 'the teacher')} cut to {kept}"
    if lm := spec.get("lm"):
        sizes = {key: size for key, size in lm.items() if key != "model_type"}
        return f"a new {lm.get('model_type', 'language model')} ({pairs(sizes)})"
    if net := spec.get("net"):
        sizes = {key: size for key, size in net.items() if key != "kind"}
        return f"a new {net.get('kind', 'network')}{f' ({pairs(sizes)})' if sizes else ''}"
    if trained := spec.get("trained"):
        return f"{student(trained.get('student'))}, trained first"
    return str(spec.get("model") or pairs(spec))


def teachers(recipe: Mapping[str, Any]) -> str:
    """One teacher, several with their names, or none."""
    if several := recipe.get("teachers"):
        return "; ".join(f"{name}: {teacher(spec)}" for name, spec in several.items())
    return teacher(recipe.get("teacher"))


def teacher(spec: Any) -> str:
    """``gpt-5 through its API``, a model's name, or ``recorded answers``."""
    if not isinstance(spec, Mapping):
        return str(spec or "none")
    if spec.get("api"):
        return f"{spec['api']} through its API"
    if spec.get("recorded"):
        return "recorded answers"
    if spec.get("base"):
        return "the student's base model, its adapter off"
    if spec.get("adapter"):
        return f"the adapter {spec['adapter']} on the student's base model"
    if spec.get("world"):
        return "the made-up world itself"
    if decay := spec.get("average"):
        return f"the student's own moving average (decay {decay:g})"
    if trained := spec.get("trained"):
        return f"{student(trained.get('student'))}, trained first"
    return str(spec.get("model") or "none")


def files(recipe: Mapping[str, Any], ledger: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Data of a training: ``file``, and ``rows`` and ``sha256`` where the run counted them."""
    data = recipe.get("data") or {}
    named = [data[split] for split in ("train", "validation", "test") if data.get(split)]
    made = [f"made-up world {data['world'].get('name')}"] if data.get("world") else []
    return list(ledger.get("files") or ()) or [{"file": name} for name in named + made]


def data(recipe: Mapping[str, Any], ledger: Mapping[str, Any]) -> str:
    """``2,048 train, 256 test rows of orders.jsonl``."""
    sizes = ", ".join(f"{rows:,} {split}" for split, rows in (ledger.get("rows") or {}).items())
    names = ", ".join(str(entry["file"]) for entry in files(recipe, ledger)) or "none"
    return f"{sizes} rows of {names}" if sizes else names


def paragraphs(about: Any) -> list[str]:
    """The recipe's free text, parted at empty lines."""
    text = "\n".join(map(str, about)) if isinstance(about, list) else str(about or "")
    return [part.strip() for part in text.split("\n\n") if part.strip()]


def duration(seconds: float) -> str:
    """``3.4 s``, ``20 min 34 s``, ``2 h 05 min``."""
    if seconds < 59.95:  # what would round to 60.0 is a minute
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def flat(value: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Nested mappings as dotted names and texts, without what is absent."""
    found: list[tuple[str, str]] = []
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            found += flat(inner, f"{before}{key}.")
        elif inner is not None:
            found.append((f"{before}{key}", pairs(inner)))
    return found
