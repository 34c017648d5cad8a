"""Federated scaling laws for code models: make runs, fit laws, choose the size.

Names load on first use: reading runs and asking a fit needs no torch, drawing needs altair only when it draws.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scalefed.allocation.design import next_runs as next_runs
    from scalefed.allocation.optimum import Optimum as Optimum
    from scalefed.allocation.region import Region as Region
    from scalefed.analysis.compare import compare as compare
    from scalefed.beginning import first_runs as first_runs
    from scalefed.charts import chart as chart
    from scalefed.config import RunConfig as RunConfig
    from scalefed.data.partitions import Partition as Partition
    from scalefed.data.partitions import partition as partition
    from scalefed.downstream.fit import fit_link as fit_link
    from scalefed.downstream.link import Link as Link
    from scalefed.errors import ConfigError as ConfigError
    from scalefed.errors import DataError as DataError
    from scalefed.errors import FitError as FitError
    from scalefed.errors import FitWarning as FitWarning
    from scalefed.errors import RunLogWarning as RunLogWarning
    from scalefed.errors import ScalefedError as ScalefedError
    from scalefed.experiment import evaluate as evaluate
    from scalefed.experiment import train as train
    from scalefed.experiment import train_all as train_all
    from scalefed.federated.flower.recording import log_flower as log_flower
    from scalefed.fitting.fit import Fit as Fit
    from scalefed.fitting.fit import fit as fit
    from scalefed.fitting.fit import load_fit as load_fit
    from scalefed.fitting.profile import Profile as Profile
    from scalefed.fitting.status import FitStatus as FitStatus
    from scalefed.laws import LAWS as LAWS
    from scalefed.laws import Law as Law
    from scalefed.laws.simulate import simulate_runs as simulate_runs
    from scalefed.passk import PassAtK as PassAtK
    from scalefed.passk import estimate_pass_at_k as estimate_pass_at_k
    from scalefed.passk import pass_at_k as pass_at_k
    from scalefed.report.page import write_report as write_report
    from scalefed.runs.importers.rounds import import_rounds as import_rounds
    from scalefed.runs.log import Run as Run
    from scalefed.runs.log import load_counts as load_counts
    from scalefed.runs.log import load_runs as load_runs
    from scalefed.runs.log import write_run as write_run
    from scalefed.runs.pack import pack as pack
    from scalefed.runs.pack import unpack as unpack
    from scalefed.skew import measured_skew as measured_skew
    from scalefed.sweeps import load_sweep as load_sweep
    from scalefed.sweeps import sweep as sweep
    from scalefed.units import train_flops as train_flops

__all__ = [
    "LAWS",
    "ConfigError",
    "DataError",
    "Fit",
    "FitError",
    "FitStatus",
    "FitWarning",
    "Law",
    "Link",
    "Optimum",
    "Partition",
    "PassAtK",
    "Profile",
    "Region",
    "Run",
    "RunConfig",
    "RunLogWarning",
    "ScalefedError",
    "chart",
    "compare",
    "estimate_pass_at_k",
    "evaluate",
    "first_runs",
    "fit",
    "fit_link",
    "import_rounds",
    "load_counts",
    "load_fit",
    "load_runs",
    "load_sweep",
    "log_flower",
    "measured_skew",
    "next_runs",
    "pack",
    "partition",
    "pass_at_k",
    "simulate_runs",
    "sweep",
    "train",
    "train_all",
    "train_flops",
    "unpack",
    "write_report",
    "write_run",
]

_HOMES = {
    "scalefed.beginning": ("first_runs",),
    "scalefed.charts": ("chart",),
    "scalefed.config": ("RunConfig",),
    "scalefed.sweeps": ("load_sweep", "sweep"),
    "scalefed.data.partitions": ("Partition", "partition"),
    "scalefed.errors": ("ConfigError", "DataError", "FitError", "FitWarning", "RunLogWarning", "ScalefedError"),
    "scalefed.experiment": ("evaluate", "train", "train_all"),
    "scalefed.analysis.compare": ("compare",),
    "scalefed.allocation.design": ("next_runs",),
    "scalefed.downstream.fit": ("fit_link",),
    "scalefed.downstream.link": ("Link",),
    "scalefed.federated.flower.recording": ("log_flower",),
    "scalefed.fitting.profile": ("Profile",),
    "scalefed.fitting.fit": ("Fit", "fit", "load_fit"),
    "scalefed.fitting.status": ("FitStatus",),
    "scalefed.runs.importers.rounds": ("import_rounds",),
    "scalefed.laws": ("LAWS", "Law"),
    "scalefed.allocation.optimum": ("Optimum",),
    "scalefed.allocation.region": ("Region",),
    "scalefed.passk": ("PassAtK", "estimate_pass_at_k", "pass_at_k"),
    "scalefed.report.page": ("write_report",),
    "scalefed.runs.pack": ("pack", "unpack"),
    "scalefed.runs.log": ("Run", "load_counts", "load_runs", "write_run"),
    "scalefed.laws.simulate": ("simulate_runs",),
    "scalefed.skew": ("measured_skew",),
    "scalefed.units": ("train_flops",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for."""
    if name == "__version__":
        return metadata.version("scalefed")
    if name not in _HOME:
        raise AttributeError(f"module 'scalefed' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
