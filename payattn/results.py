"""What was run: one JSON file per run, written once and never edited, and summaries over seeds."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from payattn import distributed
from payattn.checkpoint import write_atomically

SCHEMA = 1
KEYS = (
    "schema",
    "recipe",
    "small",
    "seed",
    "model",
    "data",
    "settings",
    "epochs",
    "final",
    "environment",
    "seconds",
    "images_per_second",
)
"""What every result holds.

- ``recipe``, ``small``, ``seed``: which run of which recipe.
- ``model``: ``name``, ``classes``, ``options`` (with which ``models.create`` builds it), ``parameters``.
- ``data``: for ``train`` and ``test`` each ``name``, ``images``, ``size``, ``classes``, ``digest``, ``caveat``.
- ``settings``: of ``train.Settings``.
- ``epochs``: of ``train.History``.
- ``final``: ``loss``, ``accuracy``, ``n`` on the test set, and with masks what ``recipes.localisation`` returns.
- ``environment``: device, precision, threads, processes, versions, commit and whether the code differed from it.
- ``seconds``, ``images_per_second``: of the training alone.
"""
OPTIONAL = ("transfer",)
"""What a result may hold besides; ``transfer``: of what the network learned from besides its labels, with the
``teacher``, whose recipe was trained with the same seed, see ``recipes.transferred``.
"""


def path_of(recipe: str, seed: int, *, small: bool = False, root: str | os.PathLike[str] = "results") -> Path:
    """Where the result of a run belongs.

    Example:
        >>> path_of("paper/table/row", 3, small=True).as_posix()
        'results/paper/table/row/small-seed3.json'
    """
    return Path(root) / recipe / f"{'small-' if small else ''}seed{seed}.json"


def write(result: Mapping[str, Any], root: str | os.PathLike[str] = "results", *, force: bool = False) -> Path:
    """Write a result to its place under ``root``, atomically, and return the path.

    Args:
        result: with all of ``KEYS``.
        root: the folder of all results.
        force: replace a result that is there already.

    Raises:
        FileExistsError: the run is recorded already and ``force`` is off.
        ValueError: a key is missing or unknown, or a value is not a finite number, text, list or dict.

    Example:
        >>> import tempfile
        >>> result = dict.fromkeys(KEYS) | {"schema": 1, "recipe": "p/t/r", "small": False, "seed": 0}
        >>> folder = tempfile.mkdtemp()
        >>> write(result, folder).relative_to(folder).as_posix()
        'p/t/r/seed0.json'
        >>> write(result, folder)
        Traceback (most recent call last):
        FileExistsError: .../seed0.json is recorded already; nothing was changed (force=True, or --force, replaces it)
    """
    path = path_of(result["recipe"], result["seed"], small=result["small"], root=root)
    _check(result, str(path))
    if path.exists() and not force:
        raise FileExistsError(f"{path} is recorded already; nothing was changed (force=True, or --force, replaces it)")
    ordered = {key: result[key] for key in (*KEYS, *OPTIONAL) if key in result}
    text = json.dumps(ordered, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, (text + "\n").encode())
    return path


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read one result and check its form.

    Raises:
        ValueError: the file is no JSON, or not a result of this version; names the file and the fault.
    """
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error})") from None
    if not isinstance(result, dict):
        raise ValueError(f"{path} holds a {type(result).__name__}, not a result")
    _check(result, str(path))
    return result


def _check(result: Mapping[str, Any], where: str) -> None:
    missing = [key for key in KEYS if key not in result]
    unknown = [key for key in result if key not in (*KEYS, *OPTIONAL)]
    if missing or unknown:
        raise ValueError(f"{where} is no result: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}")
    if result["schema"] != SCHEMA:
        raise ValueError(f"{where} has schema {result['schema']!r}, this version reads {SCHEMA}")


def folder() -> Path:
    """Where the recorded results are: beside the package in a checkout, inside it when installed.

    Example:
        >>> folder().name in ("results", "_results")
        True
    """
    inside = Path(__file__).parent / "_results"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "results"


