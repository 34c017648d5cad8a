"""What did a Flower run say of its rounds? Its Result or History: the object, a dict of it, JSON, or what was printed.

The server's metrics keep their names; of the clients', those of training get the prefix ``train_`` and those of
evaluation ``client_``, so a client's ``loss`` in training is ``train_loss``.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from scalefed.errors import DataError

_RESULT = {
    "train_metrics_clientapp": "train_",
    "evaluate_metrics_clientapp": "client_",
    "evaluate_metrics_serverapp": "",
}
"""Attributes of ``flwr.serverapp.strategy.Result``: round -> metrics; and the prefix that keeps equal names apart."""
_HISTORY = {
    "losses_distributed": "client_",
    "losses_centralized": "",
    "metrics_distributed_fit": "train_",
    "metrics_distributed": "client_",
    "metrics_centralized": "",
}
"""Attributes of ``flwr.server.History``: lists of (round, loss), and metric -> list of (round, value)."""
_PRINTED = {
    "history (loss, distributed):": "losses_distributed",
    "history (loss, centralized):": "losses_centralized",
    "history (metrics, distributed, fit):": "metrics_distributed_fit",
    "history (metrics, distributed, evaluate):": "metrics_distributed",
    "history (metrics, distributed):": "metrics_distributed",
    "history (metrics, centralized):": "metrics_centralized",
    "aggregated clientapp-side train metrics:": "train_metrics_clientapp",
    "aggregated clientapp-side evaluate metrics:": "evaluate_metrics_clientapp",
    "serverapp-side evaluate metrics:": "evaluate_metrics_serverapp",
}
"""Headings of what either prints, in lower case."""
_PREFIX = re.compile(r"\x1b\[[0-9;]*m|^\s*(?:INFO|DEBUG|WARNING)\s*:?(?:\s*flwr\s.*?\|)?|^\s*\(\w[^)]*\)\s")
_ROUND = re.compile(r"\s*round (\d{1,9}): (\S+)\s*$")
_ONE_LINE = re.compile(r"(?:app_fit: )?(losses_\w+|metrics_\w+) ([\[{].*[\]}])\s*$")
_LONGEST = 10_000_000  # characters of a printed block that are read as a literal


def records_of(source: Any) -> list[dict[str, Any]] | None:
    """Records with a ``round`` from a Result or a History, or a mapping of either's attributes; None for another.

    Raises:
        DataError: it is one, but what it holds is not what Flower writes.
    """
    for blocks, reader in ((_RESULT, _of_result), (_HISTORY, _of_history)):
        if isinstance(source, Mapping):
            held = {name: source[name] for name in blocks if name in source}
        else:
            held = {name: getattr(source, name) for name in blocks if hasattr(source, name)}
            held = held if len(held) == len(blocks) else {}
        if held:
            try:
                return [record for name, block in held.items() for record in reader(block or {}, blocks[name])]
            except (TypeError, ValueError, AttributeError, KeyError) as error:
                raise DataError(f"this is no {' or '.join(held)} as Flower writes it ({error})") from error
    return None


def printed(text: str) -> list[dict[str, Any]] | None:
    r"""Records from what Flower prints at a run's end, with whatever stands before each line; None for another text.

    >>> printed("INFO :  History (loss, centralized):\nINFO :    round 0: 2.5\nINFO :    round 1: 2.25")
    [{'round': 0, 'loss': 2.5}, {'round': 1, 'loss': 2.25}]
    """
    blocks: dict[str, Any] = {}
    lines = [_PREFIX.sub("", _PREFIX.sub("", line)).rstrip() for line in text.splitlines()]
    for number, line in enumerate(lines):
        name = _PRINTED.get(line.strip().lower())
        if name is not None:
            blocks[name] = _block(lines[number + 1 :], losses=name.startswith("losses"))
        elif (found := _ONE_LINE.search(line)) and found[1] in _HISTORY:
            blocks[found[1]] = _literal(found[2])
    return records_of(blocks) if blocks else None


# ---------------------------------------------------------------------- objects
def _of_result(block: Any, prefix: str) -> Iterator[dict[str, Any]]:
    for number, metrics in dict(block).items():
        yield {"round": number} | _prefixed({key: _number(value) for key, value in dict(metrics).items()}, prefix)


def _of_history(block: Any, prefix: str) -> Iterator[dict[str, Any]]:
    series = {"loss": block} if not isinstance(block, Mapping) else block
    for key, values in series.items():
        for number, value in values:
            yield {"round": number} | _prefixed({key: value}, prefix)


def _prefixed(metrics: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key if key.startswith(prefix) else prefix + key: value for key, value in metrics.items()}


def _number(value: Any) -> Any:
    """Printed results have their numbers as texts."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


# ---------------------------------------------------------------------- printed
def _block(lines: Iterable[str], *, losses: bool) -> Any:
    """What stands under a heading: lines ``round 1: 2.5``, or a dict that may go over several lines."""
    if losses:
        found: list[tuple[int, float]] = []
        for line in lines:
            match = _ROUND.match(line)
            if match is None or not isinstance(loss := _number(match[2]), float):
                break
            found.append((int(match[1]), loss))
        return found
    text = ""
    for line in lines:
        if not text and not line.lstrip().startswith("{"):
            break
        text += line.strip() + " "
        if text.count("{") == text.count("}"):
            return _literal(text)
    return {}


def _literal(text: str) -> Any:
    """A printed dict or list of numbers and names; nothing is run."""
    if len(text) > _LONGEST:
        raise DataError(f"a printed block of {len(text):,} characters is too long; save the History as JSON instead")
    try:
        return ast.literal_eval(re.sub(r"\b(nan|inf)\b", "None", text.strip()))
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise DataError(f"cannot read what Flower printed, {text[:60]!r}; save the History as JSON instead") from error
