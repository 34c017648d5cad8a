"""Do runs that a fit sets against each other come from the same kernels? Where they do not, the fit says so."""

import pandas as pd

_MATCHED = ("params", "tokens")


def mixed_kernels(runs: pd.DataFrame) -> tuple[str, ...]:
    """A sentence where runs of equal size and tokens were trained by different kernels, or versions of them.

    Args:
        runs: one row a run; ``kernels_used`` and ``kernels_version`` where the log has them. Runs whose log tells no
            kernels are left aside.
    """
    if not {*_MATCHED, "kernels_used"} <= set(runs):
        return ()
    known = runs[runs["kernels_used"].notna() & (runs["kernels_used"] != "")]
    if known.empty:
        return ()
    stamps = known["kernels_used"].astype(str)
    if "kernels_version" in known:
        stamps = (stamps + " " + known["kernels_version"].fillna("").astype(str)).str.strip()
    of_cell = stamps.groupby([known[name] for name in _MATCHED]).nunique()
    if not (mixed := int((of_cell > 1).sum())):
        return ()
    names = ", ".join(sorted(set(stamps)))
    return (
        f"{mixed} of {len(of_cell)} sets of runs of equal size and tokens mix kernels ({names}): they agree in the "
        "mean over seeds, but the same seed ends elsewhere",
    )
