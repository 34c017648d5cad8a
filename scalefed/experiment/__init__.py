"""From a config to a stored run, and from many configs to a run log."""

from importlib.util import find_spec

from scalefed.errors import MissingExtraError

if missing := [name for name in ("torch", "tokenizers", "safetensors") if find_spec(name) is None]:
    raise MissingExtraError(
        f"making runs needs {', '.join(missing)}; install with: pip install 'scalefed[train]' "
        "(reading runs, fitting laws and asking them need nothing more)"
    )

from scalefed.experiment.pilot import pilot
from scalefed.experiment.pool import Progress, train_all
from scalefed.experiment.pretrained import evaluate_checkpoint
from scalefed.experiment.training import evaluate, train

__all__ = ["Progress", "evaluate", "evaluate_checkpoint", "pilot", "train", "train_all"]
