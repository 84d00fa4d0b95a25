"""The training loop: its optimiser and schedules by hand, its randomness, and runs that are killed and resumed."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from payattn import checkpoint
from payattn.data import Augment, ImageSet
from payattn.train import (
    History,
    Settings,
    autocast_dtype,
    evaluate,
    fit,
    learning_rate,
    make_optimizer,
    maps_of,
    pick_device,
)

SMALL = {"epochs": 3, "batch_size": 16, "lr": 0.05, "progress": False, "device": "cpu"}


def stripes(n: int = 64, seed: int = 0) -> ImageSet:
    """Noise in which one of three bands is dark; the band is the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (n,), generator=generator)
    images = torch.randint(256, (n, 3, 9, 8), generator=generator).byte()
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 3 * label : 3 * label + 3] //= 4
    return ImageSet(images, labels, ("top", "middle", "bottom"), name="stripes")


class Net(nn.Module):
    """Batch norm, dropout and a convolution: everything that has a state or draws a number."""

    def __init__(self, classes: int = 3, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2))
            self.head = nn.Linear(6 * 9, classes)

    def forward(self, images: torch.Tensor, return_maps: bool = False):
        local = self.body(images.float() / 255)
        logits = self.head(local.mean(3).flatten(1))
        return (logits, {"layer1": local.mean(1)}) if return_maps else logits


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, f"not bit-identical: {different}"


# --- the optimiser and the schedules, by hand


@pytest.mark.parametrize(
    ("lr", "dampening", "expected"),
    [(1.0, 0.9, [-1, -2, -3, -4]), (0.1, 0.0, [-0.1, -0.29, -0.561, -0.9049]), (1.0, 0.0, [-1, -2.9, -5.61, -9.049])],
)
def test_golden_11_sgd_with_torchs_dampening(lr: float, dampening: float, expected: list[float]) -> None:
    class Weight(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros((), dtype=torch.float64))

    model = Weight()
    optimizer = make_optimizer(model, Settings(lr=lr, momentum=0.9, dampening=dampening, weight_decay=0.0))
    path = []
    for _ in expected:
        optimizer.zero_grad()
        model.w.backward()  # a constant gradient of 1
        optimizer.step()
        path.append(model.w.item())
    assert path == pytest.approx(expected, rel=1e-12)


CUB = {30: 2.0, 60: 2.0, **dict.fromkeys(range(90, 301, 30), 0.5)}
RESIDUAL = {60: 0.2, 120: 0.2, 160: 0.2}


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({"lr": 1.0, "schedule": "step-halving", "epochs": 300}, {1: 1, 24: 1, 25: 0.5, 300: 2**-12}),
        (
            {"lr": 0.1, "schedule": "milestones", "milestones": CUB, "epochs": 320},
            {29: 0.1, 30: 0.2, 60: 0.4, 90: 0.2, 120: 0.1, 300: 0.0015625},
        ),
        (
            {"lr": 0.1, "schedule": "milestones", "milestones": RESIDUAL, "epochs": 200},
            {59: 0.1, 60: 0.02, 120: 0.004, 160: 0.0008},
        ),
    ],
    ids=["CIFAR", "CUB", "RN"],
)
def test_golden_12_schedules_of_the_paper(choices: dict, expected: dict[int, float]) -> None:
    settings = Settings(**choices)
    got = {epoch: learning_rate(settings, epoch, 7, 390) for epoch in expected}
    assert got == pytest.approx(expected, rel=1e-12)


def test_one_cycle_by_hand() -> None:
    settings = Settings(lr=8.0, schedule="one-cycle", epochs=2, warmup=0.2)  # 10 steps, of which 2 climb
    got = [learning_rate(settings, epoch, step, 5) for epoch in (1, 2) for step in range(5)]
    assert got == pytest.approx([4, 8, 8, 7, 6, 5, 4, 3, 2, 1])


def test_cosine_by_hand() -> None:
    settings = Settings(lr=2.0, schedule="cosine", epochs=2)
    got = [learning_rate(settings, epoch, step, 2) for epoch in (1, 2) for step in range(2)]
    assert got == pytest.approx([2, 1 + math.sqrt(0.5), 1, 1 - math.sqrt(0.5)])


