"""New domains: features, the SVM against scikit-learn by hand, class names, and the classifier applied as it is."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from torch import Tensor, nn

from payattn.data import ImageSet, glyphs
from payattn.generalize import GRID, direct, features_of, shared_classes, svm
from payattn.models import create

CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
STL = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def drawn(n: int, classes: int = 3, length: int = 6, noise: float = 1.5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features in clouds around one point per class, on very different scales."""
    generator = torch.Generator().manual_seed(seed)
    middles = torch.randn(classes, length, generator=torch.Generator().manual_seed(99))
    y = torch.arange(n) % classes
    x = middles[y] + noise * torch.randn(n, length, generator=generator)
    return x * torch.tensor([1e-3, 1.0, 1e3, 1.0, 1.0, 1.0])[:length] + 5, y


@pytest.mark.parametrize("name", ["vgg", "vgg-gap", "vgg-pan", "vgg-att2-concat-pc", "vgg-att3-indep-dp"])
def test_features_are_those_of_the_whole_set_in_evaluation_mode(name: str) -> None:
    torch.manual_seed(0)
    model, data = create(name, width=0.05), glyphs(7, size=16)
    model.trunk.eval()
    modes = [module.training for module in model.modules()]
    found = features_of(model, data, batch_size=3)
    assert [module.training for module in model.modules()] == modes
    assert found.dtype == torch.float32 and not found.requires_grad and len(found) == 7
    torch.testing.assert_close(found, model.eval().features(data.images).detach())