def load_results(
    pattern: str = "*", root: str | os.PathLike[str] | None = None, *, small: bool | None = None
) -> list[dict[str, Any]]:
    """All recorded runs whose recipe fits a pattern, ordered by recipe and seed.

    Args:
        pattern: a shell pattern on the recipe's id, as in ``"*/glyphs/*"``; ``"glyphs/pc"`` finds the id's end.
        root: the folder of all results, when not the recorded ones.
        small: only small forms, only full ones, or (None) both.

    Example:
        >>> load_results("*", root="no-such-folder")
        []
    """
    found = [read(path) for path in sorted((folder() if root is None else Path(root)).glob("*/*/*/*seed*.json"))]
    fits = [run for run in found if matches(run["recipe"], pattern) and (small is None or run["small"] == small)]
    return sorted(fits, key=lambda run: (run["recipe"], run["small"], run["seed"]))


def matches(recipe: str, pattern: str) -> bool:
    """Whether a recipe's id, or its end after a slash, fits a shell pattern.

    Example:
        >>> matches("paper/glyphs/pc", "glyphs/*"), matches("paper/glyphs/pc", "pc"), matches("paper/glyphs/pc", "c")
        (True, True, False)
    """
    return fnmatch(recipe, pattern) or fnmatch(recipe, "*/" + pattern)


def summary(runs: Iterable[Mapping[str, Any]], metric: str = "final.accuracy") -> dict[str, Any]:
    """Mean, standard deviation (n - 1), smallest, largest and number of one metric over runs.

    Args:
        runs: results, usually of one recipe and several seeds.
        metric: where to look in each, with dots: ``"final.levels.layer10.pointing"``.

    Returns:
        ``mean``, ``sd`` (None for one run), ``min``, ``max``, ``n`` and the ``values``.

    Raises:
        ValueError: there is no run, or a run lacks the metric; says what it has.

    Example:
        >>> runs = [{"final": {"accuracy": a}} for a in (0.5, 0.75, 1.0)]
        >>> s = summary(runs)
        >>> s["mean"], s["sd"], s["n"]
        (0.75, 0.25, 3)
    """
    values = [_look_up(run, metric) for run in runs]
    if not values:
        raise ValueError(f"there is no run to take {metric} from")
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "min": min(values),
        "max": max(values),
        "n": len(values),
        "values": values,
    }


