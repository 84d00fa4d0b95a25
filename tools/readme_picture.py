"""Draw assets/attention-maps.png, the picture of the README and the landing page, from scratch.

It trains the network of the README's example with seed 0 and lays its maps over the first eight test images.
"""

from __future__ import annotations

import torch

import payattn as pa
from bookfiles import ROOT

TARGET = ROOT / "assets" / "attention-maps.png"


def main() -> None:
    """Command line."""
    train, test = pa.load("glyphs", device="cpu")
    torch.manual_seed(0)
    net = pa.create("vgg-att2-concat-pc", classes=10, width=0.125, dropout=0.0, score_init="default")
    pa.fit(net, train, test, epochs=4, batch_size=64, lr=0.05, seed=0)
    shown = test.subset(slice(0, 8))
    _, maps = net(shown.images, return_maps=True)
    names = [test.classes[label] for label in shown.labels]
    pa.plot.overlay(shown.images, maps, masks=shown.masks, columns=names).savefig(TARGET, dpi=110)
    print(f"wrote {TARGET.relative_to(ROOT)}: {TARGET.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    main()
