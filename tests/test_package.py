"""What ``import payattn`` promises: it loads little, and every name it lists is there."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version

import pytest

import payattn

HEAVY = ("torchvision", "matplotlib", "ipywidgets", "IPython", "sklearn", "scipy", "pandas", "tqdm", "safetensors")


def in_a_fresh_interpreter(code: str) -> list[str]:
    """Run ``code``, which leaves a list of strings in ``answer``."""
    code = f"import json, sys\n{code}\nprint(json.dumps(answer))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer: list[str] = json.loads(done.stdout)
    return answer


def test_importing_the_package_loads_nothing_heavy() -> None:
    answer = in_a_fresh_interpreter("import payattn; answer = sorted(sys.modules)")
    assert "payattn" in answer
    assert [name for name in answer if name.split(".")[0] in HEAVY] == []
    assert [name for name in answer if name.startswith("payattn.")] == [], "submodules load when they are used"


def test_building_and_asking_a_network_loads_nothing_heavy_either() -> None:
    answer = in_a_fresh_interpreter(
        "import payattn, torch\n"
        "payattn.create('vgg-att-pc', width=0.01).eval()(torch.rand(1, 3, 8, 8), return_maps=True)\n"
        "answer = sorted(sys.modules)"
    )
    assert "payattn.models" in answer
    assert [name for name in answer if name.split(".")[0] in HEAVY[:3]] == []


@pytest.mark.parametrize("name", payattn.__all__)
def test_every_listed_name_is_there(name: str) -> None:
    assert getattr(payattn, name) is not None
    assert name in dir(payattn)


def test_modules_are_listed_under_their_own_names() -> None:
    for name in ("attention", "checkpoint", "data", "models", "plot", "recipes", "results", "train", "widgets"):
        assert getattr(payattn, name) is import_module(f"payattn.{name}")


def test_an_unknown_name_names_the_nearest_one() -> None:
    with pytest.raises(AttributeError, match="payattn has no 'glyph'; did you mean 'glyphs'"):
        payattn.glyph  # noqa: B018
    with pytest.raises(AttributeError, match="payattn has no 'list_model'; did you mean 'list_models'"):
        payattn.list_model  # noqa: B018
    with pytest.raises(AttributeError, match=r"payattn has no 'zzz'$"):
        payattn.zzz  # noqa: B018
    with pytest.raises(ImportError):
        exec("from payattn import glyph")


def test_the_version_is_the_one_that_is_installed() -> None:
    assert payattn.__version__ == version("payattn")
