"""Read the built site as files: self-contained, described, well-formed, every page and link reachable."""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup, Tag

from bookfiles import ROOT, Fault, report

LOADING = {"stylesheet", "preload", "prefetch", "modulepreload", "icon", "manifest", "preconnect", "dns-prefetch"}
OUTSIDE = re.compile(r"^\s*(?:https?:)?//", re.I)
GENERATED = {"search.html", "genindex.html", "index.html", "py-modindex.html"}
THEIRS = {"exercise-content", "solution-content"}  # ids that sphinx-exercise repeats
SHORTEST_ALT = 20  # characters, for figures of the text


def outside(soup: BeautifulSoup) -> Iterator[str]:
    """Addresses on another host that the page would load by itself."""
    for tag in soup.find_all(src=True):
        yield str(tag["src"])
    for tag in soup.find_all(["img", "source"], srcset=True):
        yield from (part.split()[0] for part in str(tag["srcset"]).split(",") if part.split())
    for tag in soup.find_all("link", href=True):
        if LOADING & {str(rel).lower() for rel in tag.get_attribute_list("rel")}:
            yield str(tag["href"])
    for tag in soup.find_all(["object", "embed"]):
        yield str(tag.get("data", ""))
    for tag in soup.find_all(style=True):
        yield from css_urls(str(tag["style"]))
    for tag in soup.find_all("style"):
        yield from css_urls(tag.get_text())


def css_urls(css: str) -> list[str]:
    """Addresses named by a style sheet."""
    return re.findall(r"(?:url\(|@import)\s*[\"']?([^\"')\s;]+)", css)


def local_target(page: Path, href: str) -> tuple[Path, str] | None:
    """The file and fragment a link leads to on the site itself."""
    parts = urlsplit(href)
    if parts.scheme or parts.netloc or href.startswith("//"):
        return None
    return ((page.parent / unquote(parts.path)).resolve() if parts.path else page), unquote(parts.fragment)


class Site:
    """The pages of a built site, parsed once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.pages = {p: BeautifulSoup(p.read_text(), "html.parser") for p in sorted(self.folder.rglob("*.html"))
                      if "_static" not in p.parts}  # fmt: skip
        self.ids = {p: {str(t["id"]) for t in soup.find_all(id=True)} for p, soup in self.pages.items()}

    def name(self, page: Path) -> str:
        return str(page.relative_to(self.folder))

    def faults(self) -> Iterator[Fault]:
        """Every fault of the site."""
        if not self.pages:
            yield Fault(str(self.folder), "", "no page", "run: make site")
        for page, soup in self.pages.items():
            for found in outside(soup):
                if OUTSIDE.match(found):
                    yield Fault(self.name(page), "", f"asks another host: {found}", "put the file under assets/")
            if page.name == "index.html" and soup.find("meta", attrs={"http-equiv": "Refresh"}):
                continue
            yield from self.form(page, soup)
            yield from self.images(page, soup)
            yield from self.links(page, soup)
        for sheet in self.folder.rglob("*.css"):
            for found in css_urls(sheet.read_text(errors="replace")):
                if OUTSIDE.match(found):
                    yield Fault(self.name(sheet), "", f"asks another host: {found}", "put the file under assets/")
        yield from self.reachable()

    def form(self, page: Path, soup: BeautifulSoup) -> Iterator[Fault]:
        """Language, title, ids and headings."""
        html = soup.find("html")
        if not isinstance(html, Tag) or not html.get("lang"):
            yield Fault(self.name(page), "", "no lang on <html>", "set `language` in _config.yml")
        if not soup.title or not soup.title.get_text(strip=True):
            yield Fault(self.name(page), "", "no <title>", "start the page with a heading")
        for name, count in Counter(str(t["id"]) for t in soup.find_all(id=True)).items():
            if count > 1 and name not in THEIRS:
                yield Fault(self.name(page), f"id {name}", f"stands {count} times", "make ids unique in a page")
        main = soup.find("article") or soup
        levels = [int(h.name[1]) for h in main.find_all(re.compile(r"^h[1-6]$"))] if isinstance(main, Tag) else []
        if page.name not in GENERATED and levels.count(1) != 1:
            yield Fault(self.name(page), "", f"{levels.count(1)} headings of level 1", "one title per page")
        for before, after in pairwise(levels):
            if after > before + 1:
                yield Fault(self.name(page), "", f"heading level jumps from {before} to {after}", "use the one between")

    def images(self, page: Path, soup: BeautifulSoup) -> Iterator[Fault]:
        """Every image describes itself."""
        for image in soup.find_all("img"):
            where, alt = f"image {str(image.get('src', ''))[:60]}", image.get("alt")
            if alt is None:
                yield Fault(self.name(page), where, "no alt text", "say what is seen")
            elif image.find_parent("article"):
                if re.search(r"_images/|\.(?:png|jpe?g|svg|gif)$", str(alt)):
                    yield Fault(self.name(page), where, f"the alt text is a file name: {alt}", "say what is seen")
                elif len(str(alt)) < SHORTEST_ALT and "badge" not in str(image.get("src")):
                    yield Fault(self.name(page), where, f"the alt text says too little: {alt!r}", "say what is seen")

    def links(self, page: Path, soup: BeautifulSoup) -> Iterator[Fault]:
        """Every link within the site has a target."""
        found = [(tag, tag.get("href") or tag.get("src")) for tag in soup.find_all(["a", "link", "script", "img"])]
        for tag in soup.select("[data-needs]"):  # what a script of the page loads later
            found += [(tag, part) for part in str(tag["data-needs"]).split()]
        for tag, href in found:
            target = local_target(page, str(href)) if href else None
            if target is None:
                continue
            file, fragment = target
            if not file.exists():
                yield Fault(self.name(page), str(href)[:80], "leads nowhere", "mend the link")
            elif tag.name == "a" and fragment and file in self.ids and fragment not in self.ids[file]:
                yield Fault(self.name(page), str(href)[:80], "no such place in the page", "mend the fragment")

    def reachable(self) -> Iterator[Fault]:
        """Every page can be reached by links from the root page."""
        start = self.folder / "index.html"
        seen, todo = {start}, [start]
        while todo:
            page = todo.pop()
            soup = self.pages.get(page)
            if soup is None:
                continue
            hrefs = [str(a["href"]) for a in soup.find_all("a", href=True)]
            for meta in soup.find_all("meta", attrs={"http-equiv": "Refresh"}):
                hrefs.append(str(meta["content"]).split("url=")[-1].strip())
            for href in hrefs:
                target = local_target(page, href)
                if target and target[0] not in seen:
                    seen.add(target[0])
                    todo.append(target[0])
        for page in self.pages:
            if page not in seen and page.name not in GENERATED:
                yield Fault(self.name(page), "", "no link leads to this page", "add it to _toc.yml")


def check(folder: Path) -> list[Fault]:
    """Every fault of the site built in `folder`."""
    return list(Site(folder).faults())


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", nargs="?", type=Path, default=ROOT / "_build" / "html")
    return report(check(parser.parse_args().site), "site: self-contained, described, and every link leads somewhere")


if __name__ == "__main__":
    sys.exit(main())
