"""What recipes measure besides accuracy: against accuracy itself, perfect maps and a network's own images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from payattn import cost, faithful, localize, measures, recipes
from payattn.data import ImageSet, balanced, glyphs
from payattn.maps import grad_cam
from payattn.models import create
from payattn.residual import Branches
from payattn.train import evaluate, maps_of

DATA = glyphs(60, size=16, seed=1)


def on(data: ImageSet = DATA) -> dict[str, tuple[ImageSet, ImageSet]]:
    return {"here": (glyphs(80, size=16, seed=2), data)}


def nobody(name: str) -> nn.Module:
    raise AssertionError(f"{name} was asked for")


def network(name: str = "vgg-att2-concat-pc", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = create(name, width=1 / 16, dropout=0.0).train()
    with torch.no_grad():
        for _ in range(20):  # so that BatchNorm knows the images, and signals do not die on the way
            model(DATA.images)
    return model.eval()


class Seer(nn.Module):
    """Its map is the mask, which it knows from the first colour: red where the object is."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor, return_maps: bool = False) -> Any:
        pixels = images.float()
        logits = self.scale * pixels.mean((2, 3))
        return (logits, {"seen": (pixels[:, 0] > 127).float()}) if return_maps else logits


def test_every_measure_of_a_recipe_has_its_function() -> None:
    assert set(measures.MEASURES) == set(recipes.MEASURED) - {"accuracy"}


def test_a_map_that_is_the_mask_segments_perfectly_and_blind_maps_do_not() -> None:
    assert DATA.masks is not None
    images = torch.stack([DATA.masks, ~DATA.masks, ~DATA.masks], 1).byte() * 255
    seen = ImageSet(images, DATA.labels % 3, ("a", "b", "c"), DATA.masks)
    found = measures.segmentation(Seer(), on(seen), {}, nobody)["here"]
    assert set(found) == {"seen", "saliency", "centre", "random"}
    for rule in ("otsu", "mean", "oracle"):
        assert found["seen"][rule]["jaccard"] == found["seen"][rule]["corloc"] == 1
        assert set(found["seen"][rule]["classes"].values()) == {1}
        assert found["random"][rule]["jaccard"] < 0.4
    few = measures.segmentation(Seer(), on(seen), {"n": 12}, nobody)["here"]
    assert few["centre"]["otsu"]["jaccard"] != found["centre"]["otsu"]["jaccard"]
    with pytest.raises(ValueError, match="here has no masks"):
        measures.segmentation(Seer(), on(ImageSet(images, DATA.labels % 3, ("a", "b", "c"))), {}, nobody)


def test_an_attack_without_a_budget_changes_nothing_and_ones_own_images_are_the_white_box() -> None:
    model, options = network(), {"epsilons": [0, 8], "pgd": [8], "n": 40, "checked": 20, "crafted_on": ["p/t/twin"]}
    found = measures.attack(model, on(), options, lambda name: model)["here"]
    assert found["fgsm"]["0/255"] == {"accuracy": found["clean"]["accuracy"], "fooled": 0}
    assert found["from twin"] == found["fgsm"]
    assert set(found["pgd"]) == {"8/255"}
    assert set(found["shift"]["8/255"]) == {"layer10", "layer13"}
    assert max(found["shift"]["0/255"].values()) < 1e-6
    assert set(found["check"]) == {"gradient", "noise", "pgd", "large", "transfer"}
    assert all(set(sign) == {"value", "bound", "passed"} for sign in found["check"].values())


def test_directly_on_the_same_classes_is_the_accuracy_and_the_svm_sees_features() -> None:
    model = network("vgg-gap")
    options = {"direct": ["here"], "classes": DATA.classes}
    found = measures.cross_domain(model, on(), options, nobody)["here"]
    assert found["direct, test"]["accuracy_mapped"] == pytest.approx(evaluate(model, DATA)["accuracy"])
    assert set(found) == {"direct, train", "direct, test", "svm"}
    assert 0 <= found["svm"]["accuracy"] <= 1
    assert set(measures.cross_domain(model, on(), {}, nobody)["here"]) == {"svm"}


def test_a_query_moves_the_maps_of_dp_and_not_those_of_pc() -> None:
    pc = measures.query_swap(network(), on(), {"n": 30}, nobody)["here"]
    dp = measures.query_swap(network("vgg-att2-concat-dp"), on(), {"n": 30}, nobody)["here"]
    assert all(level["total_variation"] == level["most"] == 0 for level in pc.values())
    assert all(level["total_variation"] > 0 for level in dp.values())
    assert measures._change({key: torch.full((3,), torch.nan) for key in measures.CHANGES}).keys() == {
        "total_variation", "most"}  # fmt: skip


