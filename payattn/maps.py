"""Maps that are made after training, of any network: what the decision hangs on, and what knows nothing of it.

All are called as ``method(model, images, target=None, ...)`` and give (N, h, w), one map per image, at the map's own
resolution; ``METHODS`` holds them by name.  Each image is treated alone: a batch gives what its images give one by one.

- the gradient at the pixels: :func:`gradient_saliency`, :func:`gradient_times_input`, :func:`smooth_grad`
- what a layer holds: :func:`class_activation` where the network ends in global average pooling, :func:`grad_cam` of any
  layer of any network
- what is lost when a part is covered: :func:`occlusion`
- what sees no image, and every map must beat: :func:`centre_prior` and :func:`random_maps`

**What the images may be.**  uint8 becomes [0, 1].  A network with a first layer of ours (``Normalize``) takes RGB in
[0, 1], and anything else is refused.  Every other network takes the numbers it was trained on, as they are: put
``payattn.models.Normalize(mean, std)`` in front of it, or normalise yourself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from payattn.attention import choose, promote
from payattn.models import unit_range
from payattn.models.colour import Normalize, YUVLocalContrast
from payattn.transfer import check_layers, deciding, layer_shapes, tap

Pair = int | tuple[int, int]
FIRST_LAYERS = (Normalize, YUVLocalContrast)
BASELINES = ("zero", "blur", "mean")


@contextmanager
def frozen(model: nn.Module, gradients: bool = True, learning: bool = False) -> Iterator[None]:
    """A network as it decides: evaluation mode, full precision, and parameters that collect no gradient.

    Gradients with respect to the images are on inside the block, also under ``torch.no_grad()``.  After it every
    module has its own mode back, and every parameter its own ``requires_grad``.

    Args:
        model: any network.
        gradients: with respect to the images; False saves the memory.
        learning: leave the parameters their ``requires_grad``: for a map that a loss is made of.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        >>> with frozen(net):
        ...     net.training, net[0].weight.requires_grad
        (False, False)
        >>> net.training, net[0].weight.requires_grad
        (True, True)
    """
    precise = torch.autocast(device_of(model).type, enabled=False)
    with deciding(model, learning), torch.inference_mode(False), torch.set_grad_enabled(gradients), precise:
        yield


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
    return _checked_pixels(images).detach().clone()


def _checked_pixels(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be RGB, (N, 3, H, W), got {tuple(images.shape)}")
    pixels = promote(unit_range(images))
    if not ((pixels >= 0) & (pixels <= 1)).all():
        raise ValueError(
            f"floating images must lie in [0, 1], got {pixels.min():g} to {pixels.max():g}; "
            "uint8 images may run from 0 to 255"
        )
    return pixels


def inputs_of(model: nn.Module, images: Tensor) -> Tensor:
    """Images as a network takes them, at least float32, cut off from any graph.

    A network with a first layer of ours takes RGB in [0, 1], see :func:`pixels_of`; any other takes finite floats
    (N, C, H, W) of any range as they are.  uint8 becomes [0, 1] for both.

    Args:
        model: any network.
        images: (N, 3, H, W), uint8 or float in [0, 1]; for a network without our first layer (N, C, H, W), float.

    Raises:
        TypeError: another dtype.
        ValueError: another shape, or values that the network does not take.

    Example:
        >>> inputs_of(nn.Conv2d(1, 2, 3), torch.full((1, 1, 1, 2), -2.5))
        tensor([[[[-2.5000, -2.5000]]]])
        >>> inputs_of(Normalize(), torch.full((1, 3, 1, 2), -2.5))
        Traceback (most recent call last):
        ValueError: floating images must lie in [0, 1], got -2.5 to -2.5; uint8 images may run from 0 to 255
    """
    return _checked_inputs(model, images).detach().clone()


def _checked_inputs(model: nn.Module, images: Tensor) -> Tensor:
    if any(isinstance(module, FIRST_LAYERS) for module in model.modules()):
        return _checked_pixels(images)
    if images.ndim != 4:
        raise ValueError(f"images must be (N, C, H, W), got {tuple(images.shape)}; one image is image[None]")
    inputs = promote(unit_range(images))
    if not inputs.isfinite().all():
        raise ValueError("images must be finite, and these hold nan or inf")
    return inputs


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
    return _gradient(score, images, "the images")


def _gradient(score: Tensor, x: Tensor, what: str, create_graph: bool = False) -> Tensor:
    if score.requires_grad and x.requires_grad:
        (gradient,) = torch.autograd.grad(score.sum(), x, allow_unused=True, create_graph=create_graph)
        if gradient is not None:
            if not gradient.isfinite().all():
                raise FloatingPointError(f"the gradient with respect to {what} is not finite; are the logits?")
            return gradient
    raise ValueError(
        f"the logits do not depend on {what} by differentiable steps: does the model round, detach, or run under "
        "torch.no_grad() inside?"
    )


def _scores(model: nn.Module, inputs: Tensor, target: Tensor | None) -> Tensor:
    """The logit of each image's class, (N,)."""
    logits = logits_of(model, inputs)
    return logits.gather(1, _targets(target, logits)[:, None])[:, 0]


