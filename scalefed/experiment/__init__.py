"""From a config to a stored run, and from many configs to a run log."""

from scalefed.experiment.pilot import pilot
from scalefed.experiment.pool import Progress, train_all
from scalefed.experiment.training import evaluate, train

__all__ = ["Progress", "evaluate", "pilot", "train", "train_all"]
