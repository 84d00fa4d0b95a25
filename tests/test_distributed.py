"""Two processes on a CPU, started by torchrun, against one: the same losses, weights and statistics.

The scenarios are functions here. This file, started as a script by torchrun, runs them in two processes and stores what
came out; the tests run them in one process and compare.
"""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from payattn import checkpoint, cli, distributed, recipes
from payattn.data import Augment, FileSet, ImageSet, batches, glyphs
from payattn.models import create
from payattn.train import Settings, evaluate, fit
from payattn.transfer import Distill

FIT: dict[str, Any] = {"lr": 0.05, "amp": "off", "device": "cpu", "progress": False}
AUGMENT = Augment(flip="random", pad=1, cutout=2, pca=0.1)
TINY = """
title = "tiny"
[defaults]
data = "glyphs"
data_options = { n_train = 20, n_test = 9, size = 16 }
options = { width = 0.03125, dropout = 0.0 }
settings = { epochs = 2, batch_size = 10, lr = 0.01, amp = "off" }
[rows.pc]
model = "vgg-att2-concat-pc"
[rows.teacher]
model = "wrn-10-1"
options = { width = 0.25 }
[rows.at]
model = "wrn-10-1"
options = { width = 0.25 }
teacher = "tiny/teacher"
transfer = { layers = ["group1"], beta = 100 }
"""


def stripes(n: int, seed: int = 0) -> ImageSet:
    """Noise in which one of three bands is dark; the band is the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (n,), generator=generator)
    images = torch.randint(256, (n, 3, 9, 8), generator=generator).byte()
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 3 * label : 3 * label + 3] //= 4
    return ImageSet(images, labels, ("top", "middle", "bottom"), name="stripes")


class Net(nn.Module):
    """Every kind of batch norm, dropout where asked, and a parameter that the loss does not reach."""

    def __init__(self, dropout: float = 0.0, momentum: float | None = 0.1) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            self.body = nn.Sequential(
                nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
                nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6, affine=False, momentum=momentum),
                nn.ReLU(), nn.Dropout(dropout),
            )  # fmt: skip
            self.norm = nn.BatchNorm1d(6 * 9)
            self.head = nn.Linear(6 * 9, 3)
            self.spare = nn.Linear(4, 4)

    def forward(self, images: Tensor) -> Tensor:
        local = self.body(images.to(self.head.weight.dtype) / 255)
        return self.head(self.norm(local.mean(3).flatten(1)))


def outcome(model: nn.Module, history: Any) -> dict[str, Any]:
    timeless = [{k: v for k, v in e.items() if k not in ("seconds", "images_per_second")} for e in history.epochs]
    return {"epochs": timeless, "state": {name: t.clone() for name, t in model.state_dict().items()}}


def uneven(folder: Path) -> dict[str, Any]:
    """27 images in batches of 8: the last one holds 3, two for one process and one for the other."""
    net = Net()
    return outcome(net, fit(net, stripes(27), stripes(13, 1), epochs=2, batch_size=8, augment=AUGMENT, **FIT))


def other_loss(folder: Path) -> dict[str, Any]:
    """A loss of one's own, Adam, and statistics that are means over all steps."""
    net = Net(momentum=None)
    choices = {**FIT, "lr": 3e-3, "optimizer": "adam", "loss": nn.MultiMarginLoss()}
    return outcome(net, fit(net, stripes(21), epochs=2, batch_size=8, **choices))


def residual(folder: Path) -> dict[str, Any]:
    """A narrow Attention-56 with all its batch norms, in double precision: 57 layers amplify what float32 rounds.

    Its modules are computed once more in the backward pass, and their statistics move once all the same.
    """
    torch.manual_seed(0)
    net = create("attention-56", 10, width=0.0625, recompute=True).double()
    data = glyphs(11, size=24)
    return outcome(net, fit(net, data, glyphs(5, size=24, seed=1), epochs=1, batch_size=8, augment=AUGMENT, **FIT))


def taught(folder: Path) -> dict[str, Any]:
    """A student that learns from a teacher, whose answers each process keeps; double precision, as in ``residual``."""
    torch.manual_seed(0)
    teacher, student = (create("wrn-10-1", 3, width=width).double() for width in (0.25, 0.125))
    data = stripes(19)
    distill = Distill(teacher, student, ["group1", "group2"], beta=10, kd=0.5, schedule="linear")
    distill.cache(data)
    return outcome(student, fit(student, data, stripes(7, 1), epochs=2, batch_size=8, loss=distill, **FIT))


