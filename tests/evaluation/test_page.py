"""The page of a report: whole in itself, readable in a browser, and safe whatever the rows hold."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_gradient.evaluation import EvaluationReport, evaluate
from airflow_provider_gradient.evaluation.page import render_page
from airflow_provider_gradient.evaluation.shown_rows import SHOWN_ROWS, cut, diff

HOSTILE = (
    "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>\"'`${alert(1)}{{7*7}}"
)
ARABIC = "الطقس جميل اليوم في القاهرة"
LONG = "x" * 50_000 + " " + "word " * 20_000


def rows(count: int, *, wrong: int = 0, **columns: Any) -> list[dict[str, Any]]:
    return [
        {
            "index": n,
            "output": "wrong" if wrong and n % wrong == 0 else f"answer {n}",
            "row": {"answer": f"answer {n}", "kind": "odd" if n % 2 else "even", **columns},
        }
        for n in range(count)
    ]


def page(path: Path, given: list[dict[str, Any]], **settings: Any) -> str:
    evaluate(
        given, reference_column="answer", slice_columns=["kind"], page_path=path, resamples=200, **settings
    )
    return path.read_text()


def test_a_difference_marks_words_and_loses_none() -> None:
    old, new = diff("The Dallas Cowboys won.", "The New York Giants won!")
    assert "".join(text for _, text in old) == "The Dallas Cowboys won."
    assert "".join(text for _, text in new) == "The New York Giants won!"
    assert ("del", "Dallas") in old
    assert [text for kind, text in new if kind == "same"] == ["The ", " ", " won"]
    assert diff(LONG, "x")[1] == [("same", "x")]


def test_long_text_is_cut_and_says_by_how_much() -> None:
    assert cut("abcdef", 4) == "abcd … (2 more characters)"
    assert cut("half \ud83d") == "half \ufffd"


def test_the_page_reaches_for_nothing_outside_itself(tmp_path: Path) -> None:
    html = page(tmp_path / "p.html", rows(40, wrong=3), baseline=rows(40, wrong=2))
    assert not re.search(r"<(?:link|iframe|object|embed|base)\b|\bsrc\s*=|@import|url\((?!#)", html)
    assert set(re.findall(r"https?://[^\"'<> ]+", html)) <= {
        "http://www.w3.org/1999/xlink",
        "http://www.w3.org/2000/svg",
    }


def test_what_the_rows_hold_is_escaped_everywhere(tmp_path: Path) -> None:
    given = rows(4, wrong=1, kind=HOSTILE, **{HOSTILE: HOSTILE})
    given = [
        {**row, "output": HOSTILE, "id": f"{HOSTILE}{n}", "model_id": HOSTILE} for n, row in enumerate(given)
    ]
    html = page(tmp_path / "p.html", given)
    assert "<script>window" not in html
    assert "<img" not in html
    assert html.count("<script>") == 1


def without_rows() -> str:
    report = EvaluationReport(
        source="inline",
        model_id=None,
        reference_column=None,
        confidence=0.95,
        resamples=100,
        seed=0,
        cluster_column=None,
        settings={},
        rows=0,
        counts={},
        metrics={},
        slices={},
    )
    return render_page(report, [])


def test_a_report_without_rows_has_a_page() -> None:
    assert "no row was scored" in without_rows()


@pytest.fixture(scope="module")
def long_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two runs over 50,000 rows."""
    folder = tmp_path_factory.mktemp("long")
    page(
        folder / "p.html",
        rows(50_000, wrong=5),
        baseline=rows(50_000, wrong=4),
        output_path=folder / "scores.jsonl",
    )
    return folder / "p.html"


