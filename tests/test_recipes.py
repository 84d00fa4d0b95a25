"""Recipes: every file of the project is valid and runs in its small form; every fault in a file is named."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import Module

from payattn import recipes, results
from payattn.checkpoint import load_model
from payattn.data import Augment, ImageSet
from payattn.models import list_models
from payattn.train import Run, Settings, fit, learning_rate
from payattn.transfer import Distill, GradientTransfer, Objective

EVERY = recipes.list_recipes()
TINY = """
title = "tiny"
[defaults]
data = "glyphs"
data_options = { n_train = 48, n_test = 20, size = 16 }
options = { width = 0.03125, dropout = 0.0 }
[defaults.settings]
epochs = 2
batch_size = 16
lr = 0.01
[rows.pc]
model = "vgg-att2-concat-pc"
[rows.control]
model = "vgg-att-control"
published = { error = 7.5, tag = "recall-hi" }
[small]
data_options = { n_train = 32 }
[small.settings]
epochs = 1
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of recipes with one tiny table, in the place of the project's own."""
    (tmp_path / "recipes" / "paper").mkdir(parents=True)
    (tmp_path / "recipes" / "paper" / "tiny.toml").write_text(TINY)
    monkeypatch.setattr(recipes, "folder", lambda: tmp_path / "recipes")
    return tmp_path


def broken(tmp_path: Path, old: str, new: str) -> Path:
    assert old in TINY
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "tiny.toml").write_text(TINY.replace(old, new))
    return tmp_path


# --- the project's own


@pytest.mark.parametrize("name", EVERY)
def test_every_recipe_is_complete_and_its_small_form_builds_its_network(name: str) -> None:
    full = recipes.get(name)
    forms = [full]
    try:
        forms.append(recipes.get(name, small=True))
    except ValueError as error:
        assert "no small form" in str(error)  # noqa: PT017
    data = recipes_data()
    model = recipes.build(forms[-1], 0, data)
    assert model(data.images).shape == (2, 2)
    assert sum(p.numel() for p in model.parameters()) < 1.5e6, "too large for a CPU"
    assert full.title
    assert all(math.isfinite(learning_rate(f.settings, f.settings.epochs, 0, 10)) for f in forms)


def test_the_cifar_tables_hold_the_papers_recipe_and_numbers() -> None:
    recipe = recipes.get("cifar10/vgg-att2-concat-pc")
    s = recipe.settings
    assert (s.lr, s.momentum, s.dampening, s.weight_decay, s.batch_size) == (1.0, 0.9, 0.9, 5e-4, 128)
    assert (s.epochs, s.schedule, s.lr_decay, s.drop_last) == (300, "step-halving", 1e-7, True)
    assert s.augment is not None
    assert s.augment.flip == "half"
    assert recipe.options == {"colour": "yuv-lcn"}
    assert recipe.published == {"error": 5.23, "tag": "recall-hi", "confirmed": "peer: blog", "logged": 5.42}
    expected = {
        "vgg": (7.77, 30.62), "vgg-gap": (9.87, 31.77), "vgg-att-dp": (6.14, 24.22), "vgg-att-pc": (5.67, 23.70),
        "vgg-att2-indep-dp": (5.91, 23.24), "vgg-att2-concat-dp": (5.86, 23.91), "vgg-att2-indep-pc": (5.36, 24.00),
        "vgg-att2-concat-pc": (5.23, 23.19), "vgg-att3-concat-pc": (6.34, 22.97),
        "vgg-pan": (6.29, 24.35), "rn-164": (6.03, 25.34),
    }  # fmt: skip
    for column, table in enumerate(("cifar10", "cifar100")):
        rows = [recipes.get(name) for name in recipes.list_recipes(f"{table}/*")]
        errors = {r.id.split("/")[-1]: r.published["error"] for r in rows if r.published}
        assert errors == {name: pair[column] for name, pair in expected.items()}
        assert all(r.id.split("/")[-1] == r.model for r in rows)


def test_the_fine_grained_tables_hold_the_papers_numbers() -> None:
    expected = {
        "svhn": {"vgg": 4.27, "vgg-gap": 5.84, "vgg-pan": 8.02, "vgg-att2-concat-pc": 3.74, "vgg-att3-concat-pc": 3.52},
        "cub": {"vgg": 34.64, "vgg-gap": 29.50, "vgg-pan": 31.46, "vgg-att2-concat-pc": 26.80,
                "vgg-att3-concat-pc": 26.95},
    }  # fmt: skip
    for table, errors in expected.items():
        rows = [recipes.get(name) for name in recipes.list_recipes(f"{table}/*")]
        assert {r.id.split("/")[-1]: r.published["error"] for r in rows if r.published} == errors
        assert all(r.id.split("/")[-1] == r.model for r in rows)
    cub = recipes.get("cub/vgg-att2-concat-pc")
    assert (cub.start, cub.settings.epochs) == ("cifar100/vgg-att2-concat-pc", 320)
    assert cub.options == {"layout": "cub", "colour": "yuv-lcn"}
    at = {e: learning_rate(cub.settings, e, 0, 46) for e in (29, 30, 60, 90, 120, 320)}
    assert at == pytest.approx({29: 0.1, 30: 0.2, 60: 0.4, 90: 0.2, 120: 0.1, 320: 0.0015625}, rel=2e-3)
    assert recipes.get("cub/vgg-pan").settings.batch_size == 32