def half_precision(folder: Path) -> dict[str, Any]:
    net = Net()
    return outcome(net, fit(net, stripes(16), epochs=2, batch_size=8, **FIT | {"amp": "bf16"}))


def files(folder: Path) -> dict[str, Any]:
    """Images of files, cut out at random, read by worker processes."""
    data = picture_files(folder)
    net = Net()
    augment = Augment(flip="random", crop=0.3, pca=0.1)
    return outcome(net, fit(net, data, data, epochs=2, batch_size=7, augment=augment, **FIT))


def picture_files(folder: Path) -> FileSet:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    data = stripes(17)
    names = [f"{k}.png" for k in range(len(data))]

    def write() -> None:
        for name, image in zip(names, data.images, strict=True):
            Image.fromarray(image.permute(1, 2, 0).numpy()).resize((31, 24)).save(folder / name)

    distributed.from_main(write)
    return FileSet(folder, tuple(names), data.labels, data.classes, size=(9, 8), workers=1)


SAME: dict[str, Callable[[Path], dict[str, Any]]] = {
    f.__name__: f for f in (uneven, other_loss, residual, taught, half_precision, files)
}
TOLERANCE = {"residual": 1e-10, "taught": 1e-6, "half_precision": 2e-2}
"""Of weights and statistics, absolute; 2e-5 for the others, which compute in float32."""


def long_run(folder: Path, loss: Callable[[Tensor, Tensor], Tensor] | None = None) -> dict[str, Any]:
    """Four epochs with dropout, whose random numbers are other ones in each process."""
    net = Net(dropout=0.3)
    choices = {**FIT, "augment": AUGMENT, "loss": loss, "checkpoint": folder / "run.safetensors"}
    return outcome(net, fit(net, stripes(24), epochs=4, batch_size=8, **choices))


class CrossEntropy(nn.Module):
    """The usual loss that in one process ends the whole run, in the middle of an epoch."""

    def __init__(self, at: int, end: Callable[[], Any]) -> None:
        super().__init__()
        self.at, self.end, self.calls = at, end, 0

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at and distributed.rank() == 1:
            self.end()
        return nn.functional.cross_entropy(logits, labels)


def own_statistics(folder: Path) -> dict[str, Any]:
    """One step without momentum of the statistics: what is kept is the mean over the first process's slice."""
    net = Net()
    net.body[1].momentum = 1.0
    data = stripes(8)
    fit(net, data, epochs=1, batch_size=8, sync_batch_norm=False, **FIT | {"lr": 0.0})
    return {"mean": net.body[1].running_mean.clone()}


def unwrapped(folder: Path) -> dict[str, Any]:
    """The network is left as it came, and is so whenever a caller sees it; a second training works."""
    net, seen = Net(), []

    def look(record: dict[str, Any]) -> None:
        copied = copy.deepcopy(net)
        with torch.no_grad():
            changed = [p.zero_() for p in copied.parameters()]
            seen.append(bool(changed) and bool(net(stripes(2).images).abs().sum() > 0))

    modules, names = [type(m) for m in net.modules()], list(net.state_dict())
    for _ in range(2):
        fit(net, stripes(8), epochs=1, batch_size=8, on_epoch=look, **FIT)
    plain = all("forward" not in vars(module) for module in net.modules())
    return {"types": modules == [type(m) for m in net.modules()], "names": names == list(net.state_dict()),
            "seen": seen, "plain": plain, "training": net.training}  # fmt: skip


