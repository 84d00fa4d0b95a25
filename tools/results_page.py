"""Write book/results.md: every row of every recipe, the published number beside what was measured here.

Published numbers come from recipes/, measured ones from results/; nothing is typed. A row without a run says so.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from bookfiles import ROOT, Fault, report
from payattn import localize, recipes, results
from payattn.data import load
from payattn.data.files import EMBEDDED
from payattn.train import Settings

PAGE = "book/results.md"
METRICS = {
    "pointing": "pointing game, within {tolerance} px",
    "pointing_exact": "pointing game, exact",
    "pointing_box": "pointing game, in the box",
    "iou": "IoU at the true area",
    "entropy": "entropy, uniform = 100",
}
CHANCE = {"pointing": "chance", "pointing_exact": "mask_share", "pointing_box": "chance_box"}
# of an experiment: the numbers of these names (all without any), but not these parts
SHOWN: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "attack": (("accuracy",), ("shift", "check", "clean")),
    "cross-domain": (("accuracy", "accuracy_mapped", "accuracy_by_index"), ()),
    "segmentation": (("jaccard", "corloc"), ()),
    "response": (("response", "mask", "closed", "open"), ()),
    "wrong-labels": ((), ("parts", "gain")),
    "map-cosine": (("cosine", "other image"), ()),
}
WORDS = {
    "clean": "true labels answered", "wrong": "wrong labels answered", "true": "true class where the label is wrong",
    "accuracy_mapped": "by class name", "accuracy_by_index": "by class number", "jaccard": "Jaccard",
    "corloc": "CorLoc", "otsu": "Otsu", "mean": "mean threshold", "r2": "R²",
    "cosine": "cosine with the teacher's map", "other image": "with its map of another image",
    "total_variation": "moved weight", "most": "moved at most",
    "slope": "slope, median", "slope_low": "slope, 5 %", "slope_high": "slope, 95 %",
    "pointing": "pointing game", "iou": "IoU at the true area", "energy": "energy on the object",
    "deletion": "deletion, area", "insertion": "insertion, area", "confidence": "probability of its answer",
    "parameters": "thousand parameters", "multiply_adds": "million multiply-adds",
}  # fmt: skip
SCALES = {"query": (1, 2), "response": (1, 2), "map-cosine": (1, 3)}  # others are shares, in per cent
COUNTS = {"parameters": (1e-3, 1), "multiply_adds": (1e-6, 2)}
HEAD = """\
<!-- written by tools/results_page.py from recipes/ and results/: do not edit -->

# Results

Every row below is a recipe: a named, complete configuration. A *published* number is the paper's, a *logged* one
stands in the authors' own training log, and a *measured* one was trained with this package. It is given with mean,
standard deviation, range and number of seeds, and with all that makes it differ from the published setting. A row that
nobody has run yet says so. To run one, and to have its result appear here:

```sh
payattn train RECIPE --seed 0
make pages
```

