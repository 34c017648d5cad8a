"""Which problems measure a model? Held-out pipelines in HumanEval's format, with tests that tell programs apart.

Problems follow the training distribution restricted to the held-out pipelines. The cases of a test are picked from a
seeded pool of inputs so that programs that differ from the solution in one step fail: a case is worth the number of
such near misses that it exposes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalefed.data.micro.grammar import CHUNK, draw, grammar, is_held_out
from scalefed.data.micro.inputs import inputs
from scalefed.data.micro.primitives import TYPES
from scalefed.data.micro.text import ENTRY_POINT, prompt_and_solution
from scalefed.data.problem import Problem
from scalefed.errors import ConfigError
from scalefed.seeds import rng

CASES = 7  # asserts of a problem; HumanEval has 7.7 on average
POOL = 48  # inputs that cases are chosen from
NEIGHBOURS = 6  # wrong primitives tried at each step, which the cases must tell from the right one
LONGEST_VALUE = 300  # characters of an expected value

Program = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class _Case:
    """An input as Python source and what the solution makes of it."""

    source: str
    expected: str


def problems(count: int = 164, *, seed: int = 0) -> list[Problem]:
    """Evaluation problems whose pipelines (constants aside) no training document has.

    The first problems of a longer list are those of a shorter one. Left out are pipelines that hardly depend on their
    input: fewer than three different results over the pool of inputs (two where only truth values are possible).

    Args:
        count: how many; HumanEval has 164.
        seed: another seed gives other problems and other cases.

    Raises:
        ConfigError: count is below 1.

    >>> problems(2)[1].entry_point
    'f'
    """
    if count < 1:
        raise ConfigError(f"count must be at least 1, got {count}")
    return list(_problems(count, seed))


@lru_cache(maxsize=4)
def _problems(count: int, seed: int) -> tuple[Problem, ...]:
    found: list[Problem] = []
    seen: set[str] = set()
    start = 0
    while len(found) < count:
        draws = draw(CHUNK, seed=seed, purpose="problems", start=start, held_out=True)
        for index in np.flatnonzero(is_held_out(draws)):
            prompt, solution = prompt_and_solution(draws.variants[index])
            if prompt in seen:
                continue
            seen.add(prompt)
            cases = _cases(draws.variants[index], seed, start + int(index))
            if cases and len(found) < count:
                found.append(Problem(f"micro/{len(found)}", prompt, solution, _check(cases), ENTRY_POINT))
        start += CHUNK
    return tuple(found)


def _check(cases: list[_Case]) -> str:
    lines = [f"    assert candidate({case.source}) == {case.expected}" for case in cases]
    return "\n".join(["def check(candidate):", *lines]) + "\n"


def _cases(variants: NDArray[np.int32], seed: int, number: int) -> list[_Case]:
    """The cases of one pipeline, or none if its results say too little."""
    model = grammar()
    steps = variants[variants >= 0]
    kind, result = int(model.source[steps[0]]), int(model.target[steps[-1]])
    sources = inputs(TYPES[kind], POOL, rng(seed, "inputs", number))
    pool = [compile(source, "<input>", "eval") for source in sources]
    expected = results_of(program_of(steps), pool)
    few = "b" in (TYPES[kind], TYPES[result])
    longest = max(len(value) for value in expected)
    if len(set(expected)) < (2 if few else 3) or any(v.startswith("!") for v in expected) or longest > LONGEST_VALUE:
        return []
    wrong = np.array([results_of(program_of(near), pool) for near in near_misses(steps, rng(seed, "mutants", number))])
    exposed = wrong != np.array(expected) if len(wrong) else np.zeros((0, len(pool)), dtype=bool)
    chosen = _choose(exposed, expected)
    return [_Case(sources[i], expected[i]) for i in chosen]


def _choose(exposed: NDArray[np.bool_], expected: list[str]) -> list[int]:
    """Indices of up to ``CASES`` inputs: greedily those that expose most near misses, then those with new results."""
    alive = np.ones(len(exposed), dtype=bool)
    chosen: list[int] = []
    for _ in range(min(CASES, len(expected))):
        known = {expected[i] for i in chosen}
        news = np.array([value not in known for value in expected])
        worth = exposed[alive].sum(axis=0) + 0.5 * news
        worth[chosen] = -1
        best = int(np.argmax(worth))
        chosen.append(best)
        alive &= ~exposed[:, best]
    return chosen


def near_misses(steps: NDArray[np.int32], random: np.random.Generator) -> list[NDArray[np.int32]]:
    """Pipelines of the same types with one step replaced, dropped, or exchanged with the next."""
    model = grammar()
    found = []
    for place, step in enumerate(steps):
        source, target = model.source[step], model.target[step]
        others = np.flatnonzero((model.source == source) & (model.target == target))
        others = others[others != step]
        for other in random.permutation(others)[:NEIGHBOURS]:
            found.append(np.concatenate([steps[:place], [other], steps[place + 1 :]]))
        if source == target and len(steps) > 1:
            found.append(np.delete(steps, place))
        if place and source == target == model.source[steps[place - 1]] == model.target[steps[place - 1]]:
            found.append(np.concatenate([steps[: place - 1], [step, steps[place - 1]], steps[place + 1 :]]))
    return found


def program_of(steps: NDArray[np.int32]) -> Program:
    """The function that a pipeline's document defines, ready to call."""
    prompt, solution = prompt_and_solution(steps)
    space: dict[str, Any] = {}
    exec(prompt + solution, space)  # our own text, made from the table of primitives
    program: Program = space[ENTRY_POINT]
    return program


def results_of(program: Program, pool: list[CodeType]) -> list[str]:
    """What the program returns on each input, as source; ``!`` and the error's name where it fails."""
    results = []
    for value in pool:
        try:
            results.append(repr(program(eval(value))))
        except Exception as error:  # a near miss may fail in any way, which is a result like another
            results.append("!" + type(error).__name__)
    return results
