"""Named, complete configurations: one TOML file per published table, one entry per row.

A file ``recipes/<paper>/<table>.toml`` (``recipes/scoreboard`` for what compares the papers) holds ``[defaults]``, then
one ``[rows."NAME"]`` per row, and where the full run is long ``[small]``, the form that two CPU cores finish in minutes
(``[small.rows."NAME"]`` for one row).  Each may set

- ``model`` and ``options``: what :func:`payattn.models.create` builds,
- ``data`` and ``data_options``: what :func:`payattn.data.load` loads,
- ``settings``: the fields of :class:`payattn.train.Settings`,
- ``note``: what a reader of the result must know;
- ``start``: the recipe whose trained weights the network starts from, all but its last layer,
- ``transfer``: what the network learns from besides its labels, the options of :class:`payattn.transfer.Distill`, or
  with ``kind`` those of :class:`payattn.transfer.GradientTransfer`,
- ``teacher``: the recipe whose network teaches, trained with the same seed; with ``teacher_weights = "initial"`` as it
  was before its training,
- ``measure`` and ``measure_options``: what is measured besides accuracy, see :mod:`payattn.measures`,
- ``on`` and ``on_options``: the sets to measure on, where they are not the recipe's own;

a row may name, in place of a network and its training, a ``base``: the recipe whose trained networks it measures. A row
also ``published``, the paper's numbers with the source each was read from.  A row goes over the defaults, the
small form over both, key by key.  The id of a row is ``<paper>/<table>/<row>``.
"""

from __future__ import annotations

import copy
import inspect
import json
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from payattn import distributed, results
from payattn.attention import choose, normalised_entropy
from payattn.data import Data, FileSet, ImageSet
from payattn.localize import boxes, scores, usual_tolerance, widen
from payattn.models import colour_statistics, create, list_models
from payattn.train import History, Settings, autocast_dtype, evaluate, fit, maps_of, pick_device
from payattn.transfer import GRADIENT_KINDS, Distill, GradientTransfer, Objective

TABLE_KEYS = ("title", "defaults", "rows", "small")
TRAINING_KEYS = ("model", "options", "data", "data_options", "settings")
LEARNING_KEYS = ("start", "transfer", "teacher", "teacher_weights")
PART_KEYS = (*TRAINING_KEYS, *LEARNING_KEYS, "note", "base", "measure", "measure_options", "on", "on_options")
DATA_OPTIONS = ("n_train", "n_test", "size", "seed", "classes", "variant", "label_noise", "stream")
PUBLISHED_KEYS = ("error", "tag", "confirmed", "logged", "values")
MEASURED = (
    "accuracy", "cross-domain", "detail", "segmentation", "attack", "query", "response", "top-5", "wrong-labels",
    "map-cosine", "judged",
)  # fmt: skip
BY_BATCHES = ("accuracy", "top-5")
"""What is measured batch by batch, so that the images need not be in memory."""
TEACHER_WEIGHTS = ("trained", "initial")
CACHED = 2e9
"""Bytes that what a teacher says may take in memory; where it is more, the teacher is asked for every batch."""
TAGS = ("code", "review", "recall-hi", "recall-med", "peer")
"""Sources of published numbers: the authors' code, the reviews, memory of the paper; another group's own runs.

A number that is remembered only vaguely is not in any recipe.
"""
MARKS = {"code": "", "review": "", "recall-hi": "†", "recall-med": "‡", "peer": "§"}
"""How a published number is marked by its source."""
BUDGETS = ("quick", "gpu", "check")


@dataclass(frozen=True)
class Recipe:
    """One row of one table, or its small form: everything needed to run it, but the seed.

    ``published`` may hold ``error`` (top-1, in %), ``tag`` (where that number was read, see ``TAGS``),
    ``confirmed`` (who else states it), ``logged`` (the error in the authors' own log, in %) and ``values`` (other
    numbers of the row, by the column of the paper's table).
    """

    id: str
    model: str
    data: str
    settings: Settings
    options: Mapping[str, Any] = field(default_factory=dict)
    data_options: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    title: str = ""
    small: bool = False
    trains_small: bool = False
    start: str = ""
    transfer: Mapping[str, Any] = field(default_factory=dict)
    teacher: str = ""
    teacher_weights: str = "trained"
    base: str = ""
    measure: str = "accuracy"
    measure_options: Mapping[str, Any] = field(default_factory=dict)
    on: tuple[str, ...] = ()
    on_options: Mapping[str, Any] = field(default_factory=dict)