def test_a_model_that_says_nothing_of_its_features_is_refused() -> None:
    class Torchvision(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Conv2d(3, 4, 3)

    for model in (Torchvision(), nn.Flatten()):
        with pytest.raises(TypeError, match=r"has no method features\(images\)"):
            features_of(model, glyphs(2, size=8))
    with pytest.raises(ValueError, match="empty"):
        features_of(create("vgg", width=0.05), glyphs(2, size=8).subset([]))

    class Maps(nn.Module):
        def features(self, images: Tensor) -> Tensor:
            return images

    with pytest.raises(ValueError, match=r"must be \(2, D\)"):
        features_of(Maps(), glyphs(2, size=8))


def test_the_svm_is_scikit_learns_with_c_from_the_folds() -> None:
    (train_x, train_y), (test_x, test_y) = drawn(90), drawn(60, seed=1)
    folds = StratifiedKFold(5, shuffle=True, random_state=3)
    scores, machines = [], []
    for c in GRID:
        machine = make_pipeline(StandardScaler(), LinearSVC(C=c, dual=False, random_state=3, max_iter=10_000))
        scores.append(cross_val_score(machine, train_x.numpy(), train_y.numpy(), cv=folds).mean())
        machines.append(machine.fit(train_x.numpy(), train_y.numpy()))
    assert max(scores) > min(scores), "every C is as good, and so the choice is not tested"
    best = int(np.argmax(scores))
    found = svm(train_x, train_y, test_x, test_y, seed=3)
    assert found["C"] == pytest.approx(GRID[best])
    assert found["accuracy"] == pytest.approx(machines[best].score(test_x.numpy(), test_y.numpy()))
    fixed = svm(train_x, train_y, test_x, test_y, C=GRID[1])
    assert fixed == {"accuracy": pytest.approx(machines[1].score(test_x.numpy(), test_y.numpy())), "C": GRID[1]}


@given(scale=st.sampled_from([1e-3, 7.0]), shift=st.sampled_from([-30.0, 4.0]), seed=st.integers(0, 9))
def test_the_svm_forgets_the_scale_and_shift_of_each_feature(scale: float, shift: float, seed: int) -> None:
    (train_x, train_y), (test_x, test_y) = drawn(60, seed=seed), drawn(60, seed=seed + 50)
    one = svm(train_x.double(), train_y, test_x.double(), test_y, C=0.01)
    two = svm(scale * train_x.double() + shift, train_y, scale * test_x.double() + shift, test_y, C=0.01)
    assert one == two


def test_the_svm_converges_with_few_images_and_many_features_that_say_nearly_the_same() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(60, 3, generator=generator) @ torch.randn(3, 128, generator=generator)
    x, y = x + 0.1 * torch.randn(60, 128, generator=generator), torch.arange(60) % 10
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svm(x, y, x, y, C=10.0)


def test_clouds_far_apart_are_told_apart_and_labels_may_have_gaps() -> None:
    (train_x, train_y), (test_x, test_y) = drawn(60, noise=0.01), drawn(30, noise=0.01, seed=1)
    names = torch.tensor([4, 0, 17])
    assert svm(train_x, names[train_y], test_x, names[test_y])["accuracy"] == 1
    assert svm(train_x, names[train_y], test_x, names[(test_y + 1) % 3], C=1)["accuracy"] == 0


def test_the_svm_says_what_does_not_fit() -> None:
    x, y = drawn(12)
    for arguments, options, error, match in (
        ((x, y, x[:, :2], y), {}, ValueError, "one length, got 6 and 2"),
        ((x, y[:4], x, y), {}, ValueError, r"train_x must be \(N, D\)"),
        ((x, y, x[:0], y[:0]), {}, ValueError, "test_x must be"),
        ((x, y.float(), x, y), {}, TypeError, "train_y must be int64"),
        ((x, 0 * y, x, 0 * y), {}, ValueError, "two classes"),
        ((x, y, x, y + 1), {}, ValueError, "class 3 is in the test set"),
        ((x, y, x, y), {}, ValueError, "at most 4, the training images of class 0, got 5"),
        ((x, y, x, y), {"folds": 1}, ValueError, "at least 2"),
        ((x, y, x, y), {"C": 0.0}, ValueError, "C must be positive"),
        ((x * torch.nan, y, x, y), {}, ValueError, "nan or inf"),
    ):
        with pytest.raises(error, match=match):
            svm(*arguments, **options)


def test_without_scikit_learn_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.setitem(sys.modules, name, None)
    x, y = drawn(30)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        svm(x, y, x, y)


def test_class_names_are_matched_through_aliases_case_and_hyphens() -> None:
    assert shared_classes(CIFAR, STL, {"car": "automobile"}).tolist() == [0, 2, 1, 3, 4, 5, 7, -1, 8, 9]
    assert shared_classes(CIFAR, STL).tolist() == [0, 2, -1, 3, 4, 5, 7, -1, 8, 9]
    assert shared_classes(("Pickup_Truck", "cat"), ("CAT", "pickup-truck")).tolist() == [1, 0]
    assert shared_classes(CIFAR, CIFAR).tolist() == list(range(10))


def test_class_names_that_cannot_be_matched_say_why() -> None:
    with pytest.raises(ValueError, match=r"names 'automobil', which is not in from_classes; did you mean 'automobile'"):
        shared_classes(CIFAR, STL, {"car": "automobil"})
    with pytest.raises(ValueError, match="names 'boat', which is not in to_classes"):
        shared_classes(CIFAR, STL, {"boat": "ship"})
    with pytest.raises(ValueError, match="no class has one name in both"):
        shared_classes(("a",), ("b",))
    with pytest.raises(ValueError, match="'A' twice"):
        shared_classes(("a", "A"), ("b",))
    with pytest.raises(TypeError, match="sequence of names"):
        shared_classes("cat", CIFAR)


class Painted(nn.Module):
    """Decides by the first pixel's red value, which holds the class; the runner-up is the class in green."""

    def forward(self, images: Tensor) -> Tensor:
        red, green = (255 * images[:, :2, 0, 0]).round().long().T
        return 2.0 * nn.functional.one_hot(red, 10) + nn.functional.one_hot(green, 10)


def painted(labels: list[int], decisions: list[int], second: list[int], classes: tuple[str, ...] = STL) -> ImageSet:
    images = torch.zeros(len(labels), 3, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0], images[:, 1, 0, 0] = torch.tensor(decisions), torch.tensor(second)
    return ImageSet(images, torch.tensor(labels), classes)


def test_the_classifier_as_it_is_by_hand() -> None:
    # STL: bird 1 is CIFAR's 2, car 2 is 1, monkey 7 is none; frog is CIFAR's 6
    data = painted(
        labels=[0, 1, 2, 7, 3, 6, 1],
        decisions=[0, 2, 2, 7, 6, 6, 1],
        second=[9, 9, 1, 0, 3, 8, 2],
    )
    found = direct(Painted(), data, shared_classes(CIFAR, STL, {"car": "automobile"}), batch_size=2)
    # by name: airplane and bird right; the cat that is a frog is a cat among the shared, the horse a ship
    assert found == {
        "accuracy_mapped": pytest.approx(2 / 7),
        "accuracy_by_index": pytest.approx(5 / 7),
        "accuracy_shared": pytest.approx(2 / 6),
        "accuracy_among_shared": pytest.approx(3 / 6),
        "n": 7,
        "n_shared": 6,
    }


def test_a_class_that_is_not_shared_never_wins_among_the_shared() -> None:
    data = painted(labels=[0, 0, 1], decisions=[9, 5, 9], second=[0, 0, 0], classes=("airplane", "monkey"))
    found = direct(Painted(), data, shared_classes(CIFAR, data.classes))
    assert found["accuracy_shared"] == 0 and found["accuracy_among_shared"] == 1 and found["n_shared"] == 2


@given(seed=st.integers(0, 999))
def test_with_the_same_classes_all_four_accuracies_are_one(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels, decisions = (torch.randint(10, (20,), generator=generator).tolist() for _ in range(2))
    found = direct(Painted(), painted(labels, decisions, labels, CIFAR), torch.arange(10))
    expected = np.mean(np.array(labels) == np.array(decisions))
    assert [value for key, value in found.items() if key.startswith("accuracy")] == pytest.approx([expected] * 4)


def test_direct_says_what_does_not_fit() -> None:
    data, mapping = painted([0], [0], [0]), shared_classes(CIFAR, STL)
    with pytest.raises(ValueError, match=r"mapping must be \(10,\)"):
        direct(Painted(), data, mapping[:3])
    with pytest.raises(TypeError, match="int64"):
        direct(Painted(), data, mapping.float())
    with pytest.raises(ValueError, match="0 to 9, got 0 to 10"):
        direct(Painted(), data, torch.arange(1, 11) - (torch.arange(10) == 0).long())
    with pytest.raises(ValueError, match="no image of 'images'"):
        direct(Painted(), painted([7], [0], [0]), mapping)
    with pytest.raises(ValueError, match="empty"):
        direct(Painted(), data.subset([]), mapping)
