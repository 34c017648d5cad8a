"""Which laws of others are no sums of powers? Each with its source, its parameters' meaning and its own columns.

Their optimum is found by a search over sizes (:mod:`scalefed.allocation.search`), not by a geometric program. Columns
that no run log of ours has (``bits``, ``vocab_params``) stand in the runs under that name, or ``columns=`` names them.
"""

from scalefed.laws.law import Law

_SIZE = (0.005, 5.0)  # as in laws.named
_E = "irreducible loss: what no size and no data removes"


def _published(
    name: str,
    formula: str,
    parameters: dict[str, tuple[str, str]],
    *,
    source: str,
    columns: tuple[str, ...] = (),
    bounds: dict[str, tuple[float | None, float | None]] | None = None,
) -> Law:
    """A law from parameter -> (meaning, unit)."""
    meanings, units = ({p: words[i] for p, words in parameters.items()} for i in range(2))
    return Law.parse(formula, name=name, columns=columns, source=source, meanings=meanings, units=units, bounds=bounds)


PUBLISHED = (
    _published(
        "farseer",
        "F*exp(s*params^q) + B*exp(t*params^b)/tokens^exp(u*params^a + v)",
        {
            "F": ("loss that more data does not remove, at params^q = 0; exp(S) in the paper", "nats per token"),
            "s": ("how the logarithm of that loss changes with params^q", "none"),
            "q": ("exponent of params in it", "none"),
            "B": ("size of the token term at params^b = 0; exp(Q) in the paper", "nats per token at tokens = 1"),
            "t": ("how the logarithm of the token term's size changes with params^b; B in the paper", "none"),
            "b": ("exponent of params in it", "none"),
            "u": ("how the logarithm of the exponent of tokens changes with params^a; A in the paper", "none"),
            "a": ("exponent of params in it", "none"),
            "v": ("logarithm of the exponent of tokens at params^a = 0; E in the paper", "none"),
        },
        source="Li et al. 2025 (Farseer, arXiv 2506.10972), with the amplitudes F and B in place of exp(S) and exp(Q)",
    ),
    _published(
        "precision",
        "E + A/(params*(1 - exp(-bits/g)))^a + B/tokens^b",
        {
            "E": (_E, "nats per token"),
            "A": ("size of the term that falls with effective params", "nats per token at one effective parameter"),
            "g": ("bits at which a weight keeps 63% of its worth", "bits"),
            "a": ("exponent of effective params", "none"),
            "B": ("size of the term that falls with tokens", "nats per token at tokens = 1"),
            "b": ("exponent of tokens", "none"),
        },
        columns=("bits",),
        bounds={"a": _SIZE, "b": _SIZE, "g": (0.05, 100.0)},
        source="Kumar et al. 2024 (Scaling laws for precision, arXiv 2411.04330), for weights in training",
    ),
    _published(
        "epoch-decay",
        "E + A/params^a + B/(unique_tokens*(1 - exp(-epochs/R)))^b",
        {
            "E": (_E, "nats per token"),
            "A": ("size of the term that falls with params", "nats per token at params = 1"),
            "a": ("exponent of params", "none"),
            "B": ("size of the term that falls with effective tokens", "nats per token at one effective token"),
            "R": ("passes after which 63% of what repetition can give is had", "passes over the unique tokens"),
            "b": ("exponent of effective tokens", "none"),
        },
        bounds={"a": _SIZE, "b": _SIZE, "R": (0.05, 1e4)},
        source="the worth of a pass falls exponentially with the passes before it, as for Muennighoff et al. 2023 "
        "(arXiv 2305.16264) and Goyal et al. 2024 (arXiv 2404.07177), here from the first pass on",
    ),
    _published(
        "transfer",
        "(A/params^a + B/(tokens + k*tokens^p*params^q))^c",
        {
            "A": ("the size scale, N_c^a", "nats^(1/c) at params = 1"),
            "a": ("exponent of params over that of data, alpha_N / alpha_D", "none"),
            "B": ("the token scale, D_c", "tokens * nats^(1/c)"),
            "k": ("size of the data that pretraining is worth", "tokens at tokens = params = 1"),
            "p": ("exponent of the tokens tuned on in that worth; alpha in the paper", "none"),
            "q": ("exponent of params in that worth; beta in the paper", "none"),
            "c": ("exponent of data where size does not limit, alpha_D", "none"),
        },
        bounds={"a": _SIZE, "c": _SIZE, "p": (-2.0, 2.0), "q": (-2.0, 2.0)},
        source="Hernandez et al. 2021 (Scaling laws for transfer, arXiv 2102.01293): effective data in the law of "
        "Kaplan et al. 2020 (arXiv 2001.08361), equation 1.5; tokens are those tuned on",
    ),
    _published(
        "vocabulary",
        "A/params^a + V/vocab_params^v + B/tokens^b - E",
        {
            "A": ("size of the term that falls with params", "nats per token at params = 1"),
            "a": ("exponent of params", "none"),
            "V": ("size of the term that falls with the vocabulary's parameters", "nats per token at one parameter"),
            "v": ("exponent of the vocabulary's parameters", "none"),
            "B": ("size of the term that falls with tokens (characters in the paper)", "nats per token at tokens = 1"),
            "b": ("exponent of tokens", "none"),
            "E": ("what the loss ends below 0, where it is measured against a unigram model", "nats per token"),
        },
        columns=("vocab_params",),
        bounds={"a": _SIZE, "b": _SIZE, "v": _SIZE},
        source="Tao et al. 2024 (Scaling laws with vocabulary, arXiv 2407.13623); a loss that is negative needs a "
        "constant added to it first, which E takes up",
    ),
    _published(
        "sigmoid-accuracy",
        "G + U/(1 + exp(k*task_loss - c))",
        {
            "G": ("accuracy of guessing", "share"),
            "U": ("what the best model adds to that", "share"),
            "k": ("steepness", "1/nat"),
            "c": ("steepness times the loss at which half of it is had", "none"),
        },
        columns=("task_loss",),
        source="Grattafiori et al. 2024 (Llama 3, arXiv 2407.21783), section 3.2.1; the target is the accuracy: "
        'sf.fit(runs, "sigmoid-accuracy", target="accuracy", columns={"task_loss": "loss"})',
    ),
)