def folder() -> Path:
    """Where the recipes are: beside the package in a checkout, inside it when installed.

    Example:
        >>> (folder() / "learn-to-pay-attention" / "glyphs.toml").is_file()
        True
    """
    inside = Path(__file__).parent / "_recipes"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "recipes"


def published(name: str) -> str:
    """The published error of a recipe in per cent, as text and marked by its source; a dash where there is none.

    Example:
        >>> published("cifar10/vgg-att2-concat-pc"), published("cifar10/vgg-att-control")
        ('5.23†', '–')
    """
    numbers = get(name).published
    return f"{numbers['error']:.2f}{MARKS[numbers['tag']]}" if "error" in numbers else "–"


def list_recipes(pattern: str = "*", root: str | os.PathLike[str] | None = None) -> list[str]:
    """Ids of the recipes that fit a shell pattern, as a whole or from a slash on.

    Args:
        pattern: ``"*"``, ``"glyphs/*"``, ``"*/cifar10/vgg-att2-*"``.
        root: the folder of recipes, when not the package's own.

    Example:
        >>> list_recipes("glyphs/*dp")
        ['learn-to-pay-attention/glyphs/dp', 'learn-to-pay-attention/glyphs/scaled-dp']
    """
    root = folder() if root is None else Path(root)
    ids = [
        f"{path.parent.name}/{path.stem}/{row}"
        for path in sorted(root.glob("*/*.toml"))
        for row in _table(path)["rows"]
    ]
    return [name for name in ids if results.matches(name, pattern)]


def get(name: str, small: bool = False, root: str | os.PathLike[str] | None = None) -> Recipe:
    """The recipe of an id, checked.

    Args:
        name: ``"learn-to-pay-attention/glyphs/pc"``, or an end of it that fits one recipe: ``"glyphs/pc"``.
        small: the form that two CPU cores finish in minutes.
        root: the folder of recipes, when not the package's own.

    Raises:
        ValueError: no or several recipes of that name, with the nearest; no small form; a fault in the file, with
            file, row and key.

    Example:
        >>> get("glyphs/pc").model
        'vgg-att2-concat-pc'
        >>> get("glyphs/cp")
        Traceback (most recent call last):
        ValueError: there is no recipe 'glyphs/cp'; did you mean 'learn-to-pay-attention/glyphs/pc'? ...
    """
    root = folder() if root is None else Path(root)
    found = _find(name, root)
    return _recipe(found, small, root)


def _find(name: str, root: Path) -> str:
    """The whole id of a recipe."""
    every = list_recipes(root=root)
    # an id is no pattern here, though it may end one: glyphs/pc
    found = [name] if name in every else [other for other in every if other.endswith("/" + name)]
    if not found:
        shortened = {other.split("/", 1)[1]: other for other in every}
        near = get_close_matches(name, [*every, *shortened], n=1, cutoff=0.4)
        hint = f"; did you mean {shortened.get(near[0], near[0])!r}?" if near else ""
        raise ValueError(f"there is no recipe {name!r}{hint} ('payattn recipes' lists all)")
    if len(found) > 1:
        raise ValueError(f"{name!r} may be {' or '.join(map(repr, found))}; say which")
    return found[0]


@lru_cache
def _table_at(path: Path, changed: int) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from None
    for key in table:
        choose(f"{path}: key", key, TABLE_KEYS)
    for key in ("title", "rows"):
        if not table.get(key):
            raise ValueError(f"{path} has no {key}")
    return table


def _table(path: Path) -> dict[str, Any]:
    return _table_at(path, path.stat().st_mtime_ns)


def _path(name: str, root: Path) -> Path:
    return root / name.split("/")[0] / f"{name.split('/')[1]}.toml"


def _merged(name: str, small: bool, root: Path) -> dict[str, Any]:
    """What a row holds, with its defaults and its small form."""
    path, row = _path(name, root), name.split("/")[2]
    table = _table(path)
    parts = [("defaults", table.get("defaults", {})), (f"rows.{row}", table["rows"][row])]
    if small:
        if "small" not in table:
            raise ValueError(f"{name} has no small form: it runs in minutes as it is")
        common = dict(table["small"])
        own = common.pop("rows", {})
        for other in own:
            choose(f"{path}: [small.rows] key", other, tuple(table["rows"]))
        parts += [("small", common), (f"small.rows.{row}", own.get(row, {}))]
    merged: dict[str, Any] = {}
    for where, part in parts:
        for key, value in part.items():
            choose(f"{path}: [{where}] key", key, (*PART_KEYS, "published") if where.startswith("rows.") else PART_KEYS)
            both_tables = isinstance(value, Mapping) and isinstance(merged.get(key, {}), Mapping)
            merged[key] = {**merged.get(key, {}), **value} if both_tables else value
    return merged