def test_the_slow_decay_counts_steps_from_zero_over_the_whole_run() -> None:
    settings = Settings(lr=1.0, schedule="constant", epochs=300, lr_decay=1e-7)
    assert learning_rate(settings, 1, 0, 390) == 1.0
    # the spec: 1.2 % at the end of the 300 CIFAR epochs
    assert learning_rate(settings, 300, 389, 390) == pytest.approx(1 / (1 + 1e-7 * (300 * 390 - 1)), rel=1e-12)


@given(
    schedule=st.sampled_from(["one-cycle", "cosine", "step-halving", "constant"]),
    epochs=st.integers(1, 60),
    steps=st.integers(1, 9),
    warmup=st.floats(0, 1),
)
def test_no_schedule_leaves_zero_to_peak(schedule: str, epochs: int, steps: int, warmup: float) -> None:
    settings = Settings(lr=0.5, schedule=schedule, epochs=epochs, warmup=warmup)
    rates = [learning_rate(settings, e, s, steps) for e in range(1, epochs + 1) for s in range(steps)]
    assert all(0 < rate <= 0.5 for rate in rates)


def test_every_step_uses_the_rate_of_the_schedule() -> None:
    # one weight, gradient 1 everywhere, no momentum: the weight is minus the sum of all rates
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(()))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.w.expand(len(images), 3)

    model, choices = One(), {"lr": 0.5, "momentum": 0.0, "weight_decay": 0.0, "epochs": 3, "batch_size": 16}
    fit(model, stripes(), loss=lambda logits, labels: logits[0, 0], **choices, progress=False, device="cpu", amp="off")
    settings = Settings(**choices)
    total = sum(learning_rate(settings, e, s, 4) for e in (1, 2, 3) for s in range(4))
    assert model.w.item() == pytest.approx(-total, rel=1e-6)


def test_momentum_is_forgotten_at_a_milestone_when_asked() -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(()))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.w.expand(len(images), 3)

    choices = {"lr": 1.0, "weight_decay": 0.0, "epochs": 2, "batch_size": 32, "schedule": "milestones"}
    for reset, expected in ((False, -2.9 - 0.5 * (2.71 + 3.439)), (True, -2.9 - 0.5 * (1 + 1.9))):
        model = One()
        fit(
            model, stripes(), loss=lambda logits, labels: logits[0, 0], progress=False, device="cpu", amp="off",
            **choices, milestones={2: 0.5}, reset_momentum=reset,
        )  # fmt: skip
        assert model.w.item() == pytest.approx(expected, rel=1e-6)


def test_adam_and_nesterov_are_pytorchs() -> None:
    model = Net()
    assert type(make_optimizer(model, Settings(optimizer="adamw", weight_decay=0.1))) is torch.optim.AdamW
    assert type(make_optimizer(model, Settings(optimizer="adam"))) is torch.optim.Adam
    sgd = make_optimizer(model, Settings(nesterov=True, weight_decay=0.25))
    assert sgd.defaults["nesterov"]
    assert sgd.defaults["weight_decay"] == 0.25
    assert sum(p.numel() for p in sgd.param_groups[0]["params"]) == sum(p.numel() for p in model.parameters())


# --- settings as data


@given(
    st.builds(
        Settings,
        epochs=st.integers(1, 500),
        lr=st.floats(1e-6, 10),
        schedule=st.sampled_from(["cosine", "constant"]),
        augment=st.sampled_from([None, Augment(flip="half"), Augment(flip="random", pad=4, cutout=8)]),
        drop_last=st.booleans(),
    )
)
def test_settings_survive_json(settings: Settings) -> None:
    assert Settings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


