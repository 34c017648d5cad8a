"""Which runs make a sweep? All combinations over a base config, in words or in a file.

A sweep file names the settings all runs share and one or more grids over the rest::

    [base]
    clients = 16

    [[grid]]
    params = [3_500, 14_000, 55_000]
    clients_per_round = [1, 4]

    [[grid]]                # a second grid, with settings of its own
    params = [14_000]
    seed = [1, 2]
"""

import itertools
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

from scalefed.config import RunConfig, read_toml
from scalefed.errors import ConfigError, nearest

_MOST = 100_000  # runs of one sweep: a year of minutes is half a million


def sweep(base: RunConfig, **axes: Iterable[Any]) -> list[RunConfig]:
    """All combinations of the given values over a base config, duplicates removed, in a stable order.

    Raises:
        ConfigError: an axis is unknown, empty, or a single value where a list is meant.

    >>> [c.params for c in sweep(RunConfig(), params=[3_000, 12_000])]
    [3000, 12000]
    """
    allowed = (*RunConfig.fields(), "participation")
    choices: dict[str, list[Any]] = {}
    for name, values in axes.items():
        if name not in allowed:
            raise ConfigError(f"unknown setting {name!r} in a sweep; {nearest(name, allowed)}")
        if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
            raise ConfigError(f"sweep axis {name} must be a list of values, got {values!r}; write {name}=[{values!r}]")
        choices[name] = list(values)
        if not choices[name]:
            raise ConfigError(f"sweep axis {name} has no values; give at least one")
    if (count := math.prod(map(len, choices.values()))) > _MOST:
        raise ConfigError(f"a sweep of {count:,} combinations; at most {_MOST:,} are made into one list: split it")
    settings = base.to_dict()
    if "participation" in choices:  # a share of the clients replaces the base's number
        del settings["clients_per_round"]
    configs = [
        RunConfig.from_dict(settings | dict(zip(choices, values, strict=True)))
        for values in itertools.product(*choices.values())
    ]
    return list({config.run_id: config for config in configs}.values())


def load_sweep(path: str | os.PathLike[str]) -> list[RunConfig]:
    """The runs of a sweep file, duplicates removed.

    In a grid a list is an axis, a single value holds for the whole grid.

    Raises:
        ConfigError: the file is missing or no TOML, has other tables than ``base`` and ``grid``, or a setting is wrong.
    """
    content = read_toml(path)
    if unknown := set(content) - {"base", "grid"}:
        raise ConfigError(
            f"{path}: unknown table {sorted(unknown)[0]!r:.60}; a sweep file holds [base] and [[grid]] tables"
        )
    if not isinstance(content.get("base", {}), Mapping):
        raise ConfigError(f"{path}: write the settings that all runs share as one table [base]")
    grids = content.get("grid", [{}])
    if not isinstance(grids, list) or not all(isinstance(grid, Mapping) for grid in grids):
        raise ConfigError(f"{path}: write grids as [[grid]] tables, with double brackets")
    configs = [config for grid in grids for config in _grid(content.get("base", {}), grid)]
    return list({config.run_id: config for config in configs}.values())


def _grid(base: Mapping[str, Any], grid: Mapping[str, Any]) -> list[RunConfig]:
    fixed = {name: value for name, value in grid.items() if not isinstance(value, list)}
    axes = {name: value for name, value in grid.items() if isinstance(value, list)}
    return sweep(RunConfig.from_dict({**base, **fixed}), **axes)
