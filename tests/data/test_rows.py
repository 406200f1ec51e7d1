"""Rows of every kind of file, folder and hub name: read alike, told apart, refused in words."""

import hashlib
import json

import pytest

from stillroom.core import Failure
from stillroom.data import tables
from stillroom.data.rows import exists, read_rows

ROWS = [{"prompt": "a\u2028b", "completion": "é"}, {"prompt": "c", "completion": "d"}]
data = pytest.mark.extra("data")


@pytest.fixture(autouse=True)
def _skip_without_extra(request):
    if request.node.get_closest_marker("extra"):
        pytest.importorskip("datasets", reason="the extra 'data' is not installed")


def jsonl(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def parquet(path, rows):
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def saved(path, **splits):
    import datasets

    made = {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}
    datasets.DatasetDict(made).save_to_disk(str(path))
    return path


def plain(read):
    return [dict(row) for row in read.rows]


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- JSON


def test_lines_are_named_from_one(tmp_path):
    file = jsonl(tmp_path / "a.jsonl", ROWS)
    read = read_rows(file)
    assert plain(read) == ROWS
    assert list(read) == [(f"{file}, line 1", ROWS[0]), (f"{file}, line 2", ROWS[1])]
    assert (len(read), read.sha256, read.split) == (2, sha256(file), None)


def test_a_json_file_is_a_list_or_lines(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps(ROWS, indent=1), encoding="utf-8")
    read = read_rows(file, "train")
    assert plain(read) == ROWS
    assert [where for where, _ in read] == [f"{file}, row 0", f"{file}, row 1"]
    assert read.sha256 == sha256(file)
    assert next(where for where, _ in read_rows(jsonl(file, ROWS))) == f"{file}, line 1"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('[{"a": 1}, 2]', "row 1: expected a JSON object, got int"),
        ('[{"a": 1},\n {"b" 2}]', r"not valid JSON \(.* at line 2, column 7\)"),
        ("[]", "there are no rows"),
        ("", "the file has no rows"),
        ('{\n "rows": []\n}', "line 1: not valid JSON"),
    ],
)
def test_a_bad_json_file_is_refused(tmp_path, content, told):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(Failure, match=f"a.json.*{told}"):
        read_rows(tmp_path / "a.json")


# ---- Parquet


@data
def test_parquet_comes_by_file_folder_or_pattern(tmp_path):
    one = parquet(tmp_path / "parts" / "x-0.parquet", ROWS[:1])
    two = parquet(tmp_path / "parts" / "y" / "x-1.parquet", ROWS[1:])
    whole = parquet(tmp_path / "whole.parquet", ROWS)
    assert plain(read_rows(whole)) == plain(read_rows(tmp_path / "parts")) == ROWS
    assert read_rows(whole).sha256 == sha256(whole)
    flat = read_rows(tmp_path / "parts" / "x-*.parquet")
    assert plain(flat) == ROWS[:1]
    assert flat.sha256 == sha256(one)
    assert next(iter(flat))[0] == f"{tmp_path}/parts/x-*.parquet, row 0"
    before = read_rows(tmp_path / "parts").sha256
    assert before not in (sha256(one), sha256(two))
    parquet(two, [{"prompt": "c", "completion": "e"}])
    assert read_rows(tmp_path / "parts").sha256 != before


@data
def test_parts_are_taken_in_order_of_their_names(tmp_path):
    for i in (2, 0, 1):
        parquet(tmp_path / f"x-{i}.parquet", [{"prompt": str(i), "completion": "y"}])
    for name in (tmp_path, tmp_path / "x-?.parquet"):
        assert [row["prompt"] for row in read_rows(name).rows] == ["0", "1", "2"]


@data
def test_only_columns_that_are_asked_for_are_decoded(tmp_path, monkeypatch):
    import pyarrow.parquet

    file = parquet(tmp_path / "a.parquet", [{**row, "image": "x" * 9} for row in ROWS])
    decoded = []
    read = pyarrow.parquet.ParquetFile.read
    monkeypatch.setattr(
        pyarrow.parquet.ParquetFile,
        "read",
        lambda part, names: decoded.append(names) or read(part, names),
    )
    rows = read_rows(file).rows
    assert sorted(rows[0]) == ["completion", "image", "prompt"]
    assert "image" in rows[0]
    assert "text" not in rows[0]
    assert rows[0].get("text") is None
    assert not decoded
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in ROWS]
    assert decoded == [["prompt"]]  # once for all rows