def test_the_detail_is_found_on_fine_glyphs() -> None:
    fine = glyphs(60, size=24, variant="fine", seed=1)
    found = measures.detail(network(), {"fine": (fine, fine)}, {}, nobody)["fine"]
    assert {"layer10", "layer13", "centre", "random"} <= set(found)
    assert all(way["part"] <= way["object"] for way in found.values())


def test_responses_are_the_means_of_the_branches_and_masks_differ_where_they_are_said_to() -> None:
    torch.manual_seed(0)
    net = create("attention-56", 10, width=0.125).eval()
    found = measures.response(net, on(), {"n": 30}, nobody)["here"]
    images = DATA.images[:30]
    parts = net.branches(images)
    assert set(found) == {*net.levels, *net.stages}
    for level, branch in parts.items():
        row, mask = found[level], branch.mask.double()
        assert row["response"] == pytest.approx(branch.output.abs().mean().item(), rel=1e-5)
        assert row["fused"] == pytest.approx(((1 + mask) * branch.trunk).abs().mean().item(), rel=1e-5)
        assert row["mask_sd_images"] == pytest.approx(mask.var(0, correction=0).sqrt().mean().item(), rel=1e-4)
        assert row["mask_sd_positions"] == pytest.approx(mask.var((2, 3), correction=0).sqrt().mean().item(), rel=1e-4)
        assert row["trunk"] <= row["fused"] <= 2 * row["trunk"] and 0 < row["mask"] < 1
    with pytest.raises(TypeError, match="PreActResNet has no attention modules"):
        measures.response(create("rn-164", 10, depth=11, width=0.25), on(), {}, nobody)


def test_the_shares_of_closed_and_open_masks_count_what_lies_below_a_tenth_and_above_nine_tenths() -> None:
    values = torch.tensor([0.05, 0.5, 0.95, 0.99]).view(1, 1, 2, 2)
    found = measures._mask_statistics(Branches(-2 * values, values, values, values, values))
    assert (found["closed"], found["open"]) == (0.25, 0.5)
    assert found["trunk"] == pytest.approx(2 * 0.6225) and found["mask_sd_images"] == 0


def test_top_5_agrees_with_the_accuracy_and_with_sorting() -> None:
    net = network()
    found = measures.top_5(net, on(), {}, nobody)["here"]["centre crop"]
    first_five = net(DATA.images).topk(5).indices
    among = (first_five == DATA.labels[:, None]).any(1).double().mean().item()
    assert found["top-1 error"] == pytest.approx(1 - evaluate(net, DATA)["accuracy"])
    assert found["top-5 error"] == pytest.approx(1 - among) and 0 < among < 1
    assert found["top-5 error"] < found["top-1 error"]


def test_the_cosine_of_maps_is_one_with_itself_and_agrees_with_a_sum_by_hand() -> None:
    torch.manual_seed(0)
    student, teacher = create("wrn-10-1", width=0.25).eval(), create("wrn-10-1", width=0.5).eval()
    options = {"teacher": "p/t/teacher", "layers": ["group1", ["group0", "group2"]]}
    asked: list[str] = []
    found = measures.map_cosine(student, on(), options, lambda name: asked.append(name) or teacher)["here"]
    assert asked == ["p/t/teacher"] and set(found) == {"group1", "group2"}
    of = {who: net.stages(DATA.images) for who, net in (("student", student), ("teacher", teacher))}
    maps = {key: [a.square().sum(1) for a in groups.values()] for key, groups in of.items()}
    one, two = maps["student"][1].flatten(1), maps["teacher"][1].flatten(1)
    cosines = (one * two).sum(1) / (one.norm(dim=1) * two.norm(dim=1))
    assert found["group1"]["cosine"] == pytest.approx(cosines.mean().item(), rel=1e-5)
    assert found["group1"]["spread"] == pytest.approx(cosines.var(correction=0).sqrt().item(), rel=1e-3)
    shifted = torch.cat([two[-1:], two[:-1]])
    apart = (one * shifted).sum(1) / (one.norm(dim=1) * shifted.norm(dim=1))
    assert found["group1"]["other image"] == pytest.approx(apart.mean().item(), rel=1e-5)
    small, large = maps["student"][2], nn.functional.avg_pool2d(maps["teacher"][0], 4)
    pooled = nn.functional.cosine_similarity(small.flatten(1), large.flatten(1))
    assert found["group2"]["cosine"] == pytest.approx(pooled.mean().item(), rel=1e-4)
    itself = measures.map_cosine(student, on(), {**options, "layers": ["group2"]}, lambda name: student)["here"]
    assert itself["group2"]["cosine"] == pytest.approx(1, abs=1e-5) and itself["group2"]["spread"] < 1e-5
    assert itself["group2"]["other image"] < 0.999
    with pytest.raises(ValueError, match="no layer 'group3'; did you mean"):
        measures.map_cosine(student, on(), {**options, "layers": ["group3"]}, lambda name: teacher)


