"""How does the C source become a library that this machine can run? Compiled once, by the system's own compiler.

The library lies in the cache directory under a hash of the source, the flags and the compiler's version. It is moved
there only after its gradient was found equal to torch's, so that what a compiler got wrong trains nothing.
"""

import ctypes
import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import torch

from scalefed.config import cache_directory
from scalefed.errors import ConfigError, nearest

LEVEL_VARIABLE = "SCALEFED_KERNEL_LEVEL"
PLAIN = "arm64" if platform.machine() in ("arm64", "aarch64") else "plain"
LEVELS = {
    "x86-64-v4": ("-march=x86-64-v4", "-DLANES=16"),
    "x86-64-v3": ("-march=x86-64-v3", "-DLANES=8"),
    PLAIN: ("-DLANES=4",),
}
"""Levels of the processor, the best first, and how the source is compiled for each: LANES is its vector's length."""

FLAGS = (
    "-std=gnu11",
    "-O3",
    "-ffp-contract=fast",  # a product and a sum may become one instruction
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-strict-aliasing",
    "-Wno-psabi",
    "-shared",
    "-fPIC",
)
COMPILERS = ("cc", "gcc", "clang")
STEP = ("step.c", "decoder.h", "products.h")  # a unit, and what it includes
SOURCE = (*STEP, "reading.c")
COMPILE_SECONDS = 300  # a compiler that takes longer hangs; two seconds are usual


@dataclass(frozen=True)
class Unavailable:
    """Why there is no library: a few words for the run log, and a line that says what to do."""

    reason: str
    advice: str


def level() -> str:
    """The level that this machine trains at: its best one, or the one that SCALEFED_KERNEL_LEVEL names.

    Raises:
        ConfigError: the variable names none, or one that this machine cannot run.
    """
    able = levels()
    wanted = os.environ.get(LEVEL_VARIABLE)
    if wanted and wanted not in able:
        raise ConfigError(
            f"{LEVEL_VARIABLE}={wanted!r} is no level that this machine runs; {nearest(wanted, able)}, or unset it"
        )
    return wanted or able[0]


def levels() -> tuple[str, ...]:
    """The levels that this machine runs, the best first."""
    able = {"AVX512": 0, "AVX2": 1}
    found = torch.backends.cpu.get_cpu_capability()
    first = next((place for name, place in able.items() if found.startswith(name)), len(LEVELS) - 1)
    return tuple(LEVELS)[first:]


@cache
def library(chosen: str, prove: Callable[[ctypes.CDLL], str]) -> ctypes.CDLL | Unavailable:
    """The loaded library of a level, compiled if it is not in the cache yet; or why there is none.

    Args:
        chosen: one of :func:`levels`.
        prove: says what is wrong with a library just compiled, or nothing.
    """
    compiler = _compiler()
    if compiler is None:
        return Unavailable(
            "no C compiler",
            f"looked for {os.environ.get('CC') or ', '.join(COMPILERS)}; install one (Debian and Ubuntu: apt install "
            "gcc; macOS: xcode-select --install) or name it in CC",
        )
    try:
        return ctypes.CDLL(str(_made(compiler, chosen, prove)))
    except subprocess.CalledProcessError as error:
        said = next((line for line in error.stderr.splitlines() if "error" in line), error.stderr.strip()[-200:])
        return Unavailable("the C compiler failed", f"{shlex.join(compiler)} says: {said}; name another one in CC")
    except subprocess.TimeoutExpired:
        return Unavailable("the C compiler hangs", f"no answer in {COMPILE_SECONDS} s; name another one in CC")
    except _WrongError as error:
        return Unavailable("the compiled step is wrong", f"{error}; name another C compiler in CC")
    except OSError as error:
        return Unavailable("the compiled step cannot be stored or loaded", f"{error}; set SCALEFED_CACHE elsewhere")


class _WrongError(Exception):
    """A library whose numbers are not torch's."""


def _compiler() -> list[str] | None:
    """The compiler's command: what CC says, else the first found."""
    if named := shlex.split(os.environ.get("CC", "")):
        return named if shutil.which(named[0]) else None
    return next(([name] for name in COMPILERS if shutil.which(name)), None)


def _made(compiler: list[str], chosen: str, prove: Callable[[ctypes.CDLL], str]) -> Path:
    """The library's file; made under a lock, so that many processes that start at once compile it once."""
    flags = (*FLAGS, *LEVELS[chosen])
    folder = cache_directory() / "kernels"
    path = folder / f"step-{chosen}-{_hash(compiler, flags, SOURCE)}.so"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_file():
            with tempfile.TemporaryDirectory(dir=folder) as room:
                made = Path(room, path.name)
                for name in SOURCE:
                    Path(room, name).write_bytes(_text(name))
                units = [str(Path(room, name)) for name in SOURCE if name.endswith(".c")]
                command = [*compiler, *flags, "-o", str(made), *units, "-lm"]
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_SECONDS)
                if wrong := prove(ctypes.CDLL(str(made))):
                    raise _WrongError(wrong)
                made.replace(path)
    return path


@cache
def step_version(chosen: str) -> str:
    """A hash of the step's source, its compiler and its flags at a level: equal ones make equal bits."""
    compiler = _compiler()
    return "" if compiler is None else _hash(compiler, (*FLAGS, *LEVELS[chosen]), STEP)[:8]


def _hash(compiler: list[str], flags: tuple[str, ...], source: tuple[str, ...]) -> str:
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=60).stdout
    key = hashlib.blake2b("\0".join([*compiler, version, *flags, platform.machine()]).encode(), digest_size=8)
    for name in source:
        key.update(_text(name))
    return key.hexdigest()


def _text(name: str) -> bytes:
    return files("scalefed.federated.native").joinpath(name).read_bytes()
