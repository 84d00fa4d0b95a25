"""Files of tensors: what goes in comes out, and what is damaged or foreign is refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from payattn import checkpoint
from payattn.models import create


@given(
    shape=st.lists(st.integers(0, 4), max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, shape, dtype, seed: int) -> None:
    path = tmp_path_factory.mktemp("a") / "x.safetensors"
    value = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 9).to(dtype)
    metadata = {"seed": seed, "lr": 0.1 + seed / 7, "names": ["a", "ö"], "none": None}
    checkpoint.write(path, {"x": value, "y.z": value[None]}, metadata)
    tensors, got = checkpoint.read(path)
    assert got == metadata
    assert tensors["x"].dtype == dtype
    assert torch.equal(tensors["x"], value)
    assert torch.equal(tensors["y.z"], value[None])


def test_views_that_share_memory_and_channels_last_are_stored_in_full(tmp_path) -> None:
    base = torch.arange(96.0).reshape(2, 3, 4, 4)
    last = base.to(memory_format=torch.channels_last)
    checkpoint.write(tmp_path / "x", {"a": base, "b": base[:, 1:], "c": last, "d": base.expand(2, 3, 4, 4)}, {})
    tensors, _ = checkpoint.read(tmp_path / "x")
    assert torch.equal(tensors["b"], base[:, 1:])
    assert torch.equal(tensors["c"], base)


def test_every_single_flipped_byte_is_noticed(tmp_path) -> None:
    path = tmp_path / "x.safetensors"
    checkpoint.write(path, {"x": torch.arange(5.0)}, {"epoch": 1})
    good = path.read_bytes()
    for position in range(len(good)):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        try:
            tensors, metadata = checkpoint.read(path)
        except ValueError as error:
            assert "x.safetensors" in str(error)  # noqa: PT017 (a flip in the padding of the header is harmless)
        else:
            assert metadata == {"epoch": 1}
            assert torch.equal(tensors["x"], torch.arange(5.0))


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_a_file_cut_off_anywhere_is_named(tmp_path, keep: int) -> None:
    path = tmp_path / "cut.safetensors"
    checkpoint.write(path, {"x": torch.arange(50.0)}, {"epoch": 1})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"cut\.safetensors is cut off or damaged .* delete it"):
        checkpoint.read(path)


def test_files_of_others_are_refused(tmp_path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="no payattn header"):
        checkpoint.read(tmp_path / "foreign.safetensors")
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*missing"):
        checkpoint.read(tmp_path / "missing")
    plain = {"x": torch.zeros(2)}
    header = json.dumps({"format": 99})
    save_file(plain, tmp_path / "new", {"payattn": header, "checksum": checkpoint._checksum(header, plain)})
    with pytest.raises(ValueError, match="another version of payattn"):
        checkpoint.read(tmp_path / "new")


def test_a_checkpoint_rebuilds_its_network(tmp_path) -> None:
    path = tmp_path / "net.safetensors"
    net = create("vgg-att2-concat-dp", 4, width=0.0625, dropout=0.0, mean=(0.4, 0.5, 0.6)).eval()
    checkpoint.save_weights(net, path, {"accuracy": 0.5})
    again = checkpoint.load_model(path)
    images = torch.randint(256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    with torch.no_grad():
        assert torch.equal(net(images), again(images))
    assert not again.training
    assert again.spec == json.loads(json.dumps(net.spec))
    assert checkpoint.read(path)[1]["accuracy"] == 0.5


def test_weights_of_another_network_are_refused_by_name_and_shape(tmp_path) -> None:
    path = tmp_path / "net.safetensors"
    checkpoint.save_weights(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), path)
    with pytest.raises(ValueError, match=r"0\.weight is \(3, 2\) in the file and \(4, 2\) in the model"):
        checkpoint.load_weights(nn.Sequential(nn.Linear(2, 4), nn.Linear(3, 1)), path)
    with pytest.raises(ValueError, match=r"1\.weight is not in the model"):
        checkpoint.load_weights(nn.Sequential(nn.Linear(2, 3)), path)
    with pytest.raises(ValueError, match=r"2\.weight is missing from the file"):
        checkpoint.load_weights(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1), nn.Linear(1, 1)), path)


def test_the_optimizer_comes_back_with_the_memory_order_of_its_parameters() -> None:
    conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    sgd = torch.optim.SGD(conv.parameters(), 0.1, momentum=0.9)
    conv(torch.rand(2, 3, 5, 5)).sum().backward()
    sgd.step()
    tensors, rest = checkpoint.pack_optimizer(sgd)
    contiguous = {name: t.contiguous() for name, t in tensors.items()}
    other = torch.optim.SGD(conv.parameters(), 0.1, momentum=0.9)
    checkpoint.unpack_optimizer(other, contiguous, json.loads(json.dumps(rest)))
    for parameter in conv.parameters():
        buffer = other.state[parameter]["momentum_buffer"]
        assert torch.equal(buffer, sgd.state[parameter]["momentum_buffer"])
        assert buffer.stride() == parameter.stride()
    assert other.param_groups[0]["momentum"] == 0.9