def said(call: Callable[[], Any]) -> str:
    try:
        call()
    except (ValueError, FloatingPointError, ConnectionError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def errors(folder: Path) -> dict[str, Any]:
    """Every process says the same, and goes on."""
    damaged = folder / "damaged.safetensors"
    odd = nn.Sequential(OwnNorm(3), nn.Flatten(), nn.Linear(3 * 72, 3), nn.Identity())
    rank = distributed.rank()

    class Float(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = odd

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.float())

    return {
        "small": said(lambda: fit(Net(), stripes(9), epochs=1, batch_size=8, **FIT)),
        "smaller": said(lambda: fit(nn.Sequential(nn.Flatten(), nn.Linear(216, 3)), stripes(9), batch_size=8, **FIT)),
        "slices": said(lambda: fit(Net(), stripes(11), epochs=1, batch_size=8, sync_batch_norm=False, **FIT)),
        "data": said(lambda: fit(Net(), stripes(16, rank), epochs=1, batch_size=8, **FIT)),
        "lr": said(lambda: fit(Net(), stripes(16), epochs=1, batch_size=8, **FIT | {"lr": 0.05 + rank})),
        "damaged": said(lambda: fit(Net(), stripes(16), epochs=1, batch_size=8, checkpoint=damaged, **FIT)),
        "nan": said(lambda: fit(Net(), stripes(16), epochs=1, batch_size=8, loss=lambda a, b: a.sum() / 0, **FIT)),
        "norm": said(lambda: fit(Float(), stripes(16), epochs=1, batch_size=8, **FIT)),
    }


def command(folder: Path) -> dict[str, Any]:
    """``payattn train``, twice: the second finds the result."""
    table = folder / "recipes" / "paper" / "tiny.toml"
    distributed.from_main(lambda: checkpoint.write_atomically(table, TINY.encode()))
    recipes.folder = lambda: folder / "recipes"  # type: ignore[assignment]
    given = ["train", "tiny/pc", "--device", "cpu", "--results", str(folder / "results")]
    given += ["--checkpoint", str(folder / "runs")]
    wrong = [*given, "--data", str(folder / "nothing.npz"), "--force"]
    by_teacher = ["train", "tiny/at", *given[2:]]
    return {"codes": [cli.main(arguments) for arguments in (given, given, wrong, by_teacher)]}


def main(what: str, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.start(torch.device("cpu"))
    if what == "all":
        (folder / "damaged.safetensors").write_bytes(b"no checkpoint")
        found: dict[str, Any] = {name: scenario(folder / name) for name, scenario in SAME.items()}
        for scenario in (own_statistics, unwrapped, errors, command):
            found[scenario.__name__] = scenario(folder)
        found["whole"] = long_run(folder / "whole")
        found["evaluate"] = evaluate(Net(), stripes(7))
        found["few"] = evaluate(Net(), stripes(1))
        every = distributed.gather(found)
        if distributed.is_main():
            torch.save(every, folder / "found.pt")
    elif what == "kill":
        long_run(folder / "killed", CrossEntropy(8, lambda: os.kill(os.getpid(), signal.SIGKILL)))
    else:
        found = long_run(folder / "killed", CrossEntropy(10**9, print))
        if distributed.is_main():
            torch.save(found, folder / "resumed.pt")
        long_run(folder / "error", CrossEntropy(2, Path("no-such-file-of-process-2").read_bytes))


def torchrun(what: str, folder: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    root = str(Path(__file__).resolve().parent.parent)
    known = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    return subprocess.run([*line, __file__, what, str(folder)], capture_output=True, text=True, env=known, timeout=900)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("together")


@pytest.fixture(scope="module")
def launched(folder: Path) -> tuple[list[dict[str, Any]], str]:
    """What both processes found, and what they printed."""
    done = torchrun("all", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "found.pt", weights_only=False), done.stdout + done.stderr


@pytest.mark.parametrize("name", SAME)
def test_two_processes_give_the_losses_weights_and_statistics_of_one(name: str, launched, folder: Path) -> None:
    one, two = SAME[name](folder / name), launched[0][0][name]
    tolerance = TOLERANCE.get(name, 2e-5)
    for before, after in zip(one["epochs"], two["epochs"], strict=True):
        assert before.keys() == after.keys()
        assert after == pytest.approx(before, abs=max(tolerance, 1e-6))  # losses are kept in float32
    assert one["state"].keys() == two["state"].keys()
    for key, value in one["state"].items():
        close = {"atol": tolerance, "rtol": tolerance}
        torch.testing.assert_close(two["state"][key], value, **close, msg=lambda said, key=key: f"{key}: {said}")


def test_all_processes_return_the_same_history_and_weights(launched) -> None:
    first, second = launched[0]
    for name in (*SAME, "whole"):
        assert first[name]["epochs"] == second[name]["epochs"]
        for key, value in first[name]["state"].items():
            assert torch.equal(value, second[name]["state"][key]), (name, key)


def test_a_parameter_that_the_loss_does_not_reach_stays_as_it_is(launched) -> None:
    assert torch.equal(launched[0][0]["uneven"]["state"]["spare.weight"], Net().spare.weight)


def test_evaluate_shares_the_work_and_all_get_the_whole(launched) -> None:
    for found in launched[0]:
        for name, n in (("evaluate", 7), ("few", 1)):
            one = evaluate(Net(), stripes(n))
            assert found[name]["n"] == n
            assert found[name] == pytest.approx(one, rel=1e-6)


def test_without_synchronised_statistics_those_of_the_first_process_are_kept(launched) -> None:
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))  # of the first epoch with seed 0
    net, images = Net(), stripes(8).images[order[:4]]
    expected = net.body[0](images.float() / 255).mean((0, 2, 3))
    for found in launched[0]:
        torch.testing.assert_close(found["own_statistics"]["mean"], expected.detach(), atol=1e-5, rtol=1e-5)


def test_the_network_is_left_unwrapped_and_can_be_copied_and_trained_again(launched) -> None:
    for found in launched[0]:
        assert found["unwrapped"] == {
            "types": True, "names": True, "seen": [True, True], "plain": True, "training": False
        }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("small", "ValueError: the last of the batches of 8 would hold one image, and batch norm needs two"),
        ("smaller", "ValueError: a batch of 1 image is too small for 2 processes: use drop_last=True"),
        ("slices", "ValueError: the last of the batches of 8 would hold one image per process, and batch norm"),
        ("data", "ValueError: the processes do not do the same: in process 2 data digest was"),
        ("lr", "ValueError: the processes do not do the same: in process 2 settings lr was 0.05 and is now 1.05"),
        ("damaged", "damaged.safetensors is cut off or damaged"),
        ("nan", "FloatingPointError: the loss became "),
        ("norm", "ValueError: net.0 is a OwnNorm, which computes in its own way and cannot be synchronised"),
    ],
)
def test_an_error_reaches_all_processes(launched, name: str, message: str) -> None:
    for found in launched[0]:
        assert message in found["errors"][name]


