"""What is generated is current: the equation register, the results page, every place with the address."""

from __future__ import annotations

import address
import equations
import results_page
from bookfiles import ROOT


def test_every_labelled_equation_names_a_function_and_a_test() -> None:
    faults = equations.check(ROOT)
    assert not faults, "\n" + "\n".join(map(str, faults))


def test_the_results_page_is_current_and_prints_no_weakly_remembered_number() -> None:
    faults = results_page.check(ROOT)
    assert not faults, "\n" + "\n".join(map(str, faults))


def test_every_place_agrees_with_the_address_in_the_config() -> None:
    faults = address.check(ROOT)
    assert not faults, "\n" + "\n".join(map(str, faults))
