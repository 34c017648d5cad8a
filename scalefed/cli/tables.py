"""How does a table fit a terminal? Names over several lines, long texts cut in their middle, the last columns left out.

Where the output is no terminal and ``COLUMNS`` is not set, it is as wide as it needs to be, for other programs to read.
"""

import shutil
from collections.abc import Sequence

_GAP = 2  # blanks between columns
_LEAST = 14  # letters of a text that was cut: the beginning and the end of a run's name still tell runs apart


def terminal_width() -> int | None:
    """Letters in a line of the terminal; None where there is none."""
    return shutil.get_terminal_size((0, 0)).columns or None


def table_text(names: Sequence[str], rows: Sequence[Sequence[str]], width: int | None) -> tuple[str, list[str]]:
    """The table as lines, and the names of the columns that did not fit.

    Args:
        names: of the columns.
        rows: cells as text.
        width: letters in a line; None for as many as it takes.

    >>> names, run_id = ["run_id", "clients_per_round"], "fedavg-14k-2M-1of16-iid-s0-00bed8d496"
    >>> text, left_out = table_text(names, [[run_id, "4"]], 24)
    >>> print(text)
             run_id  clients
                         per
                       round
    fedavg-1...d496        4
    >>> left_out
    []
    """
    columns = [[row[i] for row in rows] for i in range(len(names))]
    heads = [[name] if width is None else _broken(name, column) for name, column in zip(names, columns, strict=True)]
    widths = [max(map(len, [*head, *column])) for head, column in zip(heads, columns, strict=True)]
    if width is not None:
        _shrink(widths, heads, columns, width)
    kept = len(names)
    while width is not None and kept > 1 and sum(widths[:kept]) + _GAP * (kept - 1) > width:
        kept -= 1
    lines = []
    for i in range(max(len(head) for head in heads[:kept])):
        lines.append([head[i] if i < len(head) else "" for head in heads[:kept]])
    lines += [list(row[:kept]) for row in rows]
    gap = " " * _GAP
    text = [gap.join(_cut(cell, w).rjust(w) for cell, w in zip(line, widths, strict=False)).rstrip() for line in lines]
    return "\n".join(text), list(names[kept:])


def without_constant(
    names: Sequence[str], rows: Sequence[Sequence[str]], width: int | None
) -> tuple[list[str], list[list[str]], list[str]]:
    """The table without columns that are the same in every row, where it would not fit; and what these say.

    >>> without_constant(["a", "b"], [["1", "x"], ["2", "x"]], 3)
    (['a'], [['1'], ['2']], ['b x'])
    """
    whole = sum(max(map(len, [name, *column])) for name, column in zip(names, zip(*rows, strict=True), strict=True))
    if width is None or len(rows) < 2 or whole + _GAP * (len(names) - 1) <= width:
        return list(names), [list(row) for row in rows], []
    same = [len({row[i] for row in rows}) == 1 for i in range(len(names))]
    said = [f"{name} {rows[0][i]}" for i, name in enumerate(names) if same[i] and rows[0][i] != "-"]
    kept = [i for i in range(len(names)) if not same[i]] or [0]
    return [names[i] for i in kept], [[row[i] for i in kept] for row in rows], said


def _broken(name: str, column: Sequence[str]) -> list[str]:
    """A name over as few lines as its column's width asks for."""
    room = max([len(cell) for cell in column] + [len(word) for word in name.split("_")])
    lines: list[str] = []
    for word in name.split("_"):
        if lines and len(lines[-1]) + 1 + len(word) <= room:
            lines[-1] += f" {word}" if len(name) > room else f"_{word}"
        else:
            lines.append(word)
    return [name] if len(name) <= room else lines


def _shrink(widths: list[int], heads: list[list[str]], columns: list[list[str]], width: int) -> None:
    """Take room from the widest texts until the table fits, or they are as short as they may be."""
    texts = [i for i, column in enumerate(columns) if any(not _is_short(cell) for cell in column)]
    while texts and sum(widths) + _GAP * (len(widths) - 1) > width:
        widest = max(texts, key=lambda i: widths[i])
        least = max(_LEAST, *map(len, heads[widest]))
        if widths[widest] <= least:
            return
        widths[widest] -= 1


def _is_short(cell: str) -> bool:
    return len(cell) <= _LEAST


def _cut(cell: str, width: int) -> str:
    """A text in so many letters: its beginning and its end.

    >>> _cut("fedavg-14k-2M-1of16", 11)
    'fedavg...16'
    """
    if len(cell) <= width:
        return cell
    end = max((width - 3) // 3, 1)
    return f"{cell[: width - 3 - end]}...{cell[-end:]}"
