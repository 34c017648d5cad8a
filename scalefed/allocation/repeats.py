"""What is text worth that is read again, where the law does not say? Something between fresh text and nothing.

A law without a term for repeats takes all tokens for fresh. Beyond the passes that its runs made, the answer lies
between that and a law to which tokens read again teach nothing: the intervals hold both ends, and where the two differ
by more than a factor of ten in size, there is no answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalefed.allocation.budgets import Budget, Setting
from scalefed.allocation.extrapolation import SLACK, Ranges, most_passes
from scalefed.allocation.optimum import Optimum
from scalefed.errors import FitError
from scalefed.laws import Law
from scalefed.units import grouped

Array = NDArray[np.float64]

MOST_APART = 10.0
"""Best sizes further apart than this are no answer."""
PRICED = frozenset({"unique_tokens", "epochs"})
"""A law with one of these columns knows what repeated text is worth."""


@dataclass(frozen=True, slots=True)
class Repeats:
    """How often an answer reads its text, where the law takes all of it for fresh.

    Attributes:
        unique: different tokens of the question.
        passes: times that the answer reads each.
        seen: the most passes of the runs, at least 1.
    """

    unique: Array
    passes: Array
    seen: float

    @property
    def beyond(self) -> float:
        """Decades of passes beyond the runs; 0 where they made as many."""
        most = float(np.max(self.passes))
        return float(np.log10(most / self.seen)) if most > self.seen * SLACK else 0.0

    def once(self, budget: Budget) -> Budget:
        """The limits if what is read more often than the runs read it teaches nothing."""
        cap = self.unique * self.seen
        return replace(budget, tokens=cap if budget.tokens is None else np.minimum(budget.tokens, cap))

    def note(self, *, said: bool) -> str:
        """What the answer does about it; empty where the question names no text.

        Args:
            said: whether the question names the different tokens.
        """
        unique, passes = f"{float(np.min(self.unique)):,.0f}", grouped(float(np.max(self.passes)))
        if self.beyond:
            return (
                f"the best run reads its {unique} different tokens {passes} times, these runs theirs at most "
                f"{_times(self.seen)}, and the law has no term for it: intervals reach from repeated text that is "
                "worth as much as fresh to repeated text that teaches nothing"
            )
        return (
            f"unique_tokens has no term in this law: {passes} passes over {unique} count as fresh text" if said else ""
        )

    def refusal(self, low: float, high: float) -> FitError:
        """Why there is no best size between these two."""
        unique, passes = f"{float(np.min(self.unique)):,.0f}", grouped(float(np.max(self.passes)))
        return FitError(
            f"the best run would read its {unique} different tokens {passes} times, these runs read theirs at most "
            f"{_times(self.seen)}, and the law does not know what repeated text is worth: the best size is anything "
            f"from {grouped(low)} to {grouped(high)} parameters. Ask with more text, or fit a law with "
            "repeats(tokens, unique_tokens, R) to runs that repeat theirs"
        )


def repeats_of(law: Law, ranges: Ranges, budget: Budget, setting: Setting, tokens: Array) -> Repeats | None:
    """How often runs of these tokens read their text; None where the question does not tell or the law knows.

    Args:
        law: the law.
        ranges: what its runs had.
        budget: the limits, maybe with the different tokens of a client.
        setting: maybe with the different tokens of all clients.
        tokens: (q,) of the answers.
    """
    if PRICED & set(law.columns):
        return None
    unique = setting.unique_tokens
    if unique is None and budget.unique_tokens_per_client is not None and setting.clients is not None:
        unique = np.asarray(budget.unique_tokens_per_client, float) * np.asarray(setting.clients, float)
    if unique is None:
        return None
    unique = np.broadcast_to(np.asarray(unique, dtype=np.float64), np.shape(tokens))
    return Repeats(unique, tokens / unique, most_passes(ranges))


def passes_of(law: Law, ranges: Ranges, table: Mapping[str, Any]) -> Array | None:
    """How many times as often runs read their text as the fitted ones did, at least 1: (n,) or one number.

    None where the law knows what repeats are worth, the table does not tell, or none reads it more often.

    Args:
        law: the law.
        ranges: what its own runs had.
        table: column -> a number or numbers.
    """
    if PRICED & set(law.columns) or "tokens" not in table or not PRICED & set(table):
        return None
    known = {name: np.asarray(table[name], dtype=np.float64) for name in ("tokens", *PRICED & set(table))}
    passes = known["epochs"] if "epochs" in known else known["tokens"] / known["unique_tokens"]
    often = np.fmax(passes / most_passes(ranges), 1.0)
    return often if np.any(often > SLACK) else None


def widened(best: Optimum, once: Optimum, loss_high: float, found: Repeats) -> Optimum:
    """The answer with intervals that hold the one without a worth of repeated text.

    Args:
        best: all text taken for fresh.
        once: tokens read again taken for nothing.
        loss_high: the upper end of the loss of a run of the best size whose tokens count so often as the runs read.
        found: how often it reads its text.

    Raises:
        FitError: the two are so far apart that there is no answer.
    """
    ends = [(getattr(one, f"{name}_low"), getattr(one, name), getattr(one, f"{name}_high"))
            for name in ("params", "tokens", "rounds") for one in (best, once)]  # fmt: skip
    low, high = (f(np.reshape(ends, (3, -1)), axis=1) for f in (np.fmin.reduce, np.fmax.reduce))
    if high[0] > MOST_APART * low[0]:
        raise found.refusal(float(low[0]), float(high[0]))
    return replace(
        best,
        params_low=float(low[0]), params_high=float(high[0]),
        tokens_low=float(low[1]), tokens_high=float(high[1]),
        rounds_low=float(low[2]), rounds_high=float(high[2]),
        loss_high=max(best.loss_high, loss_high),
        regret=np.nan,
    )  # fmt: skip


def _times(passes: float) -> str:
    return "once" if passes <= SLACK else f"{grouped(passes)} times"