def test_the_command_writes_and_speaks_once(launched, folder: Path) -> None:
    said = launched[1]
    assert [found["command"]["codes"] for found in launched[0]] == [[0, 0, 2, 0], [0, 0, 2, 0]]
    assert said.count("weights in ") == 2
    assert said.count("is recorded already; --force runs it again") == 1
    result = json.loads((folder / "results" / "paper" / "tiny" / "pc" / "seed0.json").read_text())
    assert result["environment"]["processes"] == 2
    assert result["data"]["test"]["images"] == result["final"]["n"] == 9


def test_the_command_trains_a_teacher_and_then_its_student_as_one_process_does(
    launched, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "folder", lambda: folder / "recipes")
    two = json.loads((folder / "results" / "paper" / "tiny" / "at" / "seed0.json").read_text())
    assert two["environment"]["processes"] == 2 and two["transfer"]["teacher"] == "paper/tiny/teacher"
    assert (folder / "runs" / "paper" / "tiny" / "teacher" / "seed0.safetensors").is_file()
    one = recipes.run(recipes.get("tiny/at"), 0, device="cpu", results_root=None, progress=False)
    losses = [[epoch["loss"] for epoch in run["epochs"]] for run in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_a_run_killed_in_an_epoch_and_started_again_gives_the_same_bits(launched, folder: Path) -> None:
    killed = torchrun("kill", folder)
    assert killed.returncode != 0
    kept = checkpoint.read(folder / "killed" / "run.safetensors")[1]["epochs"]
    assert len(kept) == 2  # steps 7 to 9 are epoch 3
    start = time.monotonic()
    again = torchrun("resume", folder)
    resumed = torch.load(folder / "resumed.pt", weights_only=False)
    whole = launched[0][0]["whole"]
    assert resumed["epochs"] == whole["epochs"]
    assert [key for key, value in whole["state"].items() if not torch.equal(value, resumed["state"][key])] == []
    # the same start ends with an error in one process, and that ends the other long before its patience does
    assert again.returncode != 0
    assert "no-such-file-of-process-2" in again.stderr
    assert time.monotonic() - start < distributed.PATIENCE.total_seconds()


def test_old_settings_without_the_new_fields_are_read() -> None:
    old = {"epochs": 3, "augment": {"flip": "half", "pad": 2, "cutout": 0}}
    settings = Settings.from_dict(old)
    assert settings.sync_batch_norm
    assert settings.augment == Augment(flip="half", pad=2)


def test_a_checkpoint_from_before_the_new_fields_continues(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    history = fit(Net(), stripes(16), epochs=1, batch_size=8, augment=AUGMENT, checkpoint=path, **FIT)
    tensors, metadata = checkpoint.read(path)
    del metadata["settings"]["sync_batch_norm"], metadata["settings"]["augment"]["crop"]
    checkpoint.write(path, tensors, metadata)
    again = fit(Net(), stripes(16), epochs=1, batch_size=8, augment=AUGMENT, checkpoint=path, **FIT)
    assert again.epochs == history.epochs


@pytest.mark.parametrize("processes", [2, 3])
def test_the_slices_of_all_processes_are_the_batches_of_one(processes: int) -> None:
    def drawn(which: int, of: int) -> list[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(3)
        return list(batches(stripes(20), 8, generator=generator, augment=AUGMENT, share=(which, of)))

    parts = [drawn(which, processes) for which in range(processes)]
    for whole, *slices in zip(drawn(0, 1), *parts, strict=True):
        assert max(len(labels) for _, labels in slices) - min(len(labels) for _, labels in slices) <= 1
        for k in range(2):
            assert torch.equal(torch.cat([one[k] for one in slices]), whole[k])


def test_one_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    assert distributed.parallel(net, torch.zeros(1)) is net
    with distributed.synchronised(net):
        assert all("forward" not in vars(module) for module in net.modules())
    assert not distributed.launched()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match="several processes compute on CPUs or on CUDA devices, got mps"):
        distributed.start(torch.device("mps"))


def test_more_processes_than_cuda_devices_are_told_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert distributed.device_here() == torch.device("cuda:1")
    with pytest.raises(ValueError, match="each process needs its own CUDA device, got cuda:0"):
        distributed.start(torch.device("cuda:0"))
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match=r"process 3 on a machine with 2 CUDA devices: start with --nproc_per_node 2"):
        distributed.device_here()


def test_a_lost_process_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "size", lambda: 2)
    with pytest.raises(ConnectionError, match="waits in vain for another one, which has ended"), distributed.together():
        raise RuntimeError("[..pair.cc:534] Connection closed by peer [127.0.0.1]:1234")
    with pytest.raises(RuntimeError, match="shape"), distributed.together():
        raise RuntimeError("shape '[2, 3]' is invalid")


