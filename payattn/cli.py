"""The command ``payattn``: train, evaluate, maps, attack, export, recipes, doctor.

A mistake of the user is answered in one line on standard error, with exit code 2; 1 means that something is wrong
with the machine (doctor), 130 that the user stopped a run.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from payattn.data import Data, FileSet, ImageSet


MEASURED_ON = "the test part of a known set, or the whole of an .npz or a folder"


def parser() -> argparse.ArgumentParser:
    """The arguments of all commands.

    Example:
        >>> parser().parse_args(["train", "glyphs/pc", "--seeds", "0-2,7"]).seeds
        [0, 1, 2, 7]
    """
    top = argparse.ArgumentParser(prog="payattn", description="Attention in CNNs: train, measure, look.")
    top.add_argument("--version", action="version", version=f"payattn {_version('payattn')}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for function, add in ((train, _train_arguments), (evaluate, _evaluate_arguments), (maps, _maps_arguments),
                          (attack, _attack_arguments), (export, _export_arguments)):  # fmt: skip
        add(_command(commands, function))
    listing = _command(commands, recipes)
    listing.add_argument("pattern", nargs="?", default="*", help="a shell pattern, such as 'glyphs/*'")
    listing.add_argument("--results", metavar="DIR", help="where runs are recorded, when not with the recipes")
    _command(commands, doctor)
    return top


def _command(commands: Any, function: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
    text = (function.__doc__ or "").split("\n\n")[0].strip()
    command: argparse.ArgumentParser = commands.add_parser(function.__name__, help=text, description=text)
    command.set_defaults(run=function)
    return command


def _train_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", metavar="RECIPE", help="an id, the end of one, or a pattern: 'glyphs/*'")
    seeds = command.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, default=0)
    seeds.add_argument("--seeds", type=_seeds, metavar="0-4", help="several, as in 0-4 or 0,2,5")
    command.add_argument("--small", action="store_true", help="the form that two CPU cores finish in minutes")
    command.add_argument("--data", metavar="DATA", help="in place of the recipe's data: a name, an .npz or a "
                         "folder (for imagenet the one that holds train and val)")  # fmt: skip
    command.add_argument("--test", metavar="PATH", help="its test part, when that is a file or folder of its own")
    command.add_argument("--caveat", default="", metavar="TEXT", help="recorded with the data, as in 'JPEG copy'")
    command.add_argument("--on", type=_named_path, action="append", default=[], metavar="NAME=PATH",
                         help="a file in place of a set that the recipe measures on")  # fmt: skip
    command.add_argument("--results", default="results", metavar="DIR", help="where to record the run")
    command.add_argument("--checkpoint", default="runs", metavar="DIR", help="where to keep weights and states")
    command.add_argument("--force", action="store_true", help="run again what is recorded, from the start")
    _machine_arguments(command)


def _evaluate_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("weights", metavar="WEIGHTS", help="a .safetensors file of train or save_weights")
    command.add_argument("--data", metavar="DATA", required=True, help=MEASURED_ON)
    command.add_argument("--size", type=int, metavar="PIXELS", help="of imagenet or a folder: read its files as they "
                         "are needed and cut out the middle, so large")  # fmt: skip
    _machine_arguments(command)


def _maps_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("weights", metavar="WEIGHTS", help="a .safetensors file of train or save_weights")
    command.add_argument("images", nargs="*", metavar="IMAGE", help="image files")
    command.add_argument("--data", metavar="DATA", help=MEASURED_ON)
    command.add_argument("--count", type=int, default=8, help="how many images of DATA (default 8)")
    command.add_argument("--size", type=int, default=32, help="image files are scaled to this many pixels (32)")
    command.add_argument("--method", action="append", metavar="NAME", help="a map of payattn.maps.METHODS, of the "
                         "predicted class, in place of the network's own maps; may be repeated")  # fmt: skip
    command.add_argument("--layer", metavar="NAME", help="of --method grad-cam: the layer to read")
    command.add_argument("--scale", default="each", choices=("each", "shared", "uniform"), help="of the colours")
    command.add_argument("--out", default="maps.png", metavar="PNG")
    _machine_arguments(command)


def _attack_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("weights", metavar="WEIGHTS", help="a .safetensors file of train or save_weights")
    command.add_argument("--data", metavar="DATA", required=True, help=MEASURED_ON)
    command.add_argument("--epsilons", type=_budgets, default=[1, 2, 4, 8, 16], metavar="1,2,4",
                         help="budgets in 1/255 of a pixel in [0, 1] (1,2,4,8,16)")  # fmt: skip
    command.add_argument("--kind", default="fgsm", choices=("fgsm", "pgd"))
    command.add_argument("--crafted-on", metavar="WEIGHTS", help="make the images with this network (transfer)")
    command.add_argument("--count", type=int, default=1000, help="how many images, classes in equal numbers (1000)")
    _machine_arguments(command)


def _export_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("weights", metavar="CHECKPOINT", help="a .safetensors file of train or save_weights")
    command.add_argument("file", metavar="FILE", help="what to write: .onnx, or .pt2 for torch.export")
    command.add_argument("--size", type=_size, default=(32, 32), metavar="PIXELS",
                         help="of the images, as in 32 or 24x32: height x width (32)")  # fmt: skip


def _size(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if not 1 <= len(sides) <= 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"a size is written 32 or 24x32 (height x width), got {text!r}")
    return int(sides[0]), int(sides[-1])


def _budgets(text: str) -> list[float]:
    try:
        budgets = [float(part) for part in text.split(",")]
    except ValueError:
        budgets = [-1.0]
    if not all(0 <= budget <= 255 for budget in budgets):
        raise argparse.ArgumentTypeError(f"budgets are numbers from 0 to 255 such as 1,2,4,8, got {text!r}")
    return budgets


def _machine_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")


def _seeds(text: str) -> list[int]:
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not first.isdecimal() or not last.isdecimal() or int(last) < int(first):
            raise argparse.ArgumentTypeError(f"seeds are written 0-4 or 0,2,5, got {text!r}")
        seeds += range(int(first), int(last) + 1)
    return seeds


def _named_path(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"write NAME=PATH, as in stl10=my/stl.npz, got {text!r}")
    return name, path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: as on the command line, which is the default.

    Example:
        >>> main(["recipes", "glyphs/pc"])
        learn-to-pay-attention/glyphs/pc ...
        0
    """
    given = parser().parse_args(arguments)
    try:
        if getattr(given, "threads", None) is not None:
            _set_threads(given.threads)
        code: int = given.run(given)
        return code
    except KeyboardInterrupt:
        print("\npayattn: stopped; the same command continues from the last epoch", file=sys.stderr)
        return 130
    except BrokenPipeError:  # as in payattn recipes | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        if not getattr(error, "told", False):  # the first of several processes says it
            print(f"payattn: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _set_threads(threads: int) -> None:
    if threads < 1:
        raise ValueError(f"--threads must be at least 1, got {threads}")
    import torch

    torch.set_num_threads(threads)


def train(given: argparse.Namespace) -> int:
    """Run a recipe, continue it after an interruption, and record the result.

    A run that is recorded already is left as it is and named; ``--force`` runs it again. Several processes do it
    together when ``torchrun --standalone --nproc_per_node 2 -m payattn train ...`` starts them.
    """
    from payattn import distributed, results
    from payattn import recipes as table
    from payattn.train import pick_device

    distributed.start(pick_device(given.device))
    names = [table.get(given.recipe).id] if not set("*?[") & set(given.recipe) else table.list_recipes(given.recipe)
    if not names:
        raise ValueError(f"no recipe fits {given.recipe!r} ('payattn recipes' lists all)")
    for name in names:
        recipe = table.get(name, small=given.small)
        for seed in [given.seed] if given.seeds is None else given.seeds:
            path = results.path_of(recipe.id, seed, small=recipe.small, root=given.results)
            if not given.force and distributed.from_main(path.exists):
                _say(f"{path} is recorded already; --force runs it again")
                continue
            _say(f"{recipe.id}{' (small)' if recipe.small else ''}, seed {seed}: {recipe.model}")
            checkpoint = Path(given.checkpoint) / table.weights_of(recipe, seed)
            result = table.run(
                recipe, seed, data=given.data, test=given.test, caveat=given.caveat, on=dict(given.on),
                results_root=given.results, checkpoint=checkpoint, device=given.device, force=given.force,
            )  # fmt: skip
            if distributed.is_main():
                _report(result["final"], result["data"]["test"])
            _say(f"recorded in {path}, weights in {checkpoint}")
    return 0


def _say(text: str) -> None:
    """Print once, however many processes there are."""
    from payattn import distributed

    if distributed.is_main():
        print(text, flush=True)


def evaluate(given: argparse.Namespace) -> int:
    """Measure trained weights on a test set: accuracy and, where it has masks, localisation."""
    from payattn import checkpoint, results
    from payattn.recipes import localisation
    from payattn.train import evaluate as measure
    from payattn.train import pick_device

    model, device = checkpoint.load_model(given.weights), pick_device(given.device)
    data: Data = _measured_on(given, str(device)) if given.size is None else _streamed(given, str(device))
    model.to(device)
    _report({**measure(model, data), **localisation(model, data)}, results.describe(data))
    return 0


def _report(final: dict[str, Any], data: dict[str, Any]) -> None:
    caveat = f" ({data['caveat']})" if data["caveat"] else ""
    where = f"{final['n']} images of {data['name']}{caveat}"
    print(f"test accuracy {final['accuracy']:.4f}, loss {final['loss']:.4f}: {where}")
    for level, score in final.get("levels", {}).items():
        print(f"{level}: points at the object in {score['pointing']:.4f} of images, IoU {score['iou']:.4f}")
    if final.get("levels"):
        print(f"a random point would in {final['chance']:.4f}")


def _measured_on(given: argparse.Namespace, device: str) -> ImageSet:
    """The test part of a known set, or all of the user's own images; their classes must be those of the weights."""
    from payattn.data import load

    path = Path(given.data)
    whole = path.is_file() or (path.is_dir() and not (path / "train").is_dir())
    data = load(given.data, device=device, test=given.data if whole else None)[1]
    _check_classes(given, data)
    return data


def _streamed(given: argparse.Namespace, device: str) -> FileSet:
    """The test part of ImageNet or of a folder, read while it is measured."""
    from payattn.data import load

    path = Path(given.data)
    whole = path.is_dir() and not (path / "train").is_dir()
    data = load(given.data, device=device, test=given.data if whole else None, stream=True, size=given.size)[1]
    _check_classes(given, data)
    return data


def _check_classes(given: argparse.Namespace, data: Data) -> None:
    from payattn import checkpoint

    trained = checkpoint.read(given.weights)[1].get("data", {}).get("classes", list(data.classes))
    if trained != list(data.classes):
        raise ValueError(
            f"{given.weights} was trained on the classes {', '.join(trained)}; "
            f"{given.data} has {', '.join(data.classes)}: the same ones are needed, in the same order"
        )


def maps(given: argparse.Namespace) -> int:
    """Draw the attention maps of trained weights over images, into one PNG file."""
    from payattn import checkpoint, plot
    from payattn.data import ImageSet
    from payattn.train import maps_of, pick_device

    if bool(given.images) == bool(given.data):
        raise ValueError("name image files or a data set with --data, one of the two")
    if given.layer and not given.method:
        raise ValueError("--layer belongs to --method grad-cam")
    if not 1 <= given.count <= 8 or len(given.images) > 8:
        raise ValueError("one figure holds 1 to 8 images")
    import torch

    model, device = checkpoint.load_model(given.weights), pick_device(given.device)
    model.to(device)
    if given.data:
        data = _measured_on(given, str(device)).subset(slice(0, given.count))
        titles = [data.classes[label] for label in data.labels.tolist()]
    else:
        images = torch.stack([_read_image(path, given.size) for path in given.images])
        data = ImageSet(images, torch.zeros(len(images), dtype=torch.int64), ("unknown",), name="image files")
        titles = [Path(path).stem[:12] for path in given.images]
    found = _made(given, model, data.images.to(device)) if given.method else maps_of(model, data)
    if not found:
        raise ValueError(
            f"{given.weights} holds {model.spec['name']}, which has no attention maps; "  # type: ignore[index]
            "--method grad-cam makes some of any network"
        )
    figure = plot.overlay(data.images.cpu(), found, masks=None if data.masks is None else data.masks.cpu(),
                          columns=titles, scale=given.scale)  # fmt: skip
    checkpoint.write_atomically(given.out, figure.png())
    print(f"{len(data)} images, {', '.join(found)}: {given.out}")
    return 0


def _made(given: argparse.Namespace, model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The maps that ``--method`` asks for, by name, on the CPU."""
    from payattn.attention import choose
    from payattn.maps import METHODS

    names = [choose("--method", name, tuple(METHODS)) for name in given.method]
    if given.layer and names != ["grad-cam"]:
        raise ValueError(f"--layer belongs to --method grad-cam alone, got {' and '.join(names)}")
    options = {"layer": given.layer} if given.layer else {}
    try:
        return {name: METHODS[name](model, images, **options).cpu() for name in names}
    except TypeError as error:  # a class activation map of a network that has none
        raise ValueError(str(error)) from error


def attack(given: argparse.Namespace) -> int:
    """Attack trained weights with adversarial images and print accuracy and fooling rate for each budget."""
    from payattn import checkpoint, robust
    from payattn.data import balanced
    from payattn.train import evaluate as measure
    from payattn.train import pick_device

    if given.count < 1:
        raise ValueError(f"--count must be at least 1, got {given.count}")
    model, device = checkpoint.load_model(given.weights), pick_device(given.device)
    data = _measured_on(given, str(device))
    data = balanced(data, min(given.count, len(data)))
    maker = None if given.crafted_on is None else checkpoint.load_model(given.crafted_on).to(device)
    model.to(device)
    print(f"{given.kind}, {len(data)} images of {data.name}, clean accuracy {measure(model, data)['accuracy']:.4f}")
    budgets = [budget / 255 for budget in given.epsilons]
    for budget, point in zip(
        given.epsilons, robust.curve(model, data, budgets, attack=given.kind, crafted_on=maker), strict=True
    ):
        print(f"{budget:5g}/255  accuracy {point['accuracy']:.4f}  fooled {point['fooled']:.4f}", flush=True)
    return 0


def export(given: argparse.Namespace) -> int:
    """Write trained weights as ONNX (or .pt2): logits and maps as named outputs, checked against the network."""
    from payattn import checkpoint
    from payattn import export as out

    kind = Path(given.file).suffix
    if kind not in (".onnx", ".pt2"):
        raise ValueError(f"FILE ends in .onnx or .pt2, got {given.file!r}")
    model = checkpoint.load_model(given.weights)
    classes = checkpoint.read(given.weights)[1].get("data", {}).get("classes", [])
    if kind == ".onnx":
        names = list(out.to_onnx(model, given.file, given.size, classes=classes))
    else:
        names = out.names_of(out.to_program(model, given.size, given.file))
    print("images {} x {}, RGB in [0, 1]; {}: {}".format(*given.size, ", ".join(names), given.file))
    return 0


def _read_image(path: str, size: int) -> Tensor:
    """An image file as uint8 (3, size, size): the shorter side scaled to ``size``, the middle cut out."""
    import numpy
    import torch
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            image = ImageOps.fit(ImageOps.exif_transpose(file).convert("RGB"), (size, size))
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not an image") from None
    return torch.from_numpy(numpy.array(image)).permute(2, 0, 1).contiguous()


def recipes(given: argparse.Namespace) -> int:
    """List the recipes, with the published number and what has been run."""
    from payattn import recipes as table
    from payattn import results

    names = table.list_recipes(given.pattern)
    if not names:
        raise ValueError(f"no recipe fits {given.pattern!r}; 'payattn recipes' without a pattern lists all")
    runs = results.load_results(root=given.results)
    wide = max(map(len, names))
    for name in names:
        recipe = table.get(name)
        mine = [run for run in runs if run["recipe"] == name]
        said = f"published {recipe.published['error']:5.2f} % error" if "error" in recipe.published else ""
        print(f"{name:<{wide}}  {said:<24}  {'; '.join(_ran(mine)) or 'not run'}".rstrip())
    return 0


def _ran(runs: Sequence[dict[str, Any]]) -> Iterable[str]:
    from payattn import results

    kinds: dict[str, list[float]] = {}
    for run in runs:  # runs on other data, or on data with another caveat, do not share a mean
        data = run["data"]["test"]
        kind = ", ".join(filter(None, ["small form" if run["small"] else "", data["name"], data["caveat"]]))
        kinds.setdefault(kind, []).append(100 * (1 - run["final"]["accuracy"]))
    for kind, errors in kinds.items():
        error = results.summary([{"error": value} for value in errors], "error")
        spread = "" if error["sd"] is None else f" sd {error['sd']:.2f}"
        yield f"ran {error['n']}: {error['mean']:.2f} % error{spread} ({kind})"


def doctor(given: argparse.Namespace) -> int:
    """Say what works on this machine, and why something does not."""
    failed = 0
    for check in (_python, _torch, _torchvision, _gpu, _cpu, _needed, _cache, _disk, _optional):
        for good, text in check():
            failed += good is False
            print(f"{'FAIL' if good is False else 'ok  ' if good else 'note'}  {text}")
    print("something is wrong: see FAIL above" if failed else "all that is needed works")
    return 1 if failed else 0


Findings = Iterable[tuple[bool | None, str]]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _python() -> Findings:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    yield good, f"Python {version}" + ("" if good else ": payattn needs 3.11 or newer")


def _torch() -> Findings:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield False, f"torch cannot be imported ({error}): pip install --force-reinstall torch"
        return
    versions = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
    build = next((f"{name} {version}" for name, version in versions.items() if version), "the CPU")
    yield True, f"torch {torch.__version__} (built for {build}), {torch.get_num_threads()} threads"


def _torchvision() -> Findings:
    if not _version("torchvision"):
        yield None, "torchvision is not installed; payattn does not need it, attaching to its models does"
        return
    try:
        import torchvision
    except Exception as error:  # a mismatched pair fails with RuntimeError, ImportError or OSError
        yield False, torchvision_fault(str(error), _version("torch"), _version("torchvision"))
        return
    yield True, f"torchvision {torchvision.__version__}"


def torchvision_fault(error: str, torch: str, torchvision: str) -> str:
    """Explain why torchvision cannot be imported.

    Example:
        >>> torchvision_fault("operator torchvision::nms does not exist", "2.8.0", "0.20.1")
        'torchvision 0.20.1 was built for another torch than the installed 2.8.0 (...): reinstall the two together, ...'
    """
    together = "reinstall the two together, from one index: pip install --force-reinstall torch torchvision"
    if "torchvision::" in error or "undefined symbol" in error or "Couldn't load custom C++ ops" in error:
        return f"torchvision {torchvision} was built for another torch than the installed {torch} ({error}): {together}"
    return f"torchvision {torchvision} cannot be imported beside torch {torch} ({error}): {together}"


def _gpu() -> Findings:
    try:
        import torch
    except (ImportError, OSError):
        return
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            name, memory = torch.cuda.get_device_name(index), torch.cuda.get_device_properties(index).total_memory
            yield True, f"GPU {index}: {name}, {memory / 2**30:.0f} GiB, computes in {_precision(f'cuda:{index}')}"
    elif torch.backends.mps.is_available():
        yield True, "Apple GPU: used only on request, device='mps'"
    elif torch.version.cuda is None and torch.version.hip is None:
        yield None, "no GPU is used: this torch is built for the CPU alone; the quick budget is made for that"
    elif not Path("/proc/driver/nvidia").exists():
        yield None, "no GPU is used: there is no NVIDIA driver on this machine; the quick budget is made for that"
    else:
        yield (
            None,
            (
                f"no GPU is used though a driver is there: it may be too old for CUDA {torch.version.cuda}, "
                "or CUDA_VISIBLE_DEVICES hides the devices; nvidia-smi says more"
            ),
        )


def _precision(device: str) -> str:
    import torch

    from payattn.train import autocast_dtype

    return str(autocast_dtype("auto", torch.device(device)) or torch.float32).removeprefix("torch.")


def _cpu() -> Findings:
    try:
        precision = _precision("cpu")
    except (ImportError, OSError):
        return
    why = "native here" if precision == "bfloat16" else "no AVX512-BF16 or AMX, so bfloat16 would be slower"
    yield True, f"CPU: {os.cpu_count()} cores, trains in {precision} ({why})"


def _needed() -> Findings:
    for package in ("numpy", "matplotlib", "safetensors", "tqdm"):
        version = _version(package)
        yield bool(version), f"{package} {version}" if version else f"{package} is missing: pip install {package}"
    try:
        from payattn import recipes as table

        yield True, f"payattn {_version('payattn') or 'from its folder'}, {len(table.list_recipes())} recipes"
    except Exception as error:
        yield False, f"payattn itself cannot be used: {error}"


def _cache() -> Findings:
    try:
        from payattn.data.download import cache_folder
    except (ImportError, OSError):
        return
    folder = cache_folder()
    near = next((p for p in (folder, *folder.parents) if p.exists()), folder)
    good = near.is_dir() and os.access(near, os.W_OK)
    advice = f": no right to write in {near}; choose another folder with the variable PAYATTN_DATA"
    yield good, f"cache folder {folder}" + ("" if good else advice)


def _disk() -> Findings:
    import shutil

    free = shutil.disk_usage(Path.cwd()).free / 2**30
    yield free > 0.5, f"{free:.1f} GiB free here" + ("" if free > 0.5 else ": checkpoints and data need more")


def _optional() -> Findings:
    wanted = {"jupyter-book": "builds the book", "pytest": "runs the tests", "scikit-learn": "linear SVM in chapters"}
    for package, use in wanted.items():
        version = _version(package)
        yield (True, f"{package} {version}") if version else (None, f"{package} is not installed ({use})")


if __name__ == "__main__":
    sys.exit(main())