@data
def test_a_column_name_with_a_dot_is_one_column(tmp_path):
    file = parquet(tmp_path / "a.parquet", [{"a.b": "x", "a": {"b": "y"}}])
    assert plain(read_rows(file)) == [{"a.b": "x", "a": {"b": "y"}}]


@data
@pytest.mark.parametrize("keep", [0, 3, 0.5, 0.99])
def test_half_a_parquet_file_is_refused(tmp_path, keep):
    file = parquet(tmp_path / "a.parquet", ROWS)
    content = file.read_bytes()
    file.write_bytes(content[: keep if keep > 1 else int(keep * len(content))])
    with pytest.raises(Failure, match=r"a.parquet: it cannot be read as Parquet"):
        read_rows(file)


@data
def test_a_spoilt_column_is_refused_when_it_is_read(tmp_path):
    import pyarrow
    import pyarrow.parquet

    file = tmp_path / "a.parquet"
    table = pyarrow.table({"prompt": [f"{i} words" for i in range(999)]})
    pyarrow.parquet.write_table(table, file, compression="gzip", use_dictionary=False)
    content = bytearray(file.read_bytes())
    middle = len(content) // 3
    content[middle : middle + 64] = b"\xff" * 64
    file.write_bytes(content)
    rows = read_rows(file).rows
    with pytest.raises(Failure, match=r"a.parquet: it cannot be read as Parquet"):
        rows[0]["prompt"]


@data
def test_parts_with_other_columns_are_refused(tmp_path):
    parquet(tmp_path / "x-0.parquet", ROWS)
    parquet(tmp_path / "x-1.parquet", [{"text": "a"}])
    with pytest.raises(Failure, match=r"x-1.parquet: it has columns \['text'\], but .*x-0"):
        read_rows(tmp_path)


@data
def test_empty_and_absent_parquet_is_refused(tmp_path):
    parquet(tmp_path / "a.parquet", ROWS)
    (tmp_path / "empty").mkdir()
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(tmp_path / "a.parquet").slice(0, 0)
    pyarrow.parquet.write_table(table, tmp_path / "none.parquet")
    for name, told in {
        "none.parquet": "there are no rows",
        "b.parquet": "there is no such file",
        "b-*.parquet": "there is no such file",
        "empty": "it holds no .parquet file, and datasets.save_to_disk",
        "empty:train": "holds no splits",
    }.items():
        with pytest.raises(Failure, match=told):
            read_rows(tmp_path / name)


# ---- folders that datasets saved


@data
def test_a_saved_folder_gives_the_split_that_is_named_or_the_fields_own(tmp_path):
    folder = saved(tmp_path / "d", train=ROWS, test=ROWS[1:])
    named = read_rows(f"{folder}:test", "train")
    assert (plain(named), named.split) == (ROWS[1:], "test")
    own = read_rows(folder, "train")
    assert (plain(own), own.split) == (ROWS, "train")
    assert [where for where, _ in own] == [f"{folder}, row 0", f"{folder}, row 1"]
    assert own.sha256 != named.sha256
    (arrow,) = (folder / "test").glob("*.arrow")
    assert named.sha256 == sha256(arrow)


@data
def test_a_split_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    folder = saved(tmp_path / "d", train=ROWS, held=ROWS)
    with pytest.raises(Failure, match="d: there is no split 'test', only train, held"):
        read_rows(f"{folder}:test")
    with pytest.raises(Failure, match=r"no split 'test', only train, held; name one, like .*d:tra"):
        read_rows(folder, "test")
    with pytest.raises(Failure, match=r"several splits \(train, held\); name one"):
        read_rows(folder)


@data
def test_one_split_is_taken_by_those_that_name_none_but_not_for_another(tmp_path):
    folder = saved(tmp_path / "d", train=ROWS)
    assert plain(read_rows(folder)) == ROWS
    with pytest.raises(Failure, match="no split 'validation', only train"):
        read_rows(folder, "validation")  # training rows must not become validation


@data
def test_a_saved_data_set_without_splits(tmp_path):
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "d"))
    read = read_rows(tmp_path / "d", "train")
    assert (plain(read), read.split) == (ROWS, None)
    with pytest.raises(Failure, match="holds no splits, so no 'train'"):
        read_rows(f"{tmp_path / 'd'}:train")


