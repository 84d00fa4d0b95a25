"""What is recorded under results/ belongs to the recipes and to the embedded set as they are now."""

from __future__ import annotations

from typing import Any

import pytest

from payattn import recipes, results
from payattn.data import load

RUNS = results.load_results()


def test_something_is_recorded() -> None:
    assert len({run["recipe"] for run in RUNS}) >= 6


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run['recipe']}-{run['seed']}")
def test_a_recorded_run_followed_its_recipe_from_a_clean_checkout(run: dict[str, Any]) -> None:
    recipe = recipes.get(run["recipe"], small=run["small"])
    assert run["model"]["name"] == recipe.model
    assert {**run["settings"], "seed": 0} == recipe.settings.to_dict()
    assert len(run["epochs"]) == recipe.settings.epochs
    assert run["environment"]["commit"] and not run["environment"]["dirty"]


def test_runs_on_glyphs_saw_the_images_that_are_drawn_now() -> None:
    runs = [run for run in RUNS if run["data"]["train"]["name"] == "glyphs"]
    recorded = {(run["data"]["train"]["digest"], run["data"]["test"]["digest"]) for run in runs}
    options = {str(recipes.get(run["recipe"]).data_options): recipes.get(run["recipe"]).data_options for run in runs}
    drawn = {tuple(part.digest() for part in load("glyphs", device="cpu", **o)) for o in options.values()}
    assert recorded == drawn


def test_runs_on_a_copy_say_so() -> None:
    copies = [run for run in RUNS if run["recipe"].split("/")[1] == "cifar10-narrow"]
    assert all(run["data"]["test"]["caveat"] for run in copies)
