"""``show tokenizers``: what it prints, the page that it writes, and what it refuses."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from speakers import tiny
from vocabularies import byte_fallback, byte_level, merged, word_piece

from stillroom.cli import main
from stillroom.reports.tokenizers import shown

ROWS = [
    {"prompt": "the cat 😀", "completion": " sat on the mat 你好"},
    {"messages": None, "prompt": "<script>alert(1)</script>", "completion": "cat \u202e & cats"},
]


@pytest.fixture
def say(monkeypatch, capsys, tmp_path):
    """Gives words to the command line beside three tokenizers; code, out and err."""
    for name, tokenizer in {
        "plain": merged(),
        "cat": merged("c a", "ca t"),
        "bert": word_piece(),
        "llama": byte_fallback(),
    }.items():
        tokenizer.save_pretrained(tmp_path / name)
    told = [{k: v for k, v in row.items() if v} for row in ROWS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))

    def said(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stillroom", "show", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return said


def well(told: tuple[int, str, str]) -> str:
    code, out, err = told
    assert code == 0, err
    return out


class Nested(HTMLParser):
    """Fails where tags do not close in order; keeps tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def row(out: str, name: str) -> list[str]:
    (line,) = [line for line in out.splitlines() if line.strip().startswith(f"{name}  ")]
    return re.split(r"\s{2,}", line.strip())[1:]


def test_the_table_says_what_the_two_have_in_common(say):
    out = well(say("tokenizers", "plain", "cat", "--data", "rows.jsonl"))
    assert "id 258, is no token and 'ca'. 4 of 4 texts" in " ".join(out.split())
    assert row(out, "in common") == ["256 (100.0 %)", "256 (99.2 %)"]
    size = sum(len((r["prompt"] + r["completion"]).encode()) for r in ROWS)
    assert row(out, "tokens") == [str(size), str(size - 2 * 3)]  # cat stands there three times
    assert row(out, "EOS") == ["</s> (1)", "</s> (1)"]
    assert row(out, "rows.jsonl, line 1") == ["c | a | t", "cat"]
    assert "mass" not in out


def test_the_page_is_safe_and_self_contained(say):
    words = ("tokenizers", "cat", "bert", "--data", "rows.jsonl", "--out", "page.html")
    assert "page: page.html" in well(say(*words))
    text = Path("page.html").read_text(encoding="utf-8")
    page = Nested(text)
    assert not page.tags & {"script", "img", "link", "iframe", "object", "embed", "base", "form"}
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    assert not {name for name, _ in page.attributes} & {"src", "href", "onload", "onclick"}
    assert "url(" not in text
    assert "@import" not in text
    for part in ("cat and bert", "in common", "What they add", "Texts that are not given back"):
        assert part in page.text
    assert "<script>alert(1)</script>" in page.text
    assert "\u202e" not in text


def test_the_page_shows_tokens_and_parts_of_characters(say):
    well(say("tokenizers", "llama", "plain", "--data", "rows.jsonl", "--out", "page.html"))
    text = Path("page.html").read_text(encoding="utf-8")
    assert '<span class="token">␣sat</span>' in text
    assert "llama: 1 token<" in text
    assert "plain: 4 tokens<" in text
    assert shown(b"a\x07\xe2\x80\x8d \n\t\xf0\x9f") == r"a\x07\u200d␣⏎⇥\xf0\x9f"
    assert "None: every text is what its ids stand for." in text
    well(say("tokenizers", "plain", "plain", "--data", "rows.jsonl", "--out", "page.html"))
    text = Path("page.html").read_text(encoding="utf-8")
    assert "Both have the same tokens with the same ids." in text
    assert "All chunks are one token on both sides." in text
    Path("one.jsonl").write_text('{"prompt": "Ä", "completion": "Ö"}\n')
    well(say("tokenizers", "bert", "plain", "--data", "one.jsonl", "--out", "page.html"))
    assert "There are none: no text is spelled" in Path("page.html").read_text(encoding="utf-8")


def test_json_holds_the_same(say):
    told = json.loads(well(say("tokenizers", "plain", "cat", "--data", "rows.jsonl", "--json")))
    assert told["sides"][1]["covered"] == 1 - 3 / told["sides"][1]["tokens"]
    assert told["worst"][0] == ["rows.jsonl, line 1", [["c", "a", "t"], ["cat"]]]
    Path("one.jsonl").write_text('{"prompt": "Ä", "completion": "Ö"}\n')
    words = ("tokenizers", "bert", "cat", "--data", "one.jsonl", "--json", "--out", "page.html")
    code, out, err = say(*words)
    assert (code, err) == (0, "page: page.html\n")
    assert json.loads(out)["sides"][0]["tokens_a_chunk"] is None


def test_mass_is_told_of_the_first(say):
    model, tokenizer = tiny()
    model.save_pretrained("model")
    tokenizer.save_pretrained("model")
    words = ("--data", "rows.jsonl", "--mass")
    out = well(say("tokenizers", "model", "model", *words, "--out", "page.html"))
    share, dash = row(out, "mass in common")
    assert 50 < float(share.removesuffix(" %")) <= 100
    assert dash == "—"
    assert row(out, "mass as first words") == [share, dash]
    assert "mass in common" in Path("page.html").read_text(encoding="utf-8")
    out = well(say("tokenizers", "model", "plain", *words))
    assert row(out, "mass in common") == [share, dash]  # all that it writes are bytes
    assert row(out, "vocabulary") == ["96", "256"]
    code, _, err = say("tokenizers", "plain", "model", *words)
    assert code == 2
    assert "cannot load the model 'plain'" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("tokenizers",), "give two tokenizers and a file of rows"),
        (("tokenizers", "plain", "--data", "rows.jsonl"), "got plain and --data rows.jsonl"),
        (("tokenizers", "a", "b", "c", "--data", "rows.jsonl"), "got a, b, c and --data"),
        (("tokenizers", "plain", "cat"), "got plain, cat and no --data"),
        (("tokenizers", "plain", "cat", "--data", "none.jsonl"), "none.jsonl"),
        (("tokenizers", "plain", "empty", "--data", "rows.jsonl"), "'empty' has no tokenizer"),
        (
            ("tokenizers", "plain", "cat", "--data", "rows.jsonl", "--out", "page.txt"),
            "must be an .html file",
        ),
        (
            ("tokenizers", "plain", "cat", "--data", "rows.jsonl", "--out", "none/page.html"),
            "in a folder that exists",
        ),
        (("kd", "more"), "show kd: more words and options go with 'show tokenizers' alone"),
        (("kd", "--mass"), "show kd: more words"),
        (("kd", "--data", "rows.jsonl"), "show kd: more words"),
    ],
)
def test_what_is_not_told_well_is_refused(say, words, message):
    code, _, err = say(*words)
    assert code == 2
    assert message in err


def test_a_tokenizer_that_tells_no_bytes_is_refused(say):
    unknown = byte_level(300)
    unknown.backend_tokenizer.decoder = None
    unknown.save_pretrained("unknown")
    code, _, err = say("tokenizers", "plain", "unknown", "--data", "rows.jsonl")
    assert code == 2
    assert "its decoder is none" in err


def test_methods_are_shown_as_before(say):
    assert "temperature" in well(say("kd"))
    assert json.loads(well(say("kd", "--json")))["name"] == "kd"
