"""``report.html``: safe, self-contained, and true to the files of the run."""

import json
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from stillroom.reports.folder import read_folder
from stillroom.reports.html import write_report
from stillroom.reports.plots import POINTS, thin
from stillroom.reports.sections import samples, time_rows

VOID = {"meta", "br", "hr", "img", "link", "input"}
CSP = "default-src 'none'; style-src 'unsafe-inline'"


class Page(HTMLParser):
    """Elements, attributes and text by class; complains where tags do not close in order."""

    def __init__(self, file: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[tuple[str, str]] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(file.read_text(encoding="utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            kind = dict(attrs).get("class") or tag
            self.open.append((tag, kind))
            self.texts.setdefault(kind, []).append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for kind in {kind for _, kind in self.open}:
            self.texts[kind][-1] += data


@pytest.fixture
def page(report) -> Page:
    return Page(report)


def test_page_runs_nothing_and_asks_for_nothing(page):
    assert not page.tags & {"script", "img", "link", "iframe", "object", "embed", "base", "form"}
    assert ("meta", "content", CSP) in page.attributes
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in {"src", "href", "xlink:href", "action", "data"}:
            assert value.startswith("#"), (tag, name, value)
        if name == "style":
            assert "url(" not in value
    assert "@import" not in page.texts["style"][0]
    assert "url(" not in page.texts["style"][0]


def test_hostile_sample_is_shown_as_text_with_its_controls_visible(page):
    tags = "</div><script>alert(1)</script><img src=x onerror=alert(2)> & "
    assert tags + r"\x1b[31m \u202egnp.exe \ud800" in page.texts["text"]


def test_sample_whitespace_is_kept(page):
    assert "The teacher says:\nFirst line\n    indented line\n\tand a tab" in page.texts["text"]


def test_ids_are_unique_and_every_reference_is_defined(page):
    ids = [value for _, name, value in page.attributes if name == "id"]
    used = {v[1:] for _, name, v in page.attributes if name == "xlink:href"}
    used |= {v[5:-1] for _, name, v in page.attributes if name == "clip-path"}
    assert used == set(ids)
    assert len(ids) == len(set(ids))


def test_absent_value_is_a_dash_and_best_carries_a_mark(page):
    cells = [text.strip() for text in page.texts["td"]]
    dashes = [i for i, text in enumerate(cells) if text == "—"]
    assert float(cells[dashes[0] - 1]) > 30  # the last student's length; the teacher lacks it,
    assert len(dashes) > 4  # and below stands kl, which none has
    assert dashes == list(range(dashes[0], dashes[0] + len(dashes)))
    assert page.texts["best"] == ["◆ 2.017", "◆ 0.2885"]


def test_password_in_an_address_is_never_shown(report):
    text = report.read_text(encoding="utf-8")
    assert "hunter2" not in text
    assert "https://***@example.org/v1" in text


def test_curves_have_axes_and_no_more_than_eight_training_plots(arms_path):
    page = Page(write_report(arms_path))
    drawings = page.texts["figure"]
    assert len(drawings) == 3 + 8
    assert all("step" in text for text in drawings)
    assert "nats a token, held out" in drawings[0]
    assert [text.strip() for text in page.texts["arms"][0].split()] == ["seqkd", "gad", "gad-cold"]


def test_without_matplotlib_the_page_says_what_to_install(run_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = Page(write_report(run_path))
    assert "figure" not in page.tags
    assert any("pip install 'stillroom[report]'" in text for text in page.texts["p"])
    assert page.texts["best"] == ["◆ 2.017", "◆ 0.2885"]


def test_reading_and_drawing_twice_gives_the_same_bytes(run_path):
    assert write_report(run_path).read_bytes() == write_report(run_path).read_bytes()


def test_values_that_are_not_finite_are_named_not_drawn(run_path):
    with (run_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 601, "gad/reward": float("nan")}) + "\n")
        file.write(json.dumps({"step": 602, "gad/reward": float("inf")}) + "\n")
    text = write_report(run_path).read_text(encoding="utf-8")
    assert "gad: 2 values not finite, not drawn" in text


def test_log_name_in_dollars_and_brackets_is_plain_text(run_path):
    with (run_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 1, "own/$\\frac{<b>$": 1.0}) + "\n")
    page = Page(write_report(run_path))
    assert "own/$\\frac{<b>$" in page.texts["dt"]
    assert "b" not in page.tags


def test_thinning_keeps_the_mean_of_each_block():
    points = [(float(i), float(i % 2)) for i in range(2 * POINTS)]
    thinned, block = thin(points)
    assert block == 2
    assert thinned[:2] == [(0.5, 0.5), (2.5, 0.5)]
    assert len(thinned) == POINTS


def test_samples_of_arms_with_one_start_show_it_once(arms_path):
    first = samples(read_folder(arms_path))[0]
    labels = [label for label, _ in first["texts"]]
    assert labels == ["reference", "start", "seqkd, end", "gad, end", "gad-cold, end"]


def test_arms_that_start_apart_show_each_start(arms_path):
    file = arms_path / "arms" / "seqkd" / "samples.jsonl"
    file.write_text(file.read_text().replace("the the the the", "uh"))
    labels = [label for label, _ in samples(read_folder(arms_path))[0]["texts"]]
    assert labels[1:3] == ["start of seqkd", "start of gad, gad-cold"]


def test_time_is_split_with_shares_that_sum_to_the_clock(run_path):
    rows = dict(time_rows(read_folder(run_path)))
    # 600 steps of 0.9, 0.08 and 0.3 s, 7 evaluations of 2.5 s, a clock of 810 s
    assert rows["generate"][0] == ("9 min 00 s (67%)", pytest.approx(540 / 810))
    assert rows["teacher"][0] == ("48.0 s (6%)", pytest.approx(48 / 810))
    assert rows["evaluate"][0] == ("17.5 s (2%)", pytest.approx(17.5 / 810))
    assert rows["other"][0] == ("24.5 s (3%)", pytest.approx(24.5 / 810))
    assert rows["in all"] == [("13 min 30 s", None)]
    assert rows["tokens, trained"] == [("1,234,567", None)]


def test_run_without_samples_has_no_samples_section(run_path):
    (run_path / "samples.jsonl").unlink()
    page = Page(write_report(run_path))
    assert "Samples" not in page.texts["h2"]


def test_page_says_what_learned_from_what_and_leaves_out_what_is_absent(page):
    assert page.texts["p"][0].startswith(
        "Student: a new gpt2 (n_layer 2). Teacher: big-model through its API. Method: "
    )
    told = "Data: 3,896 train, 100 validation, 100 test rows of prompts.jsonl."
    assert page.texts["p"][0].endswith(told)
    assert "commit" not in page.texts["dt"]
