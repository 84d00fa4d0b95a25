"""The site builds without a warning and reads well: as files, and in a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest

import check_browser
import check_site
from bookfiles import ROOT
from browser import Browser

pytestmark = pytest.mark.xdist_group("site")  # one build and one browser serve all of them


def test_the_strict_build_has_no_warning(built: tuple[bool, str, Path]) -> None:
    assert built[0], "\n" + built[1]


def test_the_site_is_self_contained_described_and_connected(built: tuple[bool, str, Path]) -> None:
    faults = check_site.check(built[2])
    assert not faults, "\n" + "\n".join(map(str, faults))


@pytest.mark.browser
@pytest.mark.parametrize("page", check_browser.pages(ROOT))
def test_the_page_reads_well_in_a_browser(page: str, browser: Browser, site_url: str) -> None:
    faults = check_browser.check_page(browser, site_url, page)
    assert not faults, "\n" + "\n".join(map(str, faults))


@pytest.mark.browser
def test_search_finds_what_is_there_and_nothing_else(browser: Browser, site_url: str) -> None:
    faults = check_browser.check_search(browser, site_url)
    assert not faults, "\n" + "\n".join(map(str, faults))
