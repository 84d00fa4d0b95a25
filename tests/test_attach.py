"""Attention on networks of others, by the names of their layers."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import payattn as pa
from payattn import attach, export
from payattn.attach import FUSIONS, HEADS, AttachedAttention, MaskBranch, layout
from payattn.attention import SCORES
from payattn.models import create


class Tiny(nn.Module):
    """A network of a reader: two stages, average pooling, a linear layer."""

    def __init__(self, classes: int = 4, channels: int = 3) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        self.two = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.fc = nn.Linear(12, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.two(self.one(images)).mean((2, 3)))


def tiny(seed: int = 0, **options: int) -> Tiny:
    torch.manual_seed(seed)
    return Tiny(**options)


def pictures(n: int = 2, height: int = 12, width: int = 12, channels: int = 3) -> Tensor:
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(1))


def three(model: nn.Module, layers: list[str], **options: Any) -> dict[str, nn.Module]:
    """The three forms of one network."""
    torch.manual_seed(0)
    return {
        "attention": pa.attach(model, layers, **options),
        "mask": pa.attach.mask(model, layers, **options),
        "read": pa.attach.read(model, layers, **options),
    }


FORMS = ("attention", "mask", "read")


def form(name: str, **options: Any) -> nn.Module:
    return three(tiny(), ["one", "two"], size=12, **options)[name]


def state_of(model: nn.Module) -> dict[str, Any]:
    hooks = {name: len(part._forward_hooks) for name, part in model.named_modules()}
    modes = {name: part.training for name, part in model.named_modules()}
    learns = {name: p.requires_grad for name, p in model.named_parameters()}
    return {"hooks": hooks, "modes": modes, "learns": learns, "names": [n for n, _ in model.named_modules()]}


def unchanged(before: dict[str, Tensor], model: nn.Module) -> bool:
    return all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def assert_same(one: Any, two: Any, **tolerance: float) -> None:
    torch.testing.assert_close(one[0], two[0], **tolerance)
    assert list(one[1]) == list(two[1])
    for name in one[1]:
        torch.testing.assert_close(one[1][name], two[1][name], **tolerance)


# Values


def test_the_logits_are_those_of_the_equations_written_out() -> None:
    model, images = tiny().eval(), pictures(3)
    net = pa.attach(model, ["one", "two"], classes=5, score="dp", size=12).eval()
    logits, maps = net(images, return_maps=True)
    local = {"one": model.one(images), "two": model.two(model.one(images))}
    g = local["two"].mean((2, 3))
    descriptors = []
    for name, x in local.items():
        projected = net.attention[name].project_query(g)
        a = torch.einsum("nmhw,nm->nhw", x, projected).flatten(1).softmax(1)
        torch.testing.assert_close(maps[name].flatten(1), a)
        path = net.head.paths[list(local).index(name)]
        descriptors.append(path(torch.einsum("nmp,np->nm", x.flatten(2), a)))
    torch.testing.assert_close(logits, net.head.classifier(torch.cat(descriptors, 1)))
    assert isinstance(net.attention["two"].project_query, nn.Identity), "the query has the length of the last layer"


def test_a_mask_multiplies_the_block_by_one_plus_m_and_naive_by_m() -> None:
    model, images = tiny().eval(), pictures()
    features = model.two(model.one(images))
    for fusion, factor in (("residual", lambda m: 1 + m), ("naive", lambda m: m)):
        torch.manual_seed(0)
        net = pa.attach.mask(model, ["two"], fusion=fusion, size=12).eval()
        mask = net.masks(images)["two"]
        logits, maps = net(images, return_maps=True)
        torch.testing.assert_close(logits, model.fc((factor(mask) * features).mean((2, 3))))
        torch.testing.assert_close(maps["two"], mask.mean(1))


def test_a_gated_mask_changes_nothing_at_the_start_and_a_residual_one_does() -> None:
    model, images = tiny().eval(), pictures()
    gated = pa.attach.mask(model, ["one", "two"], fusion="gated", size=12)
    assert torch.equal(gated.eval()(images), model(images))
    assert torch.equal(gated.train()(images), model.train()(images))
    residual = pa.attach.mask(model.eval(), ["one", "two"], size=12).eval()
    assert not torch.allclose(residual(images), model(images))


def test_a_gated_mask_learns_its_gate_first_and_then_everything() -> None:
    net, images = pa.attach.mask(tiny(), ["two"], fusion="gated", size=12), pictures(4)
    labels = torch.arange(4)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    F.cross_entropy(net(images), labels).backward()
    inside = [p for p in net.branches["two"].parameters() if p.ndim]
    assert net.branches["two"].gamma.grad != 0
    assert all(not p.grad.any() for p in inside)
    optimizer.step()
    optimizer.zero_grad()
    F.cross_entropy(net(images), labels).backward()
    assert sum(bool(p.grad.any()) for p in inside) > len(inside) * 0.8  # a dead unit of a ReLU may lie still


def test_a_reading_is_the_network_itself_and_its_activation_maps() -> None:
    model, images = tiny().eval(), pictures()
    net = pa.attach.read(model, ["one", "two"], p=4, reduce="mean", size=12).eval()
    logits, maps = net(images, return_maps=True)
    assert torch.equal(logits, model(images)) and torch.equal(net(images), logits)
    torch.testing.assert_close(maps["one"], model.one(images).pow(4).mean(1))
    assert net.activations(images)["two"].shape == (2, 12, 6, 6)
    maps["two"].sum().backward()
    assert net.backbone.one[0].weight.grad.any()


@pytest.mark.parametrize(("side", "depth"), [(56, 3), (32, 3), (28, 2), (16, 2), (14, 1), (8, 1), (7, 1), (2, 1)])
def test_a_mask_has_as_many_poolings_as_the_paper_gives_to_that_side(side: int, depth: int) -> None:
    def poolings(scale: Any) -> int:
        return 1 + (poolings(scale.inner) if scale.inner is not None else 0)

    net = pa.attach.mask(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)), ["1"], size=side)
    assert poolings(net.branches["1"].soft_mask.body) == depth


def test_a_mask_reads_what_its_block_reads_and_fits_blocks_that_change_the_shape() -> None:
    branch = MaskBranch(4, 8, depth=1)
    x, features = torch.rand(2, 4, 9, 7), torch.rand(2, 8, 5, 4)
    assert branch(x, features).shape == features.shape
    assert isinstance(branch.entry, nn.Conv2d) and isinstance(MaskBranch(8, 8, depth=1).entry, nn.Identity)


# The caller's network


@pytest.mark.parametrize("name", FORMS)
def test_the_network_of_the_caller_is_left_as_found(name: str) -> None:
    model = tiny()
    model.two.eval()
    model.one[0].weight.requires_grad_(False)
    before, weights = state_of(model), copy.deepcopy(model.state_dict())
    net = three(model, ["one", "two"], size=12, frozen=name != "read")[name]
    pa.fit(net, data(), epochs=1, batch_size=8, lr=0.1, progress=False, device="cpu")
    assert state_of(model) == before and unchanged(weights, model)
    assert not {id(p) for p in model.parameters()} & {id(p) for p in net.parameters()}


def test_the_copy_keeps_the_names_and_values_of_the_weights() -> None:
    model = tiny()
    for name, net in three(model, ["one", "two"], size=12).items():
        old, new = model.state_dict(), net.backbone.state_dict()
        expected = {n for n in old if name != "attention" or not n.startswith("fc.")}
        assert set(new) == expected
        assert all(torch.equal(new[n], old[n]) for n in expected)


def test_trying_the_network_moves_no_statistics_and_draws_no_random_number() -> None:
    model = tiny()
    model.two.eval()
    before, state = state_of(model), torch.get_rng_state()
    layout(model, ["one"], size=12)
    assert state_of(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert int(model.one[1].num_batches_tracked) == 0


# The classifier and the query


class Conv(nn.Sequential):
    """SqueezeNet's ending: a convolution to the classes, ReLU, average."""

    def __init__(self, relu: bool) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.ReLU() if relu else nn.Identity(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip


class Twice(Tiny):
    """A network whose forward calls a layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Sequential(nn.Conv2d(12, 12, 1), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.again(self.again(self.two(self.one(images)))).mean((2, 3)))


def test_the_classifier_is_found_by_what_it_puts_out() -> None:
    assert layout(tiny(), ["one"], size=12).classifier == "fc"
    for relu in (True, False):
        net = pa.attach(Conv(relu), ["1"], size=12)
        assert layout(Conv(relu), ["1"], size=12).classifier == "2"
        assert net.query_length == 8 and net.classes == 4


def test_a_network_without_classifier_gives_its_output_as_query() -> None:
    model = tiny()
    model.fc = nn.Identity()
    assert layout(model, ["one"], size=12).classifier is None
    assert pa.attach(model, ["one"], classes=3, size=12).query_length == 12
    features = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
    net = pa.attach(features, ["1"], classes=3, size=12)
    assert net.query(pictures()).shape == (2, 6)
    pooled = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert layout(pooled, ["0"], size=12).classifier is None, "a larger kernel makes features, not classes"
    with pytest.raises(ValueError, match="no classifier of its own"):
        pa.attach.mask(model, ["two"], classes=7, size=12)


def test_the_query_can_be_a_layer() -> None:
    model, images = tiny().eval(), pictures()
    net = pa.attach(model, ["two"], query="one", size=12).eval()
    torch.testing.assert_close(net.query(images), model.one(images).mean((2, 3)))
    assert net.levels == ("two",) and set(net(images, return_maps=True)[1]) == {"two"}
    with pytest.raises(ValueError, match="both a query and a level"):
        pa.attach(model, ["one", "two"], query="one", size=12)


def test_a_mask_can_bring_a_new_classifier_that_learns_though_the_backbone_is_frozen() -> None:
    net = pa.attach.mask(tiny(), ["two"], classes=7, frozen=True, size=12)
    assert net(pictures()).shape == (2, 7)
    learning = {name for name, p in net.backbone.named_parameters() if p.requires_grad}
    assert learning == {"fc.weight", "fc.bias"}
    net.freeze(False)
    assert all(p.requires_grad for p in net.parameters())


def test_an_own_query_from_outside_decides() -> None:
    net, images = pa.attach(tiny(), ["one", "two"], size=12).eval(), pictures()
    g = net.query(images)
    assert_same(net(images, return_maps=True), net(images, return_maps=True, query=g))
    assert not torch.allclose(net(images), net(images, query=-g))
    assert net.features(images).shape == (2, 20)


# Options


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("head", HEADS)
def test_every_score_and_head_gives_maps_and_every_parameter_learns(score: str, head: str) -> None:
    torch.manual_seed(0)
    net = pa.attach(tiny(), ["one", "two"], classes=3, score=score, head=head, size=12)
    images = pictures(6, 13, 10)
    logits, maps = net(images, return_maps=True)
    assert logits.shape == (6, 3)
    assert {name: tuple(a.shape) for name, a in maps.items()} == {"one": (6, 6, 5), "two": (6, 6, 5)}
    for a in maps.values():
        torch.testing.assert_close(a.sum((1, 2)), torch.ones(6))
    F.cross_entropy(logits, torch.arange(6) % 3).backward()
    still = {name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-9}
    cancelled = {"attention.one.project_query", "attention.one.bias", "attention.two.bias"} if score == "pc" else set()
    before_norm = {"backbone.one.0.bias", "backbone.two.0.bias"}  # batch norm takes the bias of a convolution away
    assert {name for name in still if not any(name.startswith(part) for part in cancelled | before_norm)} == set()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_runs_on_odd_and_rectangular_images(fusion: str) -> None:
    net = pa.attach.mask(tiny(), ["one", "two"], fusion=fusion, size=12)
    logits, maps = net(pictures(3, 15, 9), return_maps=True)
    assert logits.shape == (3, 4) and maps["two"].shape == (3, 7, 4)


def test_names_with_dots_work_and_stay_apart() -> None:
    net = pa.attach(tiny(), ["one.0", "one.1", "two.2"], size=12)
    assert list(net(pictures(), return_maps=True)[1]) == ["one.0", "one.1", "two.2"]
    assert all(key.startswith(("attention.one-0.", "attention.")) for key in net.state_dict() if "attention" in key)


def test_bytes_are_divided_by_255_and_floats_pass_as_they_are() -> None:
    model = tiny().eval()
    raw = torch.randint(0, 256, (2, 3, 12, 12), dtype=torch.uint8)
    net = pa.attach.read(model, ["one"], size=12).eval()
    torch.testing.assert_close(net(raw), model(raw / 255))
    wild = 7 * torch.randn(2, 3, 12, 12)
    assert torch.equal(net(wild), model(wild))


def test_mean_and_std_make_a_first_layer_for_pixels() -> None:
    model, mean, std = tiny().eval(), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    net = pa.attach.read(model, ["one"], mean=mean, std=std, size=12).eval()
    x = pictures()
    normalised = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(net(x), model(normalised))
    torch.testing.assert_close(net((x * 255).round().byte()), net((x * 255).round() / 255))
    with pytest.raises(ValueError, match="mean and std go together"):
        pa.attach.read(model, ["one"], mean=0.5, size=12)


def test_other_than_three_channels_and_other_precision() -> None:
    net = pa.attach(tiny(channels=1), ["one"], size=(1, 12, 10))
    assert net(pictures(channels=1)).shape == (2, 4)
    double = pa.attach(tiny().double(), ["one"], size=12)
    assert double(pictures().double()).dtype == torch.float64
    assert pa.attach.mask(tiny().double(), ["two"], size=12)(pictures().double()).dtype == torch.float64


# Errors


def test_a_wrong_name_lists_the_candidates_with_their_shapes() -> None:
    for make in (pa.attach, pa.attach.mask, pa.attach.read):
        with pytest.raises(ValueError, match=r"did you mean 'two'\?.*two \(12, 6, 6\).*one \(8, 6, 6\)"):
            make(tiny(), ["twoo"], size=12)
    with pytest.raises(ValueError, match=r"no layer 'x'.*at 12x10: one \(8, 6, 5\)"):
        pa.attach(tiny(channels=1), ["x"], size=(1, 12, 10))
    with pytest.raises(ValueError, match="did you mean 'two'"):
        pa.attach(tiny(), ["one"], query="twu", size=12)


class Lists(Tiny):
    """A stage that puts out a list, and a network that does."""

    def __init__(self, output: str) -> None:
        super().__init__()
        self.output = output
        self.pair = Pair()

    def forward(self, images: Tensor) -> Any:
        x, y = self.pair(self.two(self.one(images)))
        logits = self.fc((x + y).mean((2, 3)))
        return {"tuple": (logits, x), "dict": {"logits": logits}, "none": None, "flat": logits.flatten(),
                "softmax": logits.softmax(1), "log": logits.log_softmax(1)}.get(self.output, logits)  # fmt: skip


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "one text": (lambda: pa.attach(tiny(), "one", size=12), TypeError, r"write \['one'\]"),
    "one text and a query": (
        lambda: pa.attach(tiny(), "one", query="two", size=12), TypeError, r"write \['one'\]"),
    "no layer": (lambda: pa.attach(tiny(), [], size=12), ValueError, "name one layer or more"),
    "a layer twice": (lambda: pa.attach(tiny(), ["one", "one"], size=12), ValueError, "each once"),
    "no module": (lambda: pa.attach(tiny, ["one"]), TypeError, "must be a torch.nn.Module, got function"),  # type: ignore[arg-type]
    "no spatial extent": (lambda: pa.attach(tiny(), ["fc"], size=12), ValueError, r"puts out \(1, 4\)"),
    "one position": (lambda: pa.attach(tiny(), ["one"], size=2), ValueError, "one position"),
    "called twice": (lambda: pa.attach(Twice(), ["again"], size=12), ValueError, "called 2 times"),
    "in place": (
        lambda: pa.attach(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True)), ["0"], size=4), ValueError,
        "changed in place"),
    "a tuple": (lambda: pa.attach(Lists(""), ["pair"], size=12), ValueError, "puts out tuple"),
    "a network with a tuple": (lambda: pa.attach(Lists("tuple"), ["one"], size=12), TypeError, "aux_logits=False"),
    "a network with a dict": (lambda: pa.attach(Lists("dict"), ["one"], size=12), TypeError, "puts out dict"),
    "a flat output": (lambda: pa.attach(Lists("flat"), ["one"], size=12), ValueError, r"got \(4,\)"),
    "probabilities": (lambda: pa.attach(Lists("softmax"), ["one"], size=12), ValueError, "returns logits"),
    "log probabilities": (lambda: pa.attach(Lists("log"), ["one"], size=12), ValueError, "returns logits"),
    "too large": (lambda: pa.attach(nn.Sequential(nn.Conv2d(3, 2, 9)), ["0"], size=4), ValueError, "size=32"),
    "a size": (lambda: pa.attach(tiny(), ["one"], size=(1, 2, 3, 4)), ValueError, "size is a side"),
    "a score": (lambda: pa.attach(tiny(), ["one"], score="dpp", size=12), ValueError, "did you mean 'dp'"),
    "a norm": (lambda: pa.attach(tiny(), ["one"], norm="sigmoid", size=12), ValueError, "did you mean 'sigmoid-"),
    "a head": (lambda: pa.attach(tiny(), ["one"], head="cat", size=12), ValueError, "did you mean 'concat'"),
    "a combination": (lambda: pa.attach(tiny(), ["one"], combine="sum", size=12), ValueError, "combine is 'sum'"),
    "a fusion": (lambda: pa.attach.mask(tiny(), ["two"], fusion="gate", size=12), ValueError, "did you mean 'gated'"),
    "a reduction": (lambda: pa.attach.read(tiny(), ["two"], reduce="summ", size=12), ValueError, "did you mean 'sum'"),
    "one class": (lambda: pa.attach(tiny(), ["one"], classes=1, size=12), ValueError, "at least 2"),
    "one class of a mask": (lambda: pa.attach.mask(tiny(), ["two"], classes=1, size=12), ValueError, "at least 2"),
    "channels": (
        lambda: pa.attach.mask(nn.Sequential(nn.Conv2d(3, 6, 1)), ["0"], size=12), ValueError, "multiple of 4"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_work_is_said(name: str) -> None:
    make, error, message = BAD[name]
    with pytest.raises(error, match=message):
        make()


def test_a_block_that_reads_no_features_cannot_have_a_mask() -> None:
    class Keyword(Tiny):
        def forward(self, images: Tensor) -> Tensor:
            return self.fc(self.two(input=self.one(images)).mean((2, 3)))

    with pytest.raises(ValueError, match="block 'two' reads NoneType"):
        pa.attach.mask(Keyword(), ["two"], size=12)


def test_an_auxiliary_output_that_comes_in_training_alone_is_an_error_then() -> None:
    class Auxiliary(Tiny):
        def forward(self, images: Tensor) -> Any:
            logits = super().forward(images)
            return (logits, logits) if self.training else logits

    net = pa.attach(Auxiliary(), ["one"], size=12)
    with pytest.raises(TypeError, match="aux_logits=False"):
        net.train()(pictures())


def test_after_an_error_inside_the_backbone_the_next_pass_is_clean() -> None:
    net = pa.attach(tiny(), ["one"], size=12).eval()
    with pytest.raises(RuntimeError):
        net(pictures(channels=5))
    assert net(pictures()).shape == (2, 4)
    assert net._recorder.found is None
    net.backbone(pictures())  # called by someone else: nothing is kept
    assert net._recorder.found is None


# Frozen or trained


@pytest.mark.parametrize("name", FORMS)
def test_a_frozen_backbone_gets_no_gradient_and_its_statistics_do_not_move(name: str) -> None:
    net = form(name, frozen=True).train()
    before = copy.deepcopy(net.backbone.state_dict())
    images = pictures(4).requires_grad_()
    logits = net(images)
    F.cross_entropy(logits, torch.arange(4)).backward()
    assert all(p.grad is None for p in net.backbone.parameters())
    assert unchanged(before, net.backbone) and not net.backbone.training
    assert images.grad is not None and images.grad.abs().sum() > 0, "gradients still reach the images"
    if name != "read":
        assert any(p.grad is not None and p.grad.any() for p in net.parameters())


def test_a_trained_backbone_learns_and_its_statistics_move() -> None:
    net = form("attention").train()
    before = copy.deepcopy(net.backbone.state_dict())
    pa.fit(net, data(), epochs=1, batch_size=8, lr=0.1, progress=False, device="cpu")
    assert not any(torch.equal(net.backbone.state_dict()[n], v) for n, v in before.items() if "num_batches" not in n)


def test_release_gives_back_what_learned_before() -> None:
    model = tiny()
    model.one[0].weight.requires_grad_(False)
    net = pa.attach(model, ["two"], frozen=True, size=12).train()
    net.freeze(False)
    learning = {name for name, p in net.backbone.named_parameters() if not p.requires_grad}
    assert learning == {"one.0.weight"} and net.backbone.training and not net.frozen
    assert not net.eval().freeze().training


# Training


def data(n: int = 32) -> Any:
    from payattn.data import ImageSet

    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 4
    images = torch.randint(0, 100, (n, 3, 12, 12), generator=generator)
    for k in range(4):
        images[labels == k, :, 3 * (k // 2) : 3 * (k // 2) + 6, 6 * (k % 2) : 6 * (k % 2) + 6] += 120
    return ImageSet(images.byte(), labels, tuple("abcd"))


@pytest.mark.parametrize("name", FORMS)
def test_fit_trains_it(name: str) -> None:
    history = pa.fit(form(name), data(), epochs=6, batch_size=8, lr=0.1, progress=False, device="cpu")
    assert history.final["loss"] < 0.7 * history.epochs[0]["loss"]


def test_a_run_resumes_from_its_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"batch_size": 8, "lr": 0.1, "schedule": "constant", "progress": False, "device": "cpu"}
    whole, parts = form("attention"), form("attention")
    pa.fit(whole, data(), epochs=2, checkpoint=tmp_path / "whole.safetensors", **settings)

    class Stop(Exception):
        pass

    def stop(record: dict[str, Any]) -> None:
        raise Stop

    with pytest.raises(Stop):
        pa.fit(parts, data(), epochs=2, checkpoint=tmp_path / "parts.safetensors", on_epoch=stop, **settings)
    again = form("attention")
    pa.fit(again, data(), epochs=2, checkpoint=tmp_path / "parts.safetensors", **settings)
    assert unchanged(whole.state_dict(), again)


@pytest.mark.parametrize("name", FORMS)
def test_weights_pickle_and_copies_give_the_same_numbers(name: str, tmp_path: Path) -> None:
    net, images = form(name).eval(), pictures()
    expected = net(images, return_maps=True)
    pa.checkpoint.save_weights(net, tmp_path / "net.safetensors")
    other = three(tiny(seed=5), ["one", "two"], size=12)[name].eval()
    assert not torch.allclose(other(images), expected[0])
    pa.checkpoint.load_weights(other, tmp_path / "net.safetensors")
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    whole = torch.load(buffer, weights_only=False)
    for twin in (other, copy.deepcopy(net), pickle.loads(pickle.dumps(net)), whole):
        assert_same(twin(images, return_maps=True), expected, rtol=0, atol=0)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert_same(net(images, return_maps=True), expected, rtol=0, atol=0)
    assert not torch.allclose(twin(images), expected[0]), "a copy computes with its own weights"


# What others do with it


def test_it_compiles_in_one_graph() -> None:
    model, images = tiny(), pictures()
    both = pa.attach(pa.attach.mask(model, ["two"], size=12), ["backbone.one"], size=12)
    net = both.eval()
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    assert_same(compiled(images, return_maps=True), net(images, return_maps=True))


@pytest.mark.parametrize("name", FORMS)
def test_it_exports_with_maps_as_outputs_and_a_dynamic_batch(name: str) -> None:
    net, images = form(name).eval(), pictures(5)
    program = export.to_program(net, (images.shape[2], images.shape[3]))
    found, (logits, maps) = program.module()(images), net(images, return_maps=True)
    assert_same((found.pop("logits"), found), (logits, maps))


def test_onnx_runtime_gives_the_same_numbers(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    net, images = form("attention").eval(), pictures(4)
    written = export.to_onnx(net, tmp_path / "net.onnx", (images.shape[2], images.shape[3]))
    assert list(written) == ["logits", *net.levels]
    assert export.check(tmp_path / "net.onnx", net, images).keys() == written.keys()


def test_a_layer_that_only_training_calls_twice_is_refused_when_it_happens() -> None:
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 4)

        def forward(self, images: Tensor) -> Tensor:
            x = self.one(images)
            return self.head((self.one(x) if self.training else x).mean((2, 3)))

    net = attach.read(Again(), ["one"], size=8)
    net.eval()(pictures())
    with pytest.raises(ValueError, match="'one' was called twice in one forward pass"):
        net.train()(pictures())


@pytest.mark.parametrize("name", FORMS)
def test_half_precision_under_autocast_gives_maps_in_full(name: str) -> None:
    net = form(name).eval()
    with torch.autocast("cpu", torch.bfloat16):
        logits, maps = net(pictures(), return_maps=True)
    assert all(a.dtype == torch.float32 for a in maps.values())
    assert torch.allclose(logits.float(), net(pictures()), atol=0.1)


def test_a_backbone_that_recomputes_in_the_backward_pass_is_read_once() -> None:
    from torch.utils.checkpoint import checkpoint

    class Recomputing(Tiny):
        def forward(self, images: Tensor) -> Tensor:
            x = checkpoint(lambda x: self.two(self.one(x)), images, use_reentrant=False)
            return self.fc(x.mean((2, 3)))  # type: ignore[union-attr]

    net = pa.attach(Recomputing(), ["one", "two"], size=12)
    for _ in range(2):
        F.cross_entropy(net(pictures()), torch.tensor([0, 1])).backward()
    assert net.backbone.one[0].weight.grad.any()


def test_the_other_tools_of_the_package_take_it() -> None:
    net, images = pa.attach(tiny(), ["one", "two"], score="scaled-dp", size=12).eval(), pictures(3)
    assert pa.maps.gradient_saliency(net, images).shape == (3, 12, 12)
    assert pa.train.maps_of(net, data(8))["one"].shape == (8, 6, 6)
    found = pa.query.swap(net, images, images[0])
    assert set(found) == {"one", "two"} and found["two"]["total_variation"][1] > 0
    teacher, student = pa.attach.read(tiny(1), ["two"], size=12), pa.attach.read(tiny(2), ["two"], size=12)
    loss = pa.transfer.Distill(teacher, student, ["backbone.two"], beta=1.0, size=(12, 12))
    loss.loss(images, torch.tensor([0, 1, 2]))[0].backward()
    assert student.backbone.one[0].weight.grad.any()


def test_it_works_on_our_own_networks() -> None:
    net = pa.attach(create("wrn-10-1", width=0.25), ["group0", "group2"], classes=3, size=16)
    assert net.query_length == 16 and net(pictures()).shape == (2, 3)
    assert layout(create("vgg", width=0.05), ["trunk.layer7"], size=32).classifier == "head.3"


# Networks of others

TORCHVISION = {
    "resnet18": ["layer2", "layer3"],
    "squeezenet1_1": ["features.7"],
    "densenet121": ["features.denseblock1"],
    "googlenet": ["inception3a"],
    "inception_v3": ["Mixed_5b"],
    "mobilenet_v2": ["features.6", "features.13"],
    "mobilenet_v3_small": ["features.3"],
    "shufflenet_v2_x0_5": ["stage2"],
    "mnasnet0_5": ["layers.9"],
    "efficientnet_b0": ["features.3"],
    "regnet_y_400mf": ["trunk_output.block2"],
    "convnext_tiny": ["features.1"],
    "alexnet": ["features.7"],
    "vgg11_bn": ["features.14"],
}
OPTIONS = {name: {"aux_logits": False, "init_weights": False} for name in ("googlenet", "inception_v3")}
TIMM = {
    "resnet10t": ["layer2"],
    "convnext_atto": ["stages.1"],
    "tinynet_e": ["blocks.2"],
    "mobilenetv3_small_050": ["blocks.1"],
    "regnetx_002": ["s2"],
    "ghostnet_100": ["blocks.3"],
    "lcnet_035": ["blocks.2"],
    "mnasnet_small": ["blocks.2"],
    "repvgg_a0": ["stages.1"],
    "starnet_s1": ["stages.1"],
    "hardcorenas_a": ["blocks.2"],
    "resnest14d": ["layer2"],
}
SLOW = ("vgg11_bn", "alexnet", "convnext_tiny", "inception_v3", "densenet121")


def slim(model: nn.Module) -> nn.Module:
    """Weights of small size; VGG and AlexNet without their wide classifiers, which would only cost memory here."""
    if type(model).__name__ in ("VGG", "AlexNet"):
        first = next(part for part in model.classifier if isinstance(part, nn.Linear))  # type: ignore[union-attr]
        model.classifier = nn.Sequential(nn.Linear(first.in_features, 16), nn.ReLU(), nn.Linear(16, 10))
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        with torch.no_grad():
            if tensor.ndim > 1:
                tensor.normal_(0, (1 / tensor[0].numel()) ** 0.5, generator=generator)
            else:
                tensor.fill_(float(not name.endswith(("bias", "running_mean", "num_batches_tracked"))))
    return model


def foreign(library: str, name: str) -> nn.Module:
    """A network of another library; some are made without memory first, as their own initialisation takes long."""
    if library == "torchvision":
        make = partial(getattr(pytest.importorskip("torchvision").models, name), **OPTIONS.get(name, {}))
        if name not in SLOW:
            return make()  # type: ignore[no-any-return]
        with torch.device("meta"):
            return slim(make())
    timm = pytest.importorskip("timm")
    return timm.create_model(name, pretrained=False)  # type: ignore[no-any-return]


FOREIGN = [("torchvision", name) for name in TORCHVISION] + [("timm", name) for name in TIMM]


@pytest.mark.parametrize(("library", "name"), FOREIGN)
def test_networks_of_other_libraries_get_attention_and_every_part_learns(library: str, name: str) -> None:
    model, layers = foreign(library, name), {**TORCHVISION, **TIMM}[name]
    before = state_of(model)
    side = 80 if name in ("inception_v3", "alexnet") else 64
    net = pa.attach(model, layers, classes=5, size=side)
    assert state_of(model) == before
    images = pictures(2, side, side + 17)
    logits, maps = net(images, return_maps=True)
    assert logits.shape == (2, 5) and list(maps) == layers
    for a in maps.values():
        assert a.shape[1] < a.shape[2]
        torch.testing.assert_close(a.sum((1, 2)), torch.ones(2))
    logits[:, 0].sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None] == []


MASKED = [("torchvision", name) for name in ("resnet18", "mobilenet_v2", "squeezenet1_1")] + [("timm", "convnext_atto")]


@pytest.mark.parametrize(("library", "name"), MASKED)
def test_a_gated_mask_leaves_networks_of_other_libraries_as_they_decide(library: str, name: str) -> None:
    model, layers = foreign(library, name).eval(), {**TORCHVISION, **TIMM}[name]
    images = pictures(1, 64, 77)
    net = pa.attach.mask(model, layers[-1:], fusion="gated", size=64).eval()
    logits, maps = net(images, return_maps=True)
    assert torch.equal(logits, model(images)) and maps[layers[-1]].ndim == 3
    new = pa.attach.mask(model, layers[-1:], classes=3, size=64).eval()
    assert new(images).shape == (1, 3)


def test_a_pretrained_classifier_is_kept_where_the_map_is_only_read() -> None:
    model = foreign("torchvision", "resnet18").eval()
    net = pa.attach.read(model, ["layer1", "layer4"], size=64).eval()
    images = pictures(1, 64, 64)
    logits, maps = net(images, return_maps=True)
    assert torch.equal(logits, model(images)) and maps["layer4"].shape == (1, 2, 2)


def test_a_stage_with_a_list_of_outputs_says_so() -> None:
    timm = pytest.importorskip("timm")
    with pytest.raises(ValueError, match="layer 'stage2' puts out list"):
        pa.attach(timm.create_model("hrnet_w18_small", pretrained=False), ["stage2"], size=64)


def test_the_module_is_called_like_a_function_whichever_way_it_comes() -> None:
    import payattn.attach as module

    assert pa.attach is module
    assert isinstance(module(tiny(), ["one"], size=12), AttachedAttention)
