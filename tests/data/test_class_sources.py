"""Where examples with classes come from: tables, signals, rows of files, folders of images."""

import json
import random

import numpy as np
import pytest
import torch

from stillroom.core import Failure
from stillroom.data.class_folders import ClassFolders
from stillroom.data.class_rows import ClassRows
from stillroom.data.mnist1d import MNIST1D
from stillroom.data.sklearn_tables import SklearnTables


def told(data):
    """Every example of a split, as text, to tell it by."""
    batch = data.batch(range(len(data)))
    return [str((x.tolist(), int(y))) for x, y in zip(batch.x, batch.labels, strict=True)]


@pytest.mark.extra("classes")
@pytest.mark.parametrize(
    ("name", "rows", "width", "classes"),
    [("iris", 150, 4, 3), ("wine", 178, 13, 3), ("breast_cancer", 569, 30, 2)],
)
def test_a_table_is_standardised_on_what_is_learned_from(name, rows, width, classes):
    pytest.importorskip("sklearn")
    splits = SklearnTables(set=name, train=50, validation=20, unlabelled=10).splits(3)
    sizes = {split: len(data) for split, data in splits.items()}
    assert sizes == {"train": 50, "validation": 20, "unlabelled": 10, "test": rows // 3}
    assert splits["train"].shape == (width,)
    assert splits["test"].classes == classes
    x = splits["train"].batch(range(50)).x
    assert torch.allclose(x.mean(0), torch.zeros(width), atol=1e-5)
    assert torch.allclose(x.std(0), torch.ones(width), atol=1e-5)
    assert splits["test"].batch(range(20)).x.mean(0).abs().max() > 1e-3


@pytest.mark.extra("classes")
def test_a_table_keeps_its_test_rows_from_every_seed():
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_wine

    labels = load_wine(return_X_y=True)[1]
    one, two = (SklearnTables(train=80, validation=39).splits(seed) for seed in (0, 1))
    answers = [s["test"].batch(range(59)).labels for s in (one, two)]
    assert torch.equal(*answers)
    assert told(one["train"]) != told(two["train"])
    every = torch.cat([s.batch(range(len(s))).labels for s in one.values()])
    assert every.bincount().tolist() == np.bincount(labels).tolist()  # each row once, 178 of 178


@pytest.mark.extra("classes")
def test_a_table_has_no_more_rows_than_it_has():
    pytest.importorskip("sklearn")
    with pytest.raises(Failure, match=r"170 examples are wanted .* there are 119"):
        SklearnTables(train=140, validation=30).splits(0)
    with pytest.raises(Failure, match=r"data\.items\.test: 70 rows are wanted, and wine keeps 59"):
        SklearnTables(test=70).splits(0)


@pytest.mark.extra("classes")
def test_signals_are_the_packages_own_and_leave_other_draws_alone():
    package = pytest.importorskip("mnist1d.data")
    random.seed(1)
    np.random.seed(1)
    expected = random.random(), np.random.rand()
    random.seed(1)
    np.random.seed(1)
    one = MNIST1D(train=300, validation=100, unlabelled=50, noise=0.2).splits(0)
    assert (random.random(), np.random.rand()) == expected
    made = package.make_dataset()
    test = one["test"].batch(range(1000))
    assert np.allclose(test.x[:, 0].numpy(), made["x_test"], atol=1e-6)
    assert test.labels.tolist() == made["y_test"].tolist()
    known = {
        str(x.astype(np.float32).tolist()): y for x, y in zip(made["x"], made["y"], strict=True)
    }
    wrong = 0
    seen = []
    for split in ("train", "validation", "unlabelled"):
        batch = one[split].batch(range(len(one[split])))
        for x, y in zip(batch.x[:, 0], batch.labels.tolist(), strict=True):
            seen.append(str(x.numpy().tolist()))
            wrong += known[seen[-1]] != y
    assert len(set(seen)) == 450
    assert wrong == 60
    assert one["train"].shape == (1, 40)
    two = MNIST1D(train=300).splits(1)
    assert told(two["test"]) == told(one["test"])
    assert told(two["train"]) != told(one["train"])


ROWS = [
    {"wide": 1.0, "seen": [2, 3], "kind": "b", "n": 10},
    {"wide": 3.0, "seen": [2, 5], "kind": "a", "n": 9},
    {"wide": 5.0, "seen": [2, 7], "kind": "b", "n": 10},
]


def written(folder, name, rows):
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_columns_stand_side_by_side_and_classes_keep_their_names(tmp_path):
    files = {
        "train": written(tmp_path, "a.jsonl", ROWS),
        "test": written(tmp_path, "b.jsonl", [{"wide": 7, "seen": [2, 3], "kind": "a", "n": 9}]),
    }
    plain = ClassRows(inputs=["seen", "wide"], target="kind", standardise=False)
    made = plain.read(files, None)
    batch = made["train"].batch([0, 1, 2])
    assert batch.x.tolist() == [[2, 3, 1], [2, 5, 3], [2, 7, 5]]
    assert batch.x.dtype == torch.float32
    assert batch.labels.tolist() == [1, 0, 1]
    assert made["test"].names == ["a", "b"]
    assert made["test"].classes == 2
    scaled = ClassRows(inputs=["seen", "wide"], target="n").read(files, None)
    assert scaled["train"].names == [9, 10]
    root = (8 / 3) ** 0.5  # deviation of 1, 3, 5 about their mean
    expected = torch.tensor([[0, -2 / root, -2 / root], [0, 0, 0], [0, 2 / root, 2 / root]])
    assert torch.allclose(scaled["train"].batch([0, 1, 2]).x, expected)
    assert torch.allclose(scaled["test"].batch([0]).x, torch.tensor([[0, -2 / root, 4 / root]]))


def test_rows_are_held_out_once_and_for_all(tmp_path):
    rows = [{"x": i, "label": i % 2} for i in range(20)]
    files = {"train": written(tmp_path, "a.jsonl", rows)}
    made = ClassRows(inputs=["x"], standardise=False).read(files, 4)
    assert {k: len(v) for k, v in made.items()} == {"train": 12, "validation": 4, "test": 4}
    seen = [float(x) for data in made.values() for x in data.batch(range(len(data))).x[:, 0]]
    assert sorted(seen) == list(range(20))
    again = ClassRows(inputs=["x"], standardise=False).read(files, 4)
    assert all(told(made[split]) == told(again[split]) for split in made)
    with pytest.raises(Failure, match=r"data\.hold_out: 10 is too many of 20 rows"):
        ClassRows(inputs=["x"]).read(files, 10)
    with pytest.raises(Failure, match=r"data\.hold_out: give either it or"):
        ClassRows(inputs=["x"]).read({**files, "test": files["train"]}, 4)


@pytest.mark.parametrize(
    ("fields", "rows", "message"),
    [
        ({"inputs": ["y"]}, [{"x": 1, "label": 0}], "no column 'y', only label, x"),
        ({"inputs": ["x"]}, [{"x": 1}], "no column 'label', only x"),
        ({"inputs": ["x"]}, [{"x": "red", "label": 0}], "'x' is to hold numbers, got 'red'"),
        ({"inputs": ["x"]}, [{"x": None, "label": 0}], "'x' is None, which is no number"),
        (
            {"inputs": ["x"]},
            [{"x": [1, 2], "label": 0}, {"x": [1], "label": 0}],
            r"line 2: its input is \[1\] and that of .* \[2\]",
        ),
        ({"inputs": ["x"]}, [{"x": 1, "label": 0.5}], "is to hold texts or ints, got float"),
        (
            {"inputs": ["x"]},
            [{"x": 1, "label": 0}, {"x": 1, "label": "a"}],
            "is to hold texts or ints, got int, str",
        ),
    ],
)
def test_rows_that_cannot_be_learned_from_are_named(tmp_path, fields, rows, message):
    with pytest.raises(Failure, match=message):
        ClassRows(**fields).read({"train": written(tmp_path, "a.jsonl", rows)}, None)


def test_a_class_that_training_lacks_is_refused(tmp_path):
    files = {
        "train": written(tmp_path, "a.jsonl", [{"x": 1, "label": "a"}]),
        "test": written(tmp_path, "b.jsonl", [{"x": 1, "label": "c"}]),
    }
    with pytest.raises(Failure, match=r"b\.jsonl, line 1: the class 'c' does not occur"):
        ClassRows(inputs=["x"]).read(files, None)


@pytest.mark.parametrize(
    "fields", [{}, {"inputs": []}, {"inputs": ["x"], "image": "y"}, {"image": "x", "text": "y"}]
)
def test_inputs_or_an_image(fields):
    with pytest.raises(Failure, match="inputs: give columns of numbers, or 'image', or 'text'"):
        ClassRows(**fields)


def painted(folder, name, colour, size=(4, 6)):
    image = pytest.importorskip("PIL.Image")
    folder.mkdir(parents=True, exist_ok=True)
    image.new("RGB", (size[1], size[0]), colour).save(folder / name)
    return folder / name


def test_images_of_rows_by_name_bytes_and_pixels(tmp_path):
    file = painted(tmp_path, "red.png", (255, 0, 51))
    pixels = [[[0, 255, 102]] * 6] * 4
    rows = [{"image": "red.png", "label": "r"}, {"image": pixels, "label": "g"}]
    told = ClassRows(image="image")
    batch = told.read({"train": written(tmp_path, "a.jsonl", rows)}, None)["train"].batch([0, 1])
    assert batch.x.shape == (2, 3, 4, 6)
    assert batch.x[0, :, 1, 2].tolist() == pytest.approx([1, 0, 0.2])
    assert batch.x[1, :, 3, 5].tolist() == pytest.approx([0, 1, 0.4])
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    column = [{"bytes": file.read_bytes(), "path": None}, {"bytes": None, "path": "red.png"}]
    parquet.write_table(pyarrow.table({"image": column, "label": [3, 3]}), tmp_path / "b.parquet")
    made = ClassRows(image="image", size=(2, 3), grey=True)
    both = made.read({"train": tmp_path / "b.parquet"}, None)["train"].batch([0, 1])
    assert both.x.shape == (2, 1, 2, 3)
    luma = 0.299 + 0.114 * 0.2  # ITU-R 601, which Pillow's grey is
    assert both.x.flatten().tolist() == pytest.approx([luma] * 12, abs=1 / 255)
    assert both.labels.tolist() == [0, 0]


def test_what_is_no_image_is_named(tmp_path):
    pytest.importorskip("PIL.Image")
    (tmp_path / "no.png").write_text("text")
    for value in ("no.png", "absent.png", 3):
        rows = written(tmp_path, "a.jsonl", [{"image": value, "label": 0}])
        with pytest.raises(Failure, match=r"a\.jsonl, line 1: it cannot be read as an image"):
            ClassRows(image="image").read({"train": rows}, None)
    painted(tmp_path, "small.png", (0, 0, 0), size=(2, 2))
    painted(tmp_path, "large.png", (0, 0, 0), size=(3, 2))
    rows = [{"image": f"{name}.png", "label": 0} for name in ("small", "large")]
    with pytest.raises(Failure, match=r"images are resized by data\.items\.size"):
        ClassRows(image="image").read({"train": written(tmp_path, "a.jsonl", rows)}, None)


def test_a_folder_a_class(tmp_path):
    for split in ("train", "test"):
        painted(tmp_path / split / "red", "1.png", (255, 0, 0))
        painted(tmp_path / split / "blue", "1.JPG", (0, 0, 255))
    painted(tmp_path / "train" / "red", "0.png", (204, 0, 0))
    (tmp_path / "train" / "red" / "notes.txt").write_text("not an image")
    files = {split: tmp_path / split for split in ("train", "test")}
    made = ClassFolders(size=(2, 2)).read(files, None)
    batch = made["train"].batch([0, 1, 2])
    assert batch.x.shape == (3, 3, 2, 2)
    assert batch.labels.tolist() == [0, 1, 1]
    assert made["train"].names == ["blue", "red"]
    assert batch.x[1, 0].flatten().tolist() == pytest.approx([0.8] * 4)
    assert batch.x[2, :, 0, 0].tolist() == [1, 0, 0]
    assert ClassFolders(grey=True).read(files, None)["test"].shape == (1, 32, 32)


def test_folders_that_hold_no_classes_are_refused(tmp_path):
    file = painted(tmp_path / "train" / "a", "1.png", (0, 0, 0))
    with pytest.raises(Failure, match="no folder in it holds an image"):
        ClassFolders().read({"train": file.parent}, None)
    with pytest.raises(Failure, match="expected a folder with a folder of images"):
        ClassFolders().read({"train": file}, None)
    painted(tmp_path / "test" / "b", "1.png", (0, 0, 0))
    with pytest.raises(Failure, match="the class 'b' does not occur in training"):
        ClassFolders().read({"train": tmp_path / "train", "test": tmp_path / "test"}, None)
