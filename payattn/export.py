"""A trained network as one file that runs without its Python code: ONNX, or a program of ``torch.export``.

Logits and every map are outputs with names, the number of images is free, and the normalisation stays inside: the file
takes float RGB in [0, 1], as the network does.  Nothing is written that has not given the network's own numbers.

ONNX needs onnx, onnxscript and onnxruntime: ``pip install 'payattn[export]'``.
"""

from __future__ import annotations

import inspect
import io
import json
import os
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from payattn import checkpoint
from payattn.maps import device_of, frozen

if TYPE_CHECKING:
    import onnx

INPUT = "images"
LOGITS = "logits"
FORM = "RGB, float32 (N, 3, H, W), values in [0, 1]; the network normalises them itself"
TOLERANCE = 1e-4
"""Largest difference that :func:`check` allows, as a share of the largest value of an output (and 1e-6 beside it)."""


class Named(nn.Module):
    """A network whose outputs have names: ``{"logits": (N, C), level: (N, h, w), ...}``.

    A network that takes no ``return_maps`` gives its logits alone.

    Args:
        model: maps images to logits, and with ``return_maps=True`` to (logits, maps).

    Example:
        >>> Named(nn.Flatten())(torch.zeros(2, 3, 1, 1))["logits"].shape
        torch.Size([2, 3])
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        takes = inspect.signature(model.forward).parameters
        self.with_maps = "return_maps" in takes

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The outputs by name, the logits first and the maps in the network's order."""
        logits, maps = self.model(images, return_maps=True) if self.with_maps else (self.model(images), {})
        if LOGITS in maps:
            raise ValueError(f"a map is named {LOGITS!r}, which is the name of the network's decision; rename the map")
        return {LOGITS: logits, **maps}


