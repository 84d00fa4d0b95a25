"""Checks of the course's exercises: passed, or the hint for the mistake that was made.

    import payattn as pa
    pa.check("dp-scores", my_function)        # -> passed: ... or not yet: <hint>
    pa.check("uniform-entropy", 0.69)         # paper and pencil: pass the number or the text

One file per chapter holds ``EXERCISES``, a dict from name to :class:`Exercise`.  An exercise is its inputs, its
solution and the mistakes that learners make, each as the function (or the value) that makes it.  The answer runs
on the inputs; where its results differ from the solution's but equal those of a known mistake, the learner reads
the hint for that mistake, otherwise what is wrong with the result: shape, type, NaN, factor, offset, order of axes.

This module is callable, so that ``pa.check(...)`` works whether or not ``payattn.check`` was imported before.
"""

from __future__ import annotations

import copy
import difflib
import functools
import importlib
import inspect
import pkgutil
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["Exercise", "Result", "check", "exercises", "numbers"]


@dataclass(frozen=True)
class Exercise:
    """One exercise: the inputs to try, the solution and the known mistakes with their hints.

    Args:
        inputs: tuples of positional arguments, chosen so that every mistake gives another result than the solution;
            empty for paper and pencil.
        solution: a function of these arguments; for paper and pencil the answer: a number, a tuple of numbers, a
            tensor, a text, or a frozenset of texts that all count.
        mistakes: dict from the mistake's name to (hint, wrong function or wrong answer).
        tolerance: results may differ by ``tolerance * (1 + |expected|)``.
        passed: what to say when it is right; what it is good for.

    >>> mistakes = {"square": ("Double it, do not square it.", lambda x: x * x)}
    >>> double = Exercise([(1.0,), (3.0,)], lambda x: 2 * x, mistakes)
    >>> double.judge(lambda x: x * x)
    not yet: Double it, do not square it.
    >>> double.judge(lambda x: x + x).passed
    True
    """

    inputs: Sequence[tuple[Any, ...]]
    solution: Any
    mistakes: Mapping[str, tuple[str, Any]]
    tolerance: float = 1e-4
    passed: str = field(default="right.", kw_only=True)

    def judge(self, answer: Any) -> Result:
        """Return the result for a learner's answer; whatever the answer does, nothing is raised."""
        return _judge_function(self, answer) if self.inputs else _judge_value(self, answer)


@dataclass(frozen=True, repr=False)
class Result:
    """What a check found: ``passed`` and a ``message`` for the learner; true when passed."""

    passed: bool
    message: str

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        return f"{'passed' if self.passed else 'not yet'}: {self.message}"


def check(name: str, answer: Any) -> Result:
    """Check an answer to the exercise of that name.

    Args:
        name: the exercise, as the chapter gives it, such as "dp-scores".
        answer: the function itself (not its result) for a code exercise; a number, a tuple, a tensor or a text for
            paper and pencil.

    Returns:
        A :class:`Result` that prints as "passed: ..." or "not yet: ..." with a hint.

    Raises:
        ValueError: for a name that no chapter has. A wrong answer raises nothing.

    >>> check("attend", lambda local, weights: local.mean((2, 3)))
    not yet: ...
    """
    known = exercises()
    if name not in known:
        close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"there are {', '.join(sorted(known))}"
        raise ValueError(f"no exercise {name!r}; {hint}")
    return known[name].judge(answer)


@functools.cache
def exercises() -> dict[str, Exercise]:
    """Return all exercises of all chapters by name."""
    found: dict[str, Exercise] = {}
    for chapter in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        for name, exercise in importlib.import_module(f"{__name__}.{chapter}").EXERCISES.items():
            if name in found:
                raise ValueError(f"exercise {name!r} of {chapter}.py: another chapter has one of this name")
            found[name] = exercise
    return found


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Return normal random numbers of a shape, the same in every run: inputs for exercises.

    >>> numbers(2, 3).shape, bool((numbers(4, seed=1) == numbers(4, seed=1)).all())
    (torch.Size([2, 3]), True)
    """
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------- running an answer


def _outcome(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Run a function on copies of the arguments; an exception is an outcome too."""
    try:
        return function(*copy.deepcopy(arguments))
    except Exception as error:
        return error