def test_a_network_starts_from_the_weights_of_another_but_for_its_last_layer(tiny: Path) -> None:
    text = TINY.replace("[small]", '[rows.started]\nmodel = "vgg-att2-concat-pc"\nstart = "tiny/pc"\n[small]')
    (tiny / "recipes" / "paper" / "tiny.toml").write_text(text)
    recipe = recipes.get("tiny/started")
    weights = tiny / "runs" / recipes.weights_of(recipe, 0)
    frozen = replace(recipe, settings=replace(recipe.settings, lr=1e-30, weight_decay=0.0, epochs=1))
    recipes.run(frozen, 0, results_root=None, checkpoint=weights, progress=False)
    first = load_model(tiny / "runs" / recipes.weights_of(recipes.get("tiny/pc"), 0)).state_dict()
    then = load_model(weights).state_dict()
    learned = {key for key, value in first.items() if value.is_floating_point() and "running" not in key}
    same = {key for key in learned if torch.allclose(first[key], then[key])}
    assert learned - same == {"head.classifier.weight", "head.classifier.bias"}
    other = recipes.build(recipes.get("tiny/control"), 0, recipes_data())
    with pytest.raises(ValueError, match="start from a network of the same kind"):
        recipes.start_from(other, load_model(weights))


def recipes_data() -> ImageSet:
    return ImageSet(torch.arange(256).byte().repeat(2 * 3 * 4).view(2, 3, 32, 32), torch.tensor([0, 1]), ("a", "b"))


def test_no_published_number_comes_from_a_vague_memory() -> None:
    tags = {recipes.get(name).published.get("tag") for name in EVERY}
    assert tags == {None, "code", "review", "recall-hi", "recall-med", "peer"}
    assert "lo" not in "".join(recipes.TAGS).replace("recall-", "")


@pytest.mark.parametrize("table", ["glyphs", "cifar10-narrow"])
def test_the_rows_of_our_own_tables_spend_one_budget(table: str) -> None:
    rows = [recipes.get(name) for name in recipes.list_recipes(f"{table}/*")]
    models = {"vgg-att-control", "vgg-gap", "vgg-att2-concat-pc", "vgg-att2-concat-dp"}
    assert models <= {r.model for r in rows}
    spent = [(r.data, r.data_options, r.options["width"], replace(r.settings, lr=1.0)) for r in rows]
    assert all(one == spent[0] for one in spent)
    assert not any(r.published for r in rows)


# --- finding and reading


def test_names_may_be_shortened_and_patterns_find_rows(tiny: Path) -> None:
    assert recipes.list_recipes() == ["paper/tiny/pc", "paper/tiny/control"]
    assert recipes.list_recipes("tiny/p*") == ["paper/tiny/pc"]
    assert recipes.get("pc") == recipes.get("tiny/pc") == recipes.get("paper/tiny/pc")
    with pytest.raises(ValueError, match=r"no recipe 'tiny/pcc'; did you mean 'paper/tiny/pc'\?"):
        recipes.get("tiny/pcc")
    (tiny / "recipes" / "paper" / "other.toml").write_text(TINY)
    with pytest.raises(ValueError, match="'pc' may be 'paper/other/pc' or 'paper/tiny/pc'"):
        recipes.get("pc")


def test_a_row_goes_over_the_defaults_and_the_small_form_over_both(tiny: Path) -> None:
    full, small = recipes.get("tiny/pc"), recipes.get("tiny/pc", small=True)
    assert (full.settings.epochs, small.settings.epochs) == (2, 1)
    assert small.settings.batch_size == 16
    assert small.data_options == {"n_train": 32, "n_test": 20, "size": 16}
    assert recipes.get("tiny/control").published == {"error": 7.5, "tag": "recall-hi"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs = 2", "epoch = 2", r"tiny\.toml: \[rows\.pc\]: setting is 'epoch'; did you mean 'epochs'"),
        ("lr = 0.01", "lr = -1", r"\[rows\.pc\]: lr must be a number from 0"),
        ("[defaults]", "[default]", r"key is 'default'; did you mean 'defaults'"),
        ("options = { width", "option = { width", r"\[defaults\] key is 'option'; did you mean 'options'"),
        ("{ width", "{ widht", r"no option 'widht'; did you mean 'width'"),
        ("n_test = 20", "ntest = 20", r"data option is 'ntest'; did you mean 'n_test'"),
        ('model = "vgg-att2-concat-pc"', 'model = "vgg-att2-pc"', r"model is 'vgg-att2-pc'; did you mean"),
        ('model = "vgg-att2-concat-pc"', "", r"\[rows\.pc\] has no model, nor have the defaults"),
        ('title = "tiny"', "", r"tiny\.toml has no title"),
        ("[rows.pc]", "[rows.pc", r"tiny\.toml is not TOML"),
    ],
)
def test_a_fault_in_a_file_is_named_with_file_row_and_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    root = broken(tmp_path, old, new)
    with pytest.raises(ValueError, match=message):
        recipes.get("paper/tiny/pc", root=root)


@pytest.mark.parametrize(
    "published", ["{ error = 1.0 }", '{ error = 1.0, tag = "recall-lo" }', '{ eror = 1, tag = "code" }']
)
def test_a_published_number_needs_a_good_source(tmp_path: Path, published: str) -> None:
    root = broken(tmp_path, '{ error = 7.5, tag = "recall-hi" }', published)
    with pytest.raises(ValueError, match="published"):
        recipes.get("paper/tiny/control", root=root)


