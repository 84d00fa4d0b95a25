"""Open every page of the built site in headless Chromium and look: what a reader would meet.

No request to another host, no console error, formulas rendered, figures that move, quizzes that answer, search
that finds, no sideways scroll on a narrow screen, readable in light and in dark, a name for every control.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from bookfiles import ROOT, Fault, report, toc_files
from browser import Browser, Server, find_chromium

NARROW = (390, 320)  # CSS pixels
NAMED = {"button", "link", "slider", "radio", "checkbox", "textbox", "searchbox", "combobox", "image", "img", "table"}

READY = """(async () => {
  if (window.MathJax && MathJax.startup && MathJax.startup.promise) await MathJax.startup.promise;
  await document.fonts.ready;
  for (const image of document.images) image.loading = 'eager';
  await Promise.all([...document.images].map(i => i.complete ? 0 : i.decode().catch(() => 0)));
  while (document.querySelector('[data-ready="no"]')) await new Promise(done => setTimeout(done, 50));
  return true;
})()"""

MATHS = """(() => {
  const article = document.querySelector('article') || document.body, bad = [];
  for (const span of article.querySelectorAll('.math'))
    if (!span.querySelector('mjx-container')) bad.push('not rendered: ' + span.textContent.slice(0, 80));
  for (const error of article.querySelectorAll('mjx-merror, mjx-mtext[style*="color: red"]'))
    bad.push((error.getAttribute('data-mjx-error') || 'undefined') + ' in ' +
             (error.closest('mjx-container').previousSibling || error).textContent.slice(0, 80));
  const walk = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const text = walk.currentNode.data, parent = walk.currentNode.parentElement;
    if (/\\\\\\(.+\\\\\\)|\\$\\$.+\\$\\$/.test(text) && !parent.closest('pre, code, script, style, mjx-container'))
      bad.push('left as text: ' + text.trim().slice(0, 80));
  }
  return bad;
})()"""

# What can be seen of the box around a control: its pictures, its text.
SEEN = """
  const box = e => e.closest('fieldset, figure, .cell_output') || e.parentElement;
  const pictures = e => [...box(e).querySelectorAll('img, svg, canvas')]
    .filter(i => i.checkVisibility({visibilityProperty: true, opacityProperty: true}))
    .map(i => i.tagName + (i.currentSrc || i.outerHTML)).join();
  const words = e => box(e).innerText;
