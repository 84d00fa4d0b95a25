"""Pictures with a slider and quizzes: their HTML, their text, their faults, and how they behave in Chromium."""

from __future__ import annotations

import base64
import copy
import fcntl
import json
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from payattn import plot, quizzes, widgets

ALTS = [f"A curve that rises from zero to {k} over four points, a straight line." for k in range(3)]
LABELS = ["slope 0", "slope 1", "slope 2"]


def figures(n: int = 3) -> list[plot.Figure]:
    x = torch.arange(4.0)
    return [plot.lines(x, {"y": k * x}, "x", "y") for k in range(n)]


@pytest.fixture(scope="module")
def slider() -> widgets.Page:
    return widgets.frames(figures(), LABELS, ALTS, "slope of the line")


# -------------------------------------------------------------------------------------------------------- frames


def test_the_slider_asks_for_nothing_outside_the_page(slider: widgets.Page) -> None:
    assert not re.search(r"https?://|<script|@import|url\(", slider.html)


def test_every_picture_has_its_own_alt_and_only_the_first_shows_at_first(slider: widgets.Page) -> None:
    images = re.findall(r"<img [^>]*>", slider.html)
    assert [re.search(r'alt="([^"]*)"', image)[1] for image in images] == ALTS  # type: ignore[index]
    assert ["display:none" in image for image in images] == [False, True, True]


def test_the_pictures_are_png_files(slider: widgets.Page) -> None:
    data = re.findall(r"base64,([^\"]+)", slider.html)
    assert len(data) == 3
    assert all(base64.b64decode(item).startswith(b"\x89PNG") for item in data)


def test_the_same_pictures_give_the_same_page_and_others_another_id(slider: widgets.Page) -> None:
    again = widgets.frames(figures(), LABELS, ALTS, "slope of the line")
    assert again.html == slider.html
    other = widgets.frames(figures(), ["a", "b", "c"], ALTS, "slope of the line")
    assert re.search(r'id="([^"]+)"', other.html)[1] != re.search(r'id="([^"]+)"', slider.html)[1]  # type: ignore[index]


def test_the_slider_prints_every_label_and_alt(slider: widgets.Page) -> None:
    assert slider._repr_html_() == slider.html
    for text in ("slope of the line", *LABELS, *ALTS):
        assert text in repr(slider)


def test_texts_are_escaped() -> None:
    page = widgets.frames(figures(2), ['<b>"1"</b>', "2"], ['a < b & "c"' + " " * 40, ALTS[1]], "x < y")
    assert "<b>" not in page.html
    assert 'alt="a &lt; b &amp; &quot;c&quot;"' in page.html


def test_frames_of_different_height_keep_the_page_below_in_its_place() -> None:
    pictures = [plot.cells([[0.0, 1.0]]), plot.cells([[0.0, 1.0], [2.0, 3.0]])]
    page = widgets.frames(pictures, ["one row", "two rows"], ALTS[:2], "rows")
    sizes = [tuple(map(int, size)) for size in re.findall(r'width="(\d+)" height="(\d+)"', page.html)]
    assert sizes[0][0] == sizes[1][0] and sizes[0][1] < sizes[1][1]
    assert f"aspect-ratio:{sizes[1][0]}/{sizes[1][1]}" in page.html


def test_eight_frames_of_curves_stay_under_150_kilobytes() -> None:
    seeds = [[{"epoch": e, "loss": 1 / e + s / 50} for e in range(1, 20)] for s in range(3)]
    eight = [plot.curves({"dp": seeds[: 1 + k % 3], "pc": seeds}, "loss", xlabel=f"epoch {k}") for k in range(8)]
    page = widgets.frames(eight, list("abcdefgh"), [f"{'x' * 40} {k}" for k in range(8)], "runs")
    assert len(page.html) < 150_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"figures": []}, "expected two or more"),
        ({"labels": ["a", "b"]}, "labels: got .* expected one text for each of the 3"),
        ({"labels": ["a", "b", "b"]}, "labels: two are the same"),
        ({"alts": [ALTS[0]] * 3}, "alts: two are the same"),
        ({"alts": [*ALTS[:2], "a curve"]}, r"alts\[2\]: 'a curve' has 7 characters"),
        ({"description": " "}, "got an empty one"),
        ({"figures": [*figures(2), plot.cells([1.0])]}, "sizes in pixels"),
    ],
)
def test_faults_of_a_slider_are_named(change: dict[str, Any], message: str) -> None:
    arguments = {"figures": figures(), "labels": LABELS, "alts": ALTS, "description": "slope", **change}
    with pytest.raises(ValueError, match=message):
        widgets.frames(**arguments)


