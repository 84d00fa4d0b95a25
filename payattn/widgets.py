"""Parts of a page that answer without a kernel: pictures with a slider, and quizzes.

They are plain HTML with a few lines of script in event attributes, so they work in a notebook, on the built site
and in a saved page, with mouse, touch and keyboard, and also where a page inserts them later.  They take the page's
text colour, so they are readable in light and dark mode, and each carries its content as text for print.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from payattn import quizzes
from payattn.plot import Figure

__all__ = ["Page", "frames", "quiz", "table"]

MAX_BYTES = 350_000
"""Largest size of pictures with a slider in bytes of HTML; a notebook may have 400 KB in all."""


@dataclass(frozen=True, repr=False)
class Page:
    """A piece of HTML that a notebook shows, with the same content as text."""

    html: str
    text: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


def _identity(kind: str, *content: object) -> str:
    """Return an id that depends on the content alone, so that a page built again is the same."""
    return f"payattn-{kind}-{hashlib.sha256(repr(content).encode()).hexdigest()[:10]}"


# ---------------------------------------------------------------------------------------- pictures with a slider

_MOVE = (
    "const f=this.closest('figure'),k=+this.value,"
    "m=[...f.querySelectorAll('img')],t=m[k].dataset.label;"
    "m.forEach((e,i)=>{e.style.display=i===k?'block':'none'});"
    "this.setAttribute('aria-valuetext',t);f.querySelector('output').textContent=t"
)


def frames(
    figures: Sequence[Any], labels: Sequence[str], alts: Sequence[str], description: str, *, dpi: float = 96
) -> Page:
    """Show one of several pictures, chosen by a slider; no kernel is needed.

    The first picture shows before anything is touched and where scripts are off. Arrow keys, Home and End move the
    slider, as everywhere.

    Args:
        figures: two or more Matplotlib figures of the same width.
        labels: what each picture shows, short: it stands beside the slider ("temperature 0.5").
        alts: what is seen in each picture, in 40 characters or more, for readers who do not see it.
        description: what the slider changes ("temperature of the softmax").
        dpi: pixels per inch.

    Returns:
        An object that shows itself as HTML in a notebook and prints as text.

    Raises:
        ValueError: for fewer than two figures, labels or alts that are not as many or repeat, an alt that is too
            short, figures of different widths, or more than 350 KB in all.

    >>> from payattn import plot
    >>> figures = [plot.cells([[0.0, c]]) for c in (0.0, 1.0)]
    >>> alts = ["Two cells, both with the number zero.", "Two cells, the left with zero, the right with one."]
    >>> print(frames(figures, ["c = 0", "c = 1"], [alt.rjust(40) for alt in alts], "score of the right cell"))
    Pictures with a slider: score of the right cell
      c = 0: Two cells, both with the number zero.
      c = 1: Two cells, the left with zero, the right with one.
    """
    _check_frames(figures, labels, alts, description)
    pictures = [Figure.png(figure, dpi) for figure in figures]
    sizes = [struct.unpack(">II", picture[16:24]) for picture in pictures]  # width and height in a PNG's header
    width, tallest = sizes[0][0], max(height for _, height in sizes)
    if any(other != width for other, _ in sizes):
        raise ValueError(f"figures: sizes in pixels are {sizes}; draw all in one width")
    name = _identity("frames", pictures, labels, alts, description)
    images = "\n".join(
        f'<img src="data:image/png;base64,{base64.b64encode(picture).decode()}" alt="{html.escape(alt.strip())}" '
        f'data-label="{html.escape(label)}" width="{width}" height="{height}" style="display:'
        f'{"none" if i else "block"};width:100%;height:auto;margin:0;background:#fff">'
        for i, (picture, label, alt, (_, height)) in enumerate(zip(pictures, labels, alts, sizes, strict=True))
    )
    first, title = html.escape(labels[0]), html.escape(description)
    code = (
        f'<figure class="payattn-frames" id="{name}" style="margin:0 0 1em;max-width:{width}px">\n'
        f'<label style="display:block;margin:0 0 .4em">{title}: '
        f'<output aria-live="off" style="font-weight:bold">{first}</output>\n'
        f'<input type="range" min="0" max="{len(pictures) - 1}" step="1" value="0" autocomplete="off" '
        f'aria-label="{title}" aria-valuetext="{first}" oninput="{html.escape(_MOVE)}" '
        'style="display:block;width:100%;min-width:0;height:2em;margin:.2em 0 0"></label>\n'
        # the box of the tallest picture: the page below does not jump when the slider moves
        f'<div style="aspect-ratio:{width}/{tallest};background:#fff">\n{images}\n</div>\n</figure>'
    )
    if len(code) > MAX_BYTES:
        raise ValueError(
            f"{len(code) // 1000} KB of pictures, more than {MAX_BYTES // 1000}; use fewer or smaller figures, or a "
            f"lower dpi than {dpi:g}"
        )
    seen = "\n".join(f"  {label}: {alt.strip()}" for label, alt in zip(labels, alts, strict=True))
    return Page(code, f"Pictures with a slider: {description}\n{seen}")


def _check_frames(figures: Sequence[Any], labels: Sequence[str], alts: Sequence[str], description: str) -> None:
    n = len(figures)
    if n < 2:
        raise ValueError(f"figures: got {n}, expected two or more; show a single figure as it is")
    for what, texts in (("labels", labels), ("alts", alts)):
        if isinstance(texts, str) or len(texts) != n:
            raise ValueError(f"{what}: got {texts!r}, expected one text for each of the {n} figures")
        if len(set(texts)) < n:
            raise ValueError(f"{what}: two are the same; each picture needs its own: {list(texts)}")
    for i, alt in enumerate(alts):
        if len(alt) < 40:
            raise ValueError(f"alts[{i}]: {alt!r} has {len(alt)} characters; say in 40 or more what is seen")
    if not description.strip() or not all(label.strip() for label in labels):
        raise ValueError("description and labels: expected texts, got an empty one")


# ------------------------------------------------------------------------------------------------------- tables


def table(rows: Sequence[Mapping[str, Any]], caption: str) -> Page:
    """Show rows with the same keys as a table; a row's first value is its heading.

    Args:
        rows: one dict per row, all with the keys of the first. Whole numbers are written with thousands separators,
            other numbers with three decimals, None as a dash; pass a text for any other form.
        caption: what the table shows, as a sentence; screen readers announce it first.

    Returns:
        An object that shows itself as HTML in a notebook and prints as text.

    Raises:
        ValueError: for no row, rows with other keys, or an empty caption.

    >>> print(table([{"layer": "FC-1", "parameters": 262656}, {"layer": "head", "parameters": 5130}], "Two layers."))
    Two layers.
    layer  parameters
    FC-1      262,656
    head        5,130
    """
    columns = list(rows[0]) if rows else []
    if not columns or any(list(row) != columns for row in rows):
        raise ValueError(f"rows: expected one or more dicts with the same keys in one order, got {rows!r}")
    if not caption.strip():
        raise ValueError("caption: expected a sentence that says what the table shows, got an empty text")
    texts = [[_cell(row[name]) for name in columns] for row in rows]
    number = [all(not isinstance(row[name], str) for row in rows) for name in columns]
    side = [f' style="text-align:{"right" if right else "left"}"' for right in number]
    head = "".join(f'<th scope="col"{s}>{_markup(str(c))}</th>' for c, s in zip(columns, side, strict=True))
    body = "".join(
        f'<tr><th scope="row"{side[0]}>{_markup(first)}</th>'
        + "".join(f"<td{s}>{_markup(text)}</td>" for text, s in zip(rest, side[1:], strict=True))
        + "</tr>\n"
        for first, *rest in texts
    )
    code = (
        f'<div class="payattn-table" style="overflow-x:auto" tabindex="0" role="region" '
        f'aria-label="{html.escape(caption)}">\n<table class="table">\n<caption style="caption-side:top">'
        f"{_markup(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody>\n</table>\n</div>"
    )
    wide = [max(len(line[i]) for line in [list(map(str, columns)), *texts]) for i in range(len(columns))]
    lines = [
        "  ".join(t.rjust(w) if right else t.ljust(w) for t, w, right in zip(line, wide, number, strict=True)).rstrip()
        for line in [list(map(str, columns)), *texts]
    ]
    return Page(code, "\n".join([caption, *lines]))


def _cell(value: Any) -> str:
    if value is None:
        return "\u2013"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


# ------------------------------------------------------------------------------------------------------ quizzes

_STYLE = """\
#ID fieldset{border:1px solid currentColor;border-radius:4px;margin:0 0 1em;padding:.4em .8em .8em;min-width:0}
#ID legend{float:left;width:100%;font-size:1em;font-weight:bold;padding:0;margin:0 0 .3em;white-space:normal}
#ID legend+*{clear:both}
#ID .choice{position:relative;padding:.25em 0 .25em 1.8em}
#ID .choice>input{position:absolute;left:.2em;top:.55em;margin:0;width:1.1em;height:1.1em}
#ID .choice>label{display:block;cursor:pointer;margin:0}
#ID .choice p{display:none;margin:.3em 0;padding-left:.6em;border-left:4px solid #d55e00}
#ID .choice.right p{border-left:4px double #009e73}
#ID .choice>input:checked~div>p{display:block}"""