def test_budget() -> None:
    assert recipes.budget("quick") == "quick"
    assert recipes.budget() == ("gpu" if torch.cuda.is_available() else "quick")
    with pytest.raises(ValueError, match="did you mean 'quick'"):
        recipes.budget("quik")


def test_the_same_seed_builds_the_same_network_and_leaves_the_callers_numbers() -> None:
    data = ImageSet(torch.zeros(2, 3, 32, 32).byte() + 7, torch.tensor([0, 1]), ("a", "b"))
    recipe = recipes.get("glyphs/pc")
    torch.manual_seed(1)
    first = recipes.build(recipe, 0, data).state_dict()
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)
    again, other = recipes.build(recipe, 0, data).state_dict(), recipes.build(recipe, 1, data).state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


# --- running


def test_a_run_is_recorded_in_full_and_never_overwritten(tiny: Path) -> None:
    recipe, root = recipes.get("tiny/pc"), tiny / "results"
    choices = {"results_root": root, "device": "cpu", "progress": False}
    made = recipes.run(recipe, 3, caveat="tiny", **choices)
    path = root / "paper" / "tiny" / "pc" / "seed3.json"
    assert json.loads(path.read_text()) == json.loads(json.dumps(made))
    assert tuple(made) == results.KEYS
    assert made["settings"]["seed"] == 3
    assert made["data"]["test"]["caveat"] == "tiny"
    assert made["data"]["train"]["images"] == 48
    assert set(made["final"]["levels"]) == {"layer10", "layer13"}
    assert 0 < made["final"]["mask_share"] < 1
    assert made["final"]["accuracy"] == made["epochs"][-1]["test_accuracy"]
    assert made["model"]["name"] in list_models()
    assert str(tiny) not in path.read_text(), "a path of this machine is recorded"
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="--force"):
        recipes.run(recipe, 3, **choices)
    assert path.read_bytes() == before
    again = recipes.run(recipe, 3, **choices, force=True)
    assert again["final"] == made["final"]
    assert again["data"]["test"]["caveat"] == ""


def test_a_run_continues_from_its_checkpoint_unless_forced(tiny: Path) -> None:
    recipe, file = recipes.get("tiny/control"), tiny / "a.safetensors"
    choices = {"results_root": None, "checkpoint": file, "device": "cpu", "progress": False}
    first = recipes.run(recipe, 0, **choices)
    again = recipes.run(recipe, 0, **choices)
    assert again["epochs"] == first["epochs"], "times too, since nothing was trained anew"
    changed = replace(recipe, settings=replace(recipe.settings, lr=0.02))
    with pytest.raises(ValueError, match=r"lr was 0.01 and is now 0.02"):
        recipes.run(changed, 0, **choices)
    assert recipes.run(changed, 0, **choices, force=True)["settings"]["lr"] == 0.02
    assert first["final"].get("levels") == {}


def test_localisation_leaves_out_images_without_an_object() -> None:
    class Corner(torch.nn.Module):
        def forward(self, images: torch.Tensor, return_maps: bool = False):
            maps = torch.zeros(len(images), 2, 2)
            maps[:, 0, 0] = 1
            return images.float().mean((2, 3)), {"one": maps}

    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[0, :2, :2] = True
    masks[1, 3, 3] = True
    data = ImageSet(torch.zeros(3, 3, 4, 4).byte(), torch.zeros(3).long(), ("a",), masks)
    scores = recipes.localisation(Corner(), data)
    assert scores["levels"]["one"]["pointing"] == 0.5
    assert scores["levels"]["one"]["iou"] == 0.5
    assert scores["levels"]["one"]["entropy"] == 0.0
    assert scores["mask_share"] == pytest.approx((4 + 1) / 32)
    assert recipes.localisation(Corner(), replace(data, masks=None)) == {}


# --- results


def result(recipe: str = "p/t/r", seed: int = 0, accuracy: float = 0.5, **changes: object) -> dict:
    known = {"schema": 1, "recipe": recipe, "small": False, "seed": seed, "final": {"accuracy": accuracy}}
    return dict.fromkeys(results.KEYS) | known | changes


def test_results_are_found_by_recipe_and_ordered_by_seed(tmp_path: Path) -> None:
    for seed in (10, 2, 0):
        results.write(result(seed=seed, accuracy=seed / 10), tmp_path)
    results.write(result("p/t/other"), tmp_path)
    results.write(result(small=True, seed=1), tmp_path)
    assert [run["seed"] for run in results.load_results("t/r", tmp_path, small=False)] == [0, 2, 10]
    assert len(results.load_results(root=tmp_path)) == 5
    assert [run["seed"] for run in results.load_results("r", tmp_path, small=True)] == [1]
    assert not list(tmp_path.rglob("*.part"))


def test_summary_by_hand() -> None:
    got = results.summary([result(accuracy=a) for a in (0.25, 0.5, 1.0)])
    assert got["mean"] == pytest.approx(7 / 12)
    assert got["sd"] == pytest.approx(math.sqrt(((1 / 3) ** 2 + (1 / 12) ** 2 + (5 / 12) ** 2) / 2))
    assert (got["min"], got["max"], got["n"], got["values"]) == (0.25, 1.0, 3, [0.25, 0.5, 1.0])
    assert results.summary([result()])["sd"] is None
    with pytest.raises(ValueError, match="no run"):
        results.summary([])
    with pytest.raises(ValueError, match=r"has no 'final.acuracy': at 'acuracy' there is accuracy"):
        results.summary([result()], "final.acuracy")