Marks: † recalled from the paper with high confidence, ‡ with medium confidence. A marked number was not read off the
paper while this book was written: look it up before you cite it. *Also in* names an independent report that states
the same number. § is no number of the paper's: another group measured it. Errors and accuracies are top-1 on the test
set, in per cent.
"""


def percent(summary: dict[str, Any], error: bool = False) -> str:
    """Mean and spread of a share, in per cent."""
    mean = 1 - summary["mean"] if error else summary["mean"]
    spread = f" ± {100 * summary['sd']:.1f}" if summary["sd"] is not None else ""
    return f"{100 * mean:.1f}{spread}"


def settings_of(run: dict[str, Any]) -> dict[str, Any]:
    """All settings of a run but the seed; one that came into being after the run has its default."""
    return replace(Settings.from_dict(run["settings"]), seed=0).to_dict()


def groups(runs: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Runs that differ in nothing but the seed and the machine, together."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        settings = settings_of(run)
        data = {part: {k: run["data"][part][k] for k in ("digest", "caveat")} for part in ("train", "test")}
        key = json.dumps(
            [run["recipe"], run["small"], settings, data, run["model"], run.get("transfer")], sort_keys=True
        )
        found.setdefault(key, []).append(run)
    return list(found.values())


def published(recipe: recipes.Recipe) -> list[str]:
    """The published and the logged error of a row."""
    numbers = recipe.published
    mark = recipes.MARKS[numbers["tag"]] if numbers else ""
    confirmed = f" (also in {numbers['confirmed']})" if "confirmed" in numbers else ""
    error = f"{numbers['error']:.2f}{mark}{confirmed}" if "error" in numbers else "–"
    if "values" in numbers:
        error = "; ".join(f"{column} {value:.2f}{mark}" for column, value in numbers["values"].items())
    return [error, f"{numbers['logged']:.2f}" if "logged" in numbers else "–"]


def setting(recipe: recipes.Recipe, run: dict[str, Any]) -> str:
    """Where a run departs from its recipe, and on which data it was made."""
    data = run["data"]["train"]
    text = f"{data['name']}, {data['images']:,} images"
    if data["caveat"]:
        text += f" ({data['caveat']})"
    text += f", {run['settings']['epochs']} epochs"
    if run["small"]:
        return text + f"; **small form**, the full recipe has {recipe.settings.epochs}"
    planned, followed = replace(recipe.settings, seed=0).to_dict(), settings_of(run)
    changed = sorted(k for k, v in planned.items() if followed[k] != v)
    return text + (f"; **recipe changed since**: {', '.join(changed)}" if changed else "; schedule as in the recipe")


def measured_columns(recipe: recipes.Recipe, runs: Sequence[dict[str, Any]], error: bool) -> list[str]:
    """The columns that come from runs."""
    if not runs:
        return ["no run yet", "", ""]
    found = results.summary(runs, "final.accuracy")
    ends = sorted(100 * (1 - found[end] if error else found[end]) for end in ("min", "max"))
    spread = f" ({ends[0]:.1f} to {ends[1]:.1f})" if len(runs) > 1 else ""
    return [f"**{percent(found, error)}**{spread}", str(len(runs)), setting(recipe, runs[0])]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


@lru_cache
def blind(name: str, options: str) -> dict[str, float]:
    """What one map for all images scores: the mean mask of the training images. It never looks."""
    train, test = load(name, device="cpu", **json.loads(options))
    if train.masks is None or test.masks is None:
        return {}
    return localize.scores(train.masks.float().mean(0).expand(len(test), -1, -1), test.masks)


def maps_table(recipe: recipes.Recipe, runs: Sequence[dict[str, Any]]) -> str:
    """How well the maps of each level find the object, with what a random point and one map for all images score."""
    runs = [run for run in runs if run["final"].get("levels")]
    if not runs:
        return ""
    metrics = [m for m in METRICS if any(m in level for run in runs for level in run["final"]["levels"].values())]
    tolerance = runs[0]["final"].get("tolerance", 0)
    head = ["recipe", "level", *(METRICS[m].format(tolerance=tolerance) for m in metrics), "seeds"]
    chance = [(m, CHANCE.get(m, "")) for m in metrics]
    have = {m for m, key in chance if all(key in run["final"] for run in runs)}
    random = [percent(mean(runs, f"final.{key}")) if m in have else "–" for m, key in chance]
    rows = [["a random point", "", *random, ""]]
    if recipe.data in EMBEDDED:
        fixed = blind(recipe.data, json.dumps(dict(recipe.data_options), sort_keys=True))
        known = [f"{100 * fixed[m]:.1f}" if m in fixed else "–" for m in metrics]
        rows.append(["the mean mask, for every image", "", *known, ""])
    for group in groups(runs):
        for level in group[0]["final"]["levels"]:
            cells = [f"`{group[0]['recipe'].rsplit('/', 1)[1]}`{' (small form)' if group[0]['small'] else ''}", level]
            for m in metrics:
                there = all(m in run["final"]["levels"][level] for run in group)
                cells.append(percent(results.summary(group, f"final.levels.{level}.{m}")) if there else "–")
            rows.append([*cells, str(len(group))])
    return f"\nWhere the maps point:\n\n{markdown(head, rows)}"


def leaves(value: dict[str, Any], path: str = "") -> dict[str, float]:
    """The numbers of nested dicts by their path."""
    found: dict[str, float] = {}
    for key, part in value.items():
        name = f"{path}, {key}" if path else key
        found |= leaves(part, name) if isinstance(part, dict) else {name: part}
    return found


def experiment_table(recipe: recipes.Recipe, runs: Sequence[dict[str, Any]]) -> str:
    """What was measured besides accuracy: a row for each recipe, set and way, a column for each number."""
    keep, skip = SHOWN.get(recipe.measure, ((), ()))
    scale = SCALES.get(recipe.measure, (100, 1))
    rows: list[tuple[list[str], dict[str, str]]] = []
    for group in groups([run for run in runs if run["final"].get("measured")]):
        for name, ways in group[0]["final"]["measured"].items():
            for way in (w for w in ways if w not in skip):
                parts = [leaves(run["final"]["measured"][name][way]) for run in group]
                names = [k for k in parts[0] if all(k in p for p in parts) and "classes" not in k]
                names = [k for k in names if not keep or k.rsplit(", ", 1)[-1] in keep]
                cells = {k: number([p[k] for p in parts], *COUNTS.get(k, scale), k not in COUNTS) for k in names}
                first = f"`{group[0]['recipe'].rsplit('/', 1)[1]}`{' (small form)' if group[0]['small'] else ''}"
                caveat = group[0]["final"]["on"].get(name, {}).get("caveat", "")
                rows.append(([first, name + (f" ({caveat})" if caveat else ""), way, str(len(group))], cells))
    text = ""
    for part in ([row for row in rows if row[0][2] == "network"], [row for row in rows if row[0][2] != "network"]):
        if part:  # a network and its maps have no number in common
            text += ("\n" if text else "\nThe experiment:\n\n") + experiment_rows(part)
    return text


def experiment_rows(rows: Sequence[tuple[list[str], dict[str, str]]]) -> str:
    """The markdown of what an experiment measured."""
    columns = list(dict.fromkeys(column for _, cells in rows for column in cells))
    named = [", ".join(WORDS.get(part, part) for part in column.split(", ")) for column in columns]
    head = ["recipe", "measured on", "", *named, "seeds"]
    return markdown(head, [[*names[:3], *(cells.get(c, "–") for c in columns), names[3]] for names, cells in rows])


def number(values: Sequence[float], scale: float, digits: int, varies: bool) -> str:
    """Mean and, of what varies with the seed, spread."""
    found = results.summary([{"value": value} for value in values], "value")
    spread = f" ± {scale * found['sd']:.{digits}f}" if varies and found["sd"] is not None else ""
    return f"{scale * found['mean']:.{digits}f}{spread}"


def mean(runs: Sequence[dict[str, Any]], metric: str) -> dict[str, Any]:
    """A summary without its spread."""
    return {**results.summary(runs, metric), "sd": None}


def table(name: str, rows: Sequence[str], root: Path) -> str:
    """One section: title, table, notes, machine."""
    all_recipes = [recipes.get(f"{name}/{row}", root=root / "recipes") for row in rows]
    runs = results.load_results(f"{name}/*", root / "results")
    error = any(recipe.published for recipe in all_recipes)
    other = any("values" in recipe.published for recipe in all_recipes)
    values = "published accuracy" if all_recipes[0].measure == "cross-domain" else "published"
    columns = [values if other else "published error", "logged error"]
    error = error and not other
    head = ["recipe", "network", *(columns if error or other else [])]
    head += ["measured error" if error else "measured accuracy", "seeds", "trained on"]
    cells = []
    for recipe in all_recipes:
        own = groups([run for run in runs if run["recipe"] == recipe.id]) or [[]]
        first = [f"`{recipe.id.rsplit('/', 1)[1]}`", recipe.model, *(published(recipe) if error or other else [])]
        cells += [first + measured_columns(recipe, group, error) for group in own]
    notes = Counter(" ".join(recipe.note.split()) for recipe in all_recipes if recipe.note)
    text = f"## {all_recipes[0].title}\n\nRecipes `{name}/...`.\n\n" + markdown(head, cells)
    measured = all_recipes[0].measure != "accuracy"
    text += experiment_table(all_recipes[0], runs) if measured else maps_table(all_recipes[0], runs)
    for note, count in notes.most_common():
        which = [f"`{r.id.rsplit('/', 1)[1]}`" for r in all_recipes if " ".join(r.note.split()) == note]
        usual = "Unless said otherwise: " if 1 < count < len(rows) else ""
        text += f"\n- {usual or ('' if count == len(rows) else ', '.join(which) + ': ')}{note}"
    return text + machines(runs) + "\n"


def machines(runs: Sequence[dict[str, Any]]) -> str:
    """On what the runs of a table were made."""
    if not runs:
        return ""
    devices = sorted({run["environment"]["device"] for run in runs})
    versions = sorted({str(run["environment"]["torch"]) for run in runs})
    seconds = results.summary(runs, "seconds")
    text = f"\n- Measured on {', '.join(devices)} with torch {', '.join(versions)}, "
    return text + f"{seconds['min']:.0f} to {seconds['max']:.0f} s of training a run."


def page(root: Path) -> str:
    """The whole page."""
    sections = []
    for path in sorted((root / "recipes").glob("*/*.toml")):
        name = f"{path.parent.name}/{path.stem}"
        section = table(name, list(tomllib.loads(path.read_text())["rows"]), root)
        sections.append((not results.load_results(f"{name}/*", root / "results"), section))
    sections.sort(key=lambda pair: pair[0])  # tables with runs first
    return HEAD + "\n" + "\n".join(section for _, section in sections)


def check(root: Path) -> list[Fault]:
    """Whether the page is current, and free of weakly remembered numbers."""
    try:
        fresh = page(root)
    except ValueError as error:
        return [Fault("recipes/ or results/", "", str(error), "mend the file named")]
    faults = []
    if not (root / PAGE).exists() or (root / PAGE).read_text() != fresh:
        faults.append(Fault(PAGE, "", "is not current", "run: make pages"))
    for path in sorted((root / "recipes").glob("*/*.toml")):
        if "recall-lo" in path.read_text():
            faults.append(Fault(str(path.relative_to(root)), "", "holds a weakly remembered number", "remove it"))
    return faults


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the page is not current")
    options = parser.parse_args()
    root = options.root.resolve()
    if not options.check:
        (root / PAGE).write_text(page(root))
    return report(check(root), "results: the page is current")


if __name__ == "__main__":
    sys.exit(main())
