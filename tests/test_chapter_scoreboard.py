"""What the scoreboard says of places, ties, luck and trade-offs, against counting by hand."""

from __future__ import annotations

from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from payattn import plot, recipes, results
from payattn.check import scoreboard

TENTHS = st.lists(st.integers(0, 9).map(lambda k: k / 10), min_size=1, max_size=8)


# --- the recipes


def rows() -> list[recipes.Recipe]:
    return [recipes.get(name) for name in recipes.list_recipes("scoreboard/scoreboard/*")]


def test_every_row_sees_the_same_images_as_often() -> None:
    spent = {(r.data, str(r.data_options), r.settings.epochs, r.settings.augment is None) for r in rows()}
    assert len(rows()) >= 16 and len(spent) == 1
    assert not any(r.published for r in rows())


def test_every_row_is_judged_with_grad_cam_at_a_layer_that_it_has_with_as_many_places() -> None:
    judged = {r.base: r for r in (recipes.get(n) for n in recipes.list_recipes("scoreboard/scoreboard-judged/*"))}
    assert set(judged) == {r.id for r in rows()}
    from payattn.transfer import layer_shapes

    for recipe in judged.values():
        model = recipes._blank(recipe.model, recipes.json.dumps(dict(recipe.options)))
        assert model is not None
        with torch.device("meta"):
            shapes = layer_shapes(model, (24, 24))
        assert shapes[recipe.measure_options["layer"]][1:] == (6, 6), recipe.id
    common = [{k: v for k, v in r.measure_options.items() if k != "layer"} for r in judged.values()]
    assert all(one == common[0] for one in common)


def test_a_table_does_not_hold_the_rows_of_another_in_a_folder_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[dict[str, Any]] = [
        {"recipe": f"scoreboard/{table}/vgg", "small": False, "seed": 0}
        for table in ("scoreboard", "scoreboard-judged")
    ]
    monkeypatch.setattr(results, "load_results", lambda *_, **__: found)
    assert [run["recipe"] for runs in results.table("scoreboard").values() for run in runs] == [found[0]["recipe"]]
    assert list(results.table("scoreboard/scoreboard")) == ["vgg"]


# --- ranks


def test_equal_numbers_share_the_mean_of_their_places() -> None:
    assert results.ranks({"a": 3.0, "b": 1.0, "c": 3.0, "d": 3.0}) == {"a": 2, "b": 4, "c": 2, "d": 2}
    assert results.ranks({"a": 3.0, "b": 1.0}, less=True) == {"a": 2, "b": 1}


@given(TENTHS)
def test_ranks_are_the_mean_place_over_all_ways_to_break_the_ties(values: list[float]) -> None:
    found = list(results.ranks(dict(enumerate(values))).values())  # type: ignore[arg-type]
    assert sum(found) == len(values) * (len(values) + 1) / 2
    for i, own in enumerate(values):
        tied = [1 + sum(v > own for v in values) + k for k in range(values.count(own))]
        assert found[i] == sum(tied) / len(tied)


# --- places


def test_the_place_of_a_row_is_open_between_rows_that_the_verdict_does_not_part() -> None:
    groups = {"a": [0.9, 0.8, 0.7], "b": [0.75, 0.6, 0.65], "c": [0.5, 0.5, 0.5], "d": [0.1, 0.2, 0.55]}
    assert results.places(groups) == {"a": (1, 2), "b": (1, 2), "c": (3, 4), "d": (3, 4)}
    turned = {name: [-v for v in values] for name, values in groups.items()}
    assert results.places(turned, less=True) == results.places(groups)
    assert set(results.places({name: values[:2] for name, values in groups.items()}).values()) == {(1, 4)}


@given(st.lists(st.lists(st.integers(0, 20), min_size=3, max_size=3), min_size=1, max_size=6))
def test_the_rank_of_the_means_lies_among_the_possible_places(groups: list[list[int]]) -> None:
    named = {str(i): [float(v) for v in group] for i, group in enumerate(groups)}
    means = results.ranks({name: sum(values) / 3 for name, values in named.items()})
    assert all(low <= means[name] <= high for name, (low, high) in results.places(named).items())


# --- luck


@pytest.mark.parametrize(("one", "other"), [(1, 1), (2, 2), (3, 3), (2, 3)])
def test_two_equal_methods_are_parted_by_luck_as_often_as_orders_do(one: int, other: int) -> None:
    every = list(permutations(range(one + other)))
    parted = sum(results.compare(order[:one], order[one:])["apart"] for order in every)
    assert scoreboard.luck(one, other) == pytest.approx(parted / len(every))


def test_among_sixteen_equal_methods_the_verdict_finds_a_tenth_of_the_pairs() -> None:
    generator, decided = torch.Generator().manual_seed(0), 0
    for _ in range(40):
        drawn = torch.rand(16, 3, generator=generator).tolist()
        decided += sum(results.verdict(a, b) in ("yes", "no") for a, b in combinations(drawn, 2))
    assert decided / 40 == pytest.approx(scoreboard.FALSE_PAIRS.solution, rel=0.15)


def test_the_spread_of_an_accuracy_over_test_sets_is_that_of_coins() -> None:
    drawn = (torch.rand(4000, 500, generator=torch.Generator().manual_seed(0)) < 0.8).double().mean(1)
    assert drawn.std().item() == pytest.approx(scoreboard.standard_error(0.8, 500), rel=0.05)


# --- trade-offs


def test_the_front_keeps_what_nothing_beats() -> None:
    points = {"a": (1.0, 0.5), "b": (2.0, 0.8), "c": (3.0, 0.7), "twin": (2.0, 0.8), "d": (9.0, 0.81)}
    assert results.front(points) == ("a", "b", "twin", "d")


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8))
def test_what_is_off_the_front_is_beaten_by_something_on_it(pairs: list[tuple[int, int]]) -> None:
    points = {str(i): (float(c), float(g)) for i, (c, g) in enumerate(pairs)}
    kept = results.front(points)
    for name, (cost, gain) in points.items():
        beaten = any(points[k][0] <= cost and points[k][1] >= gain and points[k] != (cost, gain) for k in kept)
        assert beaten != (name in kept)


def test_faithfulness_is_zero_for_a_map_that_does_as_a_random_one() -> None:
    random = {"insertion": 0.45, "deletion": 0.35}
    assert scoreboard.faithfulness(random, random) == 0
    good = {"insertion": 0.6, "deletion": 0.2}
    assert scoreboard.faithfulness(good, random) == pytest.approx(scoreboard.FAITHFUL.solution)


# --- the figure


def test_spans_draw_an_interval_and_a_mark_per_name_and_refuse_what_is_none() -> None:
    axes = plot.spans({"a": (1, 3), "b": (2, 2)}, "place", marks={"b": 2.0}).axes[0]
    assert [line.get_xdata().tolist() for line in axes.lines] == [[1, 3], [2, 2], [2]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    for wrong in ((3, 1), (float("nan"), 1), (1,)):
        with pytest.raises(ValueError, match="two finite numbers, the smaller first"):
            plot.spans({"a": wrong}, "place")  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="'z' has no interval; names are a"):
        plot.spans({"a": (1, 2)}, "place", marks={"z": 1})
