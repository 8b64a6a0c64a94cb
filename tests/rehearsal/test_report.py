import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from attune.rehearsal import report
from attune.rehearsal.expectations import judge
from attune.rehearsal.figures import BeforeAndAfter, Figures, Moment
from attune.rehearsal.plots import rolling
from tests.rehearsal.sample import sample_figures


def page(figures: Figures) -> str:
    return report.as_html(figures, judge(figures))


class _Tags(HTMLParser):
    """Checks that tags are closed in order, and collects attributes that could fetch something."""

    VOID = frozenset({"meta", "br", "path", "use", "rect", "circle", "line", "polygon", "polyline", "stop"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_one_file_that_fetches_nothing() -> None:
    text = page(sample_figures())
    tags = _Tags()
    tags.feed(text)
    assert tags.open == []
    assert not tags.tags & {"script", "link", "img", "iframe"}
    assert all(reference.startswith("#") for reference in tags.references)
    assert not re.search(r"url\((?!#)|@import", text)
    assert text.count("<svg") == 4


def test_what_a_model_said_is_text_and_not_markup() -> None:
    spoken = BeforeAndAfter(
        "errands", "<b>Call</b>", "<script>alert(1)</script>", "I cannot & will not", "claim", "refusal"
    )
    text = page(replace(sample_figures(), answers=(spoken,)))
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "I cannot &amp; will not" in text


def test_text_and_page_name_each_miss() -> None:
    figures = replace(sample_figures(), streams_broken=2, swaps=())
    expectations = judge(figures)
    missed = [expectation for expectation in expectations if not expectation.met]
    assert len(missed) == 3
    text = report.as_text(figures, expectations)
    assert text.startswith(f"3 of {len(expectations)} expectations were missed.")
    for expectation in missed:
        assert f"MISSED  {expectation.name}: {expectation.sentence}" in text
        assert expectation.sentence in page(figures)


def test_a_rehearsal_in_which_little_happened_has_a_report_too(tmp_path: Path) -> None:
    figures = replace(
        sample_figures(), policies=sample_figures().policies[:1], last_policy_id="base", swaps=(), verdicts=(),
        datasets=(), answers=(), errands=(), trainings=(), tutor=None, skills=(),
    )  # fmt: skip
    written = report.write(tmp_path / "report", figures, judge(figures))
    assert written.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert json.loads((tmp_path / "report" / "report.json").read_text())["figures"]["swaps"] == []
    assert "None." in written.read_text(encoding="utf-8")


def test_json_holds_figures_and_expectations(tmp_path: Path) -> None:
    figures = sample_figures()
    report.write(tmp_path, figures, judge(figures))
    fields = json.loads((tmp_path / "report.json").read_text())
    assert fields["figures"]["swaps"][1]["streams_running"] == 12
    assert {expectation["met"] for expectation in fields["expectations"]} == {True}


def test_the_curve_begins_when_its_window_is_full() -> None:
    errands = [Moment(float(at), "base", at % 2 == 0) for at in range(6)]
    assert rolling(errands, 4) == [(3.0, 0.5), (4.0, 0.5), (5.0, 0.5)]
    assert rolling(errands[:3], 4) == []
    assert rolling([Moment(0, "base", True), Moment(1, "base", False)], 1) == [(0, 1.0), (1, 0.0)]
