"""How does a result read in a notebook, a terminal and a paper? One sheet, set as HTML, Markdown or LaTeX.

Text of run logs and laws is always escaped: in a notebook, too, nothing of it may run.
"""

import html
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sheet:
    """What a result says.

    Attributes:
        title: a line of code, such as a formula; may be empty.
        head: names of the table's columns.
        rows: cells as text, each row as long as the head.
        lines: sentences below.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[str, ...] = ()


class Typeset(ABC):
    """A result that can be shown in a notebook and set in a paper; it says what by :meth:`sheet`."""

    __slots__ = ()

    @abstractmethod
    def sheet(self) -> Sheet:
        """Title, table and sentences."""

    def _repr_html_(self) -> str:
        sheet = self.sheet()
        title = f"<p><code>{html.escape(sheet.title)}</code></p>" if sheet.title else ""
        lines = "".join(f"<p>{html.escape(line)}</p>" for line in sheet.lines)
        return f"<div>{title}{html_table(sheet.head, sheet.rows)}{lines}</div>"

    def to_markdown(self) -> str:
        """The table as Markdown, with title and sentences."""
        sheet = self.sheet()
        parts = [f"`{sheet.title}`" if sheet.title else "", markdown_table(sheet.head, sheet.rows)]
        return "\n\n".join([part for part in parts if part] + list(sheet.lines)) + "\n"

    def to_latex(self) -> str:
        """The table as LaTeX (booktabs), with title and sentences as comments."""
        sheet = self.sheet()
        notes = [f"% {line}" for text in (sheet.title, *sheet.lines) if text for line in text.splitlines()]
        return "\n".join([*notes, latex_table(sheet.head, sheet.rows)]) + "\n"


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as HTML, numbers to the right.

    >>> html_table(["a"], [["<b>"]])
    '<table><thead><tr><th>a</th></tr></thead><tbody><tr><td>&lt;b&gt;</td></tr></tbody></table>'
    """

    def cell(text: str) -> str:
        side = ' style="text-align:right"' if is_number(text) else ""
        return f"<td{side}>{html.escape(text)}</td>"

    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""A table as Markdown, numbers to the right.

    >>> print(markdown_table(["name", "x"], [["a|b", "1.5"]]))
    | name | x |
    |---|---:|
    | a\|b | 1.5 |
    """
    right = [bool(rows) and all(is_number(row[i]) or not row[i] for row in rows) for i in range(len(head))]
    cells = [[re.sub(r"\s+", " ", text).replace("|", "\\|") for text in row] for row in [head, *rows]]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|" + "".join("---:|" if one else "---|" for one in right), *lines[1:]])


def latex_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""A table as LaTeX with the rules of booktabs, numbers to the right.

    >>> print(latex_table(["share_a"], [["5%"]]))
    \begin{tabular}{r}
    \toprule
    share\_a \\
    \midrule
    5\% \\
    \bottomrule
    \end{tabular}
    """

    def line(row: Sequence[str]) -> str:
        return " & ".join("".join(_LATEX.get(letter, letter) for letter in text) for text in row) + r" \\"

    sides = ["r" if rows and all(is_number(row[i]) or not row[i] for row in rows) else "l" for i in range(len(head))]
    body = [line(row) for row in rows]
    return "\n".join(
        [rf"\begin{{tabular}}{{{''.join(sides)}}}", r"\toprule", line(head), r"\midrule", *body, r"\bottomrule",
         r"\end{tabular}"]
    )  # fmt: skip


def is_number(text: str) -> bool:
    """Whether a cell holds a number, perhaps with thousands set apart.

    >>> is_number("97,780"), is_number("1.5e9"), is_number("iid")
    (True, True, False)
    """
    return re.fullmatch(r"[-+]?[\d,]*\.?\d+(e[-+]?\d+)?[kMBT%]?", text) is not None