def test_what_is_no_result_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing \['epochs'\], unknown \['epoch'\]"):
        results.write({("epoch" if key == "epochs" else key): value for key, value in result().items()}, tmp_path)
    with pytest.raises(ValueError, match="Out of range float"):
        results.write(result(accuracy=float("nan")), tmp_path)
    assert not list(tmp_path.rglob("*.json"))
    path = results.write(result(), tmp_path)
    path.write_text(path.read_text()[:50])
    with pytest.raises(ValueError, match=r"seed0\.json is not JSON"):
        results.load_results(root=tmp_path)
    path.write_text(json.dumps(result(schema=2)))
    with pytest.raises(ValueError, match=r"seed0\.json has schema 2, this version reads 1"):
        results.load_results(root=tmp_path)


def test_every_recorded_run_of_the_project_is_valid_and_belongs_to_a_recipe() -> None:
    root = Path(__file__).parent.parent / "results"
    for run in results.load_results(root=root):
        assert run["recipe"] in EVERY
        assert len(run["epochs"]) == run["settings"]["epochs"]
        if not run["small"]:
            now = replace(recipes.get(run["recipe"]).settings, seed=run["seed"])
            then = Settings.from_dict(run["settings"])  # a setting that is younger than the run has its default
            assert then == now, f"{run['recipe']} was changed after it was run"


# --- experiments on the networks of another recipe

EXPERIMENT = """
title = "experiment"
[defaults]
measure = "query"
measure_options = { n = 8 }
[rows.pc]
base = "tiny/pc"
[rows.control]
base = "tiny/control"
[small]
measure_options = { n = 4 }
"""


@pytest.fixture
def experiment(tiny: Path) -> Path:
    (tiny / "recipes" / "paper" / "experiment.toml").write_text(EXPERIMENT)
    return tiny


def test_an_experiment_takes_network_data_and_settings_from_its_base(experiment: Path) -> None:
    recipe, base = recipes.get("experiment/pc"), recipes.get("tiny/pc")
    assert (recipe.model, recipe.options, recipe.data, recipe.data_options) == (
        base.model, base.options, base.data, base.data_options)  # fmt: skip
    assert recipe.settings == base.settings
    assert recipe.base == base.id and recipe.measure == "query"
    small, small_base = recipes.get("experiment/pc", small=True), recipes.get("tiny/pc", small=True)
    assert small.settings == small_base.settings and small.measure_options == {"n": 4}


def test_an_experiment_uses_the_weights_of_its_base_and_trains_nothing(experiment: Path) -> None:
    base, recipe = recipes.get("tiny/pc"), recipes.get("experiment/pc")
    weights = experiment / "runs" / recipes.weights_of(base, 1)
    assert weights == experiment / "runs" / recipes.weights_of(recipe, 1)
    first = recipes.run(base, 1, results_root=None, checkpoint=weights, progress=False)
    before = weights.read_bytes()
    result = recipes.run(recipe, 1, results_root=experiment / "results", checkpoint=weights, progress=False)
    assert weights.read_bytes() == before
    assert result["epochs"] == first["epochs"]
    measured = result["final"]["measured"]["glyphs"]
    assert set(measured) == {"layer10", "layer13"}
    assert all(level["total_variation"] == 0 for level in measured.values()), "pc cannot see its query"
    assert results.read(results.path_of(recipe.id, 1, root=experiment / "results")) == json.loads(json.dumps(result))


def test_an_experiment_measures_on_the_file_given_for_a_set(experiment: Path, tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    text = EXPERIMENT.replace("measure_options = { n = 8 }", 'on = ["mine"]\non_options = { size = 16 }', 1)
    (experiment / "recipes" / "paper" / "experiment.toml").write_text(text)
    images = numpy.random.default_rng(0).integers(0, 256, (20, 24, 24, 3), dtype=numpy.uint8)
    numpy.savez(tmp_path / "a.npz", images=images, labels=numpy.arange(20) % 2)
    recipe = recipes.get("experiment/pc")
    run = {"results_root": None, "progress": False, "caveat": "a copy"}
    result = recipes.run(recipe, on={"mine": str(tmp_path / "a.npz")}, **run)  # type: ignore[arg-type]
    assert set(result["final"]["measured"]) == {"mine"}
    assert result["final"]["on"]["mine"]["size"] == [16, 16]
    assert result["final"]["on"]["mine"]["caveat"] == "a copy"
    with pytest.raises(ValueError, match=r"not measured on 'yours', only on mine"):
        recipes.run(recipe, on={"yours": "b.npz"}, **run)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there is no data set 'mine'"):
        recipes.run(recipe, **run)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('base = "tiny/pc"', 'base = "tiny/pq"', r"rows.pc\]: base: there is no recipe 'tiny/pq'"),
        ('base = "tiny/pc"', 'base = "tiny/pc"\nmodel = "vgg"', "sets model, which its base 'tiny/pc' does"),
        ('base = "tiny/pc"', 'base = "experiment/control"', "trains nothing itself; name paper/tiny/control"),
        ('measure = "query"', 'measure = "queries"', "measure is 'queries'.*'query'"),
    ],
)
def test_a_fault_in_an_experiment_is_named(experiment: Path, old: str, new: str, message: str) -> None:
    assert old in EXPERIMENT
    (experiment / "recipes" / "paper" / "experiment.toml").write_text(EXPERIMENT.replace(old, new))
    with pytest.raises(ValueError, match=message):
        recipes.get("experiment/pc")


