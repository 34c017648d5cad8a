"""From a config to a stored run, and from many configs to a run log."""

from scalefed.experiment.pilot import pilot
from scalefed.experiment.pool import Progress, train_all
from scalefed.experiment.pretrained import evaluate_checkpoint
from scalefed.experiment.training import evaluate, train

__all__ = ["Progress", "evaluate", "evaluate_checkpoint", "pilot", "train", "train_all"]