@data
def test_a_spoilt_saved_folder_is_refused(tmp_path):
    folder = saved(tmp_path / "d", train=ROWS)
    (arrow,) = (folder / "train").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:40])
    with pytest.raises(Failure, match="d: it cannot be read as a saved data set"):
        read_rows(folder)
    arrow.unlink()
    with pytest.raises(Failure, match="d: it cannot be read as a saved data set"):
        read_rows(folder)


# ---- the hub


@pytest.fixture
def hub(monkeypatch):
    """What ``load_dataset`` was asked, and the data sets that it gives in answer."""
    import datasets

    asked = []
    there = datasets.DatasetDict(
        train=datasets.Dataset.from_list(ROWS), test=datasets.Dataset.from_list(ROWS[1:])
    )

    def load_dataset(name, config, *, revision, split):
        asked.append((name, config, revision, split))
        if name == "no/thing":
            raise datasets.exceptions.DatasetNotFoundError("Dataset 'no/thing' doesn't exist")
        return there if split is None else there[split.partition("[")[0]]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked, there


@data
@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("hf:gsm8k", ("gsm8k", None, None, None)),
        ("hf:openai/gsm8k", ("openai/gsm8k", None, None, None)),
        ("hf:openai/gsm8k/main", ("openai/gsm8k", "main", None, None)),
        ("hf:a/b@refs/pr/1", ("a/b", None, "refs/pr/1", None)),
        ("hf:a/b:test", ("a/b", None, None, "test")),
        ("hf:a/b/c-d@v1.0:train[:100]", ("a/b", "c-d", "v1.0", "train[:100]")),
    ],
)
def test_a_hub_name_tells_config_revision_and_split(hub, name, asked):
    assert exists(name)
    read = read_rows(name, "train")
    assert hub[0] == [asked]
    split = asked[3] or "train"
    assert read.split == split
    taken = hub[1][split.partition("[")[0]]
    assert plain(read) == list(taken)
    assert read.sha256 == f"fingerprint:{taken._fingerprint}"
    assert next(iter(read))[0] == f"{name}, row 0"


@data
def test_what_the_hub_does_not_give_is_refused(hub):
    with pytest.raises(Failure, match=r"hf:no/thing: datasets cannot load it: .*doesn't exist"):
        read_rows("hf:no/thing", "train")
    with pytest.raises(Failure, match="there is no split 'validation', only train, test"):
        read_rows("hf:a/b", "validation")
    for name in ("hf:", "hf:a/b/c/d", "hf:a/b@", "hf:a/b:"):
        with pytest.raises(Failure, match="expected hf:ORG/NAME"):
            read_rows(name, "train")
    assert [name for name, *_ in hub[0]] == ["no/thing", "a/b"]


@data
def test_pictures_are_not_decoded(monkeypatch):
    import datasets

    features = datasets.Features({"prompt": datasets.Value("string"), "image": datasets.Image()})
    made = datasets.Dataset.from_list(
        [{"prompt": "a", "image": {"bytes": b"no picture", "path": None}}], features=features
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda *_args, **_told: made)
    [row] = read_rows("hf:a/b").rows
    assert row["prompt"] == "a"
    assert row["image"] == {"bytes": b"no picture", "path": None}


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    def missing(module, group, why):
        raise Failure(f"{module}: pip install 'stillroom[{group}]'")

    monkeypatch.setattr(tables, "extra", missing)
    (tmp_path / "a.parquet").write_bytes(b"")
    for name in (tmp_path / "a.parquet", "hf:a/b"):
        with pytest.raises(Failure, match=r"stillroom\[data\]"):
            read_rows(name)


# ---- what is there


def test_what_can_be_read_exists(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x.parquet").touch()
    for name in ("d", "d:train", "d/x.parquet", "d/*.parquet"):
        assert exists(tmp_path / name), name
    for name in ("e", "e:train", "d/y.parquet", "d/*.json"):
        assert not exists(tmp_path / name), name


def test_a_file_with_a_colon_is_a_file(tmp_path):
    (tmp_path / "a").mkdir()
    assert plain(read_rows(jsonl(tmp_path / "a:b", ROWS))) == ROWS