def to_program(
    model: nn.Module, size: int | tuple[int, int], path: str | os.PathLike[str] | None = None
) -> torch.export.ExportedProgram:
    """A network as a program of ``torch.export``, compared with the network itself on other images.

    Args:
        model: any network that ``torch.export`` can follow; left as found.
        size: of the images, (H, W) or one number for a square; the number of images stays free.
        path: where to write it too, by custom ``*.pt2``; ``torch.export.load`` reads it.

    Returns:
        the program; ``program.module()(images)`` is ``{"logits": (N, C), level: (N, h, w), ...}``.

    Raises:
        ValueError: sizes below 1, or a program that gives other numbers than the network.

    Example:
        >>> from payattn.models import create
        >>> program = to_program(create("vgg-gap", width=0.05), 8)
        >>> {name: tuple(out.shape) for name, out in program.module()(torch.rand(5, 3, 8, 8)).items()}
        {'logits': (5, 10), 'layer13': (5, 2, 2)}
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ValueError(f"size must be at least 1, as in size=32 or size=(24, 32), got {size}")
    batch = ({0: torch.export.Dim("batch")},)
    with frozen(model, gradients=False):
        named, device = Named(model), device_of(model)
        program = torch.export.export(named, (_noise(2, height, width).to(device),), dynamic_shapes=batch)
        other = _noise(3, height, width, seed=1).to(device)
        compare(program.module()(other), named(other))
    if path is not None:
        content = io.BytesIO()
        torch.export.save(program, content)
        checkpoint.write_atomically(path, content.getvalue())
    return program


def _noise(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


def to_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    size: int | tuple[int, int],
    *,
    classes: Sequence[str] = (),
) -> dict[str, float]:
    """Write a network as ONNX, after ONNX Runtime has given the network's own numbers.

    The file has one input, ``images``, and the outputs ``logits`` and every map by its name, with a free number of
    images. Its metadata say what the input is (``input``), the names of the classes (``classes``, JSON) and how
    ``payattn.create`` built the network (``model``, JSON), where that is known.

    Args:
        model: any network that ``torch.export`` can follow; left as found.
        path: the file, by custom ``*.onnx``; written beside its place and moved into it.
        size: of the images, (H, W) or one number for a square.
        classes: names of the classes, one per logit.

    Returns:
        the largest difference of each output from the network, see :func:`check`.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is missing.
        ValueError: names that are not as many as the logits, or outputs that differ; nothing is written.

    Example:
        >>> import tempfile, pathlib
        >>> from payattn.models import create
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "net.onnx"
        >>> list(to_onnx(create("wrn-10-1", width=0.125), path, 8))
        ['logits', 'group0', 'group1', 'group2']
    """
    content = to_proto(model, size, classes=classes).SerializeToString()
    differences = check(content, model)
    checkpoint.write_atomically(path, content)
    return differences


def to_proto(
    model: nn.Module, size: int | tuple[int, int], *, classes: Sequence[str] = (), optimize: bool = True
) -> onnx.ModelProto:
    """The ONNX form of a network in memory, not yet compared with it: what :func:`to_onnx` writes.

    Args:
        model: any network that ``torch.export`` can follow; left as found.
        size: of the images, (H, W) or one number for a square.
        classes: names of the classes, one per logit.
        optimize: fold constants and batch norms; without it the weights in the file are those of the network.

    Raises:
        ImportError: onnx or onnxscript is missing.
        ValueError: names that are not as many as the logits.

    Example:
        >>> to_proto(nn.Flatten(), 1).graph.output[0].name
        'logits'
    """
    _needed("onnx"), _needed("onnxscript")
    program = to_program(model, size)
    names = names_of(program)
    found = torch.onnx.export(
        program, dynamo=True, input_names=[INPUT], output_names=names, optimize=optimize, verbose=False
    )
    proto = found.model_proto  # type: ignore[union-attr]
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    logits = proto.graph.output[names.index(LOGITS)].type.tensor_type.shape.dim[1].dim_value
    if classes and len(classes) != logits:
        raise ValueError(f"classes must be {logits} names, one per logit, got {len(classes)}: {', '.join(classes)}")
    said = {"input": FORM, "model": json.dumps(getattr(model, "spec", None)), "classes": json.dumps(list(classes))}
    for key, text in said.items():
        proto.metadata_props.add(key=key, value=text)
    return proto


def names_of(program: torch.export.ExportedProgram) -> list[str]:
    """The names of a program's outputs, in its order.

    Example:
        >>> names_of(to_program(nn.Flatten(), 1))
        ['logits']
    """
    spec = program.call_spec.out_spec
    assert spec is not None  # a program of to_program returns a dict
    places = spec.unflatten(range(spec.num_leaves))
    return sorted(places, key=places.__getitem__)


def check(
    file: str | os.PathLike[str] | bytes, model: nn.Module, images: Tensor | None = None, tolerance: float = TOLERANCE
) -> dict[str, float]:
    """Compare an ONNX file, run by ONNX Runtime on the CPU, with the network it was made from.

    An output o passes against the network's e if ``max |o - e| <= tolerance max |e| + 1e-6``: rounding in another
    order passes, another weight does not. The images are tried together and the first one alone.

    Args:
        file: the file or its content.
        model: the network; left as found.
        images: float (N, 3, H, W) in [0, 1]; three of noise in the file's own size where none are given.
        tolerance: a share of the largest value of each output.

    Returns:
        output name to its largest difference.

    Raises:
        ImportError: onnxruntime is missing.
        ValueError: the file has other outputs than the network, or numbers that differ: which, and by how much.

    Example:
        >>> import tempfile, pathlib
        >>> path, net = pathlib.Path(tempfile.mkdtemp()) / "net.onnx", nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
        >>> _ = to_onnx(net, path, 1)
        >>> net[1].bias.data += 1
        >>> check(path, net)
        Traceback (most recent call last):
        ValueError: logits differ from the network by 1, ...
    """
    runtime = _needed("onnxruntime")
    source = file if isinstance(file, bytes) else os.fspath(file)
    session = runtime.InferenceSession(source, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    if images is None:
        images = _noise(3, *session.get_inputs()[0].shape[2:])
    largest = dict.fromkeys(names, 0.0)
    for part in (images, images[:1]):
        with frozen(model, gradients=False):
            expected = Named(model)(part.to(device_of(model)))
        given = session.run(None, {INPUT: part.cpu().float().numpy()})
        found = compare(dict(zip(names, map(torch.from_numpy, given), strict=True)), expected, tolerance)
        largest = {name: max(largest[name], found[name]) for name in names}
    return largest


def compare(
    given: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = TOLERANCE
) -> dict[str, float]:
    """The largest difference of each named output, all within ``tolerance max |e| + 1e-6``.

    Raises:
        ValueError: other names or shapes, or a difference that is larger; names the outputs that differ.

    Example:
        >>> compare({"logits": torch.tensor([1.0])}, {"logits": torch.tensor([1.5])}, tolerance=0.5)
        {'logits': 0.5}
    """
    if list(given) != list(expected):
        raise ValueError(f"the outputs are {', '.join(given)}; those of the network are {', '.join(expected)}")
    differences, faults = {}, []
    for name, out in given.items():
        want = expected[name].detach().cpu().double()
        if out.shape != want.shape:
            raise ValueError(f"{name} is {tuple(out.shape)}, that of the network is {tuple(want.shape)}")
        differences[name] = float((out.detach().cpu().double() - want).abs().max()) if want.numel() else 0.0
        largest = float(want.abs().max()) if want.numel() else 0.0
        if not differences[name] <= tolerance * largest + 1e-6:  # not a number is no small difference
            faults.append(
                f"{name} differ{'s' * (name != LOGITS)} from the network by {differences[name]:.3g}, where its "
                f"values reach {largest:.3g} and {tolerance * largest + 1e-6:.1g} is allowed"
            )
    if faults:
        raise ValueError("; ".join(faults))
    return differences


def _needed(name: str) -> ModuleType:
    try:
        return __import__(name)
    except ImportError as error:
        raise ImportError(f"ONNX needs {name} ({error}): pip install 'payattn[export]'") from error
