"""Which libraries may samples import, and which did they lack?

The sandbox has the standard library. A sample that needs another one has not been judged wrong by its tests: that is
said, and the library can be allowed by name.
"""

import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import packages_distributions
from importlib.util import find_spec

from scalefed.errors import ConfigError, nearest


def checked_packages(names: Sequence[str]) -> tuple[str, ...]:
    """Names of installed libraries, sorted and without the standard one's.

    Raises:
        ConfigError: one of them cannot be imported here.

    >>> checked_packages(["numpy", "numpy", "math"])
    ('numpy',)
    """
    for name in names:
        if not _is_installed(name):
            raise ConfigError(
                f"no library {name!r} is installed here; give names as in an import statement, separated by commas: "
                f"--allow-packages numpy,sympy; {_import_name(name)}"
            )
    return tuple(sorted(set(names) - sys.stdlib_module_names))


def missing_modules(samples: Mapping[str, int], total: int) -> str:
    """One sentence on libraries that samples lacked.

    Args:
        samples: library -> how many samples needed it.
        total: samples in all.

    >>> missing_modules({"numpy": 2}, 50)
    '2 of 50 samples need libraries that the sandbox does not show: numpy (2); allow them with --allow-packages numpy'
    """
    ordered = sorted(samples.items(), key=lambda item: (-item[1], item[0]))
    installed = [name for name, _ in ordered if _is_installed(name)]
    shown = ", ".join(f"{n} ({c}{'' if n in installed else ', not installed here'})" for n, c in ordered[:_NAMED])
    more = ", and more" if len(ordered) > _NAMED else ""
    advice = f"; allow them with --allow-packages {','.join(installed[:_NAMED])}" if installed else ""
    verb = "needs" if (count := sum(samples.values())) == 1 else "need"
    return f"{count} of {total} samples {verb} libraries that the sandbox does not show: {shown}{more}{advice}"


_NAMED = 10  # libraries named in a sentence


def _is_installed(name: str) -> bool:
    try:
        return name.isascii() and name.isidentifier() and find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _import_name(name: str) -> str:
    """What a library that is named as on a package index, or mistyped, is imported as."""
    modules = packages_distributions()
    given = name.lower().replace("_", "-")
    for module, sources in modules.items():
        if given in [source.lower().replace("_", "-") for source in sources]:
            return f"{name} is imported as {module}"
    return nearest(name, [module for module in modules if module.isidentifier()])
