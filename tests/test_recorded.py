"""What is recorded under results/ belongs to the recipes and to the embedded set as they are now."""

from __future__ import annotations

from typing import Any

import pytest

from payattn import recipes, results
from payattn.data import load
from payattn.data.files import EMBEDDED
from payattn.train import Settings

RUNS = results.load_results()


def test_something_is_recorded() -> None:
    assert len({run["recipe"] for run in RUNS}) >= 6


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run['recipe']}-{run['seed']}")
def test_a_recorded_run_followed_its_recipe_from_a_clean_checkout(run: dict[str, Any]) -> None:
    recipe = recipes.get(run["recipe"], small=run["small"])
    assert run["model"]["name"] == recipe.model
    assert Settings.from_dict({**run["settings"], "seed": 0}) == recipe.settings
    assert len(run["epochs"]) == recipe.settings.epochs
    assert run.get("transfer", {}) == recipes.transferred(recipe)
    assert run["environment"]["commit"] and not run["environment"]["dirty"]


def test_runs_on_drawn_sets_saw_the_images_that_are_drawn_now() -> None:
    seen: dict[str, tuple[str, str]] = {}
    for run in RUNS:
        recipe = recipes.get(run["recipe"], small=run["small"])
        if recipe.data in EMBEDDED:
            key = str((recipe.data, sorted(recipe.data_options.items())))
            if key not in seen:
                train, test = load(recipe.data, device="cpu", **recipe.data_options)
                seen[key] = (train.digest(), test.digest())
            assert (run["data"]["train"]["digest"], run["data"]["test"]["digest"]) == seen[key], run["recipe"]
    assert seen


def test_runs_on_a_copy_say_so() -> None:
    copies = [run for run in RUNS if recipes.get(run["recipe"]).data == "cifar10"]
    assert copies
    assert all(run["data"]["test"]["caveat"] for run in copies)


def test_an_experiment_measured_the_network_that_is_recorded_for_its_base() -> None:
    trained = {(run["recipe"], run["seed"]): run for run in RUNS}
    for run in RUNS:
        base = recipes.get(run["recipe"]).base
        if not base:
            continue
        assert run["final"]["measured"], f"{run['recipe']} measured nothing"
        first = trained[base, run["seed"]]
        assert run["epochs"] == first["epochs"], f"{run['recipe']}: another training than that of {base}"
        assert run["final"]["accuracy"] == pytest.approx(first["final"]["accuracy"], abs=2e-3)
