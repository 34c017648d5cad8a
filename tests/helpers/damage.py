"""Files of every kind, broken in every way we could think of, and what must then be true of the reader.

A :class:`Kind` builds good files, reads them, and says whether what was read from broken ones is right: nothing but a
ScalefedError may come out, within seconds; what was not broken must be there as before; and no number may be read that
cannot be. Mutations draw from a ``random.Random``, which hypothesis or a benchmark supplies. The kinds are in
``damage_kinds.py``.
"""

import contextlib
import json
import math
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd

import scalefed as sf

SECONDS, WAIT = 10, 120  # a reader that computes or waits longer hangs; on a busy machine waiting is no sign yet

# what stands for a raw token once the JSON is dumped
_RAW = {"@@digits@@": "9" * 5000, "@@inf@@": "Infinity", "@@nan@@": "NaN", "@@1e400@@": "1e400",
        "@@half@@": '"\\ud800"', "@@deep@@": "[" * 3000 + "]" * 3000}  # fmt: skip
ODD: list[Any] = [
    None, True, False, "", "x", "inf", "-inf", "nan", -1, 0, 1, 1.5, -1.5, 1e26, -1e308, 2**63, 2**70, [], [1], [[]],
    {}, {"a": 1}, "\0", "é" * 50, "12", "1e3", "OOM", *_RAW,
]  # fmt: skip
CELLS = ["", "x", "OOM", "nan", "inf", "-inf", "-1", "0", "1e400", "9" * 400, "54.8%", "125M", "1,2", '"', "\0", "é",
         "True", "1e26", "None", "2;3", "\ud800"]  # fmt: skip


class Hang(BaseException):
    """No end in time; not an Exception, which a reader may catch."""


@dataclass
class Outcome:
    """What came of one broken input: refused, read, or a fault with its words."""

    kind: str
    what: str
    words: str = ""


@dataclass
class Kind:
    """One kind of file.

    Attributes:
        name: for the table.
        build: writes the good files into an empty folder.
        read: reads them; what it returns is handed to ``wrong``.
        targets: which files may be broken.
        wrong: what is wrong with a reading, given that of the good files and the broken file; None if nothing.
        style: how files of this kind are broken: json, lines, table, text or bytes.
    """

    name: str
    build: Callable[[Path], None]
    read: Callable[[Path], Any]
    targets: Callable[[Path], list[Path]]
    wrong: Callable[[Any, Any, Path], str | None]
    style: str
    good: Any = field(default=None)


def attempt(kind: Kind, folder: Path, random: Random) -> Outcome:
    """Good files, one of them broken, read."""
    whole = folder.with_name(f"whole {kind.name}")
    if kind.good is None:
        _fresh(whole).mkdir(parents=True)
        kind.build(whole)
        shutil.copytree(whole, _fresh(folder))
        with quiet():
            kind.good = kind.read(folder)  # which may write beside them
    shutil.copytree(whole, _fresh(folder))
    target = random.choice(sorted(kind.targets(folder)))
    how = break_file(target, kind.style, random)
    try:
        with quiet(), no_hang():
            found = kind.read(folder)
    except sf.ScalefedError as error:
        bare = not str(error).strip() or len(str(error)) > 4000
        return Outcome(kind.name, "nonsense" if bare else "refused", f"{how}: message {str(error)[:80]!r}")
    except Hang:
        return Outcome(kind.name, "hang", f"{how}: {target.name}")
    except Exception as error:  # this is what is looked for
        return Outcome(kind.name, "traceback", f"{how}: {type(error).__name__}: {str(error)[:160]} ({target.name})")
    fault = kind.wrong(kind.good, found, target)
    return (
        Outcome(kind.name, fault.split(":")[0], f"{how}: {fault} ({target.name})")
        if fault
        else Outcome(kind.name, "read")
    )


