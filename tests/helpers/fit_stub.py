"""As much of a fit as planning and design need, without a solver."""

from dataclasses import dataclass

import pandas as pd

from scalefed.downstream.link import Link
from scalefed.laws import Law


@dataclass
class Fitted:
    """A law with its parameters, their replicates and the runs."""

    law: Law
    params: dict[str, float]
    replicates: pd.DataFrame
    runs: pd.DataFrame
    link: Link | None = None
    noise: float = 0.01
    undetermined: str = ""
