"""Arrays by key, in checksummed shards that are mapped into memory: append-only."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stillroom.failures import Failure
from stillroom.store.locks import writing
from stillroom.store.requests import Identity, digest

SHARD = 2**25
"""Bytes that are gathered before a shard is written: what a kill can cost."""
KEY = 16
"""Bytes of a key."""


class Arrays:
    """Arrays that one source made, under keys; entries of several lengths stand end to end.

    ``identity.json`` says what they depend on. A shard is written aside and moved into place, then
    listed with its checksum in ``shards.jsonl``; one that is not listed is none. ``shared`` arrays
    belong to all entries. Checksums are compared once, when the folder is opened.

    Args:
        root: folder of all sources; this one has its own in it, named by the hash of ``identity``.
        identity: all that the arrays depend on, as plain values.

    Raises:
        Failure: a shard was changed.
    """

    def __init__(self, root: Path, identity: Identity) -> None:
        self.identity = identity
        self.folder = root / digest(identity)[:16]
        self._places: dict[bytes, tuple[str, int]] = {}
        self._open: dict[str, tuple[Any, dict[str, list[int]]]] = {}
        for line in self._lines():
            file = self.folder / line["file"]
            if file.is_file():  # else it was taken away: its entries are not there
                self._take(file, line)

    @staticmethod
    def all(root: Path) -> list[Identity]:
        """Sources whose arrays are in a folder."""
        files = sorted(root.glob("*/identity.json"))
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def length(self, name: str) -> int:
        """Of an array, all entries end to end."""
        return sum(ends[name][-1] for _, ends in self._open.values())

    @property
    def nbytes(self) -> int:
        """Of the shards on disk."""
        return sum(file.stat().st_size for file in self.folder.glob("[0-9]*.safetensors"))

    def read(self, keys: Sequence[bytes]) -> dict[str, Tensor]:
        """The arrays of entries, end to end in the order of ``keys``; KeyError where one is not."""
        found: dict[str, list[Tensor]] = {}
        for key in keys:
            name, at = self._places[key]
            shard, ends = self._open[name]
            for array, stops in ends.items():
                part = shard.get_slice(array)[stops[at - 1] if at else 0 : stops[at]]
                found.setdefault(array, []).append(part)
        return {name: torch.cat(parts) for name, parts in found.items()}

    def shared(self) -> dict[str, Tensor]:
        """The arrays of all entries; raises Failure where they were changed or are gone."""
        lines = [line for line in self._lines() if line["file"] == "shared.safetensors"]
        if not lines:
            return {}
        file = self.folder / "shared.safetensors"
        if not file.is_file():
            raise Failure(f"{file} is gone; delete {self.folder} and collect it anew")
        _compare(file, lines[-1])
        with safe_open(file, "pt") as held:
            return {name: held.get_tensor(name) for name in held.offset_keys()}

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        """Takes new entries; what was taken is written when the block ends, however it does.

        Raises:
            Failure: another process writes there.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with writing(self.folder):
            _replace(self.folder / "identity.json", json.dumps(self.identity, indent=1) + "\n")
            lines = {line["file"]: json.dumps(line) + "\n" for line in self._lines()}
            _replace(self.folder / "shards.jsonl", "".join(lines.values()))  # none half written
            for file in self.folder.glob("*.safetensors"):
                if file.name not in lines:  # what a kill left
                    file.unlink()
            writer = Writer(self)
            try:
                yield writer
            finally:
                writer.flush()

    def _lines(self) -> list[dict[str, Any]]:
        file = self.folder / "shards.jsonl"
        if not file.is_file():
            return []
        whole = file.read_text(encoding="utf-8").split("\n")[:-1]  # a kill may leave half a line
        return [json.loads(line) for line in whole]

    def _take(self, file: Path, line: Mapping[str, Any]) -> None:
        _compare(file, line)
        if file.name == "shared.safetensors":
            return
        shard = safe_open(file, "pt")
        names = [
            name for name in shard.offset_keys() if name != "keys" and not name.startswith("ends/")
        ]
        keys = shard.get_tensor("keys").numpy().tobytes()
        ends = {name: shard.get_tensor(f"ends/{name}").tolist() for name in names}
        self._open[file.name] = (shard, ends)
        for at in range(len(keys) // KEY):
            self._places[keys[at * KEY : (at + 1) * KEY]] = (file.name, at)

    def _write(self, file: str, tensors: dict[str, Tensor]) -> None:
        aside, place = self.folder / f".{file}.writing", self.folder / file
        save_file(tensors, aside)
        os.replace(aside, place)
        line = {"file": file, "sha256": _sha256(place)}
        with (self.folder / "shards.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        self._take(place, line)


class Writer:
    """Gathers entries into shards."""

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays
        self.entries: list[tuple[bytes, Mapping[str, Tensor]]] = []
        self.size = 0

    def share(self, tensors: Mapping[str, Tensor]) -> None:
        """Arrays that belong to all entries, written once."""
        if not (self.arrays.folder / "shared.safetensors").is_file():
            self.arrays._write("shared.safetensors", {k: _plain(t) for k, t in tensors.items()})

    def add(self, key: bytes, arrays: Mapping[str, Tensor]) -> None:
        """One entry; every one has the same names, and may have other lengths."""
        self.entries.append((key, arrays))
        self.size += sum(array.nbytes for array in arrays.values())
        if self.size >= SHARD:
            self.flush()

    def flush(self) -> None:
        """Writes what was gathered."""
        if not self.entries:
            return
        keys = b"".join(key for key, _ in self.entries)
        told = {"keys": torch.frombuffer(bytearray(keys), dtype=torch.uint8).view(-1, KEY)}
        for name in self.entries[0][1]:
            parts = [arrays[name] for _, arrays in self.entries]
            told[name] = _plain(torch.cat(parts))
            told[f"ends/{name}"] = torch.tensor([len(part) for part in parts]).cumsum(0)
        numbers = [int(file.stem) for file in self.arrays.folder.glob("[0-9]*.safetensors")]
        self.arrays._write(f"{max(numbers, default=-1) + 1:06}.safetensors", told)
        self.entries, self.size = [], 0


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


def _compare(file: Path, line: Mapping[str, Any]) -> None:
    """Raises Failure where a file is not what was written."""
    try:
        same = _sha256(file) == line["sha256"]
        if same:
            safe_open(file, "pt")
    except (OSError, SafetensorError) as error:
        raise Failure(f"{file} cannot be read: {error}") from error
    if not same:
        raise Failure(
            f"{file} is not what was written: its checksum differs. Delete this file alone; what "
            "it held is then collected anew"
        )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _replace(file: Path, text: str) -> None:
    aside = file.with_name(f".{file.name}.writing")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, file)