_SCORE = (
    "const q=[...this.querySelectorAll('fieldset')],a=q.filter(f=>f.querySelector(':checked')),"
    "r=a.filter(f=>[...f.querySelectorAll('input')].every(e=>e.checked===!!e.closest('.right')));"
    "this.querySelector('.score').textContent=r.length+' of '+q.length+' right, '+(q.length-a.length)+' open'"
)


def quiz(name: str | Path) -> Page:
    """Show a chapter's quiz: every choice answers with its own feedback, without a kernel.

    Args:
        name: name of a quiz of the package (see :func:`payattn.quizzes.names`), or the path of a ``.json`` file.

    Returns:
        An object that shows itself as HTML in a notebook and prints as text with the answers at the end.

    Raises:
        ValueError: for an unknown name or a quiz with a fault.

    >>> print(quiz("attention-in-five-minutes"))
    Quiz: Attention in five minutes
    ...
    """
    content = quizzes.load(name)
    identity = _identity("quiz", content)
    parts = [_question(identity, i, question) for i, question in enumerate(content["questions"], start=1)]
    code = (
        f'<div class="payattn-quiz tex2jax_process mathjax_process" id="{identity}" '
        f'onchange="{html.escape(_SCORE)}">\n<style>{_STYLE.replace("#ID", "#" + identity)}</style>\n'
        f"<p><strong>Quiz: {_markup(content['title'])}</strong></p>\n{''.join(parts)}"
        '<p class="score" role="status">Choose an answer to see what speaks for or against it.</p>\n</div>'
    )
    return Page(code, _as_text(content))