def _recipe(name: str, small: bool, root: Path) -> Recipe:
    path, row = _path(name, root), name.split("/")[2]
    table, merged = _table(path), _merged(name, small, root)
    if "base" in merged:
        trained = _training_of(merged, f"{path}: [rows.{row}]", small, root)
        merged = {**merged, **trained}
    for key in ("model", "data"):
        if key not in merged:
            raise ValueError(f"{path}: [rows.{row}] has no {key}, nor have the defaults")
    merged["on"] = tuple(merged.get("on", ()))
    try:
        settings = Settings.from_dict(merged.pop("settings", {}))
        merged = {"trains_small": small, **merged}
        recipe = Recipe(id=name, title=table["title"], settings=settings, small=small, **merged)
        _check(recipe)
        if recipe.transfer or recipe.teacher:
            recipe = _check_transfer(recipe, root)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: [rows.{row}]{' small' if small else ''}: {error}") from None
    return recipe


def _training_of(merged: Mapping[str, Any], where: str, small: bool, root: Path) -> dict[str, Any]:
    """Network, data and settings of the base; its small form where it has one and the small form is asked for."""
    for key in (*TRAINING_KEYS, *LEARNING_KEYS):
        if key in merged:
            raise ValueError(f"{where} sets {key}, which its base {merged['base']!r} does; leave one of them out")
    try:
        base = get(merged["base"], root=root)
        has_small = "small" in _table(_path(base.id, root))
        base = get(merged["base"], small=True, root=root) if small and has_small else base
    except ValueError as error:
        raise ValueError(f"{where}: base: {error}") from None
    if base.base:
        raise ValueError(f"{where}: base {base.id} trains nothing itself; name {base.base}")
    keys = ("model", "options", "data", "data_options", *LEARNING_KEYS)
    fields = {key: getattr(base, key) for key in keys}
    return {**fields, "settings": base.settings.to_dict(), "base": base.id, "trains_small": base.small}


def _check(recipe: Recipe) -> None:
    choose("model", recipe.model, list_models())
    choose("measure", recipe.measure, MEASURED)
    for key in recipe.data_options:
        choose("data option", key, DATA_OPTIONS)
    for key in recipe.on_options:
        choose("on option", key, DATA_OPTIONS)
    for key in recipe.published:
        choose("published key", key, PUBLISHED_KEYS)
    if recipe.published:
        choose("published tag", recipe.published.get("tag", ""), TAGS)
    _blank(recipe.model, json.dumps(dict(recipe.options)))


@cache  # many rows share a network, and the deep ones take a second
def _blank(model: str, options: str) -> nn.Module | None:
    """A network without weights, which finds an option that it does not have; None without its torchvision."""
    given = json.loads(options)
    if given.get("pretrained"):
        given["pretrained"] = False  # nothing is loaded to look at a recipe
    try:
        with torch.device("meta"):
            return create(model, 2, **given)
    except ImportError:
        return None


def _check_transfer(recipe: Recipe, root: Path) -> Recipe:
    """See that teacher and transfer fit each other and both networks; the teacher by its whole id."""
    if not recipe.transfer:
        raise ValueError(f"teacher is {recipe.teacher!r}, but there is no transfer; say what it teaches")
    kind = recipe.transfer.get("kind", "")
    if kind:
        choose("transfer kind", kind, GRADIENT_KINDS)
    made: type[Objective] = GradientTransfer if kind else Distill
    given_here = ("self", "teacher", "student", "size", "seed")  # no options: they follow from recipe and run
    names = [name for name in inspect.signature(made.__init__).parameters if name not in given_here]
    for key in recipe.transfer:
        choose("transfer option", key, names if kind else ["kind", *names])
    choose("teacher_weights", recipe.teacher_weights, TEACHER_WEIGHTS)
    if bool(recipe.teacher) != (kind in ("", "gradient")):
        raise ValueError(f"transfer {kind or 'by Distill'!r} has no teacher; leave it out" if recipe.teacher else
                         "transfer needs a teacher: teacher = \"TABLE/ROW\"")  # fmt: skip
    if recipe.teacher:
        teacher = _teacher(recipe, root)
        recipe = replace(recipe, teacher=teacher.id)
        who = (teacher.model, json.dumps(dict(teacher.options)))
    else:
        who = ("", "{}")
    _check_objective(recipe.model, json.dumps(dict(recipe.options)), *who, json.dumps(dict(recipe.transfer)))
    return recipe


