"""Every exercise: its solution passes, a stub fails, each known mistake gets its own hint; and the machinery."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from payattn.check import Exercise, Result, check, exercises

NAMES = sorted(exercises())
CODE = [name for name in NAMES if exercises()[name].inputs]
MISTAKES = [(name, mistake) for name in NAMES for mistake in exercises()[name].mistakes]


def stub(*arguments: object) -> None:
    raise NotImplementedError


def empty(*arguments: object) -> None:
    return None


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_passes(name: str) -> None:
    result = check(name, exercises()[name].solution)
    if isinstance(exercises()[name].solution, frozenset):
        result = check(name, next(iter(exercises()[name].solution)))
    assert result.passed, result.message
    assert len(result.message) > 10
    assert repr(result) == f"passed: {result.message}"


@pytest.mark.parametrize("name", CODE)
def test_a_stub_does_not_pass_and_is_told_apart_from_a_mistake(name: str) -> None:
    hints = [hint for hint, _ in exercises()[name].mistakes.values()]
    for answer, words in ((stub, "NotImplementedError"), (empty, "returns nothing")):
        result = check(name, answer)
        assert not result.passed
        assert words in result.message
        assert result.message not in hints


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_answer_does_not_pass(name: str) -> None:
    assert "there is no answer yet" in check(name, None).message
    assert "there is no answer yet" in check(name, ...).message


@pytest.mark.parametrize(("name", "mistake"), MISTAKES, ids=lambda value: str(value).replace(" ", "_"))
def test_each_mistake_gets_its_own_hint(name: str, mistake: str) -> None:
    hint, wrong = exercises()[name].mistakes[mistake]
    result = check(name, next(iter(wrong)) if isinstance(wrong, frozenset) else wrong)
    assert not result.passed
    assert result.message == hint
    assert repr(result) == f"not yet: {hint}"


@pytest.mark.parametrize("name", NAMES)
def test_there_are_three_mistakes_or_more_with_different_hints(name: str) -> None:
    hints = [hint for hint, _ in exercises()[name].mistakes.values()]
    assert len(hints) >= 3
    assert len(set(hints)) == len(hints)
    assert all(20 <= len(hint) <= 200 for hint in hints)


@pytest.mark.parametrize("name", CODE)
def test_a_mistake_shows_already_on_small_inputs_and_no_function_raises_on_all(name: str) -> None:
    exercise = exercises()[name]
    for function in (exercise.solution, *(wrong for _, wrong in exercise.mistakes.values())):
        results = []
        for arguments in exercise.inputs:
            try:
                results.append(function(*arguments))
            except RuntimeError:
                continue
        assert results
        assert function.__doc__ is not None or function is not exercise.solution


@pytest.mark.parametrize("name", CODE)
def test_a_constant_zero_does_not_pass(name: str) -> None:
    def zero(*arguments: object) -> Tensor:
        return torch.zeros(())

    assert not check(name, zero).passed


# ------------------------------------------------------------------------------------------------ the machinery


def judged(solution: object, answer: object, *inputs: tuple, tolerance: float = 1e-4) -> str:
    return Exercise(inputs, solution, {}, tolerance).judge(answer).message


SQUARE = (torch.arange(9.0).reshape(3, 3) ** 2,)


def test_the_diagnosis_names_the_shape_that_came_and_the_one_expected() -> None:
    message = judged(lambda x: x.sum(0), lambda x: x, SQUARE)
    assert "got shape (3, 3), expected (3,)" in message
    assert "the values are right, the shape is not" in judged(lambda x: x.sum(0), lambda x: x.sum(0)[None], SQUARE)


def test_the_diagnosis_names_a_constant_factor_an_offset_a_sign_and_exchanged_axes() -> None:
    assert "3 times what they should be" in judged(lambda x: x, lambda x: 3 * x, SQUARE)
    assert "1/9 of what they should be" in judged(lambda x: x, lambda x: x / 9, SQUARE)
    assert "the sign is wrong" in judged(lambda x: x, lambda x: -x, SQUARE)
    assert "2 too small" in judged(lambda x: x, lambda x: x - 2, SQUARE)
    assert "rows and columns are exchanged" in judged(lambda x: x, lambda x: x.T, SQUARE)
    assert "rows and columns are exchanged" in judged(lambda x: x, lambda x: x.T, (torch.rand(2, 3),))


def test_the_diagnosis_shows_the_place_of_the_largest_difference_and_the_input() -> None:
    def wrong(x: Tensor) -> Tensor:
        x = x.clone()
        x[1, 2] += 5
        return x

    message = judged(lambda x: x, wrong, SQUARE)
    assert "most at [1, 2]: got 30, expected 25" in message
    assert message.endswith("(for x = [[0.0, 1.0, 4.0], [9.0, 16.0, 25.0], [36.0, 49.0, 64.0]])")


def test_the_diagnosis_names_nan_infinity_kind_of_number_and_type() -> None:
    assert "2 of 2 values are NaN" in judged(lambda x: x, lambda x: x / 0, (torch.zeros(2),))
    assert "values are infinite" in judged(lambda x: x, lambda x: 1 / x, (torch.zeros(2),))
    assert "got integer values (torch.int64), expected bool" in judged(
        lambda x: x > 1, lambda x: (x > 1).long(), SQUARE
    )
    assert "got a list of 3, expected a tensor" in judged(lambda x: x, lambda x: x.tolist(), SQUARE)
    assert "got 2 items, expected 3" in judged(lambda x: (x, x, x), lambda x: (x, x), SQUARE)
    assert "item 1: got 2, expected 1" in judged(lambda x: (0, 1), lambda x: (0, 2), SQUARE)


def test_an_exception_becomes_a_message_with_its_type_and_input() -> None:
    def broken(x: Tensor) -> Tensor:
        raise KeyError("layer99")

    message = judged(lambda x: x, broken, (torch.zeros(2, 3, 4),))
    assert "stops with KeyError: 'layer99'" in message
    assert "for x (2, 3, 4)" in message
    assert "stops with TypeError" in judged(lambda x: x, lambda: 1, SQUARE)


def test_an_answer_that_returns_nothing_on_one_input_only_says_so() -> None:
    message = judged(lambda x: x, lambda x: x if x > 0 else None, (1.0,), (-1.0,))
    assert "here the function returns nothing" in message
    assert "x = -1.0" in message


def test_a_right_result_that_changes_its_argument_does_not_pass() -> None:
    assert "changes its argument" in judged(lambda x: 2 * x, lambda x: x.mul_(2), SQUARE)
    assert "right" in judged(lambda x: 2 * x, lambda x: 2 * x, SQUARE)


def test_the_inputs_are_the_same_after_an_answer_that_changes_them() -> None:
    exercise = Exercise([(torch.ones(2),)], lambda x: 2 * x, {})
    exercise.judge(lambda x: x.fill_(7))
    assert exercise.judge(lambda x: 2 * x).passed


def test_numbers_compare_by_tolerance_and_texts_without_case() -> None:
    assert Exercise((), 0.6931, {}, 1e-2).judge(0.69).passed
    assert not Exercise((), 0.6931, {}, 1e-4).judge(0.69).passed
    assert Exercise((), frozenset({"the query", "g"}), {}).judge(" The  query. ").passed
    assert not Exercise((), frozenset({"the query"}), {}).judge("the key").passed
    assert Exercise((), (1, 2), {}).judge([1, 2.0]).passed
    assert Exercise((), 2, {}).judge(torch.tensor(2)).passed


def test_a_wrong_value_is_not_told_the_right_one() -> None:
    exercise = Exercise((), 0.4321, {})
    for answer in (0.5, "0.4321", (0.4321, 1), torch.zeros(3), print, [[]], {"a": 1}, object(), float("nan")):
        result = exercise.judge(answer)
        assert not result.passed
        assert "expected 0.4321" not in result.message
    assert "without quotes" in exercise.judge("0.4321").message


def test_a_value_where_a_function_is_wanted_says_to_pass_the_function() -> None:
    assert "pass the function itself" in check("attend", torch.zeros(2, 3)).message


def test_a_result_is_true_when_passed() -> None:
    assert Result(True, "")
    assert not Result(False, "")


def test_an_unknown_name_is_an_error_with_near_names() -> None:
    with pytest.raises(ValueError, match="did you mean 'dp-scores'"):
        check("dp-score", None)
    with pytest.raises(ValueError, match=r"there are .*attend"):
        check("zzzzzzzz", None)


@pytest.mark.parametrize(
    "lines",
    [
        "import payattn as pa; pa.check",
        "import payattn.check; import payattn as pa",
        "import payattn as pa; from payattn.check import Exercise",
        "import payattn as pa; from payattn.check import check; import payattn.check",
    ],
)
def test_pa_check_can_be_called_in_whatever_order_it_was_imported(lines: str) -> None:
    code = f"{lines}; print(pa.check('uniform-weight', 1 / 64))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("passed:")


def test_the_solutions_agree_with_the_package() -> None:
    from payattn import attention

    pairs = {
        "dp-scores": attention.dot_product_scores,
        "pc-scores": attention.parametrised_scores,
        "additive-scores": attention.additive_scores,
        "softmax-positions": attention.attention_weights,
        "attend": attention.attend,
    }
    for name, function in pairs.items():
        assert check(name, function).passed, name


def test_the_gradient_solutions_agree_with_autograd() -> None:
    def by_autograd(local: Tensor, weights: Tensor, delta: Tensor) -> Tensor:
        scores = weights.log().requires_grad_()
        weights = scores.flatten(1).softmax(1).reshape(scores.shape)
        (delta * (local * weights[:, None]).sum((2, 3))).sum().backward()
        assert scores.grad is not None
        return scores.grad

    def query_by_autograd(local: Tensor, gamma: Tensor) -> Tensor:
        query = torch.zeros(local.shape[:2], requires_grad=True)
        scores = (local * query[:, :, None, None]).sum(1)
        return torch.autograd.grad(scores, query, gamma)[0]

    assert check("score-gradient", by_autograd).passed
    assert check("dp-query-gradient", query_by_autograd).passed


def test_the_counts_and_sizes_agree_with_the_networks() -> None:
    models = pytest.importorskip("payattn.models")
    counts = {
        name: sum(p.numel() for p in models.create(name, classes=10, width=0.125).parameters())
        for name in ("vgg-att3-concat-dp", "vgg-att3-concat-pc")
    }
    # level 7 of the narrow network: 32 channels, query of 64; dp has the projection too, so u and its bias differ
    assert counts["vgg-att3-concat-pc"] - counts["vgg-att3-concat-dp"] == (32 + 1) + 2 * (64 + 1)
    net = models.create("vgg-att3-concat-dp", classes=10, width=0.0625).eval()
    _, maps = net(torch.zeros(1, 3, 33, 47), return_maps=True)
    assert check("map-sizes", lambda h, w: exercises()["map-sizes"].solution(h, w)).passed
    assert tuple(tuple(m.shape[1:]) for m in maps.values()) == exercises()["map-sizes"].solution(33, 47)