def test_pictures_too_large_for_a_notebook_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widgets, "MAX_BYTES", 5_000)
    with pytest.raises(ValueError, match="KB of pictures, more than 5; use fewer or smaller figures"):
        widgets.frames(figures(), LABELS, ALTS, "slope")


# ------------------------------------------------------------------------------------------------------- quizzes


@pytest.mark.parametrize("name", quizzes.names())
def test_every_quiz_of_the_package_has_eight_questions_or_more_and_keeps_the_schema(name: str) -> None:
    content = quizzes.load(name)
    assert len(content["questions"]) >= 8
    texts = [question["question"] for question in content["questions"]]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", quizzes.names())
def test_the_right_choice_is_not_always_at_the_same_place(name: str) -> None:
    single = [q["choices"] for q in quizzes.load(name)["questions"] if not q.get("multiple")]
    places = [[choice["correct"] for choice in choices].index(True) for choices in single]
    assert all(places.count(place) <= len(places) / 2 for place in places)


@pytest.mark.parametrize("name", quizzes.names())
def test_the_right_choice_is_not_always_the_longest(name: str) -> None:
    single = [q["choices"] for q in quizzes.load(name)["questions"] if not q.get("multiple")]
    longest = [max(choices, key=lambda choice: len(choice["text"]))["correct"] for choices in single]
    assert sum(longest) <= 0.6 * len(longest)


def test_a_quiz_shows_every_text_and_asks_for_nothing_outside() -> None:
    content = quizzes.load("attention-in-five-minutes")
    page = widgets.quiz("attention-in-five-minutes")
    assert not re.search(r"https?://|<script|@import|url\(", page.html)
    assert page.html.count("<fieldset") == page.html.count("<legend") == len(content["questions"])
    choices = [choice for question in content["questions"] for choice in question["choices"]]
    assert page.html.count("<label") == page.html.count('role="status"><p>') == len(choices)
    assert page.html.count("<strong>Right.</strong>") == sum(choice["correct"] for choice in choices)
    assert "mathjax_process" in page.html
    assert widgets.quiz("attention-in-five-minutes") == page


def test_a_quiz_prints_its_questions_choices_and_answers() -> None:
    text = repr(widgets.quiz("attention-in-five-minutes"))
    for question in quizzes.load("attention-in-five-minutes")["questions"]:
        assert question["question"] in text
        assert all(choice["text"] in text for choice in question["choices"])
    assert "Answers: 1 c, 2 a," in text


def test_code_and_signs_of_a_question_are_marked_up(tmp_path: Path) -> None:
    page = widgets.quiz(written(tmp_path, small(question=r"Is `a < b` and \(x<y\)?")))
    assert r"Is <code>a &lt; b</code> and \(x&lt;y\)?" in page.html


def small(**change: Any) -> dict[str, Any]:
    choices = [
        {"text": "yes", "correct": True, "feedback": "It is."},
        {"text": "no", "correct": False, "feedback": "It is not."},
    ]
    return {"title": "T", "questions": [{"question": "Is it?", "choices": choices, **change}]}


def written(folder: Path, content: Any) -> Path:
    path = folder / "q.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def with_choice(**change: Any) -> dict[str, Any]:
    content = copy.deepcopy(small())
    content["questions"][0]["choices"][1].update(change)
    return content


