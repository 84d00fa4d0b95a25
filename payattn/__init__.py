"""payattn: attention in CNNs, derived, implemented and trained step by step.

    import payattn as pa

    train, test = pa.load("glyphs")
    net = pa.create("vgg-att2-concat-pc", classes=10, width=0.125)
    pa.fit(net, train, test, epochs=5)
    logits, maps = net(test.images[:8], return_maps=True)
    pa.plot.overlay(test.images[:8], maps)

Names load when they are first used, so that ``import payattn`` costs little more than ``import torch``.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "ImageSet": "data",
    "Augment": "data",
    "batches": "data",
    "glyphs": "data",
    "load": "data",
    "create": "models",
    "list_models": "models",
    "fit": "train",
    "evaluate": "train",
    "maps_of": "train",
    "budget": "recipes",
    "check": "check",
}
_MODULES = (
    "attach",
    "attention",
    "checkpoint",
    "cost",
    "data",
    "distributed",
    "export",
    "faithful",
    "generalize",
    "localize",
    "maps",
    "measures",
    "models",
    "noise",
    "plot",
    "query",
    "recipes",
    "residual",
    "results",
    "robust",
    "train",
    "transfer",
    "widgets",
)
__all__ = sorted([*_HOME, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f"payattn.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"payattn.{name}")
    else:
        from difflib import get_close_matches

        near = get_close_matches(name, __all__, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise AttributeError(f"payattn has no {name!r}{hint}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