@cache
def _check_objective(model: str, options: str, teacher: str, teacher_options: str, transfer: str) -> None:
    """Find layers and values that do not fit."""
    student, other = _blank(model, options), _blank(teacher, teacher_options) if teacher else None
    if student is None or (teacher and other is None):
        return
    with torch.device("meta"):
        objective(Recipe("", model, "", Settings(), transfer=json.loads(transfer)), copy.deepcopy(student), other)


def _teacher(recipe: Recipe, root: Path | None = None) -> Recipe:
    """The recipe of the teacher, which learns from labels alone and from the same images."""
    root = folder() if root is None else root
    name = _find(recipe.teacher, root)
    if _merged(name, False, root).keys() & {"transfer", "teacher", "base"}:
        raise ValueError(f"teacher {name} has a teacher or a base itself; name a recipe that learns from labels alone")
    teacher = get(name, small=recipe.trains_small, root=root)
    if (teacher.data, teacher.data_options) != (recipe.data, recipe.data_options):
        raise ValueError(f"teacher {name} learns from other data than its student; give both the same")
    return teacher


def objective(
    recipe: Recipe, student: nn.Module, teacher: nn.Module | None, train: Data | None = None, seed: int = 0
) -> Objective | None:
    """What a recipe's network learns from besides its labels; None where that is nothing.

    Where no augmentation changes the images, the teacher sees each of them once: its answers are kept.

    Args:
        recipe: with ``transfer`` or without.
        student: the network that learns.
        teacher: for a transfer that has one.
        train: what the student will see.
        seed: of adapters.

    Example:
        >>> objective(get("glyphs/pc"), nn.Linear(2, 2), None) is None
        True
    """
    if not recipe.transfer:
        return None
    options = {key: value for key, value in recipe.transfer.items() if key != "kind"}
    if "kind" in recipe.transfer:
        return GradientTransfer(student, teacher, kind=recipe.transfer["kind"], **options)
    if teacher is None:
        raise ValueError(f"{recipe.id} needs a teacher: a network of {recipe.teacher}")
    size = (32, 32) if train is None else train.size
    made = Distill(teacher, student, size=size, seed=seed, **options)
    if isinstance(train, ImageSet) and recipe.settings.augment is None:
        made.cache(train, limit=CACHED)
    return made


def transferred(recipe: Recipe) -> dict[str, Any]:
    """What a result says about what its network learned from besides the labels; plain data.

    Example:
        >>> transferred(get("glyphs/pc"))
        {}
    """
    if not recipe.transfer:
        return {}
    who = {"teacher": recipe.teacher, "teacher_weights": recipe.teacher_weights} if recipe.teacher else {}
    return {**who, **json.loads(json.dumps(dict(recipe.transfer)))}


def budget(name: str = "auto") -> str:
    """What a chapter may spend: ``"quick"`` (a minute on a CPU), ``"gpu"`` (minutes) or ``"check"`` (seconds).

    Args:
        name: one of them, or ``"auto"``: gpu where there is a CUDA device, else quick.

    Raises:
        ValueError: an unknown name, with the nearest.

    Example:
        >>> budget("check")
        'check'
    """
    if choose("budget", name, ("auto", *BUDGETS)) != "auto":
        return name
    return "gpu" if torch.cuda.is_available() else "quick"