def without(key: str) -> dict[str, Any]:
    content = small()
    del content["questions"][0]["choices"][1][key]
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "q.json: not a JSON file"),
        ([], "q.json: expected an object"),
        ({"title": "T"}, "q.json: 'questions' is missing"),
        ({"title": "T", "questions": []}, "'questions' is empty"),
        ({**small(), "titel": "T"}, "unknown key 'titel'; did you mean 'title'"),
        (small(choices=[]), "question 1: 'choices' is empty"),
        (small(choices=small()["questions"][0]["choices"][:1]), "question 1: 1 choice, expected at least 2"),
        (small(question=" "), "question 1: 'question' is empty"),
        (small(question=r"Is \(x?"), "opens a formula"),
        (without("feedback"), "question 1: choice 2: 'feedback' is missing"),
        (with_choice(feedback=""), "choice 2: 'feedback' is empty"),
        (with_choice(correct=True), "question 1: 2 choices are correct, expected exactly one"),
        (with_choice(correct="no"), "choice 2: 'correct' is 'no', expected bool"),
        (with_choice(text="yes"), "two choices have the same text"),
        (small(choices=[{**c, "correct": False} for c in small()["questions"][0]["choices"]]), "0 choices are correct"),
        (
            small(multiple=True, choices=[{**c, "correct": False} for c in small()["questions"][0]["choices"]]),
            "no choice is correct",
        ),
    ],
)
def test_faults_of_a_quiz_are_named_with_their_place(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        quizzes.load(written(tmp_path, content))


def test_an_unknown_quiz_is_an_error_with_a_near_name() -> None:
    with pytest.raises(ValueError, match="did you mean 'attention-in-five-minutes'"):
        quizzes.load("attention-in-ten-minutes")
    with pytest.raises(ValueError, match="no quiz file"):
        quizzes.load("nowhere.json")


# ------------------------------------------------------------------------------------------------ in the browser


def high_pipe() -> tuple[int, int]:
    """Return a pipe whose ends are not 3 or 4, which Chromium wants for itself."""
    low = os.pipe()
    high = fcntl.fcntl(low[0], fcntl.F_DUPFD_CLOEXEC, 100), fcntl.fcntl(low[1], fcntl.F_DUPFD_CLOEXEC, 100)
    os.close(low[0])
    os.close(low[1])
    return high


class Browser:
    """Chromium over its debugging pipe: JSON messages that end with a zero byte."""

    def __init__(self, program: str, profile: str) -> None:
        read, self.write = high_pipe()
        self.read, write = high_pipe()
        flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
        start = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4)"
        command = [sys.executable, "-c", f"{start}; os.execv(sys.argv[3], sys.argv[3:])", str(read), str(write)]
        command += [program, *flags.split(), "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(command, pass_fds=(read, write), stderr=subprocess.DEVNULL)
        os.close(read)
        os.close(write)
        self.count, self.rest, self.session = 0, b"", ""
        page = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]

    def call(self, method: str, **parameters: Any) -> Any:
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                ready, _, _ = select.select([self.read], [], [], 180)
                part = os.read(self.read, 1 << 20) if ready else b""
                assert part, f"Chromium does not answer {method}"
                self.rest += part
            line, self.rest = self.rest.split(b"\0", 1)
            answer = json.loads(line)
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]

    def run(self, script: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def key(self, key: str) -> None:
        codes = {"ArrowRight": 39, "ArrowLeft": 37, "ArrowDown": 40, "End": 35, "Home": 36, "Tab": 9, " ": 32}
        for kind in ("rawKeyDown", "keyUp"):
            code = codes[key]
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key.strip() or "Space",
                      windowsVirtualKeyCode=code)  # fmt: skip

    def close(self) -> None:
        self.session = ""
        self.call("Browser.close")
        self.process.wait(30)
        os.close(self.read)
        os.close(self.write)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("Chromium is not installed; in CI the browser checks must run")
        pytest.skip("Chromium is not installed (apt-get install chromium); the browser checks are left out")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(program, profile)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser, slider: widgets.Page) -> Browser:
    """Open a page with the slider and a quiz; they are put in as innerHTML, the harder way."""
    quiz = widgets.quiz("attention-in-five-minutes")
    body = json.dumps(slider.html + quiz.html)
    chromium.call("Emulation.setDeviceMetricsOverride", width=320, height=800, deviceScaleFactor=1, mobile=False)
    frame = chromium.call("Page.getFrameTree")["frameTree"]["frame"]["id"]
    top = '<!doctype html><html lang="en"><meta name="viewport" content="width=device-width"><title>t</title><body>'
    chromium.call("Page.setDocumentContent", frameId=frame, html=top)
    chromium.run(f"document.body.innerHTML = {body}")
    chromium.run("Promise.all([...document.images].map(i => i.decode()))")
    return chromium