def _fresh(folder: Path) -> Path:
    """The path of a folder, with nothing there."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Warnings are what a reader says of what it skips."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def no_hang() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hang

    timers = ((signal.ITIMER_PROF, signal.SIGPROF, SECONDS), (signal.ITIMER_REAL, signal.SIGALRM, WAIT))
    before = [signal.signal(number, stop) for _, number, _ in timers]
    for timer, _, seconds in timers:
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for (timer, number, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


# ---------------------------------------------------------------------- breaking
def break_file(path: Path, style: str, random: Random) -> str:
    """Break one file; what was done, in words."""
    ways = {"json": 8, "lines": 8, "table": 8, "text": 4, "bytes": 0}[style]
    pick = random.randrange(ways + 5)
    if pick < ways:
        act = {"json": _json, "lines": _lines, "table": _table, "text": _words}[style]
        return act(path, random)
    if pick < ways + 4:
        return _bytes(path, random)
    return _place(path, random)


def _json(path: Path, random: Random) -> str:
    tree = json.loads(path.read_text())
    words = _tree(tree, random)
    path.write_text(_dumped(tree, random))
    return words


def _dumped(tree: Any, random: Random) -> str:
    text = json.dumps(tree)
    for mark, raw in _RAW.items():
        text = text.replace(f'"{mark}"', raw)
    if random.random() < 0.05 and '":' in text:  # a key twice
        at = text.index('"')
        key = text[at : text.index('"', at + 1) + 1]
        text = text[:at] + f"{key}: 1, " + text[at:]
    return text


def _tree(tree: Any, random: Random) -> str:
    """Change one place of a tree in place."""
    place, keys = tree, []
    for _ in range(random.randrange(1, 6)):
        if not isinstance(place, (dict, list)) or not place:
            break
        key = random.choice(list(place) if isinstance(place, dict) else range(len(place)))
        keys.append(key)
        parent, place = place, place[key]
    if not keys:
        return "nothing to change"
    key = keys[-1]
    act = random.choice(["put", "put", "put", "delete", "rename", "longer", "other"])
    if act == "put":
        parent[key] = random.choice(ODD)
    elif act == "delete":
        del parent[key]
    elif act == "rename" and isinstance(parent, dict):
        parent[random.choice(["", "x", "loss", "params", str(key) + "x", "\ud7ff"])] = parent.pop(key)
    elif act == "longer" and isinstance(parent[key], list):
        parent[key] += random.choice([[random.choice(ODD)], parent[key][:1], [None] * 3])
    elif act == "other" and isinstance(parent, dict):
        parent[random.choice(["x", "format", "schema", "status", "run_id"])] = random.choice(ODD)
    else:
        parent[key] = random.choice(ODD)
    return f"{act} at {'/'.join(map(str, keys))[:80]}"


def _lines(path: Path, random: Random) -> str:
    lines = path.read_text().splitlines()
    at = random.randrange(len(lines))
    act = random.choice(["change", "change", "change", "delete", "twice", "cut", "other"])
    if act == "change":
        tree = json.loads(lines[at])
        words = _tree(tree, random)
        lines[at] = _dumped(tree, random)
    elif act == "delete":
        words = f"line {at} away"
        del lines[at]
    elif act == "twice":
        words = f"line {at} twice"
        lines.insert(at, lines[at])
    elif act == "cut":
        words = f"line {at} cut"
        lines[at] = lines[at][: random.randrange(len(lines[at]) + 1)]
    else:
        words = "another line"
        lines.insert(at, random.choice(["[]", "1", "null", '"x"', "{", "{}", '{"round": 1}', "\0"]))
    path.write_text("\n".join(lines) + "\n")
    return words


def _table(path: Path, random: Random) -> str:
    if path.suffix == ".parquet":
        return _parquet(path, random)
    mark = "\t" if path.suffix == ".tsv" else ","
    rows = [line.split(mark) for line in path.read_text().splitlines()]
    at, column = random.randrange(len(rows)), random.randrange(len(rows[0]))
    act = random.choice(["cell", "cell", "cell", "column", "field", "row", "header", "shuffle"])
    if act == "cell" and column < len(rows[at]):
        rows[at][column] = random.choice(CELLS)
    elif act == "column":
        rows = [[cell for i, cell in enumerate(row) if i != column] for row in rows]
    elif act == "field":
        rows[at].append("7")
    elif act == "row":
        rows.insert(at, random.choice([[], [""], ["1"], rows[at]]))
    elif act == "header":
        rows[0][column] = random.choice(["", "x", rows[0][0], "loss", "status", "run_id"])
    else:
        random.shuffle(rows)
    path.write_bytes("\n".join(mark.join(row) for row in rows).encode("utf-8", "surrogatepass"))
    return f"{act} at {at}, {column}"


def _parquet(path: Path, random: Random) -> str:
    frame = pd.read_parquet(path)
    column = random.choice(list(frame.columns))
    act = random.choice(["cell", "cell", "type", "drop", "rename"])
    if act == "drop":
        frame = frame.drop(columns=column)
    elif act == "rename":
        frame = frame.rename(columns={column: random.choice(["", "x", "status"])})
    else:
        values = frame[column].astype(object).tolist()
        odd = random.choice(
            [None, -1, 0, 1e26, math.inf, -math.inf, math.nan, "x", "OOM", True, b"x", 2**62, [1], {"a": 1}]
        )
        places = range(len(values)) if act == "type" else [random.randrange(len(values))]
        for place in places:
            values[place] = odd
        frame[column] = values
    try:
        frame.to_parquet(path)
    except Exception:  # not every mixture of types is a Parquet column
        path.write_bytes(path.read_bytes()[:100])
        return "cut"
    return f"{act} in {column}"


def _words(path: Path, random: Random) -> str:
    words = path.read_text().split(" ")
    at = random.randrange(len(words))
    words[at] = random.choice(
        ["", "x", "inf", "nan", "[", "]", "-1", "0", "1e400", "9" * 5000, "[[", '"', "=", "\n", "true", "{}"]
    )
    path.write_text(" ".join(words))
    return f"word {at}"


def _bytes(path: Path, random: Random) -> str:
    data = bytearray(path.read_bytes())
    act = random.choice(["flip", "flip", "cut", "insert", "remove", "double", "empty", "utf", "bom", "nul"])
    at = random.randrange(len(data) + 1)
    if act == "flip" and data:
        for _ in range(random.choice([1, 1, 3, 20])):
            data[random.randrange(len(data))] = random.randrange(256)
    elif act == "cut":
        del data[at:]
    elif act == "insert":
        data[at:at] = bytes(random.randrange(256) for _ in range(random.randrange(1, 30)))
    elif act == "remove":
        del data[at : at + random.randrange(1, 200)]
    elif act == "double":
        data[at:at] = data[at : at + 200]
    elif act == "empty":
        data.clear()
    elif act == "utf":
        data[at:at] = random.choice([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xfe\xff"])
    elif act == "bom":
        data[:0] = random.choice([b"\xef\xbb\xbf", b"\xff\xfe"])
    else:
        data[at:at] = b"\0" * random.choice([1, 1000])
    path.write_bytes(bytes(data))
    return f"bytes: {act} at {at}"


def _place(path: Path, random: Random) -> str:
    act = random.choice(["away", "folder", "pipe", "loop", "device"])
    path.unlink()
    if act == "folder":
        path.mkdir()
    elif act == "pipe":
        os.mkfifo(path)
    elif act == "loop":
        path.symlink_to(path.name)
    elif act == "device":
        path.symlink_to("/dev/zero")
    return f"a {act} in its place"