def test_many_rows_are_cut_to_those_that_changed_most_and_the_page_says_so(long_page: Path) -> None:
    html = long_page.read_text()
    assert len(re.findall('<article class="row"', html)) == 2 * SHOWN_ROWS
    assert "17500 that changed" in " ".join(html.split())
    assert 'href="scores.jsonl"' in html
    assert len(html) < 1_000_000


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    """Opens a page at a width and in a colour scheme, without a network; nothing may go wrong in it."""
    contexts, wrongs = [], []

    def opened(path: Path, *, width: int = 1000, scheme: str = "light") -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrongs.append(str(error)))
        page.on("console", lambda message: wrongs.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: request.url.startswith("file:") or wrongs.append(request.url))
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrongs == []


def lightness(page: Any, element: str, name: str) -> float:
    colour = page.evaluate(
        "([element, name]) => getComputedStyle(document.querySelector(element))[name]", [element, name]
    )
    return sum(int(part) for part in re.findall(r"\d+", colour)[:3]) / 3


def test_a_browser_shows_that_there_is_no_row(tmp_path: Path, open_page: Any) -> None:
    (tmp_path / "p.html").write_text(without_rows())
    shown = open_page(tmp_path / "p.html", width=360)
    assert shown.get_by_text("no row was scored").is_visible()
    assert shown.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("count", [1, 50_000])
def test_a_browser_shows_one_row_and_fifty_thousand_in_light_and_dark_and_on_a_phone(
    tmp_path: Path, long_page: Path, open_page: Any, count: int
) -> None:
    html = long_page
    if count == 1:
        html = tmp_path / "p.html"
        page(html, rows(1, wrong=1), baseline=rows(1))
    for width, scheme in ((1000, "light"), (360, "dark")):
        shown = open_page(html, width=width, scheme=scheme)
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        assert shown.locator("#headline b").is_visible()
        assert shown.locator("svg").first.bounding_box()["width"] <= width
        background = lightness(shown, "body", "backgroundColor")
        for element, name in (("body", "color"), ("svg text", "fill")):
            assert abs(background - lightness(shown, element, name)) > 150
        assert (background > 128) == (scheme == "light")
    assert shown.locator(".row").count() == (1 if count == 1 else 2 * SHOWN_ROWS)


def test_a_browser_filters_rows_by_words_kind_and_slice(tmp_path: Path, open_page: Any) -> None:
    page(tmp_path / "p.html", rows(60, wrong=3), baseline=rows(60, wrong=5))
    shown = open_page(tmp_path / "p.html")

    def visible() -> int:
        return int(shown.locator(".row:visible").count())

    everything = visible()
    assert everything == 16 + 8
    shown.locator("#kind").select_option("up")
    assert visible() == 8
    shown.locator("select.slice").select_option("odd")
    assert visible() == 4
    shown.locator("#words").fill("answer 25")
    assert visible() == 1
    shown.locator("#words").fill("nowhere")
    assert visible() == 0
    assert shown.locator("#none").is_visible()


def test_a_browser_runs_nothing_that_rows_hold_and_reads_right_to_left_and_long_text(
    tmp_path: Path, open_page: Any
) -> None:
    given = rows(3, kind=HOSTILE, **{HOSTILE: HOSTILE})
    given[0] |= {"output": HOSTILE, "id": HOSTILE}
    given[1] |= {"output": ARABIC}
    given[1]["row"] |= {"kind": ARABIC}
    given[2] |= {"output": LONG}
    baseline = rows(3, kind="x")
    baseline[0] |= {"id": HOSTILE}
    page(tmp_path / "p.html", given, baseline=baseline)
    for width in (1000, 360):
        shown = open_page(tmp_path / "p.html", width=width)
        assert shown.evaluate("window.hacked") is None
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        texts = shown.locator(".text")
        assert HOSTILE in texts.all_text_contents()
        assert shown.locator(".row b").get_by_text(HOSTILE).count() == 1
        arabic = shown.get_by_text(ARABIC, exact=True).and_(texts).first
        assert arabic.evaluate("element => getComputedStyle(element).direction") == "rtl"
        assert "more characters)" in "".join(texts.all_text_contents())
