"""Make the networks of the explorer page: train them from their recipes, export them, write what they must answer.

    python tools/explorer.py [--checkpoints DIR]

writes `assets/explorer/networks.js` (ONNX, weights in float16, computed in float32) and `tests/book/explorer.json`: for
a few images of the test set what PyTorch says, logits and maps, of the same rounded weights. A network whose
checkpoint is in DIR, as `payattn train` leaves it there, is not trained again.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn

import payattn as pa
from bookfiles import ROOT
from payattn.checkpoint import load_model, read
from payattn.data import strokes
from payattn.export import Named, check, to_proto
from vendor_onnxruntime import packed

SCRIPT = ROOT / "assets" / "explorer" / "networks.js"
EXPECTED = ROOT / "tests" / "book" / "explorer.json"
SEED = 0
EXAMPLES = 3
WEIGHTS = 64  # tensors with fewer numbers than this stay in float32: constants, small biases


@dataclass(frozen=True)
class Shown:
    """One network of the page: its recipe, and what is said of it and of its maps."""

    recipe: str
    title: str
    kind: str
    about: str
    maps: dict[str, str]


NETWORKS = (
    Shown(
        "learn-to-pay-attention/glyphs/pc", "VGG with attention", "attention",
        "Learn To Pay Attention, two levels, parametrised score: the class is read from what the two maps weight.",
        {"layer10": "layer 10", "layer13": "layer 13"},
    ),
    Shown(
        "learn-to-pay-attention/glyphs/gap", "VGG with average pooling", "class activation",
        "Global average pooling, no attention. The map is the class activation map of the class it predicts.",
        {"layer13": "layer 13"},
    ),
    Shown(
        "residual-attention-network/ran-glyphs/residual-56", "Attention-56", "soft masks",
        "Residual Attention Network: masks between 0 and 1, here the mean over the channels.",
        {f"stage{i}.attention1": f"stage {i}" for i in (1, 2, 3)},
    ),
    Shown(
        "attention-transfer/at-glyphs/student", "Small WRN on its own", "activation",
        "A narrow Wide ResNet from labels alone. Its maps are sums of squared activations.",
        {f"group{i}": f"group {i + 1}" for i in (0, 1, 2)},
    ),
    Shown(
        "attention-transfer/at-glyphs/at", "Small WRN, taught", "activation",
        "The same network with the same labels, and the activation maps of a larger teacher to match.",
        {f"group{i}": f"group {i + 1}" for i in (0, 1, 2)},
    ),
)  # fmt: skip


def trained(name: str, folder: Path) -> nn.Module:
    """The network of a recipe, trained where its checkpoint is not there."""
    recipe = pa.recipes.get(name)
    path = folder / pa.recipes.weights_of(recipe, SEED)
    if not path.exists() or len(read(path)[1]["epochs"]) < recipe.settings.epochs:
        pa.recipes.run(recipe, SEED, results_root=None, checkpoint=path, device="cpu")
    return load_model(path)


def half(model: nn.Module) -> nn.Module:
    """The network with its larger weights rounded to what float16 can hold."""
    rounded = {key: value.half().float() if value.numel() >= WEIGHTS and value.is_floating_point() else value
               for key, value in model.state_dict().items()}  # fmt: skip
    model.load_state_dict(rounded)
    return model


def halved(proto: Any) -> Any:
    """An ONNX model whose larger weights are stored in float16 and become float32 when it is loaded."""
    import onnx
    from onnx import numpy_helper

    casts = []
    for tensor in proto.graph.initializer:
        weights = numpy_helper.to_array(tensor)
        small = weights.astype(numpy.float16)
        if weights.dtype != numpy.float32 or weights.size < WEIGHTS or not numpy.array_equal(small, weights):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(small, f"{name}.half"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:], proto.graph.value_info[:], proto.metadata_props[:]
    for node in nodes:
        node.doc_string = ""
        del node.metadata_props[:]
    proto.graph.node.extend(nodes)
    return proto


def entry(shown: Shown, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """One network: what the page needs, and what it must answer."""
    recipe = pa.recipes.get(shown.recipe)
    model = half(trained(shown.recipe, folder)).eval()
    test = pa.load(recipe.data, device="cpu", **recipe.data_options)[1]
    size = test.size[0]
    content = halved(to_proto(model, size, optimize=False)).SerializeToString()
    images = test.images[:EXAMPLES]
    check(content, model, images / 255)
    with torch.no_grad():
        answers = {name: out.double().numpy() for name, out in Named(model)(images).items()}
    if list(answers) != ["logits", *shown.maps]:
        raise SystemExit(f"{shown.recipe} has the maps {', '.join(answers)}; the page names {', '.join(shown.maps)}")
    accuracy = pa.evaluate(model, test)["accuracy"]
    parameters = pa.cost.parameters(model)
    print(f"{shown.recipe}: {parameters} parameters, accuracy {accuracy:.4f}, {len(content)} bytes", flush=True)
    name = shown.recipe.split("/", 1)[1]
    page = {
        "name": name, "title": shown.title, "kind": shown.kind, "about": shown.about, "size": size,
        "accuracy": accuracy, "parameters": parameters, "maps": shown.maps, "onnx": packed(content),
    }  # fmt: skip
    expected = {
        "name": name, "size": size,
        "images": [base64.b64encode(image.numpy().tobytes()).decode() for image in images],
        "outputs": {key: [[float(f"{x:.6g}") for x in one.ravel()] for one in out] for key, out in answers.items()},
    }  # fmt: skip
    return page, expected


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--checkpoints", type=Path, default=ROOT / "runs", help="where weights are kept (runs)")
    given = parser.parse_args()
    made = [entry(shown, given.checkpoints) for shown in NETWORKS]
    style = strokes._STYLES["plain"]
    page = {
        "classes": list(strokes.PLAIN), "strokes": strokes.PLAIN, "ring": strokes.RING_RADIUS,
        "style": {"pieces": style.pieces, "side": style.side, "turn": style.turn, "stroke": style.stroke,
                  "contrast": style.contrast, "cut": strokes._CUT},
        "networks": [network for network, _ in made],
    }  # fmt: skip
    SCRIPT.parent.mkdir(exist_ok=True)
    SCRIPT.write_text(f"// Written by tools/explorer.py\nwindow.payattnNetworks = {json.dumps(page, indent=0)};\n")
    EXPECTED.write_text(json.dumps([expected for _, expected in made]) + "\n")
    for file in (SCRIPT, EXPECTED):
        print(f"wrote {file.relative_to(ROOT)}: {file.stat().st_size / 1000:.0f} KB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