# --- what the chapters ask


def test_a_live_training_takes_the_recipes_network_and_shows_it_after_every_epoch(tiny: Path) -> None:
    data, seen = recipes_data(), []
    net, history = recipes.live("tiny/pc", data, data, epochs=2, seed=3, on_epoch=lambda net: seen.append(net))
    assert not net.training and seen == [net, net]
    assert len(history.epochs) == 2 and "test_accuracy" in history.final
    assert (history.settings.batch_size, history.settings.lr, history.settings.seed) == (64, 0.05, 3)
    assert net.spec["name"] == "vgg-att2-concat-pc" and net.spec["options"]["width"] == 0.03125  # type: ignore[index]
    again, _ = recipes.live("tiny/pc", data, epochs=2, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


def test_a_published_number_carries_the_mark_of_its_source() -> None:
    assert recipes.published("cifar10/vgg") == "7.77†"
    assert recipes.published("cifar10/vgg-pan") == "6.29‡"
    assert recipes.published("glyphs/pc") == recipes.published("cross-domain/cifar10-vgg") == "–"
    assert set(recipes.MARKS) == set(recipes.TAGS)


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ([3, 4, 5], [0, 1, 2], "yes"),
        ([0, 1, 2], [3, 4, 5], "no"),
        ([0, 1, 3], [2, 4, 5], "not decided here"),
        ([2, 3, 4], [0, 1, 2], "not decided here"),
        ([4, 5], [0, 1, 2], "not decided here: too few runs"),
        ([3, 4, 5], [], "not decided here: too few runs"),
    ],
)
def test_a_verdict_needs_three_runs_on_either_side_that_do_not_touch(first: list, second: list, said: str) -> None:
    assert results.verdict(first, second) == said


def test_a_line_of_claims_shows_both_sides_and_the_verdict_of_more_or_of_less() -> None:
    few, many = [0.1, 0.2, 0.3], [0.5, 0.5, 0.5]
    line = results.claim("pc is fooled less", few, many, ("pc", "vgg"), "glyphs", digits=1, less=True)
    assert line == {"claim": "pc is fooled less", "where": "glyphs", "measured": "pc 0.2 (0.1 to 0.3); vgg 0.5",
                    "runs": "3 and 3", "answer": "yes"}  # fmt: skip
    assert results.claim("more", few, many)["answer"] == "no" and "where" not in results.claim("more", few, many)
    assert results.claim("more", [], many) | {"claim": ""} == {
        "claim": "", "measured": "first –; second 0.500", "runs": "0 and 3", "answer": "not decided here: too few runs"
    }  # fmt: skip


def test_values_are_those_of_the_full_runs_of_one_row_by_seed(tmp_path: Path) -> None:
    for name, seed, accuracy in (("pc", 1, 0.7), ("pc", 0, 0.9), ("pc-2", 0, 0.1)):
        for small in (False, True):
            path = results.path_of(f"paper/table/{name}", seed, small=small, root=tmp_path)
            path.parent.mkdir(parents=True, exist_ok=True)
            final = {"accuracy": accuracy - 0.05 * small, "levels": {"layer10": {"iou": 0.5}}}
            run = dict.fromkeys(results.KEYS) | {"schema": results.SCHEMA, "recipe": f"paper/table/{name}"}
            run |= {"seed": seed, "small": small, "final": final}
            path.write_text(json.dumps(run))
    assert results.values("table/pc", root=tmp_path) == [0.9, 0.7]
    assert results.values("table/pc", "final.levels.layer10.iou", tmp_path) == [0.5, 0.5]
    assert results.values("table/gap", root=tmp_path) == []
    with pytest.raises(ValueError, match=r"no 'final\.loss'"):
        results.values("table/pc", "final.loss", tmp_path)


def test_the_weights_of_another_recipe_lie_in_the_same_folder_of_checkpoints(experiment: Path) -> None:
    base, other = recipes.get("tiny/pc"), recipes.get("tiny/control")
    folder = experiment / "runs"
    for recipe in (base, recipes.get("experiment/pc")):  # the experiment has the weights of its base
        file = folder / recipes.weights_of(recipe, 2)
        assert recipes._beside(file, recipe, other, 2) == folder / recipes.weights_of(other, 2)
    assert recipes._beside(Path("mine.safetensors"), base, other, 2) == recipes.weights_of(other, 2)
    assert recipes._beside(None, base, other, 2) is None


def test_what_an_experiment_measured_is_found_by_its_only_set() -> None:
    run = {"recipe": "p/t/r", "final": {"measured": {"a": {"x": 1}}}}
    assert results.measured(run) == {"x": 1}
    for wrong in ({}, {"measured": {"a": {}, "b": {}}}):
        with pytest.raises(ValueError, match="not on one set"):
            results.measured({"recipe": "p/t/r", "final": wrong})


def test_a_metric_is_found_below_a_level_whose_name_holds_a_dot() -> None:
    run = {"recipe": "p/t/r", "final": {"levels": {"stage1.attention1": {"iou": 0.25}, "stage1": {"iou": 0.5}}}}
    found = [results.summary([run], f"final.levels.{level}.iou")["mean"] for level in ("stage1.attention1", "stage1")]
    assert found == [0.25, 0.5]
    with pytest.raises(ValueError, match=r"at 'stage2' there is stage1.attention1, stage1"):
        results.summary([run], "final.levels.stage2.attention1.iou")