def _judge_function(exercise: Exercise, answer: Any) -> Result:
    if answer is None or answer is Ellipsis:
        return Result(False, "there is no answer yet; pass your function")
    if not callable(answer):
        return Result(False, f"pass the function itself, not its result: got {_kind(answer)}")
    outcomes = [_outcome(answer, arguments) for arguments in exercise.inputs]
    if any(isinstance(outcome, NotImplementedError) for outcome in outcomes):
        return Result(False, "write the function first; it still raises NotImplementedError")
    if all(outcome is None or outcome is Ellipsis for outcome in outcomes):
        return Result(False, "the function returns nothing yet; does it end with return?")
    expected = [_outcome(exercise.solution, arguments) for arguments in exercise.inputs]
    if _agree(outcomes, expected, exercise.tolerance):
        if any(_changes(answer, arguments) for arguments in exercise.inputs):
            return Result(False, "the result is right, but the function changes its argument; make a new tensor")
        return Result(True, exercise.passed)
    for hint, wrong in exercise.mistakes.values():
        if _agree(outcomes, [_outcome(wrong, arguments) for arguments in exercise.inputs], exercise.tolerance):
            return Result(False, hint)
    i = next(i for i, got in enumerate(outcomes) if not _agree(got, expected[i], exercise.tolerance))
    found = _diagnosis(outcomes[i], expected[i], exercise.tolerance)
    return Result(False, f"{found} ({_call(exercise.solution, exercise.inputs[i])})")


def _changes(function: Callable[..., Any], arguments: tuple[Any, ...]) -> bool:
    """Tell whether a function writes into its arguments."""
    given = copy.deepcopy(arguments)
    _outcome(lambda: function(*given), ())
    return not _agree(list(given), list(arguments), 0.0)


def _judge_value(exercise: Exercise, answer: Any) -> Result:
    if answer is None or answer is Ellipsis or (isinstance(answer, str) and not answer.strip()):
        return Result(False, "there is no answer yet")
    if callable(answer):
        return Result(False, "this exercise wants a value, not a function")
    if _agree(answer, exercise.solution, exercise.tolerance):
        return Result(True, exercise.passed)
    for hint, wrong in exercise.mistakes.values():
        if _agree(answer, wrong, exercise.tolerance):
            return Result(False, hint)
    return Result(False, _wrong_value(answer, exercise.solution))


def _wrong_value(answer: Any, solution: Any) -> str:
    """Say what is wrong with a paper-and-pencil answer without giving the right one away."""
    if isinstance(solution, (str, frozenset)):
        if not isinstance(answer, str):
            return f"expected a text in quotes, got {_kind(answer)}"
        return f"{answer!r} is not it; read the question once more"
    if isinstance(answer, str):
        return f"expected {_kind(solution)}, got the text {answer!r}; write it without quotes"
    if _structure(answer) != _structure(solution):
        return f"expected {_kind(solution)}, got {_kind(answer)}"
    return "the value is not right; do it for the smallest case by hand and compare"


# ------------------------------------------------------------------------------------------- comparing results


def _numeric(value: Any) -> Tensor | None:
    """Return real numbers, arrays and tensors as a tensor, everything else as None."""
    if isinstance(value, (bool, int, float)) or type(value).__module__ == "numpy":
        try:
            value = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):
            return None
    return value.detach().cpu() if isinstance(value, Tensor) and not value.is_complex() else None


def _family(numbers: Tensor) -> str:
    return "bool" if numbers.dtype == torch.bool else "floating" if numbers.is_floating_point() else "integer"


def _agree(got: Any, expected: Any, tolerance: float) -> bool:
    """Compare two outcomes: numbers by tolerance, texts without regard to case, sequences item by item."""
    if isinstance(expected, Exception) or isinstance(got, Exception):
        return type(got) is type(expected)
    if isinstance(expected, frozenset):
        return any(_agree(got, text, tolerance) for text in expected)
    if isinstance(expected, str):
        return isinstance(got, str) and _plain(got) == _plain(expected)
    if isinstance(expected, Mapping):
        same = isinstance(got, Mapping) and got.keys() == expected.keys()
        return same and all(_agree(got[key], expected[key], tolerance) for key in expected)
    if isinstance(expected, (list, tuple)):
        same = isinstance(got, (list, tuple)) and len(got) == len(expected)
        return same and all(_agree(g, e, tolerance) for g, e in zip(got, expected, strict=True))
    first, second = _numeric(got), _numeric(expected)
    if first is None or second is None:
        return first is second and got == expected
    if first.shape != second.shape or (_family(first) == "bool") != (_family(second) == "bool"):
        return False
    return torch.allclose(first.double(), second.double(), rtol=tolerance, atol=tolerance, equal_nan=True)


def _plain(text: str) -> str:
    """Return a text without case, punctuation at its ends and repeated spaces."""
    return " ".join(text.casefold().split()).strip(" .!?'\"")


def _structure(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_structure(item) for item in value]
    numbers = _numeric(value)
    return type(value).__name__ if numbers is None else tuple(numbers.shape)