def test_milestones_survive_json() -> None:
    settings = Settings(schedule="milestones", milestones=CUB)
    assert Settings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"epochs": 0}, "epochs must be a number from 1"),
        ({"epochs": 2.5}, "epochs must be a whole number"),
        ({"lr": -1}, "lr must be a number from 0"),
        ({"lr": float("nan")}, "lr must be a number"),
        ({"lr": "0.1"}, "lr must be a number"),
        ({"optimizer": "adamm"}, "did you mean 'adam'"),
        ({"schedule": "halving"}, "did you mean 'step-halving'"),
        ({"amp": "bfloat16"}, "did you mean 'bf16'"),
        ({"nesterov": True, "dampening": 0.9}, "nesterov needs dampening=0"),
        ({"schedule": "milestones"}, "go together"),
        ({"milestones": {3: 0.1}}, "go together"),
        ({"drop_last": "yes"}, "drop_last must be True or False"),
        ({"momentun": 0.9}, "did you mean 'momentum'"),
    ],
)
def test_a_wrong_setting_says_what_would_be_right(choices: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(Net(), stripes(), progress=False, **choices)


# --- what a run does and leaves behind


def test_it_learns_and_the_history_says_so() -> None:
    train, test = stripes(96), stripes(96, seed=1)
    seen: list[dict] = []
    net = Net()
    history = fit(net, train, test, **SMALL | {"epochs": 12}, on_epoch=seen.append)
    assert history.curve("epoch") == list(range(1, 13))
    assert history.curve("loss")[-1] < 0.5 * history.curve("loss")[0]
    assert history.final["test_accuracy"] > 0.9
    assert seen == history.epochs
    assert {"lr", "train_accuracy", "test_loss", "seconds", "images_per_second"} <= history.final.keys()
    measured = evaluate(net, test)
    assert measured["accuracy"] == history.final["test_accuracy"]
    assert measured["loss"] == pytest.approx(history.final["test_loss"], rel=1e-12)


def test_the_recorded_loss_is_the_mean_over_steps_and_the_accuracy_over_images() -> None:
    data = stripes(40)  # batches of 16, 16, 8
    losses: list[float] = []

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        value = nn.functional.cross_entropy(logits, labels)
        losses.append(value.item())
        return value

    history = fit(Net(), data, loss=loss, **SMALL | {"epochs": 1})
    assert len(losses) == 3
    assert history.final["loss"] == pytest.approx(sum(losses) / 3, rel=1e-6)
    assert (history.final["train_accuracy"] * 40) == pytest.approx(round(history.final["train_accuracy"] * 40))


def test_drop_last_leaves_out_the_rest() -> None:
    sizes: list[int] = []

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        sizes.append(len(labels))
        return nn.functional.cross_entropy(logits, labels)

    fit(Net(), stripes(40), loss=loss, **SMALL | {"epochs": 1}, drop_last=True)
    assert sizes == [16, 16]


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(amp: str) -> None:
    runs = []
    for seed in (0, 0, 1):
        net = Net()
        history = fit(net, stripes(), stripes(seed=1), **SMALL, seed=seed, amp=amp, augment=Augment(flip="random"))
        runs.append((weights(net), history.curve("loss"), history.curve("test_loss")))
    assert_same(runs[0][0], runs[1][0])
    assert runs[0][1:] == runs[1][1:]
    assert runs[0][1] != runs[2][1]


def test_the_callers_random_numbers_and_the_seed_of_dropout_are_apart() -> None:
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    net = Net()
    fit(net, stripes(), **SMALL)
    assert torch.equal(torch.rand(3), expected), "fit moved the caller's generator"
    other = Net()
    torch.manual_seed(7)  # the caller's state must not reach dropout
    fit(other, stripes(), **SMALL)
    assert_same(weights(net), weights(other))


def test_fit_leaves_evaluation_mode_and_evaluate_leaves_the_mode_as_found() -> None:
    net = Net()
    fit(net, stripes(), **SMALL | {"epochs": 1})
    assert not any(module.training for module in net.modules())
    net.train()
    net.body[1].eval()
    evaluate(net, stripes())
    assert net.training
    assert net.body[3].training
    assert not net.body[1].training


def test_label_smoothing_is_that_of_cross_entropy() -> None:
    for smoothing in (0.0, 0.2):
        net, data = Net(), stripes(16)
        net.body[3].p = 0.0
        with torch.no_grad():
            expected = nn.functional.cross_entropy(net.train()(data.images), data.labels, label_smoothing=smoothing)
        net = Net()
        net.body[3].p = 0.0
        history = fit(net, data, **SMALL | {"epochs": 1}, label_smoothing=smoothing, amp="off")
        assert history.final["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_evaluate_does_not_depend_on_the_batch_size() -> None:
    net, data = Net(), stripes(50)
    one, other = evaluate(net, data, batch_size=50), evaluate(net, data, batch_size=7)
    assert one["accuracy"] == other["accuracy"]
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)
    assert one["n"] == 50
    with torch.no_grad():
        logits = net.eval()(data.images)
    assert one["accuracy"] == (logits.argmax(1) == data.labels).sum().item() / 50


def test_maps_of_keeps_the_order_of_the_images() -> None:
    net, data = Net(), stripes(20)
    maps = maps_of(net, data, batch_size=6)
    with torch.no_grad():
        expected = net.eval()(data.images, return_maps=True)[1]
    assert list(maps) == ["layer1"]
    torch.testing.assert_close(maps["layer1"], expected["layer1"])


def test_lines_are_the_same_for_the_same_seed_and_hold_no_time(capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for _ in range(2):
        history = fit(Net(), stripes(), stripes(seed=1), **SMALL | {"progress": "lines"})
        texts.append(capsys.readouterr().out + repr(history))
    assert texts[0] == texts[1]
    assert texts[0].startswith("epoch 1/3  lr ")
    assert texts[0].count("\n") == 3
    assert "test_accuracy" in texts[0]


def test_a_bar_goes_to_standard_error_and_silence_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    fit(Net(), stripes(), **SMALL)
    assert capsys.readouterr() == ("", "")
    fit(Net(), stripes(), **SMALL | {"progress": "bar"})
    assert "12/12" in capsys.readouterr().err


def test_a_network_in_double_precision_stays_there() -> None:
    class Double(Net):
        def forward(self, images: torch.Tensor, return_maps: bool = False):
            return self.head(self.body(images.double() / 255).mean(3).flatten(1))

    kinds: list[torch.dtype] = []

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        kinds.append(logits.dtype)
        return nn.functional.cross_entropy(logits, labels)

    fit(Double().double(), stripes(16), loss=loss, **SMALL | {"epochs": 1}, amp="off")
    fit(Net(), stripes(16), loss=loss, **SMALL | {"epochs": 1}, amp="bf16")
    assert kinds == [torch.float64, torch.float32]


# --- what goes wrong, and what is said


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path) -> None:
    path, calls = tmp_path / "run.safetensors", []

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        calls.append(0)
        value = nn.functional.cross_entropy(logits, labels)
        return value * float("nan") if len(calls) == 7 else value  # 4 steps per epoch: epoch 2, step 3

    with pytest.raises(FloatingPointError, match=r"nan in epoch 2, step 3 of 4: try a lower lr"):
        fit(Net(), stripes(), loss=loss, **SMALL, checkpoint=path)
    tensors, metadata = checkpoint.read(path)
    assert [record["epoch"] for record in metadata["epochs"]] == [1]
    assert all(t.isfinite().all() for t in tensors.values() if t.is_floating_point())


def test_a_weight_that_blows_up_in_the_last_step_is_found_too(tmp_path) -> None:
    path, calls = tmp_path / "run.safetensors", []

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        calls.append(0)
        value = nn.functional.cross_entropy(logits, labels)
        if len(calls) == 4:
            logits.register_hook(lambda gradient: gradient * float("inf"))
        return value

    with pytest.raises(FloatingPointError, match=r"is not finite after epoch 1, step 4 of 4"):
        fit(Net(), stripes(), loss=loss, **SMALL, checkpoint=path)
    assert not path.exists()


def test_too_few_classes_are_found_before_the_first_step() -> None:
    with pytest.raises(ValueError, match=r"labels up to 2 and the model 2 classes; create the model with classes=3"):
        fit(Net(classes=2), stripes(), **SMALL)
    with pytest.raises(ValueError, match="classes=3"):
        evaluate(Net(classes=2), stripes())


def test_a_model_that_gives_no_logits_is_named() -> None:
    class Wrong(Net):
        def forward(self, images: torch.Tensor, return_maps: bool = False):
            return self.body(images.float())

    with pytest.raises(ValueError, match=r"to logits \(N, K\), got \(2, 6, 9, 8\)"):
        fit(Wrong(), stripes(), **SMALL)


def test_a_last_batch_of_one_is_refused_where_batch_norm_needs_two() -> None:
    net = nn.Sequential(nn.Flatten(), Scale(), nn.Linear(3 * 9 * 8, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    with pytest.raises(ValueError, match="drop_last=True"):
        fit(net, stripes(33), **SMALL)
    fit(net, stripes(33), **SMALL | {"epochs": 1}, drop_last=True)


class Scale(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float() / 255


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fit(Net(), stripes(8), **SMALL, drop_last=True), ValueError, "make no batch of 16"),
        (lambda: fit(Net(), stripes(), **SMALL | {"device": "gpu"}), ValueError, "device must be 'auto'"),
        (lambda: fit(Net(), stripes(), **SMALL | {"progress": "line"}), ValueError, "did you mean 'lines'"),
        (lambda: fit(Net(), stripes(), **SMALL, augment="flip"), TypeError, "augment must be an Augment"),
        (
            lambda: fit(Net(), stripes(), loss=nn.functional.cross_entropy, **SMALL, label_smoothing=0.1),
            ValueError,
            "label_smoothing belongs to the default loss",
        ),
        (lambda: fit(Net().requires_grad_(False), stripes(), **SMALL), ValueError, "no parameter that learns"),
        (lambda: evaluate(Net(), stripes().subset([])), ValueError, "is empty"),
        (lambda: History([{"loss": 1.0}], Settings()).curve("los"), ValueError, "did you mean 'loss'"),
    ],
)
def test_misuse_is_answered_with_what_to_do(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_amp_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert autocast_dtype("off", cpu) is None
    assert autocast_dtype("bf16", cpu) is torch.bfloat16
    for flags, expected in ((frozenset({"avx2"}), None), (frozenset({"avx512_bf16"}), torch.bfloat16)):
        monkeypatch.setattr("payattn.train._cpu_flags", lambda flags=flags: flags)
        assert autocast_dtype("auto", cpu) is expected
    for capability, expected in (((6, 1), None), ((7, 5), torch.float16), ((9, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert autocast_dtype("auto", torch.device("cuda")) is expected


def test_a_cuda_device_that_is_not_there_is_said_to_be_missing() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ValueError, match="payattn doctor"):
        pick_device("cuda")


# --- resuming


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_run_stopped_between_epochs_and_resumed_gives_the_same_bits(tmp_path, optimizer: str) -> None:
    choices = SMALL | {"epochs": 4, "optimizer": optimizer, "lr": 0.01, "augment": Augment(flip="random", pad=2)}
    whole, history = Net(), None
    history = fit(whole, stripes(), stripes(seed=1), **choices)

    def stop(record: dict) -> None:
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    path = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        fit(Net(), stripes(), stripes(seed=1), **choices, checkpoint=path, on_epoch=stop)
    torch.manual_seed(99)  # another process would have another state
    resumed = Net(seed=5)  # and other initial weights
    again = fit(resumed, stripes(), stripes(seed=1), **choices, checkpoint=path)
    assert_same(weights(whole), weights(resumed))
    assert again.curve("loss") == history.curve("loss")
    assert again.curve("test_loss") == history.curve("test_loss")


def test_a_finished_run_is_read_back_without_training(tmp_path) -> None:
    path = tmp_path / "run.safetensors"
    net = Net()
    history = fit(net, stripes(), **SMALL, checkpoint=path)
    before, other = path.read_bytes(), Net(seed=3)
    again = fit(other, stripes(), **SMALL, checkpoint=path)
    assert_same(weights(net), weights(other))
    assert again.epochs == history.epochs
    assert path.read_bytes() == before


def test_a_checkpoint_of_another_run_is_refused_and_the_differences_named(tmp_path) -> None:
    path = tmp_path / "run.safetensors"
    fit(Net(), stripes(), **SMALL, checkpoint=path)
    with pytest.raises(ValueError, match=r"settings lr was 0.05 and is now 0.1; settings seed was 0 and is now 4\. "):
        fit(Net(), stripes(), **SMALL | {"lr": 0.1}, seed=4, checkpoint=path)
    with pytest.raises(ValueError, match=r"data digest was '[0-9a-f]{64}' and is now"):
        fit(Net(), stripes(seed=1), **SMALL, checkpoint=path)
    with pytest.raises(ValueError, match=r"shapes head.bias was \[3\] and is now \[5\]"):
        fit(Net(classes=5), stripes(), **SMALL, checkpoint=path)
    with pytest.raises(ValueError, match="loss was 'cross-entropy' and is now 'cross_entropy'"):
        fit(Net(), stripes(), loss=nn.functional.cross_entropy, **SMALL, checkpoint=path)


def test_a_damaged_checkpoint_is_named_before_anything_is_trained(tmp_path) -> None:
    path = tmp_path / "run.safetensors"
    fit(Net(), stripes(), **SMALL, checkpoint=path)
    path.write_bytes(path.read_bytes()[:-100])
    net = Net()
    before = weights(net)
    with pytest.raises(ValueError, match=r"run\.safetensors is cut off or damaged"):
        fit(net, stripes(), **SMALL, checkpoint=path)
    assert_same(before, weights(net))


KILLED_AT_RANDOM = """
import importlib.util, os, random, signal, sys, time
import torch
from payattn import checkpoint

spec = importlib.util.spec_from_file_location("parts", sys.argv[1])
parts = importlib.util.module_from_spec(spec)
spec.loader.exec_module(parts)
choices = parts.SMALL | {"epochs": 40, "lr": 0.01, "augment": parts.Augment(flip="random"), "progress": "lines"}

warm = torch.nn.Linear(1, 1)  # the first step of an optimiser imports a lot: once here, not in every child
warm.weight.grad = torch.zeros(1, 1)
parts.make_optimizer(warm, parts.Settings()).step()
checkpoint.write(sys.argv[2] + ".warm", {}, {})

def start(path, seed):
    "Train in a process of its own; returns its id and what it prints."
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(into, 1)
        torch.set_num_threads(1)
        parts.fit(parts.Net(seed=seed), parts.stripes(), **choices, checkpoint=path)
        os._exit(0)
    os.close(into)
    return pid, open(out)

def finish(path, seed):
    pid, out = start(path, seed)
    out.read()
    assert os.waitpid(pid, 0)[1] == 0

whole, path = sys.argv[2:]
finish(whole, 0)
draw, kills = random.Random(0), 0
for attempt in range(8):
    pid, out = start(path, attempt)  # from the second on with other initial weights: the file holds the right ones
    for _ in range(draw.randint(1, 4)):  # counted in epochs, for a busy machine must get on too
        out.readline()
    time.sleep(draw.uniform(0, 0.03))  # anywhere in the next epoch, or while its checkpoint is written
    os.kill(pid, signal.SIGKILL)
    kills += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    out.close()
finish(path, 77)
print(kills)
"""


def test_a_run_killed_at_random_moments_and_resumed_gives_the_same_bits(tmp_path) -> None:
    whole, path = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    command = [sys.executable, "-c", KILLED_AT_RANDOM, __file__, str(whole), str(path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= 4, "the run was too fast to be killed; the test proves nothing"
    expected, got = checkpoint.read(whole), checkpoint.read(path)
    assert_same(expected[0], got[0])
    losses = [[record["loss"] for record in metadata["epochs"]] for _, metadata in (expected, got)]
    assert losses[0] == losses[1]


KILLED_WHILE_WRITING = """
import os, signal, sys
import torch
from payattn import checkpoint

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

class Half:
    def __init__(self, file):
        self.file = file
    def __enter__(self):
        return self
    def __exit__(self, *_):
        pass
    def write(self, content):
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        die()

for moment in ("open", "write", "fsync", "replace"):
    path = os.path.join(sys.argv[1], moment)
    checkpoint.write(path, {"x": torch.zeros(1000)}, {"epoch": 1})
    pid = os.fork()
    if pid == 0:
        if moment in ("fsync", "replace"):
            setattr(os, moment, die)
        else:
            checkpoint.open = lambda *a: die() if moment == "open" else Half(open(*a))
        checkpoint.write(path, {"x": torch.ones(1000)}, {"epoch": 2})
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
"""


def test_a_kill_inside_the_write_leaves_the_old_checkpoint_whole(tmp_path) -> None:
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "write.part").stat().st_size > 0, "it was killed before it wrote; the test proves nothing"
    for moment in ("open", "write", "fsync", "replace"):
        tensors, metadata = checkpoint.read(tmp_path / moment)
        assert metadata == {"epoch": 1}
        assert torch.equal(tensors["x"], torch.zeros(1000))
        # what the dead one left is no hindrance
        checkpoint.write(tmp_path / moment, {"x": torch.ones(1000)}, {"epoch": 2})
        assert checkpoint.read(tmp_path / moment)[1] == {"epoch": 2}
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_a_run_on_a_gpu_resumes_and_gives_the_callers_random_numbers_back(tmp_path, amp: str) -> None:
    choices = SMALL | {"device": "cuda", "epochs": 4, "amp": amp, "augment": Augment(flip="random", pad=2)}

    def stop(record: dict) -> None:
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    torch.cuda.manual_seed(3)
    expected = torch.rand(3, device="cuda")
    torch.cuda.manual_seed(3)
    history = fit(Net(), stripes(), **choices)
    assert torch.equal(torch.rand(3, device="cuda"), expected)
    path = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        fit(Net(), stripes(), **choices, checkpoint=path, on_epoch=stop)
    again = fit(Net(seed=5), stripes(), **choices, checkpoint=path)
    # convolutions on a GPU add in no fixed order
    assert again.curve("loss") == pytest.approx(history.curve("loss"), rel=0.02)