def localisation(model: nn.Module, data: Data) -> dict[str, Any]:
    """How well the maps of each level find the objects of a set with masks.

    Args:
        model: with ``return_maps``.
        data: images without an object (an empty mask) are left out.

    Returns:
        ``levels``: level to the numbers of :func:`payattn.localize.scores`,
        and where the maps are softmaxes ``entropy`` (mean, from 0 for
        one position to 1 for uniform), see :func:`payattn.attention.normalised_entropy`; ``tolerance`` in pixels;
        ``chance`` and ``chance_box``: what a random point scores in ``pointing`` and ``pointing_box``;
        ``mask_share``: the mean share of the image that the object covers.
        Empty for a set without masks.
    """
    if data.masks is None:
        return {}
    data = data.subset(data.masks.flatten(1).any(1))
    masks = data.masks.cpu()  # type: ignore[union-attr]
    tolerance = usual_tolerance(masks.shape[-1])
    levels = {}
    for level, maps in maps_of(model, data).items():
        levels[level] = scores(maps, masks)
        if maps.min() >= 0 and torch.allclose(maps.sum((1, 2)), torch.ones(len(maps)), atol=1e-3):
            levels[level]["entropy"] = normalised_entropy(maps).mean().item()  # a CAM is no distribution
    return {
        "levels": levels,
        "tolerance": tolerance,
        "chance": widen(masks, tolerance).float().mean().item(),
        "chance_box": boxes(masks).float().mean().item(),
        "mask_share": masks.float().mean().item(),
    }


def build(recipe: Recipe, seed: int, train: Data) -> nn.Module:
    """The network of a recipe with its initial weights, its first layer by mean and spread of the training set.

    Of a set that is read from files they are its ``mean`` and ``std``, in other colours those of a sample.

    Example:
        >>> data = ImageSet(torch.zeros(2, 3, 8, 8).byte() + 51, torch.tensor([0, 1]), ("a", "b"))
        >>> build(get("glyphs/control"), 0, data).spec["name"]
        'vgg-att-control'
    """
    colour = recipe.options.get("colour", "rgb")
    scale: dict[str, tuple[float, ...]] = {}
    if isinstance(train, FileSet) and colour == "rgb":
        scale |= {"mean": train.mean, "std": train.std}
    else:
        images = train.sample().images if isinstance(train, FileSet) else train.images
        scale |= colour_statistics(images, colour)
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        return create(recipe.model, len(train.classes), **{**scale, **recipe.options})


@distributed.together()
def run(
    recipe: Recipe,
    seed: int = 0,
    *,
    data: str | None = None,
    test: str | None = None,
    caveat: str = "",
    on: Mapping[str, str] | None = None,
    results_root: str | os.PathLike[str] | None = "results",
    checkpoint: str | os.PathLike[str] | None = None,
    device: str = "auto",
    progress: str | bool = "auto",
    force: bool = False,
) -> dict[str, Any]:
    """Load, build, train, measure and record one run of a recipe.

    Under ``torchrun`` all processes do it together, see :mod:`payattn.distributed`; the first one writes.

    Args:
        recipe: see :func:`get`.
        seed: of the initial weights, the batches, augmentation and dropout; the data stays the same.
        data: another data set or file than the recipe's; it is recorded with the result. For a recipe on ImageNet
            the folder that holds ``train`` and ``val``.
        test: its test part, when that is a file of its own.
        caveat: what a reader must know about ``data`` and ``on``, as in ``"JPEG copy"``.
        on: files in place of the sets to measure on, by the names that the recipe gives them.
        results_root: the folder of results; None records nothing.
        checkpoint: a file; written after each epoch, continued from when it exists. A recipe with a base takes that
            of the base, so that a network is trained once for all that is measured on it.
        device: ``"auto"`` is the CUDA device where there is one, else the CPU.
        progress: see :func:`payattn.train.fit`.
        force: replace a recorded result and do not continue from the checkpoint.

    Returns:
        the result, see ``results.KEYS``.

    Raises:
        FileExistsError: the run is recorded already; raised before anything is computed.
        ValueError: data, recipe or checkpoint do not fit.
    """
    where = pick_device(device)
    distributed.start(where)
    file = None if checkpoint is None else Path(checkpoint)
    distributed.from_main(lambda: _prepare(recipe, seed, results_root, file, force))
    train_set, test_set = (replace(s, caveat=caveat) if caveat else s for s in _load(recipe, data, test, where))
    measured_on = _measured_on(recipe, on or {}, (train_set, test_set), where, caveat)

    def trained(which: Recipe, weights: Path | None) -> tuple[nn.Module, History]:
        model, taught = build(which, seed, train_set), None
        if which.start and not distributed.from_main(lambda: weights is not None and weights.exists()):
            start_from(model, _start(which, recipe, seed, file, where, progress))
        if which.transfer:
            master = teaching(which) if which.teacher else None
            taught = objective(which, model, master, train_set, seed)
        return model, fit(
            model, train_set, test_set, settings=replace(which.settings, seed=seed), device=where, loss=taught,
            checkpoint=weights, progress=progress,
        )  # fmt: skip

    def network(name: str) -> nn.Module:
        other = get(name, small=recipe.trains_small)
        return trained(other, _beside(file, recipe, other, seed))[0]

    def teaching(which: Recipe) -> nn.Module:
        if which.teacher_weights == "trained":
            return network(which.teacher)
        return build(_teacher(which), seed, train_set).to(where)

    model, history = trained(recipe, file)
    final = evaluate(model, test_set)
    if recipe.measure == "accuracy":
        final |= localisation(model, test_set)
    else:
        from payattn.measures import MEASURES

        options = {"classes": train_set.classes, **recipe.measure_options}
        final["measured"] = MEASURES[recipe.measure](model, measured_on, options, network)
        final["on"] = {name: results.describe(parts[1]) for name, parts in measured_on.items()}
    dtype = autocast_dtype(recipe.settings.amp, where) or torch.float32
    seconds = sum(epoch["seconds"] for epoch in history.epochs)
    images = sum(epoch["seconds"] * epoch["images_per_second"] for epoch in history.epochs)
    result: dict[str, Any] = {
        "schema": results.SCHEMA,
        "recipe": recipe.id,
        "small": recipe.small,
        "seed": seed,
        "model": {**model.spec, "parameters": sum(p.numel() for p in model.parameters())},  # type: ignore[dict-item]
        "data": {"train": results.describe(train_set), "test": results.describe(test_set)},
        **history.to_dict(),
        "final": final,
        "environment": results.environment(where, str(dtype).removeprefix("torch.")),
        "seconds": seconds,
        "images_per_second": images / seconds,
    }
    if recipe.transfer:
        result["transfer"] = transferred(recipe)
    if results_root is not None:
        distributed.from_main(lambda: results.write(result, results_root, force=force))
    return result


