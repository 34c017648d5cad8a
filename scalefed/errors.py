"""What can go wrong, and how it is said.

Every message says what was given, what is allowed and what to try::

    ScalefedError
    |-- ConfigError      a setting is unknown, of the wrong type, or out of range   (also a ValueError)
    |-- DataError        runs, problems or samples that cannot be read or used      (also a ValueError)
    |-- FitError         a law cannot be fitted, or must not be asked this question (also a ValueError)
    |-- CheckpointError  a checkpoint that is damaged or belongs to another config
    |-- SandboxError     generated code cannot be run safely on this machine
    `-- MissingExtraError  an optional package is needed                            (also an ImportError)

Soft trouble is a status on the result or one of two warnings: :class:`RunLogWarning` (a run was skipped or has
changed) and :class:`FitWarning` (a fit may be used, with care).
"""

import difflib
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")

RENAMED: Mapping[str, str] = {
    "beside": "covariates",
    "confidence": "level",
    "focus": "scale_weight",
    "resampled": "replicates",
    "rival": "alternative",
    "robust": "huber_delta",
    "shared": "ties",
}
"""Words that the package had before its first release, and what they are called now."""


class ScalefedError(Exception):
    """Base class: catch this to catch everything that scalefed raises on purpose."""


class ConfigError(ScalefedError, ValueError):
    """A setting is unknown, of the wrong type, or out of range."""


class DataError(ScalefedError, ValueError):
    """Runs, problems or samples that cannot be read or used."""


class FitError(ScalefedError, ValueError):
    """A law cannot be fitted to these runs, or must not be asked this question."""


class CheckpointError(ScalefedError):
    """A checkpoint is damaged or belongs to another configuration."""


class SandboxError(ScalefedError):
    """Generated code cannot be run safely on this machine."""


class MissingExtraError(ScalefedError, ImportError):
    """An optional package is needed; the message names the extra that installs it."""


class RunLogWarning(UserWarning):
    """A run was skipped because it is damaged, or runs behind a fit have changed."""


class FitWarning(UserWarning):
    """The fit can be used, with the care that its status describes."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """The end of a message about an unknown name: the closest allowed ones, else all of them.

    >>> nearest("fedavgg", ["fedavg", "scaffold"])
    "did you mean 'fedavg'?"
    """
    names = sorted(allowed)
    if RENAMED.get(word) in names:
        return f"{word!r} is called {RENAMED[word]!r} now"
    alike = [name for name in names if name.lower() == word.lower()]
    close = alike or difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join(names):.1200}"


def check_level(level: float) -> None:
    """Refuse a coverage outside (0, 1).

    Raises:
        ConfigError: with what is allowed.
    """
    if isinstance(level, bool | str) or not 0.0 < level < 1.0:
        raise ConfigError(f"level must be between 0 and 1, got {level!r}; 0.95 is usual")


def refuses_old_words(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """The function, which answers a keyword of :data:`RENAMED` with its name of today.

    Raises:
        TypeError: on the call, for such a keyword.
    """
    own = function.__code__.co_varnames

    @functools.wraps(function)
    def call(*args: _P.args, **keywords: _P.kwargs) -> _T:
        for word in keywords:
            if word in RENAMED and word not in own:
                raise TypeError(f"{function.__name__}() has no keyword {word!r}: it is called {RENAMED[word]!r} now")
        return function(*args, **keywords)

    return call
