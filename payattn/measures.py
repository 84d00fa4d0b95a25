"""What a recipe measures besides accuracy: one function per experiment of the paper, on a trained network.

Every function takes ``(model, on, options, network)``:

- ``on``: name to ``(train, test)``, the sets to measure on; the recipe's own when it names no other,
- ``options``: ``measure_options`` of the recipe,
- ``network``: gives the trained network of another recipe, with the same seed,

and returns nested dicts of numbers, the outermost keyed by the names in ``on``.  Source: Jetley et al., ICLR 2018,
section 5, but for ``response``, ``wrong-labels``, ``top-5``, ``map-cosine`` and ``judged``; what the paper leaves open
is said in each function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from payattn import cost, distributed, faithful, generalize, localize, noise, query, robust, transfer
from payattn import maps as map_methods
from payattn.data import ImageSet, balanced, batches, share_of
from payattn.models import ResidualAttentionNetwork
from payattn.residual import Branches
from payattn.train import evaluate, maps_of

On = Mapping[str, tuple[ImageSet, ImageSet]]
Network = Callable[[str], nn.Module]
Measured = dict[str, Any]
CHANGES = ("total_variation", "slope", "r2")


def cross_domain(model: nn.Module, on: On, options: Mapping[str, Any], network: Network) -> Measured:
    """Section 5.3: the network as a fixed feature extractor, a linear SVM on its features; or used as it is.

    Options: ``direct`` (names of sets on which the network's own classifier is used too, as it is: by class number
    and by class name), ``aliases`` (names of classes: the set's to the network's).

    Returns:
        per set ``svm``: accuracy and the C chosen by cross-validation on the training part; ``direct, train`` and
        ``direct, test``: see :func:`payattn.generalize.direct`.
    """
    found: Measured = {}
    for name, (train, test) in on.items():
        part: Measured = {}
        if name in options.get("direct", ()):
            mapping = generalize.shared_classes(options["classes"], test.classes, options.get("aliases", {}))
            part |= {f"direct, {split}": generalize.direct(model, data, mapping)
                     for split, data in (("train", train), ("test", test)) if len(data)}  # fmt: skip
        features = [generalize.features_of(model, data) for data in (train, test)]
        part["svm"] = generalize.svm(features[0], train.labels.cpu(), features[1], test.labels.cpu())
        found[name] = part
    return found


def detail(model: nn.Module, on: On, options: Mapping[str, Any], network: Network) -> Measured:
    """Fine-grained classification, section 5.2: whether a map lies on the small part that tells the classes apart.

    The part is what a mask holds beside its largest region, see :func:`payattn.localize.small_parts`; images where it
    touches the rest are left out.  Ours: the paper shows such maps of birds and measures none.

    Returns:
        per set and map (each level, ``centre`` blob, ``random`` point): ``part`` and ``object``, the share of images
        whose highest point is on the part and on the whole object, with the usual tolerance; ``weight``, the mean
        share of the map's sum that lies on the part, for maps that are never negative.
    """
    found: Measured = {}
    for name, (_, test) in on.items():
        if test.masks is None:
            raise ValueError(f"{name} has no masks, and the part is found by them")
        parts = localize.small_parts(test.masks.cpu())
        data, parts = test.subset(parts.flatten(1).any(1)), parts[parts.flatten(1).any(1)]
        masks, side = data.masks.cpu(), parts.shape[-1]  # type: ignore[union-attr]
        blob = {"centre": map_methods.centre_prior(len(data), (parts.shape[1], side))}
        tolerance = localize.usual_tolerance(side)
        ways: Measured = {}
        for way, maps in (maps_of(model, data) | blob).items():
            ways[way] = {
                "part": localize.pointing_game(maps, parts, tolerance).float().mean().item(),
                "object": localize.pointing_game(maps, masks, tolerance).float().mean().item(),
            }
            if maps.min() >= 0:
                large = F.interpolate(maps[:, None].float(), parts.shape[1:], mode="bilinear")[:, 0]
                ways[way]["weight"] = ((large * parts).sum((1, 2)) / large.sum((1, 2))).mean().item()
        ways["random"] = {
            "part": localize.widen(parts, tolerance).float().mean().item(),
            "object": localize.widen(masks, tolerance).float().mean().item(),
            "weight": parts.float().mean().item(),
        }
        found[name] = ways
    return found


def segmentation(model: nn.Module, on: On, options: Mapping[str, Any], network: Network) -> Measured:
    """Section 5.4: maps enlarged, rescaled, cut by a threshold and compared with the masks.

    The paper does not say how levels are combined nor how the threshold is chosen: all ways are reported. Beside the
    network's own maps stand its gradient saliency and two maps that do not look at the image.

    Options: ``whole`` (true: the training images too, where a set was not trained on), ``n`` (images, the classes in
    equal numbers; all without it).

    Returns:
        per set and way of making a map (each level, ``product``, ``mean``, ``max`` of the levels, ``saliency``,
        ``centre``, ``random``) and rule (``otsu``, ``mean``, ``oracle``: the one threshold that is best for this
        set): ``jaccard`` and ``corloc``, means over images; ``classes``: mean Jaccard of each class.
    """
    found: Measured = {}
    for name, (train, test) in on.items():
        test = train.joined(test) if options.get("whole") else test
        if test.masks is None:
            raise ValueError(f"{name} has no masks, and segmentation needs them")
        data = test.subset(test.masks.flatten(1).any(1))
        data = balanced(data, min(options.get("n", len(data)), len(data)))
        masks = data.masks.cpu()  # type: ignore[union-attr]
        ways = _ways(model, data, (masks.shape[1], masks.shape[2]))
        found[name] = {way: _scores(maps, masks, data) for way, maps in ways.items()}
    return found


def _ways(model: nn.Module, data: ImageSet, size: tuple[int, int]) -> dict[str, Tensor]:
    """Maps (N, H, W) in [0, 1] by the way they were made."""
    levels = maps_of(model, data)
    found = localize.ways(levels, size) if levels else {}
    saliency = torch.cat([
        map_methods.gradient_saliency(model, images.to(map_methods.device_of(model))).cpu()
        for images in data.images.split(250)
    ])  # fmt: skip
    others = {
        "saliency": saliency,
        "centre": map_methods.centre_prior(len(data), size),
        "random": map_methods.random_maps(len(data), size, torch.Generator().manual_seed(0)),
    }
    return found | {name: localize.rescale(maps) for name, maps in others.items()}


def _scores(maps: Tensor, masks: Tensor, data: ImageSet) -> Measured:
    rules: Measured = {}
    for rule, predicted in localize.cuts(maps, masks).items():
        jaccard, labels = localize.jaccard(predicted, masks), data.labels.cpu()
        rules[rule] = {
            "jaccard": jaccard.mean().item(),
            "corloc": localize.corloc(predicted, masks).float().mean().item(),
            "classes": {data.classes[k]: jaccard[labels == k].mean().item() for k in labels.unique().tolist()},
        }
    return rules


def attack(model: nn.Module, on: On, options: Mapping[str, Any], network: Network) -> Measured:
    """Section 5.5: adversarial images, white box and carried over from another network.

    Budgets are L-infinity, in steps of 1/255 of pixels in [0, 1]; the paper does not say in which space it measures.

    Options: ``epsilons`` of FGSM and ``pgd`` of PGD (whole numbers of 1/255), ``n`` (images), ``crafted_on`` (another
    recipe, whose networks make the FGSM images that this one classifies), ``checked`` (images of the check).

    Returns:
        per set and attack (``fgsm``, ``pgd``, ``from NAME``) and budget (``"4/255"``): ``accuracy``, ``fooled``;
        ``clean``: ``accuracy``; ``shift``: by budget and level, the total variation between the maps of clean and FGSM
        images; ``check``: by sign of masked gradients, at 8/255, ``value``, ``bound`` and ``passed`` (0 or 1), see
        :func:`payattn.robust.masking_check`.
    """
    epsilons = options.get("epsilons", (1, 2, 4, 8, 16))
    others = {other.rsplit("/", 1)[-1]: network(other) for other in options.get("crafted_on", ())}
    found: Measured = {}
    for name, (_, test) in on.items():
        data = balanced(test, min(options.get("n", 500), len(test)))
        part: Measured = {"clean": {"accuracy": evaluate(model, data)["accuracy"]}}
        part["fgsm"] = _curve(model, data, epsilons, "fgsm")
        part["pgd"] = _curve(model, data, options.get("pgd", epsilons), "pgd")
        for other, maker in others.items():
            part[f"from {other}"] = _curve(model, data, epsilons, "fgsm", maker)
        part["shift"] = _shift(model, data, epsilons)
        few = balanced(data, min(options.get("checked", 100), len(data)))
        signs = robust.masking_check(model, few, 8 / 255, crafted_on=next(iter(others.values()), None))
        part["check"] = {
            sign: {key: float(checked[key]) for key in ("value", "bound", "passed")}
            for sign, checked in signs.items() if checked["passed"] is not None
        }  # fmt: skip
        found[name] = part
    return found


def _curve(
    model: nn.Module, data: ImageSet, epsilons: Sequence[int], attack: str, maker: nn.Module | None = None
) -> Measured:
    points = robust.curve(model, data, [e / 255 for e in epsilons], attack=attack, crafted_on=maker)
    return {
        f"{e}/255": {key: point[key] for key in ("accuracy", "fooled")}
        for e, point in zip(epsilons, points, strict=True)
    }


def _shift(model: nn.Module, data: ImageSet, epsilons: Sequence[int]) -> Measured:
    if not (model.levels and hasattr(model, "attend")):
        return {}  # no map, or one made for a class: no weight that could move
    device = map_methods.device_of(model)
    images, labels = data.images[:250].to(device), data.labels[:250].to(device)
    shifts: Measured = {}
    for e in epsilons:
        moved = robust.attention_shift(model, images, robust.fgsm(model, images, labels, e / 255))
        shifts[f"{e}/255"] = {level: values.mean().item() for level, values in moved.items()}
    return shifts


def query_swap(model: nn.Module, on: On, options: Mapping[str, Any], network: Network) -> Measured:
    """Section 5.6: maps of images under the query of another image. Options: ``n`` (images).

    Returns:
        per set and level: ``total_variation`` (mean and largest), ``slope`` (median, and 5 and 95 % points) and
        ``r2`` (median) of the foreign map as a power of the own one, see :func:`payattn.query.temperature_between`.
    """
    found: Measured = {}
    for name, (_, test) in on.items():
        data = balanced(test, min(options.get("n", 500), len(test)))
        images = data.images.to(map_methods.device_of(model))
        parts = [
            query.swap(model, own, other)
            for own, other in zip(images.split(100), images.roll(len(images) // 2, 0).split(100), strict=True)
        ]
        found[name] = {
            level: _change({key: torch.cat([part[level][key] for part in parts]) for key in CHANGES})
            for level in parts[0]
        }
    return found


def _change(swapped: Mapping[str, Tensor]) -> Measured:
    moved, slope, r2 = (swapped[key].double() for key in CHANGES)
    change = {"total_variation": moved.mean().item(), "most": moved.max().item()}
    fitted = slope.isfinite() & r2.isfinite()  # a uniform map is a power of none
    if not fitted.any():
        return change
    low, middle, high = (slope[fitted].quantile(q).item() for q in (0.05, 0.5, 0.95))
    return {**change, "slope": middle, "slope_low": low, "slope_high": high, "r2": r2[fitted].median().item()}


def wrong_labels(model: nn.Module, on: On, options: Mapping[str, Any], network: Network) -> Measured:
    """What wrong training labels left in a network: Residual Attention Network, equation 2 and the noise experiment.

    Ours: the paper argues with the masks and measures errors alone. Options: ``n`` (training images for the gradients,
    as many with a wrong label as with a true one).

    Returns:
        per set ``memorised``, see :func:`payattn.noise.memorised`; ``parts``: lengths of the parts of the gradient
        from ``clean`` and from ``wrong`` labels over a sample with the set's own share of wrong labels, and their
        ``cosine``; ``gain``: by module, the mean of :func:`payattn.noise.filter_gains` for images with a true label
        (``clean``), with a wrong one (``wrong``), for the latter with their true label put back (``righted``), for a
        gradient without place (``flat``), and the mean ``contrast`` of the factors.
    """
    found: Measured = {}
    for name, (train, _) in on.items():
        true, n = noise.true_labels(train), min(options.get("n", 400), len(train))
        own = train.subset(slice(0, n))
        parts = noise.gradient_parts(model.eval(), own.images, own.labels, true[:n])
        found[name] = {
            "memorised": noise.memorised(model, train),
            "parts": {
                "clean": parts[0].norm().item(), "wrong": parts[1].norm().item(),
                "cosine": F.cosine_similarity(*parts, dim=0).item(),
            },
            "gain": _gains(model, train, true, n // 2),
        }  # fmt: skip
    return found


def _gains(model: nn.Module, train: ImageSet, true: Tensor, n: int) -> Measured:
    clean, wrong = ((train.labels == true).nonzero().flatten()[:n], (train.labels != true).nonzero().flatten()[:n])
    cases = {"clean": (clean, train.labels), "wrong": (wrong, train.labels), "righted": (wrong, true)}
    gains = {
        case: noise.filter_gains(model, train.images[chosen], labels[chosen])
        for case, (chosen, labels) in cases.items()
    }
    return {
        level: {case: gains[case][level]["gain"].mean().item() for case in cases}
        | {key: gains["wrong"][level][key].mean().item() for key in ("flat", "contrast")}
        for level in gains["clean"]
    }


def response(model: nn.Module, on: On, options: Mapping[str, Any], network: Network) -> Measured:
    """Residual Attention Network, section 4.1: how strong the signal is at each attention module and each stage.

    In evaluation mode, on the first ``n`` test images (option, 500). The paper shows the mean of ``|output|``; what the
    masks do beside it is ours.

    Returns:
        per set and attention module (``"stage1.attention1"``) ``response``, ``trunk``, ``fused``: the mean of
        ``|output|``, ``|T|``, ``|H|`` over images, channels and positions; ``mask``: the mean of M;
        ``mask_sd_positions`` and ``mask_sd_images``: the standard deviation of M over the positions of a channel of one
        image, and over the images at one channel and position, both averaged; ``closed`` and ``open``: the share of M
        below 0.1 and above 0.9. Per stage (``"stage1"``) ``response`` alone.
    """
    if not isinstance(model, ResidualAttentionNetwork):
        raise TypeError(f"{type(model).__name__} has no attention modules; see payattn.list_models('attention-*')")
    found: Measured = {}
    for name, (_, test) in on.items():
        images = test.images[: options.get("n", 500)].to(map_methods.device_of(model))
        with map_methods.frozen(model, gradients=False):
            strength = model.responses(images)
            found[name] = {level: {"response": value.item()} for level, value in strength.items()}
            for level, parts in model.branches(images).items():
                found[name][level] |= _mask_statistics(parts)
    return found


def top_5(model: nn.Module, on: On, options: Mapping[str, Any], network: Network) -> Measured:
    """How often the true class is not the first guess, and not among the first five, as on ImageNet.

    Of equal logits the first counts as the higher, as in accuracy.

    Returns:
        per set ``centre crop``: ``top-1 error`` and ``top-5 error``, from 0 to 1.
    """
    found: Measured = {}
    for name, (_, test) in on.items():
        device = map_methods.device_of(model)
        wrong = torch.zeros(2, dtype=torch.int64, device=device)
        own = test.subset(share_of(len(test), distributed.rank(), distributed.size()))
        with map_methods.frozen(model, gradients=False):
            for images, labels in batches(own, test.at_once):
                guesses = model(images.to(device)).float().argsort(dim=1, descending=True, stable=True)
                known = guesses == labels[:, None].to(device)
                wrong += torch.stack([(~known[:, :k].any(1)).sum() for k in (1, 5)])
        distributed.add_up(wrong)
        one, five = (wrong.double() / len(test)).tolist()
        found[name] = {"centre crop": {"top-1 error": one, "top-5 error": five}}
    return found


def map_cosine(model: nn.Module, on: On, options: Mapping[str, Any], network: Network) -> Measured:
    """Attention Transfer: whether the network looks where its teacher, or another one, looks.

    Ours: the paper shows maps of both side by side. Options: ``teacher`` (the recipe whose trained network it is
    compared with), ``layers`` (names, or pairs of the teacher's and the network's), ``p``, ``reduce``.

    Returns:
        per set and layer of the network ``cosine``: the mean over the test images of the cosine between the two maps,
        see :func:`payattn.transfer.cosine`; ``spread``: its standard deviation over images; ``other image``: the
        mean cosine with the teacher's map of another image, what a map has in common with any other. Of maps of two
        sizes the larger is averaged to the smaller.
    """
    teacher, pairs = network(options["teacher"]), transfer.paired(options["layers"])
    how = {key: options[key] for key in ("p", "reduce") if key in options}
    found: Measured = {}
    for name, (_, test) in on.items():
        theirs = transfer.attention_maps(teacher, test.images, list(dict.fromkeys(one for one, _ in pairs)), **how)
        ours = transfer.attention_maps(model, test.images, [two for _, two in pairs], **how)
        found[name] = {two: _alike(ours[two], theirs[one]) for one, two in pairs}
    return found


def _alike(ours: Tensor, theirs: Tensor) -> Measured:
    size = [min(sides) for sides in zip(ours.shape[1:], theirs.shape[1:], strict=True)]
    ours, theirs = transfer.resize_map(ours, size), transfer.resize_map(theirs, size)
    same = transfer.cosine(ours, theirs)
    return {
        "cosine": same.mean().item(),
        "spread": same.std(correction=0).item(),
        "other image": transfer.cosine(ours, theirs.roll(1, 0)).mean().item(),
    }


def judged(model: nn.Module, on: On, options: Mapping[str, Any], network: Network) -> Measured:
    """One network, judged in every way of the book: what it decides, where it looks, what the maps are worth, its cost.

    Ours. The judged maps are the network's own and three that are made for the predicted class or for none:

    - ``own``: the map of the network's last level; ``own, LEVEL``: those of its other levels. A network without levels
      has none,
    - ``grad-cam``: at ``layer``, see :func:`payattn.maps.grad_cam`; ``saliency``: of the gradient,
    - ``centre``, ``random``: they do not look at the image.

    Options: ``layer`` of Grad-CAM (the last with a spatial extent where none is given), ``n`` (images, the classes in
    equal numbers), ``faithful`` (so many of them for deletion and insertion), ``steps`` and ``baseline`` of these,
    ``epsilons`` of FGSM (whole numbers of 1/255).

    Returns:
        per set ``network``: ``accuracy`` on these images, ``fgsm 2/255`` and so on the accuracy under attack,
        ``confidence`` (the mean probability of the predicted class on the images of deletion and insertion),
        ``parameters``, ``multiply_adds`` of one image; ``own`` and so on: ``pointing``, ``iou`` (see
        :func:`payattn.localize.scores`) and ``energy`` on the masks; but for other levels and ``centre`` also
        ``deletion`` and ``insertion``: the mean area under the curve of the predicted class, see
        :mod:`payattn.faithful`.
    """
    found: Measured = {}
    for name, (_, test) in on.items():
        if test.masks is None:
            raise ValueError(f"{name} has no masks, and the maps are judged by them")
        data = balanced(test, min(options.get("n", 500), len(test)))
        few = balanced(data, min(options.get("faithful", 100), len(data)))
        epsilons = options.get("epsilons", (2, 8))
        points = robust.curve(model, data, [e / 255 for e in epsilons])
        part: Measured = {
            "network": {
                "accuracy": evaluate(model, data)["accuracy"],
                **{f"fgsm {e}/255": point["accuracy"] for e, point in zip(epsilons, points, strict=True)},
                "confidence": _confidence(model, few),
                "parameters": cost.parameters(model),
                "multiply_adds": cost.multiply_adds(model, 3, *data.size),
            }
        }
        for way, maps in _judged_maps(model, data, options.get("layer")).items():
            part[way] = _placed(maps, data.masks.cpu())  # type: ignore[union-attr]
        for way, maps in _judged_maps(model, few, options.get("layer")).items():
            if way in WATCHED:
                part[way] |= _watched(model, few, maps, options)
        found[name] = part
    return found


WATCHED = ("own", "grad-cam", "saliency", "random")
"""The maps whose pixels are deleted and inserted."""


def _judged_maps(model: nn.Module, data: ImageSet, layer: str | None) -> dict[str, Tensor]:
    device, levels = map_methods.device_of(model), maps_of(model, data)
    last = list(levels)[-1] if levels else None
    found = {} if last is None else {"own": levels.pop(last)}
    found |= {f"own, {level}": maps for level, maps in levels.items()}
    parts = [images.to(device) for images in data.images.split(250)]
    found["grad-cam"] = torch.cat([map_methods.grad_cam(model, images, layer=layer).cpu() for images in parts])
    found["saliency"] = torch.cat([map_methods.gradient_saliency(model, images).cpu() for images in parts])
    found["centre"] = map_methods.centre_prior(len(data), data.size)
    found["random"] = map_methods.random_maps(len(data), data.size, torch.Generator().manual_seed(0))
    return found


def _placed(maps: Tensor, masks: Tensor) -> Measured:
    found = localize.scores(maps, masks)
    energy = localize.energy(maps, masks).mean().item()
    return {"pointing": found["pointing"], "iou": found["iou"], "energy": energy}


def _watched(model: nn.Module, data: ImageSet, maps: Tensor, options: Mapping[str, Any]) -> Measured:
    images = data.images.to(map_methods.device_of(model))
    how = {"steps": options.get("steps", 10), "baseline": options.get("baseline", "blur")}
    kinds = {"deletion": faithful.deletion, "insertion": faithful.insertion}
    return {
        kind: watch(model, images, maps.to(images.device), **how).auc.mean().item() for kind, watch in kinds.items()
    }


def _confidence(model: nn.Module, data: ImageSet) -> float:
    with map_methods.frozen(model, gradients=False):
        logits = map_methods.logits_of(model, data.images.to(map_methods.device_of(model)))
    return logits.softmax(1).amax(1).mean().item()


def _mask_statistics(parts: Branches) -> Measured:
    mask = parts.mask
    return {
        "trunk": parts.trunk.abs().mean().item(),
        "fused": parts.fused.abs().mean().item(),
        "mask": mask.mean().item(),
        "mask_sd_positions": mask.flatten(2).std(2, correction=0).mean().item(),
        "mask_sd_images": mask.std(0, correction=0).mean().item(),
        "closed": (mask < 0.1).float().mean().item(),
        "open": (mask > 0.9).float().mean().item(),
    }


MEASURES: dict[str, Callable[[nn.Module, On, Mapping[str, Any], Network], Measured]] = {
    "cross-domain": cross_domain,
    "detail": detail,
    "segmentation": segmentation,
    "attack": attack,
    "query": query_swap,
    "wrong-labels": wrong_labels,
    "response": response,
    "top-5": top_5,
    "map-cosine": map_cosine,
    "judged": judged,
}
