"""Exercises of the chapter "The scoreboard", and the functions of its equations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from payattn import results
from payattn.check import Exercise

# ------------------------------------------------------------------------------------------------- luck of the verdict


def luck(runs: int, others: int | None = None) -> float:
    """Return how often the verdict decides between two methods that are the same, by the number of runs of each."""
    return 2 / math.comb(runs + (runs if others is None else others), runs)


LUCK = Exercise(
    (),
    0.1,
    {
        "one side": ("That is the first above the second. The verdict also decides when it is below.", 0.05),
        "coins": ("Ranks are no coins: all six values are put in order, and every order is as likely.", 0.125),
        "coins, one": ("Three coins do not describe it: every value of one must be above every value of the other.",
                       0.25),
        "in order": ("The order within a group does not matter: 20 ways to choose which three places are the first's.",
                     2 / 720),
        "pairs": ("Run 1 is not compared with run 1 alone, but with all three of the other.", 0.5),
    },
    passed="a tenth, in either direction together: three runs each decide, but not for sure.",
)  # fmt: skip

FALSE_PAIRS = Exercise(
    (),
    12,
    {
        "twice": ("A pair was counted twice: a against b is b against a.", 24),
        "rows": ("That is a tenth of the rows. The verdict is asked once for each pair of rows.", 1.6),
        "with itself": ("A row is not compared with itself.", 12.8),
        "all": ("That is the number of pairs; how many of them are decided by luck?", 120),
        "one side": ("The verdict decides either way: a tenth of the pairs, not a twentieth.", 6),
    },
    passed="twelve findings, and nothing to find.",
)

# ------------------------------------------------------------------------------------------------------------- ranks


def shared_ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of each number, 1 for the highest; equal numbers share the mean of their places."""
    found = results.ranks(dict(enumerate(values)))  # type: ignore[arg-type]
    return list(found.values())


def _ranks_upwards(values: Sequence[float]) -> list[float]:
    return [len(values) + 1 - rank for rank in shared_ranks(values)]


def _ranks_best(values: Sequence[float]) -> list[float]:
    return [1.0 + sum(other > own for other in values) for own in values]


def _ranks_worst(values: Sequence[float]) -> list[float]:
    return [float(sum(other >= own for other in values)) for own in values]


def _ranks_broken(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=lambda i: -values[i])
    return [1.0 + order.index(i) for i in range(len(values))]


def _ranks_from_zero(values: Sequence[float]) -> list[float]:
    return [rank - 1 for rank in shared_ranks(values)]


def _ranks_dense(values: Sequence[float]) -> list[float]:
    return [1.0 + sorted(set(values), reverse=True).index(own) for own in values]


SHARED_RANKS = Exercise(
    [([0.7, 0.9, 0.7, 0.1],), ([0.5, 0.5, 0.5, 0.8, 0.2],), ([0.3, 0.1],)],
    shared_ranks,
    {
        "upwards": ("Rank 1 is the highest number, not the lowest.", _ranks_upwards),
        "best": ("Equal numbers all get the best of their places. They share the mean: add half of the other equals.",
                 _ranks_best),
        "worst": ("Equal numbers all get the worst of their places, or you count a number as equal to itself.",
                  _ranks_worst),
        "broken": ("Ties are broken by the order of the list: equal methods then win by their name.", _ranks_broken),
        "from zero": ("Ranks start at 1: the best row has rank 1, not 0.", _ranks_from_zero),
        "dense": ("The places behind a tie are not skipped: the ranks of R rows sum to R (R + 1) / 2.", _ranks_dense),
    },
    passed="and they sum to R (R + 1) / 2 whatever the ties.",
)  # fmt: skip


