r"""The chapters' quizzes: one JSON file each, checked when it is read.

A file ``<name>.json`` holds

    {"title": "...",
     "questions": [{"question": "...",
                    "multiple": false,                      (optional: more than one choice may be right)
                    "choices": [{"text": "...", "correct": true, "feedback": "..."}, ...]}]}

Texts are plain, with formulas as ``\( ... \)`` and code between backquotes.  Every choice has feedback: for a wrong
one it says which thought leads there and why it fails, for the right one why it is right.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["load", "names", "validate"]

_KEYS: dict[str, dict[str, type]] = {
    "quiz": {"title": str, "questions": list},
    "question": {"question": str, "choices": list},
    "choice": {"text": str, "correct": bool, "feedback": str},
}


def names() -> list[str]:
    """Return the names of the quizzes that come with the package.

    >>> "attention-in-five-minutes" in names()
    True
    """
    return sorted(path.stem for path in Path(__file__).parent.glob("*.json"))


def load(name: str | Path) -> dict[str, Any]:
    """Read and check one quiz.

    Args:
        name: one of :func:`names`, or the path of a ``.json`` file.

    Returns:
        The quiz, as the JSON holds it.

    Raises:
        ValueError: for an unknown name, a file that is not JSON, or a quiz with a fault; the message says where.

    >>> sorted(load("attention-in-five-minutes"))
    ['questions', 'title']
    """
    path = Path(name)
    if path.suffix != ".json":
        path = Path(__file__).parent / f"{name}.json"
        if not path.exists():
            close = difflib.get_close_matches(str(name), names(), n=1, cutoff=0.4)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names())}"
            raise ValueError(f"no quiz {str(name)!r}; {hint}")
    try:
        quiz = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"no quiz file {str(path)!r}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name}: not a JSON file: {error}") from None
    return validate(quiz, path.name)


def validate(quiz: Any, where: str = "quiz") -> dict[str, Any]:
    """Return the quiz if it keeps the schema.

    Args:
        quiz: what the JSON holds.
        where: what to call it in an error, such as the file's name.

    Raises:
        ValueError: naming the question and the choice, what is wrong there and what is expected.

    >>> validate({"title": "T", "questions": []})
    Traceback (most recent call last):
    ValueError: quiz: 'questions' is empty
    """
    _fields(quiz, "quiz", where)
    for i, question in enumerate(quiz["questions"], start=1):
        place = f"{where}: question {i}"
        _fields(question, "question", place, optional={"multiple": bool})
        if len(question["choices"]) < 2:
            raise ValueError(f"{place}: {len(question['choices'])} choice, expected at least 2")
        for j, choice in enumerate(question["choices"], start=1):
            _fields(choice, "choice", f"{place}: choice {j}")
        texts = [choice["text"] for choice in question["choices"]]
        if len(set(texts)) < len(texts):
            raise ValueError(f"{place}: two choices have the same text")
        right = sum(choice["correct"] for choice in question["choices"])
        if question.get("multiple", False):
            if right == 0:
                raise ValueError(f"{place}: no choice is correct, expected at least one")
        elif right != 1:
            raise ValueError(f'{place}: {right} choices are correct, expected exactly one (or "multiple": true)')
    return dict(quiz)


def _fields(value: Any, kind: str, where: str, optional: Mapping[str, type] | None = None) -> None:
    """Check that an object has its keys and no others, of the right types, not empty, with closed formulas."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: expected an object with {sorted(_KEYS[kind])}, got {value!r}")
    types = {**_KEYS[kind], **(optional or {})}
    for key in value:
        if key not in types:
            close = difflib.get_close_matches(str(key), types, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f", expected {sorted(types)}"
            raise ValueError(f"{where}: unknown key {key!r}{hint}")
    for key in _KEYS[kind]:
        if key not in value:
            raise ValueError(f"{where}: {key!r} is missing")
    for key, item in value.items():
        if type(item) is not types[key]:
            raise ValueError(f"{where}: {key!r} is {item!r}, expected {types[key].__name__}")
        if types[key] is not bool and not (item.strip() if isinstance(item, str) else item):
            raise ValueError(f"{where}: {key!r} is empty")
        if isinstance(item, str) and (item.count(r"\(") != item.count(r"\)") or item.count("`") % 2):
            raise ValueError(rf"{where}: {key!r} opens a formula \( \) or code `` that it does not close: {item!r}")