"""

SCROLL = """(() => {
  const wide = document.documentElement.scrollWidth - window.innerWidth;
  if (wide <= 0) return '';
  let worst = null, right = window.innerWidth + 0.5;
  for (const e of document.querySelectorAll('body *')) {
    let p = e.parentElement, clipped = false;
    for (; p && p !== document.body; p = p.parentElement)
      if (getComputedStyle(p).overflowX !== 'visible') { clipped = true; break; }
    const r = e.getBoundingClientRect();
    if (!clipped && r.width && r.right > right) { right = r.right; worst = e; }
  }
  return wide + ' px too wide' + (worst ? ': <' + worst.tagName.toLowerCase() + ' class="' + worst.className + '"> ' +
         worst.textContent.trim().slice(0, 40) : '');
})()"""

CONTRAST = """(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const d = canvas.getImageData(0, 0, 1, 1).data; return [d[0], d[1], d[2], d[3] / 255]; };
  const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] + b[i] * (1 - a[3])).concat([1]);
  const light = c => { const l = c.slice(0, 3).map(v => { v /= 255;
    return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * l[0] + 0.7152 * l[1] + 0.0722 * l[2]; };
  const ground = e => { const layers = [];
    for (let p = e; p; p = p.parentElement) layers.push(rgba(getComputedStyle(p).backgroundColor));
    return layers.reverse().reduce((below, c) => over(c, below),
      document.documentElement.dataset.theme === 'dark' ? [18, 18, 18, 1] : [255, 255, 255, 1]); };
  const article = document.querySelector('article') || document.body;
  const bad = {}, walk = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement, style = getComputedStyle(e);
    const apart = 'script, style, svg, mjx-assistive-mml, .headerlink, [disabled]';
    if (!walk.currentNode.data.trim() || e.closest(apart)) continue;
    if (!e.checkVisibility({visibilityProperty: true, opacityProperty: true})) continue;
    const below = ground(e), a = light(over(rgba(style.color), below)), b = light(below);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), size = parseFloat(style.fontSize);
    const need = size >= 24 || (size >= 18.6 && style.fontWeight >= 700) ? 3 : 4.5;
    if (ratio < need) bad[e.tagName.toLowerCase() + '.' + e.className + ' ' + style.color] =
      ratio.toFixed(1) + ' of ' + need + ': ' + walk.currentNode.data.trim().slice(0, 40);
  }
  for (const image of document.querySelectorAll('.cell_output img')) {
    const style = getComputedStyle(image);
    if (style.filter !== 'none') bad['figure'] = 'a filter changes its colours: ' + style.filter;
    if (document.documentElement.dataset.theme === 'dark' && light(ground(image)) < 0.9)
      bad['figure ground'] = 'its background is not white';
  }
  return Object.entries(bad).map(([what, how]) => what + ', ' + how);
})()"""


def load(browser: Browser, url: str) -> None:
    """Open a page and wait until formulas, fonts and pictures are there."""
    browser.open(url)
    browser.run(READY)


def quiet(browser: Browser, base: str) -> Iterator[str]:
    """Requests to other hosts, missing files, console errors."""
    host = urlsplit(base).netloc
    for url in browser.requests():
        if urlsplit(url).scheme not in {"data", "blob"} and urlsplit(url).netloc != host:
            yield f"asks another host: {url}"
    yield from (f"missing file: {url}" for url in browser.failures() if not url.endswith("/favicon.ico"))
    yield from (f"console error: {text}" for text in browser.errors() if "favicon.ico" not in text)


def unfold(element: str) -> str:
    """Script that opens what an element is folded into: details, or the theme's dropdown, such as a solution."""
    return (
        f"for (let e = {element}; e; e = e.parentElement) "
        "{ if (e.tagName === 'DETAILS') e.open = true; e.classList.remove('toggle-hidden') }"
    )


def moving(browser: Browser) -> Iterator[str]:
    """Every slider changes its picture by the arrow keys."""
    # a slider in a folded solution can be used once the reader has opened it
    browser.run("document.querySelectorAll('.toggle-hidden').forEach(box => box.classList.remove('toggle-hidden'))")
    browser.run("document.querySelectorAll('details').forEach(box => { box.open = true; })")
    for i in range(browser.run("document.querySelectorAll('article input[type=range]').length")):
        slider = f"document.querySelectorAll('article input[type=range]')[{i}]"
        state = f"(() => {{ {SEEN} return pictures({slider}) }})()"
        browser.run(unfold(slider))
        browser.run(f"{slider}.scrollIntoView(), {slider}.focus()")
        for key in ("ArrowRight", "ArrowLeft"):
            before = browser.run(state)
            browser.press(key)
            if browser.run(state) == before:
                yield f"slider {i + 1}: {key} changes nothing"


def answering(browser: Browser) -> Iterator[str]:
    """Every group of radio buttons gives feedback when a choice is made by key, and other feedback for another."""
    groups = browser.run("[...new Set([...document.querySelectorAll('article input[type=radio]')].map(r => r.name))]")
    for name in groups:
        if browser.run(f"!!document.querySelector('article .sd-tab-set input[name=\"{name}\"]')"):
            continue  # tabs, not a quiz
        choice = f"document.querySelectorAll('article input[name=\"{name}\"]')"
        state = f"(() => {{ {SEEN} return words({choice}[0]) }})()"
        browser.run(unfold(f"{choice}[0]"))
        start = browser.run(state)
        browser.run(f"{choice}[0].scrollIntoView(), {choice}[0].focus()")
        browser.press(" ")
        first = browser.run(state)
        if len(first) <= len(start):
            yield f"quiz {name}: choosing shows no feedback"
        browser.press("ArrowRight")
        if browser.run(state) in {start, first}:
            yield f"quiz {name}: the second choice shows no feedback of its own"