# --- recipes with a teacher

TAUGHT = """
title = "taught"
[defaults]
model = "wrn-10-1"
data = "glyphs"
data_options = { n_train = 32, n_test = 12, size = 16 }
options = { width = 0.25 }
settings = { epochs = 3, batch_size = 8, lr = 0.05, amp = "off" }
[rows.student]
[rows.teacher]
options = { width = 0.5 }
[rows.at]
teacher = "taught/teacher"
transfer = { layers = ["group1", ["group0", "group2"]], beta = 100, schedule = "linear" }
[rows.full]
teacher = "taught/teacher"
transfer = { layers = ["group1"], transfer = "activation", kd = 0.5 }
[rows.untrained]
teacher = "taught/teacher"
teacher_weights = "initial"
transfer = { layers = ["group1"] }
[rows.gradient]
teacher = "taught/teacher"
transfer = { kind = "gradient", beta = 0.1 }
[rows.symmetry]
transfer = { kind = "symmetry", beta = 0.1, output_weight = 0.5 }
[small]
options = { width = 0.125 }
"""
CPU = torch.device("cpu")
HERE: dict[str, Any] = {"device": CPU, "progress": False}
QUIET: dict[str, Any] = {**HERE, "device": "cpu", "results_root": None}

MAPS = 'title = "maps"\n[rows.at]\nbase = "taught/at"\nmeasure = "query"'


@pytest.fixture
def taught(tiny: Path) -> Path:
    for name, text in (("taught", TAUGHT), ("maps", MAPS)):
        (tiny / "recipes" / "paper" / f"{name}.toml").write_text(text)
    return tiny


def timeless(run: dict) -> list[dict]:
    return [{k: v for k, v in e.items() if k not in ("seconds", "images_per_second")} for e in run["epochs"]]


@pytest.mark.parametrize("row", ["at", "full", "gradient"])
def test_a_taught_run_is_that_of_the_objective_by_hand(taught: Path, row: str) -> None:
    recipe, weights = recipes.get(f"taught/{row}"), taught / "runs" / "paper" / "taught" / row / "seed4.safetensors"
    made = recipes.run(recipe, 4, **QUIET | {"results_root": taught / "results"}, checkpoint=weights)
    train, test = recipes._load(recipe, None, None, CPU)
    teacher = load_model(taught / "runs" / "paper" / "taught" / "teacher" / "seed4.safetensors")
    student = recipes.build(recipe, 4, train)
    by_hand: dict[str, Objective] = {
        "at": Distill(teacher, student, ["group1", ("group0", "group2")], beta=100, schedule="linear"),
        "full": Distill(teacher, student, ["group1"], transfer="activation", kd=0.5, seed=4, size=(16, 16)),
        "gradient": GradientTransfer(student, teacher, kind="gradient", beta=0.1),
    }
    history = fit(student, train, test, loss=by_hand[row], settings=replace(recipe.settings, seed=4), **HERE)
    assert history.curve("loss") == pytest.approx([epoch["loss"] for epoch in made["epochs"]], rel=1e-4)
    plain = recipes.run(recipes.get("taught/student"), 4, **QUIET)
    assert plain["epochs"][-1]["loss"] != pytest.approx(made["epochs"][-1]["loss"], rel=3e-3)
    assert made["model"]["parameters"] == plain["model"]["parameters"], "an adapter stayed with the student"
    stored = results.read(results.path_of(recipe.id, 4, root=taught / "results"))
    assert stored["transfer"] == made["transfer"]
    assert made["transfer"]["teacher"] == "paper/taught/teacher"
    assert "transfer" not in plain


def test_a_transfer_without_teacher_trains_none(taught: Path) -> None:
    weights = taught / "runs" / "paper" / "taught" / "symmetry" / "seed0.safetensors"
    made = recipes.run(recipes.get("taught/symmetry"), 0, **QUIET, checkpoint=weights)
    assert made["transfer"] == {"kind": "symmetry", "beta": 0.1, "output_weight": 0.5}
    assert [path.parent.name for path in (taught / "runs").rglob("*.safetensors")] == ["symmetry"]


