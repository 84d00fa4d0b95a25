"""Choosing images class by class: held-out shares, so many per class, balanced subsets."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from payattn.data.images import ImageSet
from payattn.data.stream import FileSet
from payattn.data.strokes import stream

Set = TypeVar("Set", ImageSet, FileSet)


def _by_class(data: ImageSet | FileSet, seed: int, purpose: str) -> list[Tensor]:
    """For each class the indices of its images in a random order."""
    rank = torch.rand(len(data), generator=stream(seed, purpose))
    order = rank.argsort()
    labels = data.labels.cpu()[order]
    return [order[labels == k] for k in range(len(data.classes))]


def held_out(data: Set, share: float, seed: int = 0) -> tuple[Set, Set]:
    """Split a set: the same share of every class, chosen at random, is held out for testing.

    Args:
        data: the set.
        share: of each class, between 0 and 1; rounded to images, at least one on either side.
        seed: of the choice.

    Returns:
        (the rest, the held-out images), each in the order of ``data``.

    Raises:
        ValueError: if ``share`` is not between 0 and 1, or a class has a single image.

    Example:
        >>> from payattn.data import glyphs
        >>> rest, out = held_out(glyphs(50, size=8), 0.2)
        >>> len(rest), out.labels.bincount().tolist()
        (40, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    """
    if not 0 < share < 1:
        raise ValueError(
            f"test= as a share must lie between 0 and 1, got {share}; "
            "give the path of a second file or folder otherwise"
        )
    chosen = torch.zeros(len(data), dtype=torch.bool)
    for k, index in enumerate(_by_class(data, seed, "held out")):
        if len(index) == 1:
            raise ValueError(
                f"{data.name}: class {data.classes[k]!r} has a single image, so none can be held out; "
                "add images, or give test= a second file or folder"
            )
        chosen[index[: min(len(index) - 1, max(1, round(share * len(index))))]] = len(index) > 0
    return data.subset(~chosen), data.subset(chosen)


def balanced(data: Set, n: int | None, seed: int = 0) -> Set:
    """A random subset of n images with the classes in equal numbers (to within one), in the order of ``data``.

    Args:
        data: the set.
        n: number of images; None is all of them.
        seed: of the choice; with the same seed a smaller subset is part of a larger one.

    Raises:
        ValueError: if a class has too few images; the message says how many can be had.

    Example:
        >>> from payattn.data import glyphs
        >>> balanced(glyphs(40, size=8), 20).labels.bincount().tolist()
        [2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    """
    if n is None or n == len(data):
        return data
    if n < 0:
        raise ValueError(f"the number of images must be 0 or more, got {n}")
    groups = [index for index in _by_class(data, seed, "subset") if len(index)]
    fewest = min((len(index) for index in groups), default=0)
    each, more = divmod(n, max(1, len(groups)))
    if each + (more > 0) > fewest:
        raise ValueError(
            f"{data.name} has {len(data)} images, {fewest} in its smallest class: at most "
            f"{fewest * len(groups)} can be chosen with equal classes, got {n}"
        )
    turn = torch.randperm(len(groups), generator=stream(seed, "subset classes"))
    parts = [groups[k][: each + (place < more)] for place, k in enumerate(turn.tolist())]
    return data.subset(torch.cat(parts).sort().values)


def per_class(data: Set, n_train: int, n_test: int | None = None, seed: int = 0) -> tuple[Set, Set]:
    """Split a set: so many images of every class to train on, and so many others to test on.

    Args:
        data: the set.
        n_train: training images of each class.
        n_test: test images of each class; None takes all the rest.
        seed: of the choice; with the same seed a smaller training set is part of a larger one.

    Returns:
        (training images, test images), each in the order of ``data``.

    Raises:
        ValueError: if a class has too few images.

    Example:
        >>> from payattn.data import glyphs
        >>> train, test = per_class(glyphs(50, size=8), 3, 1)
        >>> train.labels.bincount().tolist(), len(test)
        ([3, 3, 3, 3, 3, 3, 3, 3, 3, 3], 10)
    """
    if n_train < 1 or (n_test is not None and n_test < 1):
        raise ValueError(f"each class needs 1 or more images on either side, got n_train={n_train}, n_test={n_test}")
    chosen: tuple[list[Tensor], list[Tensor]] = ([], [])
    for k, index in enumerate(_by_class(data, seed, "per class")):
        if len(index) < n_train + (n_test or 1):
            raise ValueError(
                f"{data.name}: class {data.classes[k]!r} has {len(index)} images, too few for {n_train} "
                f"to train on and {n_test or 1} to test on; choose fewer"
            )
        chosen[0].append(index[:n_train])
        chosen[1].append(index[n_train:] if n_test is None else index[n_train : n_train + n_test])
    train, test = (data.subset(torch.cat(parts).sort().values) for parts in chosen)
    return train, test