def named(browser: Browser) -> Iterator[str]:
    """Every control and picture has a name, as the browser tells it to a screen reader; one main part."""
    mains = 0
    for node in browser.call("Accessibility.getFullAXTree")["nodes"]:
        role = node.get("role", {}).get("value", "")
        mains += role == "main"
        if node.get("ignored") or role not in NAMED - {"table"}:
            continue
        if not str(node.get("name", {}).get("value", "")).strip():
            html = browser.call("DOM.describeNode", backendNodeId=node["backendDOMNodeId"])["node"]
            attributes = html.get("attributes", [])
            pairs = dict(zip(attributes[::2], attributes[1::2], strict=True))
            if "tb-icon" in pairs.get("class", ""):
                continue  # the theme's arrow beside the words of a fold
            brief = {key: value[:40] for key, value in pairs.items() if key in {"class", "id", "href", "src"}}
            yield f"a {role} without a name: <{html['localName']} {brief}>"
    if mains != 1:
        yield f"{mains} main landmarks"


def check_page(browser: Browser, base: str, page: str) -> list[Fault]:
    """Every fault a reader of one page would meet."""
    rules: list[tuple[str, str]] = []
    browser.prefer("light")
    browser.resize(1280)
    load(browser, f"{base}/{page}")
    theme = "document.documentElement.dataset.theme = "
    rules += [(rule, "every formula must parse") for rule in browser.run(MATHS)]
    rules += [(rule, "see payattn.widgets.frames") for rule in moving(browser)]
    rules += [(rule, "see payattn.widgets.quiz") for rule in answering(browser)]
    rules += [(rule, "give it a label, text or alt text") for rule in named(browser)]
    for mode in ("light", "dark"):
        browser.run(f"{theme}'{mode}'")
        low = browser.run(CONTRAST)
        rules += [(f"{mode}: contrast {rule}", "change its colour in assets/site.css") for rule in low]
    for width in NARROW:
        browser.resize(width)
        wide = browser.run(SCROLL)
        if wide:
            rules.append((f"at {width} px the page scrolls sideways, {wide}", "let the element scroll in its own box"))
    rules += [(rule, "serve it from the site; see the console") for rule in quiet(browser, base)]
    return [Fault(page, "", rule, fix) for rule, fix in rules]


def check_search(browser: Browser, base: str, word: str = "attention") -> list[Fault]:
    """Search finds a word that is there and does not find one that is not."""
    faults = []
    for query, there in ((word, True), ("zzyzxq", False)):
        browser.open(f"{base}/search.html?q={query}")
        heading = "document.querySelector('#search-results h2')?.innerText || 'Searching'"
        browser.until(f"!/Searching|Preparing/.test({heading})")
        found = browser.run("document.querySelectorAll('#search-results ul.search li a').length")
        if bool(found) != there:
            faults.append(Fault("search.html", "", f"{query!r}: {found} results", "see the console of the search page"))
        faults += [Fault("search.html", "", rule, "see the console") for rule in quiet(browser, base)]
    return faults


def screens(browser: Browser, base: str, page: str, folder: Path) -> None:
    """Pictures of a page, light and dark, wide and narrow, for people to look at."""
    for scheme in ("light", "dark"):
        browser.prefer(scheme)
        for width in (1280, 360):
            browser.resize(width)
            load(browser, f"{base}/{page}")
            name = page.removesuffix(".html").replace("/", "-")
            browser.screenshot(folder / f"{name}-{scheme}-{width}.png")


def pages(root: Path) -> list[str]:
    """Every page of the table of contents."""
    return [f"{name}.html" for name in toc_files(root)]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="*", help="such as book/intro.html (default: all)")
    parser.add_argument("--site", type=Path, default=ROOT / "_build" / "html")
    parser.add_argument("--screens", type=Path, help="write pictures of the pages here instead of checking them")
    options = parser.parse_args()
    if find_chromium() is None:
        print("browser: no Chromium found, nothing checked; on Debian and Ubuntu: apt-get install chromium")
        return 1
    faults: list[Fault] = []
    with Server(options.site) as server, Browser() as browser:
        for page in options.pages or pages(ROOT):
            print(f"  {page}", flush=True)
            if options.screens:
                screens(browser, server.url, page, options.screens)
            else:
                faults += check_page(browser, server.url, page)
        if not options.screens and not options.pages:
            faults += check_search(browser, server.url)
    if options.screens:
        print(f"pictures in {options.screens}")
        return 0
    return report(faults, "browser: every page reads well")


if __name__ == "__main__":
    sys.exit(main())