def table(name: str) -> dict[str, list[dict[str, Any]]]:
    """The recorded full runs of one table, by row; rows without a run are not there.

    Args:
        name: of the table, such as ``"glyphs"``.

    Example:
        >>> table("no-such-table")
        {}
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    for run in load_results(f"{name}/*", small=False):
        of, row = run["recipe"].rsplit("/", 1)
        if of == name or of.endswith(f"/{name}"):  # a folder may have the name of one of its tables
            rows.setdefault(row, []).append(run)
    return rows


def values(recipe: str, metric: str = "final.accuracy", root: str | os.PathLike[str] | None = None) -> list[float]:
    """One number of every recorded full run of a recipe, in the order of the seeds; none where none is recorded.

    Args:
        recipe: ``"glyphs/pc"``, one row of one table.
        metric: where to look in each run, with dots, see :func:`summary`.
        root: the folder of all results, when not the recorded ones.

    Raises:
        ValueError: a run lacks the metric; says what it has.

    Example:
        >>> values("no-such-table/row")
        []
    """
    return [_look_up(run, metric) for run in load_results(recipe, root, small=False)]


def compare(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    r"""Is the difference of two groups of runs larger than what the seeds do by themselves?

    A permutation test: if the names of the groups meant nothing, any split of all values into groups of these sizes
    would do as well.

    .. math:: d = \bar a - \bar b, \qquad p = \mathrm{share of splits with } |d_{split}| \ge |d|

    Args:
        a, b: one value per run, such as the ``values`` of :func:`summary`.

    Returns:
        ``difference`` d; ``share`` p (with five and five values at least 2 of 252 splits, with three and three 2 of
        20); ``apart``: whether the two ranges do not touch.

    Raises:
        ValueError: an empty group.

    Example:
        >>> compare([0.9, 0.8], [0.5, 0.6])                         # six splits, two of them as far apart
        {'difference': 0.3, 'share': 0.333..., 'apart': True}
    """
    if not a or not b:
        raise ValueError(f"compare needs at least one value in each group, got {len(a)} and {len(b)}")
    pooled = [*map(float, a), *map(float, b)]

    def distance(first: Iterable[int]) -> float:
        one = [pooled[i] for i in first]
        return sum(one) / len(a) - (sum(pooled) - sum(one)) / len(b)

    real = distance(range(len(a)))
    splits = [abs(distance(first)) >= abs(real) - 1e-12 for first in combinations(range(len(pooled)), len(a))]
    apart = min(a) > max(b) or max(a) < min(b)
    return {"difference": round(real, 12), "share": sum(splits) / len(splits), "apart": apart}


def verdict(first: Sequence[float], second: Sequence[float], least: int = 3) -> str:
    """Does the first do better than the second? The one rule of the book, for numbers of which more is better.

    Args:
        first, second: one value per run.
        least: so many runs there must be on either side.

    Returns:
        ``"yes"``: every run of the first is above every run of the second; ``"no"``: every one is below;
        ``"not decided here"``: the ranges touch; ``"not decided here: too few runs"``.

    Example:
        >>> verdict([0.8, 0.9, 0.9], [0.5, 0.6, 0.7]), verdict([0.8], [0.5])
        ('yes', 'not decided here: too few runs')
    """
    if min(len(first), len(second)) < max(1, least):
        return "not decided here: too few runs"
    found = compare(first, second)
    return ("yes" if found["difference"] > 0 else "no") if found["apart"] else "not decided here"


def claim(
    text: str,
    first: Sequence[float],
    second: Sequence[float],
    names: tuple[str, str] = ("first", "second"),
    where: str = "",
    digits: int = 3,
    less: bool = False,
) -> dict[str, str]:
    """A line of a table "Does it hold?": what is claimed, what was measured on either side, and the :func:`verdict`.

    Args:
        text: the claim, that the first does better than the second.
        first, second: one value per run.
        names: of the two sides, as the line shows them.
        where: what was measured on; left out where it is empty.
        digits: behind the point.
        less: of these numbers, less is better.

    Example:
        >>> claim("light helps", [0.9, 0.9, 0.9], [0.6, 0.5, 0.7], ("light", "dark"), digits=1)
        {'claim': 'light helps', 'measured': 'light 0.9; dark 0.6 (0.5 to 0.7)', 'runs': '3 and 3', 'answer': 'yes'}
    """
    both = "; ".join(f"{name} {spread(side, digits)}" for name, side in zip(names, (first, second), strict=True))
    answer = verdict(second, first) if less else verdict(first, second)
    runs = f"{len(first)} and {len(second)}"
    return {"claim": text, **({"where": where} if where else {}), "measured": both, "runs": runs, "answer": answer}


def ranks(values: Mapping[str, float], less: bool = False) -> dict[str, float]:
    r"""The place of each row when one number is sorted; rows of the same number share the mean of their places.

    .. math:: r_j = 1 + |\{k : v_k > v_j\}| + \tfrac{1}{2} |\{k \ne j : v_k = v_j\}|

    Args:
        values: one number per row.
        less: of these numbers, less is better.

    Returns:
        1 for the best; the ranks of R rows sum to R (R + 1) / 2 whatever the ties.

    Example:
        >>> ranks({"a": 0.7, "b": 0.9, "c": 0.7})
        {'a': 2.5, 'b': 1.0, 'c': 2.5}
    """
    sign = -1 if less else 1
    return {
        name: 1 + sum(sign * v > sign * own for v in values.values()) + (sum(v == own for v in values.values()) - 1) / 2
        for name, own in values.items()
    }


def places(groups: Mapping[str, Sequence[float]], less: bool = False) -> dict[str, tuple[int, int]]:
    r"""The best and the worst place that each row can have, as far as :func:`verdict` decides.

    .. math:: \bigl[\, 1 + |\{k : k \succ j\}|, \; R - |\{k : j \succ k\}| \,\bigr]

    where :math:`k \succ j` says that every run of k is better than every run of j.

    Args:
        groups: the values of each row's runs, at least one.
        less: of these numbers, less is better.

    Example:
        >>> places({"a": [0.7, 0.8, 0.9], "b": [0.6, 0.7, 0.8], "c": [0.1, 0.2, 0.3]})
        {'a': (1, 2), 'b': (1, 2), 'c': (3, 3)}
    """
    better, worse = ("no", "yes") if less else ("yes", "no")
    return {
        name: (
            1 + sum(verdict(other, own) == better for other in groups.values()),
            len(groups) - sum(verdict(other, own) == worse for other in groups.values()),
        )
        for name, own in groups.items()
    }


def front(points: Mapping[str, tuple[float, float]]) -> tuple[str, ...]:
    r"""The rows that no other row beats in both of two numbers: a cost, and a gain for it (the Pareto front).

    .. math:: j \in F \iff \nexists k : c_k \le c_j, \; g_k \ge g_j, \; (c_k, g_k) \ne (c_j, g_j)

    Args:
        points: cost and gain of each row: of the first less is better, of the second more.

    Returns:
        the names on the front, the cheapest first.

    Example:
        >>> front({"small": (1.0, 0.8), "large": (9.0, 0.9), "wasteful": (9.0, 0.7)})
        ('small', 'large')
    """
    kept = [
        name
        for name, (cost, gain) in points.items()
        if not any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points.values())
    ]
    return tuple(sorted(kept, key=lambda name: points[name]))


def spread(values: Iterable[float], digits: int = 3) -> str:
    """Mean and range of the values of several runs, as text.

    Example:
        >>> spread([0.5, 0.75, 1.0], 2), spread([])
        ('0.75 (0.50 to 1.00)', '–')
    """
    values = list(values)
    if not values:
        return "–"
    mean, low, high = (f"{value:.{digits}f}" for value in (statistics.fmean(values), min(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def measured(run: Mapping[str, Any]) -> dict[str, Any]:
    """What a run of an experiment measured on its only set, see :mod:`payattn.measures`.

    Raises:
        ValueError: the run measured nothing but accuracy, or on several sets.

    Example:
        >>> measured({"recipe": "p/t/r", "final": {"measured": {"glyphs": {"layer13": {"slope": 1.0}}}}})
        {'layer13': {'slope': 1.0}}
    """
    found = run["final"].get("measured", {})
    if len(found) != 1:
        raise ValueError(f"{run.get('recipe', 'a run')} measured on {', '.join(found) or 'nothing'}, not on one set")
    return dict(next(iter(found.values())))


def _look_up(run: Mapping[str, Any], metric: str) -> float:
    """The number at a path of names; a name may hold dots, as that of a level ``stage1.attention1`` does."""
    value: Any = run
    names = metric.split(".")
    while names:
        have = value if isinstance(value, Mapping) else {}
        taken = next((n for n in range(len(names), 0, -1) if ".".join(names[:n]) in have), 0)
        if not taken:
            known = ", ".join(map(str, have)) or "nothing"
            raise ValueError(f"a run of {run.get('recipe', '?')} has no {metric!r}: at {names[0]!r} there is {known}")
        value, names = have[".".join(names[:taken])], names[taken:]
    return float(value)


def describe(data: Any) -> dict[str, Any]:
    """What a result says about one :class:`payattn.data.ImageSet` or :class:`payattn.data.FileSet`."""
    return {
        "name": data.name,
        "images": len(data),
        "size": list(data.size),
        "classes": len(data.classes),
        "masks": data.masks is not None,
        "digest": data.digest(),
        "caveat": data.caveat,
    }


def environment(device: torch.device, precision: str) -> dict[str, Any]:
    """Where a run took place: nothing that tells one machine of a kind from another, no path, no name.

    Example:
        >>> sorted(environment(torch.device("cpu"), "float32"))[:3]
        ['commit', 'device', 'dirty']
    """
    import payattn

    commit, dirty = _commit()
    return {
        "device": _device_name(device),
        "precision": precision,
        "threads": torch.get_num_threads(),
        "processes": distributed.size(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "payattn": payattn.__version__,
        "commit": commit,
        "dirty": dirty,
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"CPU {platform.processor()}".strip()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return f"CPU {name}".strip()


def _commit() -> tuple[str | None, bool | None]:
    """The commit of the checkout this package lies in, and whether its code or recipes differ from it."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None, None  # installed, not checked out; a repository further up would be someone else's
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head, bool(_git(root, "status", "--porcelain", "--", "payattn", "recipes"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()
