"""What does a command print, and how does it read the words it is given?"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalefed.cli.tables import table_text, terminal_width, without_constant
from scalefed.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    import pandas as pd

    from scalefed.config import RunConfig

COUNTS = ("params", "params_total", "params_trained", "tokens", "rounds", "bytes_sent", "unique_tokens")


def say(text: str) -> None:
    """A line for a person, on the error stream, so that data can be piped."""
    print(text, file=sys.stderr, flush=True)


def tell(text: str) -> None:
    """A line of the answer, on standard output."""
    print(text, flush=True)


def tell_json(value: Any) -> None:
    """The answer as JSON: floats exact, infinities as the word inf, what is unknown as null."""
    from scalefed.runs.jsontext import dumps

    tell(dumps(_without_nan(value), indent=1))


def tell_frame(frame: "pd.DataFrame", *, as_json: bool, index: str | None = None) -> None:
    """A table: aligned for people, or one JSON object a row."""
    if index:
        frame = frame.rename_axis(index).reset_index()
    if as_json:
        tell_json(frame.to_dict("records"))
        return
    names = [str(name) for name in frame.columns]
    columns = [[cell(name, value) for value in frame[name]] for name in frame.columns]
    width = terminal_width()
    names, rows, same = without_constant(names, list(zip(*columns, strict=True)), width)
    text, left_out = table_text(names, rows, width)
    tell(text)
    if same:
        say(f"in every row: {', '.join(same)}")
    if left_out:
        say(f"not shown, for want of room: {', '.join(left_out)}; a wider window or --json shows them")


def cell(name: str, value: Any) -> str:
    """One value of a table in few letters.

    >>> cell("params", 24600), cell("loss", 0.41236), cell("compute", 1.5e15), cell("loss", None)
    ('24.6k', '0.4124', '1.5e15', '-')
    """
    if value is None or value != value:
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)) and not hasattr(value, "dtype"):
        return str(value)
    if hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, (int, float)):
        return str(value)
    from scalefed.charts.theme import power, si

    if name in COUNTS:
        return si(value)
    if name == "compute":
        return power(value)
    from scalefed.units import grouped

    return str(value) if isinstance(value, int) else grouped(value)


def rows_of(frame: "pd.DataFrame", names: Iterable[str]) -> "pd.DataFrame":
    """The frame with those columns that it has.

    Raises:
        DataError: it has none of them; the message names what is there.
    """
    found = [name for name in names if name in frame.columns]
    if not found:
        raise DataError(f"none of these columns is there; there are: {', '.join(map(str, frame.columns))}")
    return frame[found]


# ---------------------------------------------------------------------- words
def config_from(words: Sequence[str]) -> "RunConfig":
    """A config from ``[FILE.toml] key=value ...``.

    Raises:
        ConfigError: a word is neither, a key is unknown, or a value is out of range.
    """
    from scalefed.config import RunConfig, parse_overrides

    file, rest = _file_and_words(words)
    return RunConfig.load(file, *rest) if file else RunConfig.from_dict(parse_overrides(rest))


def configs_from(words: Sequence[str]) -> "tuple[list[RunConfig], str]":
    """All configs of a sweep, from ``[FILE.toml] key=value key=value,value ...``, and a sweep file that says the same.

    The file is a sweep file, or a config that the words vary; commas in a word make an axis.

    Raises:
        ConfigError: as :func:`config_from`.
    """
    from scalefed.config import RunConfig, parse_overrides, read_toml
    from scalefed.sweeps import load_sweep, sweep

    file, rest = _file_and_words(words)
    fixed: dict[str, Any] = {}
    axes: dict[str, list[Any]] = {}
    for word in rest:
        name, _, text = word.partition("=")
        values = [parse_overrides([f"{name}={value}"])[name] for value in text.split(",")] if "," in text else []
        if values:
            axes[name] = values
        else:
            fixed |= parse_overrides([word])
    if file and {"base", "grid"} & set(read_toml(file)):
        made = [config for start in load_sweep(file) for config in sweep(start.replace(**fixed), **axes)]
        return list({config.run_id: config for config in made}.values()), file.read_text(encoding="utf-8")
    settings = read_toml(file) if file else {}
    if "clients" in axes:  # the base must be possible by itself
        settings = {"clients": max(axes["clients"])} | settings
    made = sweep(RunConfig.from_dict(settings | fixed), **axes)
    lines = ["[base]", *_toml_lines(settings | fixed), "", "[[grid]]", *_toml_lines(axes)]
    return made, "\n".join(lines) + "\n"


def options_from(words: Sequence[str]) -> dict[str, Any]:
    """Options from ``key=value`` words: numbers where they read as numbers.

    Raises:
        ConfigError: a word without ``=``.

    >>> options_from(["clients=16", "skew=0.5", "x=compute"])
    {'clients': 16, 'skew': 0.5, 'x': 'compute'}
    """
    options: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise ConfigError(f"expected key=value, got {word!r}; for example clients=16")
        options[name] = number(text)
    return options


def number(text: str) -> Any:
    """The number that a word stands for, else the word.

    >>> number("1e3"), number("16"), number("a")
    (1000.0, 16, 'a')
    """
    for kind in (int, float):
        try:
            return kind(text.replace("_", ""))
        except ValueError:
            continue
    return text


def folder(path: Path) -> Path:
    """A folder to write into, made now, so that a mistake costs nothing.

    Raises:
        ConfigError: there is a file in its place.
    """
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path} is a file; give a folder, which is made if needed")
    path.mkdir(parents=True, exist_ok=True)
    return path


def columns_from(words: Sequence[str] | None) -> dict[str, str] | None:
    """Names of columns from ``ours=theirs`` words.

    Raises:
        ConfigError: a word without ``=``.
    """
    return pairs_from(words, "--column params=N", "ours=theirs") or None


def pairs_from(words: Sequence[str] | None, example: str, shape: str = "name=value") -> dict[str, str]:
    """What ``name=value`` words say.

    Raises:
        ConfigError: a word without ``=``, shown with the example.

    >>> pairs_from(["b=a"], "--tie b=a")
    {'b': 'a'}
    """
    pairs = [word.partition("=") for word in words or ()]
    for name, equals, value in pairs:
        if not equals or not value:
            raise ConfigError(f"{example.split()[0]} wants {shape}, got {name!r}; for example {example}")
    return {name: value for name, _, value in pairs}


def bounds_from(words: Sequence[str] | None) -> dict[str, tuple[Any, Any]]:
    """Bounds from ``name=low:high`` words, either side may be left open.

    >>> bounds_from(["a=0.1:0.6", "b=:2"])
    {'a': (0.1, 0.6), 'b': (None, 2)}
    """
    bounds = {}
    for name, text in pairs_from(words, "--bound a=0.1:0.6", "name=low:high").items():
        low, colon, high = text.partition(":")
        if not colon:
            raise ConfigError(f"--bound wants name=low:high, got '{name}={text}'; for example --bound a=0.1:0.6")
        bounds[name] = (number(low) if low else None, number(high) if high else None)
    return bounds


def choice(what: str, value: str, allowed: Iterable[str]) -> str:
    """The value, if it is one of those allowed.

    Raises:
        ConfigError: it is not; the nearest one is named.
    """
    names = list(allowed)
    if value not in names:
        raise ConfigError(f"unknown {what} {value!r}; {nearest(value, names)}")
    return value


# ---------------------------------------------------------------------- helpers
def _file_and_words(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    if words and "=" not in words[0]:
        return Path(words[0]), list(words[1:])
    return None, list(words)


def _toml_lines(settings: Mapping[str, Any]) -> list[str]:
    import json

    def value(item: Any) -> str:
        if isinstance(item, list):
            return "[" + ", ".join(map(value, item)) + "]"
        return json.dumps(item) if isinstance(item, str) else repr(item)

    return [f"{name} = {value(item)}" for name, item in settings.items()]


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return value
