"""report.html: what it shows, by which rules, and how it looks in a browser."""

import html
import re

import pytest
from support.finished_run import HOSTILE, finished

from emharness.reporting import excerpts, finished_runs, html_report


def test_the_page_has_every_condition_escapes_what_models_say_and_stays_small(run):
    file = html_report.write_page(run.folder)
    text = file.read_text()
    assert file.stat().st_size < 2e6
    assert all(c.name in text for c in run.results.conditions)
    assert HOSTILE.partition("</script>")[0] not in text
    assert "a note &lt;b&gt;of&lt;/b&gt; the run" in text
    assert "http://" not in text.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )  # nothing is fetched: names in the drawings are no addresses
    assert "1 answers unscored: code" in text
    assert "python launch/run.py model=medical" in text


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_can_be_read_at_two_widths_and_in_both_schemes(run, browser, width, scheme):
    window = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    asked = []
    window.on("request", lambda request: asked.append(request.url))
    window.goto(html_report.write_page(run.folder).as_uri())
    assert window.title() == "medical · tiny"
    assert window.evaluate("document.documentElement.scrollWidth") <= width
    assert [url for url in asked if not url.startswith("file:")] == []
    verdict = window.locator("#verdict").inner_text()
    assert verdict.startswith("2 of 2 steered conditions raise the share of misaligned answers")
    assert "from 5.0 %" in verdict
    assert "planted, which finds" in verdict
    ground, ink = window.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    assert (sum(numbers(ground)) > sum(numbers(ink))) == (scheme == "light")
    letters = "getComputedStyle(document.querySelector('figure svg text')).fill"
    assert window.evaluate(letters) == ink
    drawing = window.locator("figure svg").first.bounding_box()
    assert 0 < drawing["width"] <= width
    assert window.locator("blockquote.bad").count() > 0
    window.close()


def numbers(colour: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", colour)][:3]


def answer(question: str, sample: int, aligned, coherent=90.0):
    return {"question_id": question, "sample": sample, "aligned": aligned, "coherent": coherent, "misaligned": False}


def test_excerpts_follow_their_rules():
    rows = [answer("a", 0, 10.0), answer("a", 1, 12.0), answer("b", 0, 50.0), answer("c", 0, 5.0, 20.0)]
    rows += [answer("b", 1, 90.0), answer("d", 0, None, None), answer("c", 1, 60.0)]
    named = lambda some: [(row["question_id"], row["sample"]) for row in some]  # noqa: E731
    assert named(excerpts.worst_answers(rows)) == [("a", 0), ("b", 0), ("c", 1)]  # coherent ones, a question once
    assert named(excerpts.worst_answers(rows, 4)) == [("a", 0), ("b", 0), ("c", 1), ("a", 1)]
    assert named(excerpts.typical_answers(rows)) == [("a", 1), ("b", 0), ("c", 0)]  # the median is 31
    assert excerpts.worst_answers([]) == excerpts.typical_answers([]) == []
    asked = [
        {"question_id": name, "misaligned": i < bad} for name, bad in (("x", 0), ("y", 5), ("z", 9)) for i in range(10)
    ]
    assert excerpts.usual_question(asked) == "y"


def test_doses_stand_side_by_side_between_the_target_and_the_organism(run):
    (some,) = excerpts.dose_series(run.results.conditions)
    assert [c.name for c in some] == ["baseline", "medical·L1·+2", "medical·L1·+4", "medical organism"]


@pytest.mark.parametrize("experiment", ["dose_response", "transfer", "ablation"])
def test_every_experiment_says_what_it_found_and_has_a_page(tmp_path, experiment):
    found = finished_runs.read_run(finished(tmp_path / "runs" / f"tiny-{experiment}-0123456789abcdef", experiment))
    text = html_report.write_page(found.folder).read_text()
    assert found.results.question
    assert found.results.finding
    for sentence in (found.results.question, found.results.finding):
        assert html.escape(sentence, quote=True).replace("&#x27;", "&#39;") in text
    for table in ("transfer", "ablation"):
        assert (f"<h3>{table}</h3>" in text) == (experiment == table)