def _markup(text: str) -> str:
    r"""Return a text as HTML: code between backquotes, formulas left to MathJax."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def _question(identity: str, i: int, question: dict[str, Any]) -> str:
    multiple = question.get("multiple", False)
    choices = []
    for j, choice in enumerate(question["choices"], start=1):
        place, right = f"{identity}-{i}-{j}", choice["correct"]
        choices.append(
            f'<div class="choice{" right" if right else ""}"><input type="{"checkbox" if multiple else "radio"}" '
            f'name="{identity}-{i}" id="{place}" autocomplete="off"><label for="{place}">{_markup(choice["text"])}'
            f'</label><div role="status"><p><strong>{"Right." if right else "Not right."}</strong> '
            f"{_markup(choice['feedback'])}</p></div></div>\n"
        )
    hint = " (more than one may be right)" if multiple else ""
    return f"<fieldset><legend>{i}. {_markup(question['question'])}{hint}</legend>\n{''.join(choices)}</fieldset>\n"


def _as_text(content: dict[str, Any]) -> str:
    lines, answers = [f"Quiz: {content['title']}"], []
    for i, question in enumerate(content["questions"], start=1):
        lines.append(f"\n{i}. {question['question']}")
        letters = "abcdefghijklmnopqrstuvwxyz"[: len(question["choices"])]
        lines += [f"   {c}) {choice['text']}" for c, choice in zip(letters, question["choices"], strict=True)]
        right = [c for c, choice in zip(letters, question["choices"], strict=True) if choice["correct"]]
        answers.append(f"{i} {'+'.join(right)}")
    return "\n".join([*lines, "", f"Answers: {', '.join(answers)}"])
