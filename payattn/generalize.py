"""New domains: a trained network as a fixed source of features, or applied as it is to classes it knows.

What a network has learned is judged on images it was not trained on.  Either its features feed a linear support
vector machine that learns the new classes (:func:`svm`), or its own classifier is used where the classes agree
(:func:`direct`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from payattn.attention import promote
from payattn.data import ImageSet, batches
from payattn.maps import device_of, frozen, logits_of, pixels_of

GRID = tuple(10.0**power for power in range(-5, 2))


def _each_batch(model: nn.Module, data: ImageSet, batch_size: int, function: Any) -> Tensor:
    """``function`` of the images of each batch, on the CPU, with the network as it decides."""
    if not len(data):
        raise ValueError(f"the data set {data.name!r} is empty, so nothing can be measured on it")
    device = device_of(model)
    with frozen(model, gradients=False):
        return torch.cat([function(pixels_of(images.to(device))).cpu() for images, _ in batches(data, batch_size)])


def features_of(model: nn.Module, data: ImageSet, batch_size: int = 500) -> Tensor:
    """What the last layer of a network sees, for every image of a set.

    Args:
        model: with ``features(images) -> (N, D)``, as all networks of ``payattn.create`` have; left as found.
        data: the images; their size may differ from that of the training images.
        batch_size: images at a time.

    Returns:
        (N, D), at least float32, on the CPU.

    Raises:
        TypeError: a model without ``features``.
        ValueError: an empty set, or features that are not (N, D).

    Source: Learn To Pay Attention, section 5 (cross-domain classification).

    Example:
        >>> class Net(nn.Module):
        ...     def features(self, images): return images.mean((2, 3))
        >>> data = ImageSet(torch.full((2, 3, 4, 4), 255).byte(), torch.tensor([0, 0]), ("white",))
        >>> features_of(Net(), data)
        tensor([[1., 1., 1.],
                [1., 1., 1.]])
    """
    extract = getattr(model, "features", None)
    if not callable(extract) or isinstance(extract, nn.Module):
        raise TypeError(
            f"{type(model).__name__} has no method features(images) -> (N, D); the networks of payattn.create have, "
            "and another network needs one that returns what its last layer sees"
        )
    found = _each_batch(model, data, batch_size, lambda images: promote(extract(images)))
    if found.ndim != 2 or len(found) != len(data):
        raise ValueError(f"features must be ({len(data)}, D), got {tuple(found.shape)}")
    return found


def svm(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, *, C: float | None = None, folds: int = 5,
    seed: int = 0,
) -> dict[str, float]:  # fmt: skip
    r"""Accuracy of a linear support vector machine on features that are standardised on the training set.

    .. math:: \min_{w, b} \tfrac{1}{2} \lVert w \rVert^2 + C \sum_n \max(0, 1 - y_n (\langle w, x_n \rangle + b))^2

    for each class against the rest.  C is chosen by cross-validation on the training set: the best mean accuracy over
    the folds of 10^-5, 10^-4, ..., 10, the smallest where several are best.

    Args:
        train_x, test_x: features, (N, D) each.
        train_y, test_y: classes, int64 (N,) each.
        C: how much an error costs; None chooses it, at 36 times the time.
        folds: of the cross-validation, stratified and shuffled.
        seed: of the folds and of the solver.

    Returns:
        ``accuracy`` on the test set (0 to 1) and the ``C`` that was used.

    Raises:
        ImportError: without scikit-learn.
        TypeError: classes that are not int64.
        ValueError: shapes that do not fit, features that are not finite, one class only, a class with fewer training
            images than folds, a test class without training images, or a C that is not positive.

    Source: Learn To Pay Attention, section 5 (cross-domain classification), uses a linear SVM; its C and its
    scaling of the features were not published, and cross-validation is our choice.

    Example:
        >>> x, y = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]]), torch.tensor([0, 0, 1, 1])
        >>> svm(x, y, torch.tensor([[-3.0], [0.5]]), torch.tensor([0, 1]), C=1)
        {'accuracy': 1.0, 'C': 1.0}
    """
    _check_features(train_x, train_y, "train")
    _check_features(test_x, test_y, "test")
    counts = dict(zip(*(values.tolist() for values in train_y.unique(return_counts=True)), strict=True))
    if train_x.shape[1] != test_x.shape[1]:
        raise ValueError(f"train_x and test_x must have one length, got {train_x.shape[1]} and {test_x.shape[1]}")
    if len(counts) < 2:
        raise ValueError(f"a classifier needs two classes to train on, got {sorted(counts)}")
    unknown = sorted(set(test_y.tolist()) - set(counts))
    if unknown:
        raise ValueError(f"class {unknown[0]} is in the test set and not in the training set, so it cannot be learned")
    if C is not None and not 0 < C < float("inf"):
        raise ValueError(f"C must be positive, got {C}")
    rarest = min(counts, key=lambda k: counts[k])
    if C is None and not 2 <= folds <= counts[rarest]:
        raise ValueError(
            f"folds must be at least 2 and at most {counts[rarest]}, the training images of class {rarest}, got "
            f"{folds}; or give C="
        )
    machine = _machine(C, folds, seed)
    machine.fit(_array(train_x), _array(train_y))
    chosen = machine.best_params_["linearsvc__C"] if C is None else C
    return {"accuracy": float(machine.score(_array(test_x), _array(test_y))), "C": float(chosen)}


def _array(values: Tensor) -> Any:
    return values.detach().cpu().numpy()


def _check_features(x: Tensor, y: Tensor, name: str) -> None:
    if x.ndim != 2 or not len(x) or y.shape != x.shape[:1]:
        raise ValueError(
            f"{name}_x must be (N, D) and {name}_y (N,), N at least 1, got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    if y.dtype != torch.int64:
        raise TypeError(f"{name}_y must be int64, got {y.dtype}; use .long()")
    if not x.isfinite().all():
        raise ValueError(f"{name}_x must be finite, and it holds nan or inf")


def _machine(C: float | None, folds: int, seed: int) -> Any:
    try:
        from sklearn.model_selection import GridSearchCV, StratifiedKFold
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import LinearSVC
    except ImportError as error:
        raise ImportError("the SVM is scikit-learn's: pip install scikit-learn") from error
    # the primal: with fewer images than features and a large C the dual does not converge in 10,000 passes
    machine = make_pipeline(
        StandardScaler(), LinearSVC(C=1.0 if C is None else C, dual=False, random_state=seed, max_iter=10_000)
    )
    if C is not None:
        return machine
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return GridSearchCV(machine, {"linearsvc__C": list(GRID)}, cv=split)


def shared_classes(
    from_classes: Sequence[str], to_classes: Sequence[str], aliases: Mapping[str, str] | None = None
) -> Tensor:
    """Which class of one set is which class of another, by name.

    Names agree up to case, and up to blanks, hyphens and underscores.

    Args:
        from_classes: the classes a network has learned.
        to_classes: the classes of the new set.
        aliases: new name to learned name, where they differ.

    Returns:
        int64 (number of ``to_classes``,): for each new class the learned one, or -1 where there is none.

    Raises:
        ValueError: no class in common, an alias for a name that is not there, or a name that stands twice.

    Example:
        >>> cifar = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
        >>> stl = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
        >>> shared_classes(cifar, stl, {"car": "automobile"})
        tensor([ 0,  2,  1,  3,  4,  5,  7, -1,  8,  9])
    """
    learned, new = _by_name(from_classes, "from_classes"), _by_name(to_classes, "to_classes")
    renamed = {}
    for name, other in (aliases or {}).items():
        for given, valid, where in ((name, new, "to_classes"), (other, learned, "from_classes")):
            if _plain(given) not in valid:
                near = get_close_matches(_plain(given), valid, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"the alias {name!r}: {other!r} names {given!r}, which is not in {where}{hint}")
        renamed[_plain(name)] = _plain(other)
    mapping = torch.tensor([learned.get(renamed.get(name, name), -1) for name in new], dtype=torch.int64)
    if not (mapping >= 0).any():
        raise ValueError(
            f"no class has one name in both: {', '.join(from_classes)}; and {', '.join(to_classes)}. "
            "Give aliases={new name: learned name}"
        )
    return mapping


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("-", " ").replace("_", " ").split())


def _by_name(classes: Sequence[str], where: str) -> dict[str, int]:
    if isinstance(classes, str):
        raise TypeError(f"{where} must be a sequence of names, got the text {classes!r}")
    found: dict[str, int] = {}
    for number, name in enumerate(classes):
        if _plain(name) in found:
            raise ValueError(f"{where} has the name {name!r} twice")
        found[_plain(name)] = number
    return found


def direct(model: nn.Module, data: ImageSet, mapping: Tensor, batch_size: int = 500) -> dict[str, float]:
    """A network's own classifier on a set with other classes: by name, and by number, which is a mistake.

    Two sets may number their classes differently.  Comparing a decision with the number of the label then counts
    many right decisions as wrong, and some wrong ones as right.

    Args:
        model: maps images to logits (N, K); left as found.
        data: images with labels of the new set.
        mapping: for each class of ``data`` the learned class or -1, see :func:`shared_classes`.
        batch_size: images at a time.

    Returns:
        - ``accuracy_mapped``: over all images, with the classes compared by name; images of a class that was not
          learned count as wrong,
        - ``accuracy_by_index``: over all images, with the numbers compared as they are,
        - ``accuracy_shared``: over the images of learned classes, the highest of all logits,
        - ``accuracy_among_shared``: over the same images, the highest of the logits of shared classes,
        - ``n``: images, and ``n_shared``: images of learned classes.

    Raises:
        TypeError: a mapping that is not int64.
        ValueError: a mapping that does not fit the data or the model, or no image of a learned class.

    Source: Learn To Pay Attention, section 5 (cross-domain classification): the CIFAR-10 networks on STL-10, where
    three of ten classes stand at other numbers and one is not in CIFAR-10.

    Example:
        >>> class Net(nn.Module):                                            # red or green, in this order
        ...     def forward(self, images): return images.mean((2, 3))[:, :2]
        >>> images = torch.tensor([[0, 255, 0], [255, 0, 0]], dtype=torch.uint8).view(2, 3, 1, 1)
        >>> data = ImageSet(images, torch.tensor([0, 1]), ("green", "red"))
        >>> found = direct(Net(), data, shared_classes(("red", "green"), data.classes))
        >>> found["accuracy_mapped"], found["accuracy_by_index"]
        (1.0, 0.0)
    """
    if mapping.dtype != torch.int64:
        raise TypeError(f"mapping must be int64, got {mapping.dtype}; shared_classes makes it")
    if mapping.shape != (len(data.classes),):
        raise ValueError(
            f"mapping must be ({len(data.classes)},), one entry per class of {data.name!r}, got {tuple(mapping.shape)}"
        )
    logits = _each_batch(model, data, batch_size, lambda images: logits_of(model, images))
    mapping, labels = mapping.cpu(), data.labels.cpu()
    if int(mapping.min()) < -1 or int(mapping.max()) >= logits.shape[1]:
        raise ValueError(
            f"mapping must hold -1 or classes of the model, 0 to {logits.shape[1] - 1}, got {int(mapping.min())} to "
            f"{int(mapping.max())}"
        )
    wanted, decided = mapping[labels], logits.argmax(1)
    shared = wanted >= 0
    if not shared.any():
        raise ValueError(f"no image of {data.name!r} is of a class that the network has learned")
    others = torch.ones(logits.shape[1], dtype=torch.bool)
    others[mapping[mapping >= 0]] = False
    among = logits.masked_fill(others, -torch.inf).argmax(1)

    def share(hits: Tensor) -> float:
        return hits.double().mean().item()

    return {
        "accuracy_mapped": share(decided == wanted),
        "accuracy_by_index": share(decided == labels),
        "accuracy_shared": share((decided == wanted)[shared]),
        "accuracy_among_shared": share((among == wanted)[shared]),
        "n": len(data),
        "n_shared": int(shared.sum()),
    }