def _prepare(
    recipe: Recipe, seed: int, results_root: str | os.PathLike[str] | None, file: Path | None, force: bool
) -> None:
    """Refuse to run again what is recorded; with ``force`` forget the checkpoint."""
    if results_root is not None and not force:
        path = results.path_of(recipe.id, seed, small=recipe.small, root=results_root)
        if path.exists():
            raise FileExistsError(f"{path} is recorded already; nothing was run (--force runs it again)")
    if force and file is not None and not recipe.base:
        file.unlink(missing_ok=True)


def _load(recipe: Recipe, data: str | None, test: str | None, device: torch.device) -> tuple[Data, Data]:
    """The sets of a recipe, or those given in their place."""
    from payattn.data import load

    if recipe.data == "imagenet" and data is not None and Path(data).is_dir():
        return load("imagenet", root=data, device=device, test=test, **recipe.data_options)
    return load(data or recipe.data, device=device, test=test, **recipe.data_options)


def start_from(model: nn.Module, other: nn.Module) -> None:
    """Copy the weights of another network of the same kind, all but the last linear layer, which knows its classes.

    Raises:
        ValueError: the networks differ in more than that layer.

    Example:
        >>> ten, five = (create("vgg-gap", classes, width=0.125) for classes in (10, 5))
        >>> start_from(five, ten)
        >>> torch.equal(five.trunk.layer1[0].weight, ten.trunk.layer1[0].weight)
        True
    """
    own, given = model.state_dict(), other.state_dict()
    differ = [key for key in own if key not in given or own[key].shape != given[key].shape]
    last = {f"{name}.{part}" for name, module in model.named_modules() if isinstance(module, nn.Linear)
            for part in ("weight", "bias") if module.out_features == getattr(model, "classes", None)}  # fmt: skip
    wrong = sorted(set(differ) - last | set(given) - set(own))
    if wrong:
        raise ValueError(f"the networks differ in {', '.join(wrong)[:200]}; start from a network of the same kind")
    kept = {key: value for key, value in given.items() if key not in last}
    constants = {key: own[key] for key in own if key.startswith("normalize.")}  # those of the new images
    model.load_state_dict({**own, **kept, **constants})


def _start(
    recipe: Recipe, asked: Recipe, seed: int, file: Path | None, device: torch.device, progress: str | bool
) -> nn.Module:
    """The trained network that a recipe starts from, trained now where its checkpoint is not there."""
    from payattn.data import load

    other = get(recipe.start, small=recipe.trains_small)
    train, test = load(other.data, device=device, **other.data_options)
    model = build(other, seed, train)
    fit(model, train, test, settings=replace(other.settings, seed=seed), device=device,
        checkpoint=_beside(file, asked, other, seed), progress=progress)  # fmt: skip
    return model