def possible_places(groups: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """Return the best and the worst place of each group of runs, by the rule that every run is above every run."""
    found = results.places(dict(enumerate(groups)))  # type: ignore[arg-type]
    return list(found.values())


def _count(groups: Sequence[Sequence[float]], one: int, other: int) -> bool:
    return other != one and min(groups[other]) > max(groups[one])


def _places_swapped(groups: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    return [(high, low) for low, high in possible_places(groups)]


def _places_of_means(groups: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    means = [sum(group) / len(group) for group in groups]
    return [(place, place) for place in (1 + sum(other > own for other in means) for own in means)]


def _places_worst_better(groups: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    every = range(len(groups))
    return [(1 + sum(_count(groups, i, k) for k in every), sum(_count(groups, k, i) for k in every)) for i in every]


def _places_behind(groups: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    return [(low, high - 1) for low, high in possible_places(groups)]


def _places_best_run(groups: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    return [(1 + sum(max(other) > max(own) for other in groups), len(groups) - sum(min(own) > min(o) for o in groups))
            for own in groups]  # fmt: skip


POSSIBLE_PLACES = Exercise(
    [
        ([[0.7, 0.8, 0.9], [0.6, 0.7, 0.85], [0.1, 0.2, 0.3]],),
        ([[0.5, 0.5, 0.5], [0.4, 0.45, 0.6], [0.55, 0.56, 0.57], [0.9, 0.91, 0.95]],),
        ([[0.2, 0.9, 0.4], [0.1, 0.95, 0.3]],),
    ],
    possible_places,
    {
        "swapped": ("Best place first, then the worst.", _places_swapped),
        "means": ("You sort means. A row may stand before another only where every run is above every run.",
                  _places_of_means),
        "worst": ("The worst place counts from the other end: R minus the number of rows that are surely worse.",
                  _places_worst_better),
        "behind": ("The last place is R: a row is not behind itself.", _places_behind),
        "one run": ("One run of each decides nothing: compare the lowest of the one with the highest of the other.",
                    _places_best_run),
    },
    passed="a wide interval is no fault of the row: it says that the runs do not part it from its neighbours.",
)  # fmt: skip

# ---------------------------------------------------------------------------------------------------------- trade-offs


def on_the_front(points: Mapping[str, tuple[float, float]]) -> set[str]:
    """Return the names of (cost, gain) that no other beats in both; equal pairs do not beat each other."""
    return set(results.front(points))


def _front_cheapest_best(points: Mapping[str, tuple[float, float]]) -> set[str]:
    return {min(points, key=lambda k: (points[k][0], -points[k][1])), max(points, key=lambda k: points[k][1])}


def _front_more_cost(points: Mapping[str, tuple[float, float]]) -> set[str]:
    return on_the_front({name: (-cost, gain) for name, (cost, gain) in points.items()})


def _front_ratio(points: Mapping[str, tuple[float, float]]) -> set[str]:
    best = max(gain / cost for cost, gain in points.values())
    return {name for name, (cost, gain) in points.items() if gain / cost == best}


def _front_strict(points: Mapping[str, tuple[float, float]]) -> set[str]:
    pairs = points.values()
    return {name for name, (cost, gain) in points.items() if not any(c < cost and g > gain for c, g in pairs)}


def _front_better_than_one(points: Mapping[str, tuple[float, float]]) -> set[str]:
    pairs = points.values()
    return {name for name, (cost, gain) in points.items() if any(c >= cost and g <= gain and (c, g) != (cost, gain)
                                                                 for c, g in pairs)}  # fmt: skip


ON_THE_FRONT = Exercise(
    [
        ({"a": (1.0, 0.5), "b": (2.0, 0.8), "c": (3.0, 0.7), "d": (5.0, 0.9), "e": (1.0, 0.4)},),
        ({"a": (2.0, 0.4), "b": (2.0, 0.4), "c": (1.0, 0.3), "d": (4.0, 0.4), "e": (3.0, 0.41)},),
    ],
    on_the_front,
    {
        "ends": ("The cheapest and the best are on the front, but so is every useful step between them.",
                 _front_cheapest_best),
        "cost": ("Of the cost less is better.", _front_more_cost),
        "ratio": ("Gain per cost is another question: it would let a useless cheap row beat every good one.",
                  _front_ratio),
        "strict": ("As cheap and better is enough to beat a row, and so is as good and cheaper.", _front_strict),
        "beats one": ("You keep what beats something. On the front is what nothing beats.", _front_better_than_one),
    },
    passed="what is not on it has a row that is no dearer and no worse.",
)  # fmt: skip

# ------------------------------------------------------------------------------------------------ numbers on the board


def faithfulness(own: Mapping[str, float], random: Mapping[str, float]) -> float:
    """Return insertion minus deletion area of a map, minus the same of a random map of the same network."""
    return (own["insertion"] - own["deletion"]) - (random["insertion"] - random["deletion"])


FAITHFUL = Exercise(
    (),
    0.3,
    {
        "without random": ("That does not take off what a random map has: 0.1 here.", 0.4),
        "deletion up": ("A good map has a small deletion area: subtract it.", 0.0),
        "sign": ("Insertion minus deletion, and then minus that of the random map.", -0.3),
        "insertion": ("That is the insertion alone: the deletion says something too.", 0.15),
        "added": ("The random map's difference is subtracted, not added.", 0.5),
    },
    passed="what the order of the pixels adds to removing as many of them blindly.",
)


def standard_error(accuracy: float, images: int) -> float:
    """Return the standard deviation of an accuracy over test sets of so many images, for one network."""
    return math.sqrt(accuracy * (1 - accuracy) / images)


def _error_variance(accuracy: float, images: int) -> float:
    return accuracy * (1 - accuracy) / images


def _error_per_image(accuracy: float, images: int) -> float:
    return math.sqrt(accuracy * (1 - accuracy))


def _error_no_complement(accuracy: float, images: int) -> float:
    return math.sqrt(accuracy / images)


def _error_over_n(accuracy: float, images: int) -> float:
    return math.sqrt(accuracy * (1 - accuracy)) / images


def _error_worst(accuracy: float, images: int) -> float:
    return 0.5 / math.sqrt(images)


STANDARD_ERROR = Exercise(
    [(0.9, 1000), (0.6, 500), (0.1, 200)],
    standard_error,
    {
        "variance": ("That is the variance; take its root.", _error_variance),
        "per image": ("That is the deviation for one image; the mean over more images varies less.", _error_per_image),
        "complement": ("A correct answer is a coin with two sides: p (1 - p), not p.", _error_no_complement),
        "over n": ("Variances of a mean shrink with n, so deviations shrink with its root.", _error_over_n),
        "worst": ("That is the bound for p = 1/2; use the accuracy itself.", _error_worst),
    },
    passed="it is the same test set for all rows here: what is hard in it is hard for all.",
)

EXERCISES = {
    "verdict-luck": LUCK,
    "false-pairs": FALSE_PAIRS,
    "shared-ranks": SHARED_RANKS,
    "possible-places": POSSIBLE_PLACES,
    "on-the-front": ON_THE_FRONT,
    "faithfulness-gain": FAITHFUL,
    "accuracy-error": STANDARD_ERROR,
}
