"""How is a document drawn, and how probable is it? A seeded Markov chain over typed primitives.

A document has a family, a depth (1 to 8) and as many variants. The first variant is one of the family's own; each
later one fits the type reached so far and is the family's own with probability ``OWN``, else shared glue. Primitives
follow Zipf's law within a family, and families do too.

Held out for evaluation: every pipeline whose :func:`residue` is zero, whatever its constants. The residue is a finite
automaton over primitives, so the mass of the held-out set, and the entropy of what is left, are exact sums over few
states rather than over all pipelines.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from scalefed.data.micro.primitives import TYPES, table
from scalefed.seeds import rng

DEEPEST = 8  # steps of a pipeline; design.md asks for headroom, and 8 is rare at DEPTH_RATIO
CHUNK = 4096  # documents drawn from one stream: a part of the corpus is made without what comes before
MODULUS = 11  # of the checksum over a pipeline's steps; a prime, so that no step is lost in it
SHIFT = 8  # of single steps, the fourth and the fifteenth of each family are held out
OWN = 0.7  # share of later steps from the family's own primitives: families differ, and share a common tongue
DEPTH_RATIO = 0.45  # each depth is so much rarer than the one before
SKILL_EXPONENT = 1.3  # of Zipf's law over skills: rare ones are learnt late, so that loss falls as a power law
CONSTANT_EXPONENT = 1.5  # of Zipf's law over the constants of a primitive
FAMILY_EXPONENT = 0.8  # of Zipf's law over families; below 1, so that the rarest still has text


@dataclass(frozen=True, slots=True)
class Draws:
    """Drawn documents as numbers.

    Attributes:
        families: (n,) index of the family.
        depths: (n,) number of steps, 1 to 8.
        variants: (n, 8) index of the variant of each step, -1 past the depth.
    """

    families: NDArray[np.int16]
    depths: NDArray[np.int16]
    variants: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Grammar:
    """The distribution of documents, as arrays.

    Attributes:
        families: (f,) probability of each family.
        depths: (8,) probability of depth 1 to 8.
        first: (f, v) probability of the first variant given the family.
        later: (f, t, v) probability of a later variant given the family and the type reached.
        source, target: (v,) types before and after a variant.
        opening, residues: (v,) what a variant adds to the residue as the first step and as a later one.
        ladder, choices: for drawing: state + cumulative probability, and the variant at each rung.
    """

    families: NDArray[np.float64]
    depths: NDArray[np.float64]
    first: NDArray[np.float64]
    later: NDArray[np.float64]
    source: NDArray[np.int64]
    target: NDArray[np.int64]
    opening: NDArray[np.int64]
    residues: NDArray[np.int64]
    ladder: NDArray[np.float64]
    choices: NDArray[np.int32]


def zipf(count: int, exponent: float) -> NDArray[np.float64]:
    """(count,) probabilities proportional to rank^-exponent.

    >>> zipf(2, 1.0).round(3).tolist()
    [0.667, 0.333]
    """
    weights = np.arange(1, count + 1, dtype=float) ** -exponent
    return np.asarray(weights / weights.sum())


@lru_cache(maxsize=1)
def grammar() -> Grammar:
    """The benchmark's distribution, built once."""
    skills = table()
    primitives = [skills.primitives[variant.primitive] for variant in skills.variants]
    source = np.array([primitive.source for primitive in primitives])
    family = np.array([primitive.family for primitive in primitives])
    shares = {n: zipf(n, CONSTANT_EXPONENT) for n in {len(primitive.constants) for primitive in skills.primitives}}
    weight = np.array(
        [
            (primitive.rank + 1.0) ** -SKILL_EXPONENT * shares[len(primitive.constants)][variant.constant]
            for primitive, variant in zip(primitives, skills.variants, strict=True)
        ]
    )
    glue = np.where([primitive.glue for primitive in primitives], weight, 0.0)
    first = np.stack([_normalised(np.where(family == f, weight, 0.0)) for f in range(len(skills.families))])
    later = np.zeros((len(first), len(TYPES), len(weight)))
    for f in range(len(first)):
        for t in range(len(TYPES)):
            own = np.where((family == f) & (source == t), weight, 0.0)
            shared = _normalised(np.where(source == t, glue, 0.0))
            later[f, t] = OWN * _normalised(own) + (1 - OWN) * shared if own.any() else shared
    ladder, choices = _ladder(first, later)
    return Grammar(
        families=zipf(len(first), FAMILY_EXPONENT),
        depths=_normalised(np.power(DEPTH_RATIO, np.arange(DEEPEST, dtype=np.float64))),
        first=first,
        later=later,
        source=source,
        target=np.array([primitive.target for primitive in primitives]),
        opening=np.array([(primitive.rank + SHIFT) % MODULUS for primitive in primitives]),
        residues=np.array([_residue_of_name(primitive.name) for primitive in primitives]),
        ladder=ladder,
        choices=choices,
    )