SHOWN = "[...document.querySelectorAll('figure img')].filter(e => e.offsetHeight > 0).map(e => e.alt)"
SEEN = "[...document.querySelectorAll('.choice p')].filter(e => e.offsetHeight > 0).map(e => e.innerText)"


@pytest.mark.browser
def test_the_slider_moves_by_keyboard_and_shows_one_picture_with_its_label(page: Browser) -> None:
    assert page.run(SHOWN) == [ALTS[0]]
    page.run("document.querySelector('input[type=range]').focus()")
    for key, k in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 2), ("Home", 0)):
        page.key(key)
        assert page.run(SHOWN) == [ALTS[k]]
        assert page.run("document.querySelector('output').innerText") == LABELS[k]
        assert page.run("document.querySelector('input[type=range]').getAttribute('aria-valuetext')") == LABELS[k]


@pytest.mark.browser
def test_a_screen_reader_finds_the_slider_and_the_choices_by_name(page: Browser) -> None:
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    named = {(n["role"]["value"], n["name"]["value"]) for n in nodes if "name" in n and not n["ignored"]}
    assert ("slider", "slope of the line") in named
    assert ("radio", "Global average pooling") in named
    assert ("image", ALTS[0]) in named
    assert ("image", ALTS[1]) not in named
    assert any(role == "group" and name.startswith("2. A map has") for role, name in named)


@pytest.mark.browser
def test_a_choice_shows_its_own_feedback_and_the_score_counts(page: Browser) -> None:
    questions = quizzes.load("attention-in-five-minutes")["questions"]
    assert page.run(SEEN) == []
    score, left = "document.querySelector('.score').innerText", len(questions) - 1
    page.run("document.querySelector('.payattn-quiz input').focus()")
    page.key(" ")
    seen = page.run(SEEN)
    assert len(seen) == 1
    assert seen[0].startswith("Not right. The sum runs over positions")
    assert page.run(score) == f"0 of {len(questions)} right, {left} open"
    page.key("ArrowDown")
    page.key("ArrowDown")
    seen = page.run(SEEN)
    assert len(seen) == 1
    assert seen[0].startswith("Right. A layer with")
    assert page.run(score) == f"1 of {len(questions)} right, {left} open"


@pytest.mark.browser
def test_a_question_with_several_right_choices_counts_when_all_of_them_are_chosen(page: Browser) -> None:
    score = "document.querySelector('.score').innerText.slice(0, 1)"
    boxes = "[...document.querySelectorAll('fieldset:last-of-type input[type=checkbox]')]"
    assert page.run(f"{boxes}.length") == 4
    counts = []
    for k in (0, 1, 3, 2):
        page.run(f"{boxes}[{k}].click()")
        counts.append(page.run(score))
    assert counts == ["0", "0", "1", "0"]


@pytest.mark.browser
def test_nothing_scrolls_sideways_at_320_pixels_and_the_picture_keeps_its_shape(page: Browser) -> None:
    page.run("document.querySelectorAll('.choice input').forEach(e => e.click())")
    assert page.run("document.documentElement.scrollWidth") <= 320
    width, height, true = page.run(
        "(e => [e.offsetWidth, e.offsetHeight, e.naturalHeight / e.naturalWidth])(document.querySelector('img'))"
    )
    assert 250 < width <= 320
    assert height / width == pytest.approx(true, rel=0.02)


@pytest.mark.browser
def test_the_text_follows_the_page_into_the_dark(page: Browser) -> None:
    page.run("document.body.style = 'background:#121212;color:#eeeeee'")
    parts = "label, legend, .choice p, .score, output"
    colours = page.run(f"[...document.querySelectorAll('{parts}')].map(e => getComputedStyle(e).color)")
    assert set(colours) == {"rgb(238, 238, 238)"}
    backgrounds = page.run(
        "[...document.querySelectorAll('.payattn-quiz, .payattn-quiz *')]"
        ".filter(e => e.tagName !== 'INPUT').map(e => getComputedStyle(e).backgroundColor)"
    )
    assert set(backgrounds) == {"rgba(0, 0, 0, 0)"}
    assert page.run("getComputedStyle(document.querySelector('img')).backgroundColor") == "rgb(255, 255, 255)"


@pytest.mark.browser
def test_the_page_made_no_request(page: Browser) -> None:
    assert page.run("performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length") == 0