def test_a_network_that_tells_no_class_from_another_guesses_the_first_ones() -> None:
    class Same(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.zeros(len(images), len(DATA.classes))

    found = measures.top_5(Same(), on(), {}, nobody)["here"]["centre crop"]
    assert found == pytest.approx({f"top-{k} error": (DATA.labels >= k).double().mean().item() for k in (1, 5)})
    assert found["top-1 error"] == pytest.approx(1 - evaluate(Same(), DATA)["accuracy"]) and found["top-5 error"] > 0


class Finder(nn.Module):
    """Its map is the mask; it is sure of class 1 where it sees red, and of class 0 where it sees none."""

    levels = ("seen",)

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 1, 1, bias=False)
        with torch.no_grad():
            self.features.weight.copy_(torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1))

    def forward(self, images: Tensor, return_maps: bool = False) -> Any:
        pixels = images.float() / (255 if images.dtype == torch.uint8 else 1)
        z = 4000 * self.features(pixels).mean((2, 3))
        logits = torch.cat([20 + 0 * z, z, 0 * z], 1)
        return (logits, {"seen": (pixels[:, 0] > 0.5).float()}) if return_maps else logits


def test_a_judged_network_that_marks_what_it_uses_has_a_perfect_map_by_place_and_by_deletion() -> None:
    assert DATA.masks is not None
    images = torch.stack([DATA.masks, ~DATA.masks, ~DATA.masks], 1).byte() * 255
    seen = ImageSet(images, torch.arange(len(images)) % 3, ("a", "b", "c"), DATA.masks)
    found = measures.judged(Finder(), on(seen), {"baseline": "zero", "layer": "features"}, nobody)["here"]
    assert set(found) == {"network", "own", "grad-cam", "saliency", "centre", "random"}
    for way in ("own", "grad-cam"):
        assert [found[way][key] for key in ("pointing", "iou", "energy")] == [1, 1, 1]
        assert found[way]["deletion"] < found["random"]["deletion"] - 0.1
        assert found[way]["insertion"] > found["random"]["insertion"]
    assert found["network"]["accuracy"] == pytest.approx(1 / 3) and found["network"]["confidence"] > 0.99
    assert found["centre"].keys() == {"pointing", "iou", "energy"} and found["centre"]["iou"] < 1
    with pytest.raises(ValueError, match="here has no masks, and the maps are judged by them"):
        measures.judged(Finder(), on(ImageSet(images, seen.labels, seen.classes)), {}, nobody)


def test_what_is_judged_agrees_with_the_functions_it_is_named_after() -> None:
    model, options = network(), {"n": 40, "faithful": 20, "steps": 3, "epsilons": [0, 8], "layer": "trunk.layer10"}
    found = measures.judged(model, on(), options, nobody)["here"]
    data = balanced(DATA, 40)
    few, maps = balanced(data, 20), maps_of(model, data)
    assert list(found)[:3] == ["network", "own", "own, layer10"]
    row = found["network"]
    assert row["accuracy"] == row["fgsm 0/255"] == pytest.approx(evaluate(model, data)["accuracy"])
    assert (row["parameters"], row["multiply_adds"]) == (cost.parameters(model), cost.multiply_adds(model, 3, 16, 16))
    assert row["confidence"] == pytest.approx(model(few.images).softmax(1).amax(1).mean().item(), rel=1e-5)
    for way, level in (("own", "layer13"), ("own, layer10", "layer10")):
        assert found[way]["iou"] == pytest.approx(localize.scores(maps[level], data.masks)["iou"])
        assert found[way]["energy"] == pytest.approx(localize.energy(maps[level], data.masks).mean().item())
    own = maps_of(model, few)["layer13"]
    left = faithful.deletion(model, few.images, own, steps=3, baseline="blur").auc.mean().item()
    came = faithful.insertion(model, few.images, own, steps=3, baseline="blur").auc.mean().item()
    assert (found["own"]["deletion"], found["own"]["insertion"]) == pytest.approx((left, came), rel=1e-5)
    assert "deletion" not in found["own, layer10"] and "deletion" not in found["centre"]
    cam = grad_cam(model, data.images, layer="trunk.layer10")
    assert found["grad-cam"]["iou"] == pytest.approx(localize.scores(cam, data.masks)["iou"])
    assert set(measures.judged(network("vgg"), on(), options | {"layer": "trunk.layer7"}, nobody)["here"]) == {
        "network", "grad-cam", "saliency", "centre", "random"}  # fmt: skip