def draw(count: int, *, seed: int, purpose: str, start: int = 0, held_out: bool = False) -> Draws:
    """Documents ``start`` to ``start + count``; each depends on (seed, purpose, its number) only.

    Training documents redraw everything but their family until the pipeline is not held out. With ``held_out`` the
    draws are unconditional and the caller picks the held-out ones with :func:`is_held_out`.
    """
    chunks = range(start // CHUNK, -(-(start + count) // CHUNK) if count else start // CHUNK)
    parts = [_chunk(seed, purpose, chunk, held_out) for chunk in chunks]
    if not parts:
        return Draws(np.zeros(0, np.int16), np.zeros(0, np.int16), np.zeros((0, DEEPEST), np.int32))
    window = slice(start - chunks[0] * CHUNK, start - chunks[0] * CHUNK + count)
    return Draws(
        np.concatenate([part.families for part in parts])[window],
        np.concatenate([part.depths for part in parts])[window],
        np.concatenate([part.variants for part in parts])[window],
    )


def residue(variants: NDArray[np.int32]) -> NDArray[np.int64]:
    """(n,) residue of each pipeline of ``variants`` (n, 8): the opening, then r -> (3 r + the step's) mod 11."""
    model = grammar()
    state = model.opening[variants[:, 0]]
    for step in range(1, variants.shape[1]):
        there = variants[:, step] >= 0
        state = np.where(there, (3 * state + model.residues[variants[:, step]]) % MODULUS, state)
    return state


def is_held_out(draws: Draws) -> NDArray[np.bool_]:
    """(n,) whether a pipeline belongs to evaluation."""
    return np.asarray(residue(draws.variants) == 0)


def _normalised(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    total = weights.sum()
    return np.asarray(weights / total if total else weights)


def _residue_of_name(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") % MODULUS


def _ladder(first: NDArray[np.float64], later: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """One sorted array for all states: state + cumulative probability, and the variant at each rung."""
    rungs, choices = [], []
    states = np.concatenate([first[:, None], later], axis=1).reshape(-1, first.shape[1])
    for state, row in enumerate(states):
        there = np.flatnonzero(row)
        cumulative = np.cumsum(row[there])
        cumulative[-1:] = 1.0
        rungs.append(state + cumulative)
        choices.append(there)
    return np.concatenate(rungs), np.concatenate(choices).astype(np.int32)


def _chunk(seed: int, purpose: str, chunk: int, held_out: bool) -> Draws:
    model = grammar()
    uniform = rng(seed, purpose, chunk).random((CHUNK, 1))[:, 0]
    families = np.minimum(np.searchsorted(np.cumsum(model.families), uniform, side="right"), len(model.families) - 1)
    draws = Draws(families.astype(np.int16), np.zeros(CHUNK, np.int16), np.full((CHUNK, DEEPEST), -1, np.int32))
    open_rows = np.arange(CHUNK)
    attempt = 0
    while len(open_rows):
        numbers = rng(seed, purpose, chunk, attempt).random((CHUNK, 1 + DEEPEST))[open_rows]
        part = _pipelines(families[open_rows], numbers)
        draws.depths[open_rows], draws.variants[open_rows] = part.depths, part.variants
        open_rows = open_rows[is_held_out(part)] if not held_out else open_rows[:0]
        attempt += 1
    return draws


def _pipelines(families: NDArray[np.int64], numbers: NDArray[np.float64]) -> Draws:
    """Pipelines from uniform ``numbers`` (n, 9): depth, then one per step."""
    model = grammar()
    depths = 1 + np.minimum(np.searchsorted(np.cumsum(model.depths), numbers[:, 0], side="right"), DEEPEST - 1)
    variants = np.full((len(families), DEEPEST), -1, np.int32)
    states = families * (len(TYPES) + 1)
    for step in range(DEEPEST):
        rungs = np.searchsorted(model.ladder, states + numbers[:, 1 + step], side="right")
        chosen = model.choices[np.minimum(rungs, len(model.choices) - 1)]
        variants[:, step] = np.where(step < depths, chosen, -1)
        states = families * (len(TYPES) + 1) + 1 + model.target[chosen]
    return Draws(families.astype(np.int16), depths.astype(np.int16), variants)
