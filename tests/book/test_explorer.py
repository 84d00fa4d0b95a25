"""The explorer page in a real browser: its numbers are PyTorch's, and it answers to keyboard, pointer and files."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import check_site
from bookfiles import ROOT
from browser import Browser
from check_browser import quiet
from payattn.export import compare

pytestmark = pytest.mark.xdist_group("site")

EXPECTED: list[dict[str, Any]] = json.loads((ROOT / "tests" / "book" / "explorer.json").read_text())
PAGE = "book/explorer.html"
READY = "document.getElementById('explorer').dataset.ready === 'yes'"
SAID = "document.querySelector('[data-part=said]').textContent"
PICTURE = "document.querySelector('[data-part=picture]')"
CHANCE = """(async () => {
  const {chance, change, answers} = payattnExplorer, right = {};
  for (let seed = 0; seed < 60; seed++) {
    const scene = chance(seed);
    await change(scene);
    for (const [name, {logits}] of Object.entries(answers)) {
      const found = payattnNetworks.classes[logits.indexOf(Math.max(...logits))];
      right[name] = (right[name] ?? 0) + (found === scene.glyph) / 60;
    }
  }
  return right;
})()"""


def listed() -> dict[str, Any]:
    """What tools/explorer.py wrote for the page."""
    text = (ROOT / "assets" / "explorer" / "networks.js").read_text()
    found: dict[str, Any] = json.loads(text[text.index("{") : text.rindex("}") + 1])
    return found


def named(expected: dict[str, Any], image: int) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(values[image], dtype=torch.float64) for name, values in expected["outputs"].items()}


@pytest.fixture
def page(browser: Browser, site_url: str) -> Iterator[Browser]:
    """The explorer, when its networks have answered for the first time."""
    browser.resize(1280)
    browser.open(f"{site_url}/{PAGE}")
    browser.until(READY)
    yield browser
    faults = list(quiet(browser, site_url))
    assert not faults, "\n".join(faults)


def test_onnx_runtime_gives_what_pytorch_gave_for_the_networks_of_the_page() -> None:
    runtime = pytest.importorskip("onnxruntime")
    networks = listed()["networks"]
    assert [network["name"] for network in networks] == [expected["name"] for expected in EXPECTED]
    for network, expected in zip(networks, EXPECTED, strict=True):
        content, side = gzip.decompress(base64.b64decode(network["onnx"])), expected["size"]
        assert len(network["onnx"]) < 1_000_000
        session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
        pixels = numpy.stack([numpy.frombuffer(base64.b64decode(text), "uint8") for text in expected["images"]])
        images = pixels.reshape(-1, 3, side, side).astype("float32") / 255
        found = dict(zip([o.name for o in session.get_outputs()], session.run(None, {"images": images}), strict=True))
        for k in range(len(images)):
            compare({name: torch.from_numpy(out[k]).flatten() for name, out in found.items()}, named(expected, k))


def test_the_page_stays_small() -> None:
    files = [*(ROOT / "assets" / "explorer").iterdir(), *(ROOT / "assets" / "vendor" / "onnxruntime").iterdir()]
    assert sum(file.stat().st_size for file in files) < 8_000_000
    assert "MIT License" in (ROOT / "assets" / "vendor" / "onnxruntime" / "LICENSE").read_text()


def test_a_script_that_is_missing_from_the_site_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "there.js").touch()
    text = '<html lang="en"><title>x</title><h1>x</h1><div data-needs="there.js gone.js"></div></html>'
    (tmp_path / "index.html").write_text(text)
    assert [fault.place for fault in check_site.check(tmp_path)] == ["gone.js"]


@pytest.mark.browser
def test_logits_maps_and_shown_probabilities_are_those_of_pytorch(page: Browser) -> None:
    classes = listed()["classes"]
    for place, expected in enumerate(EXPECTED):
        for k, text in enumerate(expected["images"]):
            other = 24 + 32 - expected["size"]
            answer = page.run(
                f"(async () => {{ const seen = Uint8Array.from(atob('{text}'), c => c.charCodeAt(0));"
                f"await payattnExplorer.show({{{expected['size']}: seen, {other}: new Uint8Array(3 * {other} ** 2)}});"
                f"return payattnExplorer.answers['{expected['name']}'] }})()"
            )
            found = {"logits": answer["logits"], **answer["maps"]}
            wanted = named(expected, k)
            compare({name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}, wanted)
            share, best = wanted["logits"].softmax(0).max(0)
            first = page.run(f"document.querySelectorAll('#explorer .net')[{place}].querySelector('li').innerText")
            shown = re.search(r"([\d.]+)\s%", first)
            assert classes[int(best)] in first
            assert shown is not None
            assert abs(float(shown[1]) - 100 * share.item()) < 0.06


@pytest.mark.browser
def test_the_page_draws_pictures_on_which_the_networks_are_as_good_as_on_their_test_set(page: Browser) -> None:
    right = page.run(CHANCE)
    for network in listed()["networks"]:
        assert right[network["name"]] > network["accuracy"] - 0.12, right


@pytest.mark.browser
def test_arrow_keys_move_the_glyph_and_the_answers_follow(page: Browser) -> None:
    page.run("payattnExplorer.change(payattnExplorer.chance(3))")
    state = "JSON.stringify(payattnExplorer.answers)"
    place, before = page.run("payattnExplorer.scene().x"), page.run(state)
    page.run(f"{PICTURE}.focus()")
    for _ in range(3):
        page.press("ArrowRight")
    assert page.run("payattnExplorer.scene().x") == pytest.approx(min(1, place + 3 / 32))
    page.until(f"{state} !== {json.dumps(before)}", 30)
    page.until(f"/VGG.*Attention-56.*Answered in/.test({SAID})", 30)
    assert f"{round(100 * page.run('payattnExplorer.scene().x'))} % from the left" in page.run(
        f"{PICTURE}.getAttribute('aria-label')"
    )


@pytest.mark.browser
@pytest.mark.parametrize("by", ["mouse", "touch"])
def test_the_glyph_is_dragged(by: str, page: Browser) -> None:
    page.run("payattnExplorer.change({...payattnExplorer.chance(3), x: 0.5, y: 0.5})")
    page.run(f"{PICTURE}.scrollIntoView({{block: 'center'}})")
    x, y, side = page.run(f"(b => [b.left, b.top, b.width])({PICTURE}.getBoundingClientRect())")
    for k, share in enumerate((0.2, 0.3, 0.4)):
        at = {"x": x + share * side, "y": y + side / 2}
        if by == "mouse":
            kind = "mouseMoved" if k else "mousePressed"
            page.call("Input.dispatchMouseEvent", type=kind, button="left", buttons=1, clickCount=1, **at)
        else:
            page.call("Input.dispatchTouchEvent", type="touchMove" if k else "touchStart", touchPoints=[at])
    page.until("Math.abs(payattnExplorer.scene().x - 0.7) < 0.01", 10)
    assert page.run("payattnExplorer.scene().y") == pytest.approx(0.5, abs=0.01)
    if by == "mouse":
        page.call("Input.dispatchMouseEvent", type="mouseReleased", button="left", clickCount=1, **at)
    else:
        page.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])


@pytest.mark.browser
def test_the_space_bar_and_the_pointer_draw(page: Browser) -> None:
    page.run("document.querySelector('[data-part=draw]').click()")
    page.run(f"{PICTURE}.focus()")
    for key in (" ", "ArrowRight", "ArrowRight", " ", "ArrowRight"):
        page.press(key)
    (line,) = page.run("payattnExplorer.scene().pen")
    assert len(line) == 3
    assert line[2][0] - line[0][0] == pytest.approx(2 / 32)
    assert page.run("payattnExplorer.scene().glyph") == ""
    page.run(f"{PICTURE}.scrollIntoView()")
    x, y = page.run(f"(() => {{ const b = {PICTURE}.getBoundingClientRect(); return [b.left, b.top] }})()")
    mouse = {"button": "left", "buttons": 1, "clickCount": 1}
    for kind, far in (("mousePressed", 20), ("mouseMoved", 60), ("mouseReleased", 60)):
        page.call("Input.dispatchMouseEvent", type=kind, x=x + far, y=y + far, **mouse)
    page.until("payattnExplorer.scene().pen.length === 2 && payattnExplorer.scene().pen[1].length > 1", 10)
    assert "a drawing" in page.run("document.querySelector('[data-part=strange]').textContent")


@pytest.mark.browser
def test_a_picture_of_ones_own_is_shown_and_a_file_that_is_none_is_refused(page: Browser) -> None:
    page.run(
        """(async () => {
          const canvas = Object.assign(document.createElement('canvas'), {width: 60, height: 40});
          const context = canvas.getContext('2d');
          context.fillStyle = '#f00'; context.fillRect(0, 0, 60, 40);
          context.fillStyle = '#00f'; context.fillRect(30, 0, 30, 40);
          window.own = new File([await new Promise(done => canvas.toBlob(done))], 'own.png', {type: 'image/png'});
          window.give = file => { const all = new DataTransfer(); all.items.add(file);
            const input = document.querySelector('[data-part=file]');
            input.files = all.files; input.dispatchEvent(new Event('change', {bubbles: true})); };
          give(new File(['text'], 'own.txt', {type: 'text/plain'}));
        })()"""
    )
    page.until(f"/own.txt is not a picture/.test({SAID})", 10)
    page.run("give(own)")
    page.until("payattnExplorer.scene().photo", 10)
    corner = page.run("(p => [p[0], p[2 * 32 * 32], p[31], p[2 * 32 * 32 + 31]])"
                      "(payattnExplorer.paint(payattnExplorer.scene(), 32).pixels)")  # fmt: skip
    assert corner == [255, 0, 0, 255]  # red at the left, blue at the right: the middle square
    assert "a photograph" in page.run("document.querySelector('[data-part=strange]').textContent")


@pytest.mark.browser
def test_it_works_from_a_folder_and_asks_for_nothing_beyond_it(browser: Browser, built: tuple[bool, str, Path]) -> None:
    browser.open(f"file://{built[2]}/{PAGE}")
    browser.until(READY)
    assert browser.run("Object.keys(payattnExplorer.answers).length") == len(EXPECTED)
    assert browser.errors() == []
    assert {url.split(":")[0] for url in browser.requests()} <= {"file", "data", "blob"}


@pytest.mark.browser
def test_other_pages_do_not_load_it(browser: Browser, site_url: str) -> None:
    browser.open(f"{site_url}/book/how-to-use.html")
    assert not [url for url in browser.requests() if "explorer/" in url or "onnxruntime" in url]