def _kind(value: Any) -> str:
    """Describe a value in a few words: its type and, for tensors, its shape."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}" if value.ndim else "a tensor with one number"
    if isinstance(value, bool):
        return "True or False"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    return "nothing (None)" if value is None else f"a {type(value).__name__}"


def _call(function: Any, arguments: tuple[Any, ...]) -> str:
    """Describe an input by the solution's argument names: for local (1, 2, 3, 4), query (1, 2)."""
    names = list(inspect.signature(function).parameters)
    parts = []
    for name, value in zip(names, arguments, strict=False):
        shape = f"{tuple(value.shape)}" if isinstance(value, Tensor) and value.numel() > 9 else None
        parts.append(f"{name} {shape}" if shape else f"{name} = {_short(value)}")
    return "for " + ", ".join(parts)


def _short(value: Any) -> str:
    text = repr(value.tolist() if isinstance(value, Tensor) else value)
    return text if len(text) <= 60 else f"{_kind(value)}"


# ------------------------------------------------------------------------------------- saying what is wrong


def _diagnosis(got: Any, expected: Any, tolerance: float) -> str:
    """Say in what way a result differs from the expected one."""
    if isinstance(got, Exception):
        return f"the function stops with {type(got).__name__}: {str(got).strip() or 'no message'}"
    if got is None or got is Ellipsis:
        return "here the function returns nothing; does every path end with return?"
    if isinstance(expected, (list, tuple)):
        return _diagnose_items(got, expected, tolerance)
    first, second = _numeric(got), _numeric(expected)
    if second is None:
        return f"got {_short(got)}, expected {_short(expected)}"
    if first is None:
        return f"got {_kind(got)}, expected {_kind(expected)}"
    if first.shape != second.shape:
        return _wrong_shape(first, second, tolerance)
    if (_family(first) == "bool") != (_family(second) == "bool"):
        return f"got {_family(first)} values ({first.dtype}), expected {_family(second)} ({second.dtype})"
    if first.isnan().any() and not second.isnan().any():
        count = int(first.isnan().sum())
        return f"{count} of {first.numel()} values are NaN; look for 0/0, infinity minus infinity or log of 0"
    if first.isinf().any() and not second.isinf().any():
        return f"{int(first.isinf().sum())} values are infinite; look for an overflow of exp or a division by 0"
    return _wrong_values(first.double(), second.double(), tolerance)


def _diagnose_items(got: Any, expected: Sequence[Any], tolerance: float) -> str:
    if not isinstance(got, (list, tuple)):
        return f"got {_kind(got)}, expected {_kind(expected)}"
    if len(got) != len(expected):
        return f"got {len(got)} items, expected {len(expected)}"
    i = next(i for i, item in enumerate(got) if not _agree(item, expected[i], tolerance))
    return f"item {i}: {_diagnosis(got[i], expected[i], tolerance)}"


def _wrong_shape(got: Tensor, expected: Tensor, tolerance: float) -> str:
    text = f"got shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    if got.numel() == expected.numel():
        if _agree(got.reshape(expected.shape), expected, tolerance):
            return f"the values are right, the shape is not: {text}"
        if got.ndim >= 2 and _agree(got.transpose(-1, -2), expected, tolerance):
            return f"rows and columns are exchanged: {text}"
    return text


def _wrong_values(got: Tensor, expected: Tensor, tolerance: float) -> str:
    """Name a constant factor or offset or exchanged axes, else show the largest difference."""
    if got.ndim >= 2 and got.shape[-1] == got.shape[-2] and _agree(got.transpose(-1, -2), expected, tolerance):
        return "rows and columns are exchanged"
    if expected.numel() > 1:
        scale = (got * expected).sum() / (expected * expected).sum().clamp_min(1e-30)
        if abs(scale) > 1e-6 and _agree(got, scale * expected, tolerance * min(1.0, abs(scale.item()))):
            return f"the sign is wrong: {_at(got, expected)}" if abs(scale + 1) < 1e-3 else _factor(scale.item())
        shift = (got - expected).mean()
        if (expected - expected.mean()).abs().max() > tolerance and _agree(got - shift, expected, tolerance):
            return f"all values are {abs(shift.item()):.4g} too {'large' if shift > 0 else 'small'}"
    return _at(got, expected)


def _factor(scale: float) -> str:
    direction = f"{scale:.4g} times" if abs(scale) >= 1 else f"1/{1 / scale:.4g} of"
    return f"the values are {direction} what they should be; is a constant factor missing or too much?"


def _at(got: Tensor, expected: Tensor) -> str:
    """Show the place of the largest difference."""
    if not expected.ndim:
        return f"got {got.item():.4g}, expected {expected.item():.4g}"
    place = tuple(int(i) for i in torch.unravel_index((got - expected).abs().argmax(), got.shape))
    where = ", ".join(map(str, place))
    return f"the values differ, most at [{where}]: got {got[place].item():.4g}, expected {expected[place].item():.4g}"


class _CallableModule(types.ModuleType):
    def __call__(self, name: str, answer: Any) -> Result:
        return check(name, answer)


sys.modules[__name__].__class__ = _CallableModule