def test_a_taught_run_that_is_killed_continues_as_if_nothing_had_been(
    taught: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipes.get("taught/full")
    whole = recipes.run(recipe, 1, **QUIET)
    weights = taught / "runs" / recipes.weights_of(recipe, 1)
    student, save = recipe.options["width"], Run.save

    def save_and_die(run: Run, *given: object) -> None:
        save(run, *given)  # type: ignore[arg-type]
        if run.model.spec["options"]["width"] == student and len(run.epochs) == 2:  # type: ignore[index]
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        recipes.run(recipe, 1, **QUIET, checkpoint=weights)
    monkeypatch.setattr(Run, "save", save)
    teacher = taught / "runs" / "paper" / "taught" / "teacher" / "seed1.safetensors"
    before = teacher.read_bytes()
    assert timeless(recipes.run(recipe, 1, **QUIET, checkpoint=weights)) == timeless(whole)
    assert teacher.read_bytes() == before, "the teacher was trained again"
    teacher.unlink()
    recipes.run(recipes.get("taught/at"), 1, **QUIET, checkpoint=weights.parent.parent / "at" / "seed1.safetensors")
    other = replace(recipe, transfer={**recipe.transfer, "beta": 7})
    with pytest.raises(ValueError, match=r"loss beta was 1000\.0 and is now 7\.0"):
        recipes.run(other, 1, **QUIET, checkpoint=weights)


def test_what_the_teacher_says_is_kept_unless_images_change_or_memory_is_short(
    taught: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, asked = recipes.get("taught/at"), []
    ask = Distill._ask
    monkeypatch.setattr(Distill, "_ask", lambda own, images: asked.append(len(images)) or ask(own, images))
    cached = recipes.run(recipe, 0, **QUIET)
    assert asked == [32]
    monkeypatch.setattr(recipes, "CACHED", 10)
    uncached = recipes.run(recipe, 0, **QUIET)
    assert asked == [32, 32, *[8] * 12]
    losses = [[epoch["loss"] for epoch in run["epochs"]] for run in (cached, uncached)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    monkeypatch.undo()
    monkeypatch.setattr(recipes, "folder", lambda: taught / "recipes")
    shifted = replace(recipe, settings=replace(recipe.settings, augment=Augment(pad=2)))
    assert recipes.run(shifted, 0, **QUIET)["epochs"][-1]["loss"] > 0, "a cache would refuse these images"


def test_the_teacher_of_the_control_row_is_untrained(taught: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, dict[str, torch.Tensor]] = {}
    make = recipes.objective

    def look(recipe: recipes.Recipe, student: Module, teacher: Module, *rest: Any) -> Objective | None:
        if rest:
            seen[recipe.id] = {key: value.clone() for key, value in teacher.state_dict().items()}
        return make(recipe, student, teacher, *rest)

    monkeypatch.setattr(recipes, "objective", look)
    for row in ("untrained", "at"):
        made = recipes.run(recipes.get(f"taught/{row}"), 5, **QUIET)
        assert made["transfer"]["teacher_weights"] == ("initial" if row == "untrained" else "trained")
    train, _ = recipes._load(recipes.get("taught/teacher"), None, None, CPU)
    first = recipes.build(recipes.get("taught/teacher"), 5, train).state_dict()
    same = {name: all(torch.equal(teacher[k], first[k]) for k in first) for name, teacher in seen.items()}
    assert same == {"paper/taught/untrained": True, "paper/taught/at": False}


def test_an_experiment_takes_the_transfer_of_its_base(taught: Path) -> None:
    base, recipe = recipes.get("taught/at"), recipes.get("maps/at")
    assert (recipe.transfer, recipe.teacher, recipe.base) == (base.transfer, base.teacher, base.id)
    small = recipes.get("taught/at", small=True)
    assert recipes._teacher(small).options == {"width": 0.125}, "the small form has the teacher's small form"
    (taught / "recipes" / "paper" / "maps.toml").write_text(MAPS + "\ntransfer = { kd = 0.1 }")
    with pytest.raises(ValueError, match=r"maps\.toml: \[rows\.at\] sets transfer, which its base 'taught/at' does"):
        recipes.get("maps/at")


AT = '[rows.at]\nteacher = "taught/teacher"'
OPTIONS = 'beta = 100, schedule = "linear"'


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (AT, "[rows.at]", r"rows\.at\]: transfer needs a teacher"),
        ('layers = ["group1", ["group0", "group2"]], ', 'kind = "min-l2", ', r"'min-l2' has no teacher; leave it out"),
        (AT, '[rows.at]\nteacher = "taught/at"', "taught/at has a teacher or a base itself"),
        (AT, '[rows.at]\nteacher = "taught/full"', "taught/full has a teacher or a base"),
        (AT, '[rows.at]\nteacher = "maps/at"', "maps/at has a teacher or a base"),
        (AT, '[rows.at]\nteacher = "taught/teach"', "did you mean 'paper/taught/teacher'"),
        (AT, '[rows.at]\nteacher = "tiny/pc"', "learns from other data than its student"),
        (OPTIONS, "betta = 100", r"rows\.at\]: transfer option is 'betta'; did you mean 'beta'"),
        (OPTIONS, "beta = -1", r"rows\.at\]: beta must be 0 or more"),
        (OPTIONS, "seed = 3", r"rows\.at\]: transfer option is 'seed'"),
        (OPTIONS, 'schedule = "linaer"', r"schedule is 'linaer'; did you mean 'linear'"),
        ('layers = ["group1", [', 'layers = ["group3", [', r"rows\.at\]: the teacher has no layer 'group3'; did you"),
        ('["group0", "group2"]', '["group0", "stage2"]', r"rows\.at\]: the student has no layer 'stage2'"),
        ('kind = "gradient"', 'kind = "gradients"', "transfer kind is 'gradients'; did you mean 'gradient'"),
        ('kind = "gradient"', 'kind = "gradient", kd = 0.5', "transfer option is 'kd'"),
        ('teacher_weights = "initial"', 'teacher_weights = "random"', "teacher_weights is 'random'"),
        ("[rows.student]", '[rows.student]\nteacher = "taught/teacher"', "there is no transfer; say what it teaches"),
    ],
)
def test_a_fault_in_a_transfer_is_named_with_file_and_row(taught: Path, old: str, new: str, message: str) -> None:
    assert old in TAUGHT
    (taught / "recipes" / "paper" / "taught.toml").write_text(TAUGHT.replace(old, new, 1))
    rows = recipes.list_recipes("taught/*")
    with pytest.raises(ValueError, match=rf"taught\.toml: .*{message}"):
        list(map(recipes.get, rows))


def test_a_chapter_trains_a_taught_row_with_its_own_teacher(taught: Path) -> None:
    data = recipes._load(recipes.get("taught/at"), None, None, CPU)[0]
    teacher, _ = recipes.live("taught/teacher", data, epochs=1)
    student, history = recipes.live("taught/at", data, epochs=2, teacher=teacher, lr=0.01, batch_size=8)
    by_hand = recipes.build(recipes.get("taught/at"), 0, data)
    distill = Distill(teacher, by_hand, ["group1", ("group0", "group2")], beta=100, schedule="linear")
    settings = replace(recipes.get("taught/at").settings, lr=0.01, epochs=2)
    assert fit(by_hand, data, loss=distill, settings=settings, **HERE).curve("loss") == pytest.approx(
        history.curve("loss"), rel=1e-4)  # fmt: skip
    assert not student.training
    with pytest.raises(ValueError, match=r"taught/at needs teacher=NETWORK, .* live\('paper/taught/teacher'"):
        recipes.live("taught/at", data)
    with pytest.raises(ValueError, match="student has no teacher; leave teacher= out"):
        recipes.live("taught/student", data, teacher=teacher)


def test_our_tables_of_attention_transfer_spend_one_budget_per_network() -> None:
    for table in ("at-glyphs", "at-cifar10-short"):
        rows = [recipes.get(name) for name in recipes.list_recipes(f"{table}/*")]
        assert all(replace(row.settings, lr=1.0) == replace(rows[0].settings, lr=1.0) for row in rows)
        assert not any(row.published for row in rows)
        assert all(bool(row.transfer) == bool(row.teacher) for row in rows)


def test_the_tables_of_attention_transfer_hold_the_papers_numbers_and_settings() -> None:
    rows = {name.split("/")[-1]: recipes.get(name) for name in recipes.list_recipes("at-cifar10/*")}
    expected = {
        "nin-thin-from-nin-wide": (9.38, 8.93, 9.05, 8.55, 8.33, 7.28),
        "16-1-from-16-2": (8.77, 7.93, 8.51, 7.41, 7.51, 6.31),
        "16-1-from-40-1": (8.77, 8.25, 8.62, 8.39, 8.01, 6.58),
        "16-2-from-40-2": (6.31, 5.85, 6.24, 6.08, 5.71, 5.23),
    }
    for pair, numbers in expected.items():
        ways = [rows[f"{way}-{pair}"] for way in ("at", "full-activation", "kd", "at-kd")]
        student, teacher = ways[0].model, ways[0].teacher.split("/")[-1]
        assert {(way.model, way.teacher) for way in ways} == {(student, f"attention-transfer/at-cifar10/{teacher}")}
        assert [r.published["error"] for r in (rows[student], *ways, rows[teacher])] == list(numbers)
    ways = [rows[f"at-{way}-16-1-from-16-2"] for way in ("group0", "group1", "group2", "sum1", "sum4", "max1")]
    assert [way.published["error"] for way in ways] == [8.11, 7.96, 7.97, 7.99, 8.09, 8.08]
    s = rows["wrn-16-1"].settings
    assert (s.epochs, s.batch_size, s.nesterov, s.weight_decay, s.reset_momentum) == (200, 128, False, 5e-4, True)
    rates = [learning_rate(s, epoch, 0, 391) for epoch in (59, 60, 119, 120, 159, 160, 200)]
    assert rates == pytest.approx([0.1, 0.02, 0.02, 0.004, 0.004, 0.0008, 0.0008])
    confirmed = {name for name, row in rows.items() if "confirmed" in row.published}
    assert {row.published["tag"] for name, row in rows.items() if name in confirmed} == {"recall-hi"}
    assert len(confirmed) == 10


def test_the_other_tables_of_attention_transfer_hold_their_numbers() -> None:
    expected = {
        "at-cifar10-gradient": {"student": 13.5, "min-l2": 12.5, "gradient": 12.1, "kd": 12.1, "symmetry": 11.8,
                                "activation": 11.2},
        "at-cub": {"student": 28.5, "kd": 27, "at": 27, "teacher": 26.5},
        "at-scenes": {"student": 28.2, "kd": 28.1, "at": 27.1, "teacher": 26},
        "at-imagenet": {"student": 30.4, "at": 29.3, "resnet-34": 26.1},
    }  # fmt: skip
    for table, errors in expected.items():
        rows = [recipes.get(name) for name in recipes.list_recipes(f"{table}/*")]
        assert {r.id.split("/")[-1]: r.published["error"] for r in rows if r.published} == errors
    imagenet = recipes.get("at-imagenet/at").settings
    rates = [learning_rate(imagenet, epoch, 0, 5005) for epoch in (29, 30, 60, 90)]
    assert rates == pytest.approx([0.1, 0.01, 0.001, 0.0001]) and imagenet.batch_size == 256
    slow = recipes.get("at-cifar10-gradient/gradient").settings
    assert [learning_rate(slow, epoch, 0, 9) for epoch in (1, 5, 6, 60)] == pytest.approx([0.01, 0.01, 0.05, 0.01])
    assert slow.weight_decay == 0
    others = [recipes.get(name).published for name in recipes.list_recipes("at-cifar100/*")]
    assert {row["tag"] for row in others if row} == {"peer"}, "no number there is the paper's"
