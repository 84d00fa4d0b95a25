"""Maps that are made after training, of any network: what the decision hangs on, and what knows nothing of it.

:func:`gradient_saliency` and :func:`class_activation` read a network that has no attention; :func:`centre_prior` and
:func:`random_maps` see no image at all, and are what every map must beat.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from payattn.attention import promote
from payattn.models import unit_range


@contextmanager
def frozen(model: nn.Module, gradients: bool = True) -> Iterator[None]:
    """A network as it decides: evaluation mode, full precision, and parameters that collect no gradient.

    Gradients with respect to the images are on inside the block, also under ``torch.no_grad()``.  After it every
    module has its own mode back, and every parameter its own ``requires_grad``.

    Args:
        model: any network.
        gradients: with respect to the images; False saves the memory.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        >>> with frozen(net):
        ...     net.training, net[0].weight.requires_grad
        (False, False)
        >>> net.training, net[0].weight.requires_grad
        (True, True)
    """
    modes = {module: module.training for module in model.modules()}
    learns = {parameter: parameter.requires_grad for parameter in model.parameters()}
    precise = torch.autocast(device_of(model).type, enabled=False)
    try:
        model.eval().requires_grad_(False)
        with torch.inference_mode(False), torch.set_grad_enabled(gradients), precise:
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        for parameter, learning in learns.items():
            parameter.requires_grad_(learning)


def device_of(model: nn.Module) -> torch.device:
    """Where the parameters of a network are, or its buffers; a network without either is on the CPU.

    Example:
        >>> device_of(nn.Linear(2, 2)), device_of(nn.Identity())
        (device(type='cpu'), device(type='cpu'))
    """
    tensor = next(model.parameters(), next(model.buffers(), None))
    return torch.device("cpu") if tensor is None else tensor.device


def pixels_of(images: Tensor) -> Tensor:
    """A copy of images as at least float32 in [0, 1], cut off from any graph.

    Args:
        images: (N, 3, H, W), uint8 in 0..255 or floating in [0, 1].

    Raises:
        TypeError: another dtype.
        ValueError: another shape, or values outside [0, 1].

    Example:
        >>> pixels_of(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten()
        tensor([1., 1., 1.])
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be RGB, (N, 3, H, W), got {tuple(images.shape)}")
    pixels = promote(unit_range(images)).detach().clone()
    if not ((pixels >= 0) & (pixels <= 1)).all():
        raise ValueError(
            f"floating images must lie in [0, 1], got {pixels.min():g} to {pixels.max():g}; "
            "uint8 images may run from 0 to 255"
        )
    return pixels


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (N, C), at least float32, with a clear error where a model returns something else.

    Raises:
        TypeError: a model whose output is no tensor.
        ValueError: an output that is not (N, C).

    Example:
        >>> logits_of(nn.Flatten(), torch.zeros(2, 3, 1, 1)).shape
        torch.Size([2, 3])
    """
    logits = model(images)
    if not isinstance(logits, Tensor):
        raise TypeError(f"the model must map images to logits (N, C), got {type(logits).__name__}")
    if logits.ndim != 2 or len(logits) != len(images):
        raise ValueError(f"the model must map {len(images)} images to logits (N, C), got {tuple(logits.shape)}")
    return promote(logits)


def _targets(target: Tensor | None, logits: Tensor) -> Tensor:
    """One class per image, the predicted one where none is given."""
    if target is None:
        return logits.argmax(1)
    return check_labels(target, logits).to(logits.device)


def check_labels(labels: Tensor, logits: Tensor) -> Tensor:
    """Labels as they came, if there is one per row of the logits and each has a column.

    Raises:
        TypeError: labels that are not whole numbers.
        ValueError: another shape, or a label without a class.

    Example:
        >>> check_labels(torch.tensor([1]), torch.zeros(1, 2))
        tensor([1])
    """
    if labels.dtype != torch.int64:
        raise TypeError(f"classes must be int64, got {labels.dtype}; use .long()")
    n, classes = logits.shape
    if labels.shape != (n,):
        raise ValueError(f"classes must be ({n},), one per image, got {tuple(labels.shape)}")
    if n and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        low, high = int(labels.min()), int(labels.max())
        raise ValueError(f"the model has classes 0 to {classes - 1}, got {low} to {high}")
    return labels


def image_gradient(score: Tensor, images: Tensor) -> Tensor:
    """The gradient of each image's own score with respect to that image.

    Args:
        score: (N,), each a function of the image of its row.
        images: (N, 3, H, W), with ``requires_grad``.

    Returns:
        (N, 3, H, W).

    Raises:
        ValueError: a score that does not depend on the images by differentiable steps.
        FloatingPointError: a gradient that is not finite.

    Example:
        >>> images = torch.ones(1, 3, 1, 1, requires_grad=True)
        >>> image_gradient(images.square().sum((1, 2, 3)), images).flatten()
        tensor([2., 2., 2.])
    """
    if score.requires_grad:
        (gradient,) = torch.autograd.grad(score.sum(), images, allow_unused=True)
        if gradient is not None:
            if not gradient.isfinite().all():
                raise FloatingPointError("the gradient with respect to the images is not finite; are the logits?")
            return gradient
    raise ValueError(
        "the logits do not depend on the images by differentiable steps: does the model round, detach, or run under "
        "torch.no_grad() inside?"
    )


def gradient_saliency(model: nn.Module, images: Tensor, target: Tensor | None = None) -> Tensor:
    r"""How strongly one class's logit would react to each pixel.

    .. math:: s_{ij} = \max_k | \partial z_c / \partial x_{kij} |

    with k the colours, c the class and x in [0, 1].

    Args:
        model: maps images to logits; left as found, without gradients on its parameters.
        images: (N, 3, H, W), uint8 or float in [0, 1].
        target: class of each image, int64 (N,); None is the predicted one.

    Returns:
        (N, H, W), 0 or more, at least float32.

    Raises:
        TypeError, ValueError: images, classes or a model that do not fit.

    Source: Simonyan, Vedaldi, Zisserman, "Deep inside convolutional networks", 2013, section 3.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(6, 2, bias=False))
        >>> _ = net[1].weight.data.copy_(torch.tensor([[1.0, 0, 0, 2, -3, 0], [0, 0, 0, 0, 0, 0]]))
        >>> gradient_saliency(net, torch.ones(1, 3, 1, 2), torch.tensor([0]))     # row by row: R R G G B B
        tensor([[[3., 2.]]])
    """
    with frozen(model):
        pixels = pixels_of(images).requires_grad_()
        logits = logits_of(model, pixels.clone())  # a clone, as a first layer may work in place
        score = logits.gather(1, _targets(target, logits)[:, None])[:, 0]
        return image_gradient(score, pixels).abs().amax(1)


def class_activation(model: nn.Module, images: Tensor, target: Tensor | None = None) -> Tensor:
    r"""Class activation map: where a network with global average pooling sees one class.

    .. math:: M_c(i) = \sum_k w_{ck} A_k(i)

    with A the last feature maps and w_c the weights of class c; its spatial mean is the logit without the bias.

    Args:
        model: a network with ``class_map(images, target)``, such as ``create("vgg-gap")``.
        images: (N, 3, H, W), uint8 or float in [0, 1].
        target: class of each image, int64 (N,); None is the predicted one.

    Returns:
        (N, h, w), at least float32, of any sign.

    Raises:
        TypeError: a model without ``class_map``.
        ValueError: images or classes that do not fit.

    Source: Zhou et al., "Learning deep features for discriminative localization", CVPR 2016, equation 2.

    Example:
        >>> class Net(nn.Module):                                    # the channels are the feature maps, and w = 1
        ...     def forward(self, images): return images.mean((2, 3))
        ...     def class_map(self, images, target): return images[torch.arange(len(images)), target]
        >>> class_activation(Net(), torch.eye(3).view(1, 3, 1, 3), torch.tensor([1]))
        tensor([[[0., 1., 0.]]])
    """
    class_map = getattr(model, "class_map", None)
    if class_map is None:
        raise TypeError(
            f"{type(model).__name__} has no class_map(images, target), which needs global average pooling before the "
            'last layer: use payattn.create("vgg-gap"), or gradient_saliency, which works for every network'
        )
    with frozen(model, gradients=False):
        pixels = pixels_of(images)
        if target is not None:
            check_labels(target, logits_of(model, pixels))
        maps: Tensor = promote(class_map(pixels, target))
    if maps.ndim != 3 or len(maps) != len(images):
        raise ValueError(f"class_map must give ({len(images)}, h, w), got {tuple(maps.shape)}")
    return maps


def _sides(n: int, size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if min(n, height, width) < 1:
        raise ValueError(f"n and size must be at least 1, got n={n} and size={size}")
    return height, width


def centre_prior(n: int, size: int | tuple[int, int], sigma: float = 0.25) -> Tensor:
    r"""A bump in the middle of the image: what a photographer's habit alone would find.

    .. math:: a_{ij} = \exp\left(-\frac{(i - \bar i)^2}{2 (\sigma H)^2} - \frac{(j - \bar j)^2}{2 (\sigma W)^2}\right)

    Args:
        n: number of maps, all alike.
        size: (H, W), or one number for a square.
        sigma: width of the bump as a share of each side.

    Returns:
        float32 (N, H, W), at most 1.

    Raises:
        ValueError: sizes below 1, or a sigma that is not positive.

    Example:
        >>> centre_prior(1, 3, sigma=1 / 3)[0, 1]
        tensor([0.6065, 1.0000, 0.6065])
    """
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, a share of the side, got {sigma}")
    bumps = []
    for side in _sides(n, size):
        places = torch.arange(side) - (side - 1) / 2
        bumps.append(torch.exp(-0.5 * (places / (sigma * side)).square()))
    return torch.outer(*bumps).float().repeat(n, 1, 1)


def random_maps(n: int, size: int | tuple[int, int], generator: torch.Generator, cells: int = 8) -> Tensor:
    """Maps that know nothing: uniform noise in ``cells`` x ``cells`` cells, enlarged bilinearly as real maps are.

    Args:
        n: number of maps.
        size: (H, W), or one number for a square.
        generator: the source of the noise; the maps are made on its device.
        cells: per side; 8 is layer 13 of the VGG networks with images of 32 px.

    Returns:
        float32 (N, H, W) in [0, 1].

    Raises:
        ValueError: sizes or cells below 1.

    Example:
        >>> random_maps(2, (5, 7), torch.Generator().manual_seed(0)).shape
        torch.Size([2, 5, 7])
    """
    if cells < 1:
        raise ValueError(f"cells must be at least 1, got {cells}")
    shape = _sides(n, size)
    noise = torch.rand(n, 1, cells, cells, generator=generator, device=generator.device, dtype=torch.float32)
    return F.interpolate(noise, size=shape, mode="bilinear", align_corners=False)[:, 0]