@pytest.mark.parametrize("choices", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}])
@pytest.mark.parametrize(("kind", "shape"), [(nn.BatchNorm2d, (5, 3, 4, 2)), (nn.BatchNorm1d, (6, 3))])
def test_the_batch_norm_of_several_processes_is_torchs_in_one(
    kind: type, shape: tuple[int, ...], choices: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda total: None)
    generator = torch.Generator().manual_seed(0)
    ours, torchs = (kind(3, eps=1e-3, **choices).double() for _ in "ab")
    if ours.affine:
        with torch.no_grad():
            ours.weight.copy_(torch.rand(3, generator=generator))
            torchs.weight.copy_(ours.weight)
    for _ in range(2):
        x = (3 * torch.randn(shape, generator=generator, dtype=torch.float64) + 100).requires_grad_()
        y = x.detach().clone().requires_grad_()
        weights = torch.randn(shape, generator=generator, dtype=torch.float64)
        one, other = distributed.whole_batch_norm(ours, x), torchs(y)
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
        (one * weights).sum().backward()
        (other * weights).sum().backward()
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-9, atol=1e-9)
    for name, value in torchs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    assert torch.autograd.gradgradcheck(lambda z: distributed.whole_batch_norm(ours.train(), z - 100), x)
    assert distributed.whole_batch_norm(ours, x.detach().bfloat16()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="more than one value per channel"):
        distributed.whole_batch_norm(ours, x[:1, :, :1, :1] if x.ndim == 4 else x[:1])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