def _input_gradient(model: nn.Module, inputs: Tensor, target: Tensor | None) -> Tensor:
    """The gradient of each image's logit at its pixels; the model must be frozen."""
    leaf = inputs.detach().requires_grad_()
    score = _scores(model, leaf.clone(), target)  # a clone, as a first layer may work in place
    return image_gradient(score, leaf)


def gradient_saliency(model: nn.Module, images: Tensor, target: Tensor | None = None) -> Tensor:
    r"""How strongly one class's logit would react to each pixel.

    .. math:: s_{ij} = \max_k | \partial z_c / \partial x_{kij} |

    with k the colours and c the class.

    Args:
        model: maps images to logits; left as found, without gradients on its parameters.
        images: (N, 3, H, W), uint8 or float in [0, 1]; for foreign networks see :func:`inputs_of`.
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
        return _input_gradient(model, inputs_of(model, images), target).abs().amax(1)


def gradient_times_input(model: nn.Module, images: Tensor, target: Tensor | None = None) -> Tensor:
    r"""What each pixel adds to one class's logit, if the network were the straight line that touches it here.

    .. math:: s_{ij} = \sum_k x_{kij} \, \partial z_c / \partial x_{kij}

    with k the colours, c the class and x what the network is given: where x is 0 (black, in [0, 1]) the map is 0
    whatever the network does.  In a network of ReLUs and maxima without any constant the sum of the map is the logit.

    Args:
        model, images, target: see :func:`gradient_saliency`.

    Returns:
        (N, H, W), of any sign, at least float32.

    Raises:
        TypeError, ValueError: images, classes or a model that do not fit.

    Source: Shrikumar, Greenside, Shcherbina, Kundaje, "Not just a black box", 2016.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(6, 2, bias=False))
        >>> _ = net[1].weight.data.copy_(torch.tensor([[1.0, 0, 0, 2, -3, 0], [0, 0, 0, 0, 0, 0]]))
        >>> gradient_times_input(net, torch.full((1, 3, 1, 2), 0.5), torch.tensor([0]))
        tensor([[[-1.,  1.]]])
    """
    with frozen(model):
        inputs = inputs_of(model, images)
        return (_input_gradient(model, inputs, target) * inputs).sum(1)


def smooth_grad(
    model: nn.Module, images: Tensor, target: Tensor | None = None, *, samples: int = 16, noise: float = 0.15,
    generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    r"""The saliency of the mean gradient over noisy copies of each image.

    .. math:: s_{ij} = \max_k \left| \frac{1}{S} \sum_{s=1}^{S}
              \frac{\partial z_c}{\partial x_{kij}}(x + \sigma \epsilon_s) \right|,
              \qquad \epsilon_s \sim N(0, 1), \quad \sigma = \text{noise} \cdot (\max x - \min x)

    The mean is taken of the signed gradients, so what changes its sign from copy to copy goes.  The class is that of
    the image without noise.  All images of a batch get the same noise, each with its own sigma, so that a map does
    not hang on what else is in the batch.

    Args:
        model, images, target: see :func:`gradient_saliency`; the noise may leave [0, 1].
        samples: S, 1 or more.
        noise: sigma as a share of the range of each image, 0 or more.
        generator: of the noise; None is a new one with seed 0.

    Returns:
        (N, H, W), 0 or more, at least float32.

    Raises:
        TypeError, ValueError: images, classes, a model, samples or noise that do not fit.

    Source: Smilkov et al., "SmoothGrad: removing noise by adding noise", 2017, section 3.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))        # a straight line has one gradient everywhere
        >>> images = torch.rand(1, 3, 1, 1)
        >>> torch.allclose(smooth_grad(net, images), gradient_saliency(net, images))
        True
    """
    if not isinstance(samples, int) or samples < 1:
        raise ValueError(f"samples must be a whole number, 1 or more, got {samples!r}")
    if not 0 <= noise < float("inf"):
        raise ValueError(f"noise is a share of each image's range, 0 or more, got {noise}")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    with frozen(model):
        inputs = inputs_of(model, images)
        target = _targets(target, logits_of(model, inputs.clone()))
        spread = noise * (inputs.amax((1, 2, 3), keepdim=True) - inputs.amin((1, 2, 3), keepdim=True))
        total = torch.zeros_like(inputs)
        for _ in range(samples):
            drawn = torch.randn(inputs.shape[1:], generator=generator, device=generator.device, dtype=inputs.dtype)
            total += _input_gradient(model, inputs + spread * drawn.to(inputs.device), target)
        return (total / samples).abs().amax(1)


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
            'last layer: use payattn.create("vgg-gap"), or gradient_saliency or grad_cam, which work for every network '
            "(grad_cam of the layer before such a pooling is the class activation map without its negative part, "
            "divided by the number of positions)"
        )
    with frozen(model, gradients=False):
        pixels = inputs_of(model, images)
        if target is not None:
            check_labels(target, logits_of(model, pixels))
        maps: Tensor = promote(class_map(pixels, target))
    if maps.ndim != 3 or len(maps) != len(images):
        raise ValueError(f"class_map must give ({len(images)}, h, w), got {tuple(maps.shape)}")
    return maps


def last_layer(model: nn.Module, images: Tensor) -> str:
    """The last layer whose features still have places: more than one position, (N, C, h, w) with h w > 1.

    A layer is a module: a ReLU or a pooling that a network calls as a function is none.

    Args:
        model: any network; left as found.
        images: (N, C, H, W), for their size.

    Raises:
        ValueError: a network without such a layer.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
        >>> last_layer(net, torch.rand(1, 3, 6, 6))
        '1'
    """
    shapes = layer_shapes(model, tuple(images.shape[1:]))
    places = [name for name, (_, height, width) in shapes.items() if height * width > 1]
    if not places:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "none that puts out (N, C, h, w)"
        raise ValueError(f"{type(model).__name__} has no layer with more than one position; layers: {listed}")
    return places[-1]


def grad_cam(
    model: nn.Module, images: Tensor, target: Tensor | None = None, *, layer: str | None = None, relu: bool = True,
    create_graph: bool = False,
) -> Tensor:  # fmt: skip
    r"""Grad-CAM: the channels of a layer, each weighted by the mean of the class's gradient over its positions.

    .. math:: \alpha_k = \frac{1}{hw} \sum_i \frac{\partial z_c}{\partial A_k(i)}, \qquad
              G_c(i) = \mathrm{ReLU}\left(\sum_k \alpha_k A_k(i)\right)

    Of the layer before global average pooling and one linear layer it is the class activation map divided by h w,
    without its negative part.

    Args:
        model: maps images to logits; left as found, without gradients on its parameters.
        images: (N, 3, H, W), uint8 or float in [0, 1]; for foreign networks see :func:`inputs_of`.
        target: class of each image, int64 (N,); None is the predicted one.
        layer: name of a module that puts out features (N, K, h, w), as in ``model.named_modules()``; None is
            :func:`last_layer`.
        relu: False keeps the negative part: places that speak against the class.
        create_graph: keep the graph, to put a loss on the map: it reaches parameters (and images) that require
            gradients.  The network is still in evaluation mode.

    Returns:
        (N, h, w), 0 or more unless ``relu=False``, at least float32.

    Raises:
        TypeError: a layer that is not a name.
        ValueError: a name that is not there, with the nearest ones and the candidates with their shapes; a layer
            that is called more than once, has no positions, or that the logits do not depend on; images or classes
            that do not fit.

    Source: Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based localization", ICCV
    2017, equations 1 and 2.

    Example:
        >>> net = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2, bias=False))
        >>> _ = net[3].weight.data.copy_(torch.tensor([[3.0, -1.0], [0.0, 1.0]]))
        >>> features = torch.tensor([[[[1.0, 0.0]], [[0.0, 4.0]]]])
        >>> grad_cam(net, features, torch.tensor([0]), layer="0")     # (3 - 0) / 2, and (0 - 4) / 2 cut off
        tensor([[[1.5000, 0.0000]]])
    """
    if not (layer is None or isinstance(layer, str)):
        raise TypeError(f"layer must be the name of a module, got {type(layer).__name__}; see model.named_modules()")
    with frozen(model, learning=create_graph):
        inputs = _checked_inputs(model, images) if create_graph else inputs_of(model, images)
        if not inputs.requires_grad:
            inputs = inputs.detach().clone().requires_grad_()
        if layer is None:
            layer = last_layer(model, inputs)
        check_layers(model, [layer], size=tuple(inputs.shape[1:]))
        with tap(model, [layer], copy=True) as found:
            score = _scores(model, inputs.clone(), target)
        features = promote(found[layer])
        slope = _gradient(score, found[layer], f"layer {layer!r}", create_graph)
        maps = (promote(slope).mean((2, 3), keepdim=True) * features).sum(1)
        maps = maps.relu() if relu else maps
    return maps if create_graph else maps.detach()


def reference(images: Tensor, baseline: str = "zero", sigma: float = 0.125) -> Tensor:
    r"""What pixels are replaced by: an image that should say nothing.

    - ``"zero"``: zeros: black for images in [0, 1], the mean colour where the caller has subtracted it;
    - ``"mean"``: each image's own mean colour;
    - ``"blur"``: the image under a Gaussian of standard deviation ``sigma`` times each side; the border is repeated.

    No baseline is neutral.  Black pixels are edges that no image has, a mean colour shows the shape of what was cut
    out, and a blurred image still shows large things.

    Args:
        images: (N, C, H, W), uint8 or floating.
        baseline: one of the three.
        sigma: of the blur, a share of each side.

    Returns:
        Floating (N, C, H, W).

    Raises:
        TypeError, ValueError: images, a name or a sigma that do not fit.

    Example:
        >>> images = torch.tensor([0.0, 0.0, 0.9]).view(1, 1, 1, 3)
        >>> reference(images, "mean").flatten()
        tensor([0.3000, 0.3000, 0.3000])
    """
    pixels = floats_of(images)
    choose("baseline", baseline, BASELINES)
    if not (isinstance(sigma, (int, float)) and 0 < sigma < math.inf):
        raise ValueError(f"sigma must be positive, a share of the side, got {sigma}")
    if baseline == "zero":
        return torch.zeros_like(pixels)
    if baseline == "mean":
        return pixels.mean((2, 3), keepdim=True).expand_as(pixels).clone()
    return _blurred(_blurred(pixels, sigma).mT, sigma).mT.contiguous()


def _blurred(pixels: Tensor, sigma: float) -> Tensor:
    """Each row under a Gaussian, cut off after three standard deviations, with the border repeated."""
    width = sigma * pixels.shape[-1]
    reach = max(1, math.ceil(3 * width))
    places = torch.arange(-reach, reach + 1, device=pixels.device, dtype=pixels.dtype)
    bell = torch.exp(-0.5 * (places / width).square())
    rows = F.pad(pixels.flatten(0, 2)[:, None], (reach, reach), mode="replicate")
    return F.conv1d(rows, (bell / bell.sum()).view(1, 1, -1)).view(pixels.shape)


def floats_of(images: Tensor) -> Tensor:
    """Images of any range as at least float32, uint8 as [0, 1], cut off from any graph.

    Raises:
        TypeError: another dtype.
        ValueError: another shape, or no image.

    Example:
        >>> floats_of(torch.full((1, 1, 1, 1), 51, dtype=torch.uint8)).item()
        0.20000000298023224
    """
    if images.ndim != 4 or images[:1].numel() == 0:
        raise ValueError(f"images must be (N, C, H, W) with N at least 1, got {tuple(images.shape)}")
    return promote(unit_range(images)).detach()


def replacement(pixels: Tensor, baseline: str | Tensor) -> Tensor:
    """A :func:`reference` by its name, or images of the caller's own, of the shape of ``pixels``.

    Raises:
        ValueError: an unknown name, or images of another shape.

    Example:
        >>> replacement(torch.ones(2, 3, 4, 4), torch.zeros(1, 3, 1, 1)).shape
        torch.Size([2, 3, 4, 4])
    """
    if isinstance(baseline, str):
        return reference(pixels, baseline)
    try:
        return floats_of(baseline).to(pixels).expand_as(pixels)
    except RuntimeError:
        shapes = f"{tuple(baseline.shape)} and {tuple(pixels.shape)}"
        raise ValueError(f"a baseline of your own must be images of the same shape, got {shapes}") from None


def _two(what: str, value: Pair) -> tuple[int, int]:
    sides = (value, value) if isinstance(value, int) else tuple(value)
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ValueError(f"{what} must be a whole number of pixels, 1 or more, or two of them, got {value!r}")
    return sides


def windows(size: tuple[int, int], window: Pair, stride: Pair) -> Tensor:
    """The windows that slide over an image, row by row; the last of a row or column may be cut off by the border.

    Args:
        size: (H, W) of the image.
        window: (rows, columns) of the window, or one number for a square; at most the image.
        stride: how far the window moves, in pixels; at most the window, so that every pixel is covered.

    Returns:
        bool (P, H, W), true inside window p.

    Raises:
        ValueError: a window larger than the image, or a stride larger than the window.

    Example:
        >>> windows((1, 5), (1, 2), (1, 2)).int().tolist()
        [[[1, 1, 0, 0, 0]], [[0, 0, 1, 1, 0]], [[0, 0, 0, 0, 1]]]
    """
    sides, steps = _two("window", window), _two("stride", stride)
    if any(side > full for side, full in zip(sides, size, strict=True)):
        raise ValueError(f"the window {sides} must fit into the image {tuple(size)}")
    if any(step > side for step, side in zip(steps, sides, strict=True)):
        raise ValueError(f"with stride {steps} and window {sides} some pixels would never be covered; stride <= window")
    inside = []
    for full, side, step in zip(size, sides, steps, strict=True):
        starts = torch.arange(0, full - side + step, step)[:, None]
        places = torch.arange(full)
        inside.append((places >= starts) & (places < starts + side))
    rows, columns = inside
    return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(0, 1)


def occlusion(
    model: nn.Module, images: Tensor, target: Tensor | None = None, *, window: Pair | None = None,
    stride: Pair | None = None, baseline: str | Tensor = "mean", batch_size: int = 256,
) -> Tensor:  # fmt: skip
    r"""How much of one class's logit is lost where a window covers the image, as the mean over all windows there.

    .. math:: s_{ij} = \frac{1}{|W_{ij}|} \sum_{p \in W_{ij}} \bigl(z_c(x) - z_c(x_p)\bigr)

    with :math:`x_p` the image with window p replaced by the baseline, and :math:`W_{ij}` the windows that cover the
    pixel.  No gradient is needed, so it works for a model that rounds; it asks the model once per window and image.

    Args:
        model, images, target: see :func:`gradient_saliency`.
        window: (rows, columns) in pixels, or one number for a square; None is a quarter of each side.
        stride: how far the window moves; None is half of the window.
        baseline: what the window is filled with: ``"mean"``, ``"zero"``, ``"blur"``, see :func:`reference`, or images.
        batch_size: covered images per forward pass.

    Returns:
        (N, H, W), positive where the class needs the place, at least float32.

    Raises:
        TypeError, ValueError: images, classes, a model, windows or a baseline that do not fit.

    Source: Zeiler, Fergus, "Visualizing and understanding convolutional networks", ECCV 2014, section 4.2.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False))
        >>> _ = net[1].weight.data.copy_(torch.tensor([[1.0, 2.0, -4.0], [0.0, 0.0, 0.0]]))
        >>> occlusion(net, torch.ones(1, 1, 1, 3), torch.tensor([0]), window=(1, 2), stride=1, baseline="zero")
        tensor([[[ 3.0000,  0.5000, -2.0000]]])
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number, 1 or more, got {batch_size!r}")
    with frozen(model, gradients=False):
        inputs = inputs_of(model, images)
        height, width = inputs.shape[2], inputs.shape[3]
        sides = (max(1, height // 4), max(1, width // 4)) if window is None else _two("window", window)
        steps = ((sides[0] + 1) // 2, (sides[1] + 1) // 2) if stride is None else _two("stride", stride)
        covers = windows((height, width), sides, steps).to(inputs.device)
        filling = replacement(inputs, baseline)
        logits = logits_of(model, inputs.clone())
        target = _targets(target, logits)
        pairs = torch.cartesian_prod(*(torch.arange(n, device=inputs.device) for n in (len(inputs), len(covers))))
        left = [
            _scores(model, torch.where(covers[p, None], filling[n], inputs[n]), target[n])
            for n, p in (part.unbind(1) for part in pairs.split(batch_size))
        ]
        lost = logits.gather(1, target[:, None]) - torch.cat(left).view(len(inputs), len(covers))
        shares = covers.flatten(1).to(lost.dtype)
        return (lost @ shares / shares.sum(0)).view(-1, height, width)


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


def _blind_centre(model: nn.Module, images: Tensor, target: Tensor | None = None) -> Tensor:
    """:func:`centre_prior` as a method."""
    return centre_prior(len(images), (images.shape[-2], images.shape[-1])).to(images.device)


def _blind_random(
    model: nn.Module, images: Tensor, target: Tensor | None = None, *, generator: torch.Generator | None = None
) -> Tensor:
    """:func:`random_maps` as a method; without a generator one with seed 0."""
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    return random_maps(len(images), (images.shape[-2], images.shape[-1]), generator).to(images.device)


Method = Callable[..., Tensor]
"""``method(model, images, target) -> maps (N, h, w)``."""

METHODS: dict[str, Method] = {
    "saliency": gradient_saliency,
    "gradient-input": gradient_times_input,
    "smooth-grad": smooth_grad,
    "cam": class_activation,
    "grad-cam": grad_cam,
    "occlusion": occlusion,
    "centre": _blind_centre,
    "random": _blind_random,
}
