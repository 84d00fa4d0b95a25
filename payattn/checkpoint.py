"""One file holds a run: weights, optimiser state, random states and a JSON header, in the safetensors format.

A checkpoint is written beside its place and moved into it, so a process killed at any moment leaves either the
old file or the new one, never half of one.  A checksum over all of it finds damage when the file is read.
Nothing is pickled: opening a file from a stranger runs no code.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FORMAT = 1
"""Version of the layout; a reader refuses what it does not know."""

ADAPTERS = "transfer_adapters."  # learned beside a student, for its loss alone: no part of the network


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file so that a reader, or a crash, never sees half of it.

    The bytes go to ``<path>.part``, are flushed to the disk, and then take the place of ``path`` in one step.

    Args:
        path: where the file goes; missing folders are made.
        content: what it holds.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "new" / "a.txt"
        >>> write_atomically(path, b"whole")
        >>> path.read_text(), len(list(path.parent.iterdir()))
        ('whole', 1)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _checksum(header: str, tensors: Mapping[str, Tensor]) -> str:
    value = zlib.crc32(header.encode())
    for name in sorted(tensors):
        value = zlib.crc32(name.encode(), value)
        # as bytes, since numpy knows no bfloat16
        value = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"


def write(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write named tensors and a JSON header to one file, atomically.

    Args:
        path: the file, by custom ``*.safetensors``.
        tensors: name to tensor of any shape and type, on any device.
        metadata: anything JSON can hold.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.safetensors"
        >>> write(path, {"x": torch.ones(2)}, {"epoch": 3})
        >>> tensors, metadata = read(path)
        >>> tensors["x"], metadata
        (tensor([1., 1.]), {'epoch': 3})
    """
    from safetensors.torch import save

    # A copy in plain memory order: safetensors takes no channels_last tensor and none that shares memory.
    plain = {
        name: torch.empty(t.shape, dtype=t.dtype).copy_(t.detach()) if t.ndim else t.detach().cpu().clone()
        for name, t in tensors.items()
    }
    header = json.dumps({"format": FORMAT, **metadata})
    write_atomically(path, save(plain, {"payattn": header, "checksum": _checksum(header, plain)}))


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the JSON header of a file made by :func:`write`.

    Returns:
        the tensors by name, on the CPU, and the header.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut off, damaged, or was made by something else.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.safetensors"
        >>> _ = path.write_bytes(b"not a checkpoint")
        >>> read(path)
        Traceback (most recent call last):
        ValueError: ...a.safetensors is cut off or damaged (...); delete it, or put back a good copy
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    mend = "delete it, or put back a good copy"
    try:
        with safe_open(path, framework="pt") as file:
            strings = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path} is cut off or damaged ({error}); {mend}") from None
    if "payattn" not in strings:
        raise ValueError(f"{path} holds tensors but no payattn header; it was not written by payattn.checkpoint")
    if _checksum(strings["payattn"], tensors) != strings.get("checksum"):
        raise ValueError(f"{path} is damaged (its checksum does not fit its content); {mend}")
    metadata = json.loads(strings["payattn"])
    if metadata.pop("format") != FORMAT:
        raise ValueError(f"{path} was written by another version of payattn, in a format this one cannot read")
    return tensors, metadata


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose name starts with ``prefix.``, without it.

    Example:
        >>> under("model", {"model.a.weight": torch.zeros(1), "rng.cpu": torch.zeros(2)})
        {'a.weight': tensor([0.])}
    """
    return {name[len(prefix) + 1 :]: t for name, t in tensors.items() if name.startswith(prefix + ".")}


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split the state of an optimiser into tensors (by ``index.name``) and the rest, which is plain data.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> sgd = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
        >>> weight.sum().backward(); sgd.step()
        >>> tensors, plain = pack_optimizer(sgd)
        >>> tensors, plain["groups"][0]["momentum"]
        ({'0.momentum_buffer': tensor([1., 1.])}, 0.9)
    """
    tensors: dict[str, Tensor] = {}
    state = optimizer.state_dict()
    rest: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                rest.setdefault(str(index), {})[name] = value
    return tensors, {"state": rest, "groups": state["param_groups"]}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
    """Give an optimiser the state that :func:`pack_optimizer` took from one like it.

    Each tensor takes the memory order of its parameter, so that a resumed run does the same arithmetic in the
    same order as one that was never stopped.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> sgd = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
        >>> unpack_optimizer(sgd, {"0.momentum_buffer": torch.ones(2)}, pack_optimizer(sgd)[1])
        >>> sgd.state[weight]["momentum_buffer"]
        tensor([1., 1.])
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in rest["state"].items()}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        like = parameters[int(index)].detach()
        if value.shape == like.shape and value.ndim:
            value = torch.empty_like(like, dtype=value.dtype).copy_(value)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": rest["groups"]})


def _load_into(model: nn.Module, weights: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    weights = {name: value for name, value in weights.items() if not name.startswith(ADAPTERS)}
    have = model.state_dict()
    faults = [f"{name} is missing from the file" for name in have if name not in weights]
    faults += [f"{name} is not in the model" for name in weights if name not in have]
    faults += [
        f"{name} is {tuple(weights[name].shape)} in the file and {tuple(have[name].shape)} in the model"
        for name in have
        if name in weights and weights[name].shape != have[name].shape
    ]
    if faults:
        shown = "; ".join(faults[:4]) + (f"; and {len(faults) - 4} more" if len(faults) > 4 else "")
        raise ValueError(f"{path} holds the weights of another network: {shown}")
    model.load_state_dict(dict(weights))


def save_weights(model: nn.Module, path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None) -> None:
    """Save the weights of a network, with how to build it when ``models.create`` made it.

    Args:
        model: the network; its ``spec`` (set by ``models.create``) is stored too.
        path: the file, by custom ``*.safetensors``.
        metadata: anything else to keep, as JSON: data set, seed, accuracy.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "net.safetensors"
        >>> save_weights(torch.nn.Linear(2, 1), path, {"note": "untrained"})
        >>> load_weights(torch.nn.Linear(2, 1), path)["note"]
        'untrained'
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    write(path, tensors, {"model": getattr(model, "spec", None), **(metadata or {})})


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Load weights into a network of the same shape; returns the metadata of the file.

    Reads files of :func:`save_weights` and the checkpoints of ``fit`` alike.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or names or shapes differ; says which.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "net.safetensors"
        >>> save_weights(torch.nn.Linear(2, 1), path)
        >>> load_weights(torch.nn.Linear(3, 1), path)
        Traceback (most recent call last):
        ValueError: ...another network: weight is (1, 2) in the file and (1, 3) in the model
    """
    tensors, metadata = read(path)
    _load_into(model, under("model", tensors), path)
    return metadata


def load_model(path: str | os.PathLike[str]) -> nn.Module:
    """Rebuild a network that ``models.create`` made, with its weights, in evaluation mode.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or does not say how to build its network.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "net.safetensors"
        >>> save_weights(torch.nn.Linear(2, 1), path)
        >>> load_model(path)
        Traceback (most recent call last):
        ValueError: ...does not say how to build its network; build it yourself and call load_weights(model, path)
    """
    from payattn.models import create

    tensors, metadata = read(path)
    if not metadata.get("model"):
        raise ValueError(
            f"{path} does not say how to build its network; build it yourself and call load_weights(model, path)"
        )
    spec = metadata["model"]
    options = {**spec["options"], **({"pretrained": False} if "pretrained" in spec["options"] else {})}
    model = create(spec["name"], spec["classes"], **options)  # its weights come from here, not from elsewhere
    _load_into(model, under("model", tensors), path)
    return model.eval()