def _beside(file: Path | None, recipe: Recipe, other: Recipe, seed: int) -> Path | None:
    """The checkpoint of another recipe: in the same folder of checkpoints as ``file``, else in the folder beside it."""
    if file is None:
        return None
    own = weights_of(recipe, seed).parts
    root = file.parents[len(own) - 1] if file.parts[-len(own) :] == own else file.parent
    return root / weights_of(other, seed)


def live(
    name: str, train: ImageSet, test: ImageSet | None = None, *, epochs: int = 4, seed: int = 0,
    teacher: nn.Module | None = None,
    on_epoch: Callable[[nn.Module], None] | None = None, **settings: Any,
) -> tuple[nn.Module, History]:  # fmt: skip
    """The network of a recipe after a short training: what a chapter runs before the reader's eyes.

    Small batches and a moderate rate, so that a few thousand images and four epochs are enough to see something; the
    recorded runs have the recipe's own settings.

    Args:
        name: of the recipe; its network and its other settings are taken.
        train: images.
        test: measured after every epoch where given.
        epochs: of the training.
        seed: of weights and batches.
        teacher: the network that teaches, trained or not, for a recipe that has one.
        on_epoch: called with the network after every epoch.
        **settings: other fields of :class:`payattn.train.Settings`; batches of 64 and a rate of 0.05 if none.

    Returns:
        the network, on the CPU in evaluation mode, and the history.

    Raises:
        ValueError: a recipe whose teacher is not given, or a teacher for one that has none.

    Example:
        >>> data = ImageSet(torch.zeros(8, 3, 8, 8).byte(), torch.arange(8) % 2, ("a", "b"))
        >>> net, history = live("glyphs/control", data, epochs=1)
        >>> net.training, len(history.epochs)
        (False, 1)
    """
    recipe = get(name)
    if teacher is not None and not recipe.teacher:
        raise ValueError(f"{recipe.id} has no teacher; leave teacher= out")
    if teacher is None and recipe.teacher:
        raise ValueError(f"{recipe.id} needs teacher=NETWORK, such as the one of live({recipe.teacher!r}, ...)")
    net = build(recipe, seed, train)
    chosen = {"batch_size": 64, "lr": 0.05, **settings}
    recipe = replace(recipe, settings=replace(recipe.settings, epochs=epochs, seed=seed, **chosen))
    history = fit(net, train, test, settings=recipe.settings, progress=False,
                  loss=objective(recipe, net, teacher, train, seed),
                  on_epoch=None if on_epoch is None else lambda _: on_epoch(net))  # fmt: skip
    return net.cpu().eval(), history


def weights_of(recipe: Recipe, seed: int) -> Path:
    """Where the weights of a run lie, in the folder of checkpoints; a recipe with a base shares those of the base.

    Example:
        >>> weights_of(get("glyphs/pc"), 0).as_posix()
        'learn-to-pay-attention/glyphs/pc/seed0.safetensors'
    """
    path = results.path_of(recipe.base or recipe.id, seed, small=recipe.trains_small, root="")
    return path.with_suffix(".safetensors")


def _measured_on(
    recipe: Recipe, files: Mapping[str, str], own: tuple[Data, Data], device: torch.device, caveat: str
) -> dict[str, tuple[ImageSet, ImageSet]]:
    """The sets to measure on by name: the recipe's own two where it names none."""
    from payattn.data import load

    for name in files:
        if name not in recipe.on:
            names = ", ".join(recipe.on) or "its own data"
            raise ValueError(f"{recipe.id} is not measured on {name!r}, only on {names}")
    if not recipe.on:
        train, test = own
        if recipe.measure not in BY_BATCHES and not (isinstance(train, ImageSet) and isinstance(test, ImageSet)):
            raise ValueError(f"{recipe.id} measures {recipe.measure}, which needs images in memory; leave out stream")
        return {test.name: cast(tuple[ImageSet, ImageSet], (train, test))}
    found = {}
    for name in recipe.on:
        train, test = load(files.get(name, name), device=device, **recipe.on_options)
        found[name] = (replace(train, caveat=caveat), replace(test, caveat=caveat)) if caveat else (train, test)
    return found
