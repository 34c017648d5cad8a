"""Which sweep is small enough to finish in minutes, and varied enough to fit a law? One design, the same everywhere."""

from scalefed.architecture import shape_for
from scalefed.beginning import first_runs
from scalefed.config import RunConfig
from scalefed.errors import ConfigError

COMPUTE = (
    6e12  # FLOPs of all runs: minutes on two cores, and an interval well inside the factor that is still an answer
)
LEAST_COMPUTE = 1e11  # in shorter runs losses follow no law yet
COUNT = 17  # runs: two isoFLOP slices of four sizes at each of two cohorts, and one skewed run
COHORTS = (1, 4)  # clients per round: one, and the fewest that show averaging
TOKENS_PER_PARAM = 200.0  # half the best of so small models: a step costs the same at a smaller size, and tells less
BUDGET_RATIO = 6.0  # in much shorter runs losses follow no law yet
SMALLEST = 3_500  # params; a smaller model learns too little for the law to hold


def pilot(compute: float = COMPUTE, *, base: RunConfig | None = None) -> list[RunConfig]:
    """The configs of a pilot sweep: the same on every machine, so that its answer does not hang on how busy one is.

    The design of :func:`scalefed.first_runs`: two isoFLOP slices at each of 1 and 4 clients a round and one skewed
    run, its sizes those that the ladder of models has.

    Args:
        compute: FLOPs of all runs together, 6 x params x tokens.
        base: settings all runs share.

    Raises:
        ConfigError: less than 1e11 FLOPs are given, too few for losses that follow a law.

    >>> len(pilot()), len(pilot(1e12))
    (17, 15)
    """
    if not LEAST_COMPUTE <= compute < float("inf"):
        raise ConfigError(
            f"a pilot sweep needs at least {LEAST_COMPUTE:g} FLOPs in all, got {compute:g}; {COMPUTE:g} is usual"
        )
    base = base or RunConfig(local_steps=10, samples=10, validation_tokens=32_768)
    table = first_runs(
        compute=compute,
        count=COUNT,
        clients_per_round=COHORTS,
        tokens_per_param=TOKENS_PER_PARAM,
        budget_ratio=BUDGET_RATIO,
    )
    large = table["compute"] > table["compute"].mean()
    table["params"] = [shape_for(max(size, SMALLEST), base.vocab_size).params for size in table["params"]]
    table["tokens"] = (table["compute"] / (6 * table["params"])).astype(int)
    table = table[~table.assign(large=large).duplicated(["params", "clients_per_round", "concentration", "large"])]
    names = ("params", "tokens", "clients_per_round", "concentration")
    return [base.replace(**{name: row[name] for name in names}) for row in table.to_dict("records")]
