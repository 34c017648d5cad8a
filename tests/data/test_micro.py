"""The procedural benchmark: an unambiguous grammar, its exact entropy, held-out problems that really run."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import digamma

from scalefed.data import micro
from scalefed.data.micro import grammar, information, problem_set, text
from scalefed.data.micro.inputs import inputs
from scalefed.data.micro.primitives import TYPES, parse, table
from scalefed.errors import ConfigError, DataError
from scalefed.seeds import rng

DOCUMENTS = 30_000
LISTED = {variant.phrase: index for index, variant in enumerate(table().variants)}


@pytest.fixture(scope="module")
def draws():
    return grammar.draw(DOCUMENTS, seed=7, purpose="documents")


@pytest.fixture(scope="module")
def problems():
    return micro.problems(164, seed=0)


def read(document):
    """A second way to the draw: the variants named by a document's text."""

    docstring = document.split('"""')[1]
    return [LISTED[phrase] for phrase in docstring.split(", ")]


def skeleton(document):
    return tuple(table().variants[step].primitive for step in read(document))


def log_probability(steps):
    """A second way to the probability: from the table alone, before rejection, given the family of the first step."""
    skills = table()
    primitives = [skills.primitives[skills.variants[step].primitive] for step in steps]

    def weight(primitive, place=None):
        mass = (primitive.rank + 1.0) ** -grammar.SKILL_EXPONENT
        if place is None:
            return mass
        return mass * (place + 1) ** -grammar.CONSTANT_EXPONENT / constants_mass(len(primitive.constants))

    def chance(step, primitive, pool):
        return (
            weight(primitive, skills.variants[step].constant) / sum(weight(p) for p in pool) if primitive in pool else 0
        )

    family = primitives[0].family
    own = [p for p in skills.primitives if p.family == family]
    total = math.log(chance(steps[0], primitives[0], own))
    for before, step, primitive in zip(primitives, steps[1:], primitives[1:], strict=False):
        fitting = [p for p in own if p.source == before.target]
        glue = [p for p in skills.primitives if p.glue and p.source == before.target]
        share = grammar.OWN if fitting else 0.0
        mixed = share * chance(step, primitive, fitting) + (1 - share) * chance(step, primitive, glue)
        total += math.log(mixed)
    depths = [grammar.DEPTH_RATIO**d for d in range(grammar.DEEPEST)]
    return total + math.log(depths[len(steps) - 1] / sum(depths))


def constants_mass(count, known={}):  # noqa: B006
    if count not in known:
        known[count] = sum((i + 1) ** -grammar.CONSTANT_EXPONENT for i in range(count))
    return known[count]


def test_there_are_enough_skills_and_every_type_leads_on():
    skills = table()
    assert len(skills.primitives) >= 200 and len(skills.families) >= 12
    assert micro.FAMILIES == skills.families and len(set(micro.FAMILIES)) == len(micro.FAMILIES)
    assert {p.source for p in skills.primitives if p.glue} == set(range(len(TYPES)))
    assert {p.target for p in skills.primitives} == set(range(len(TYPES)))
    multi_line = [p for p in skills.primitives if p.code.count("\n") > 1]
    assert len(multi_line) >= 20  # loops and branches


def test_phrases_are_distinct_and_cannot_run_into_each_other():
    phrases = [variant.phrase for variant in table().variants]
    assert len(set(phrases)) == len(phrases)
    assert not any("," in phrase or '"' in phrase or phrase != phrase.strip() for phrase in phrases)


@pytest.mark.parametrize(
    "broken",
    ["nonsense", "[a]\nx: n -> q\n", "x: n -> n\n", "[a]\nadd <z>: n -> n\n    n += <z>\n",
     "<z> = 1 2\n[a]\nadd: n -> n\n    n += <z>\n"],
)  # fmt: skip
def test_a_broken_table_is_named(broken):
    with pytest.raises(DataError, match=r"not understood|at most one defined constant"):
        parse(broken)


def test_the_text_determines_the_draw(draws):
    for variants, family in zip(draws.variants[:3000], draws.families[:3000], strict=True):
        prompt, body = text.prompt_and_solution(variants)
        steps = read(prompt + body)
        assert steps == [v for v in variants if v >= 0]
        assert table().primitives[table().variants[steps[0]].primitive].family == family


def test_documents_depend_on_seed_and_number_only():
    some = micro.documents(20, seed=3)
    assert micro.documents(5, seed=3) == some[:5]
    assert micro.documents(5, seed=3, start=10) == some[10:15]
    assert micro.documents(3, seed=3, start=4095) == micro.documents(4098, seed=3)[4095:]
    assert micro.documents(20, seed=4) != some
    assert micro.documents(0, seed=3) == []


def test_depths_and_families_follow_their_laws(draws):
    depths = np.bincount(draws.depths, minlength=9)[1:] / DOCUMENTS
    assert depths.min() > 0 and (np.diff(depths[:6]) < 0).all()
    families = np.bincount(draws.families, minlength=len(micro.FAMILIES)) / DOCUMENTS
    expected = grammar.grammar().families
    assert np.abs(families - expected).max() < 4 * np.sqrt(expected.max() / DOCUMENTS)


PYTHON = {"n": int, "xs": list, "s": str, "ws": list, "d": dict, "ps": list, "rows": list, "b": bool, "pair": tuple}


def test_every_document_runs_on_every_kind_of_input_and_gives_its_type(draws):
    model = grammar.grammar()
    for number, variants in enumerate(draws.variants[:1500]):
        steps = variants[variants >= 0]
        program = problem_set.program_of(steps)
        given, result = TYPES[model.source[steps[0]]], PYTHON[TYPES[model.target[steps[-1]]]]
        for source in inputs(given, 4, rng(0, "test", number)):
            assert isinstance(program(eval(source)), result)


def test_negative_counts_are_refused():
    with pytest.raises(ConfigError, match="must not be negative"):
        micro.documents(-1, seed=0)
    with pytest.raises(ConfigError, match="at least 1"):
        micro.corpus(0, seed=0)
    with pytest.raises(ConfigError, match="at least 1"):
        micro.problems(0)


def test_a_corpus_is_its_documents_encoded():
    bpe = micro.tokenizer()
    corpus, documents = micro.corpus(60_000, seed=5), micro.documents(2000, seed=5)
    for i, (document, ids) in enumerate(zip(documents, bpe.encode_batch([d.text for d in documents]), strict=True)):
        if i + 1 == len(corpus.offsets):
            break
        assert corpus.tokens[corpus.offsets[i] : corpus.offsets[i + 1]].tolist() == [*ids, bpe.eos]
        assert corpus.families[i] == document.family and corpus.text_bytes[i] == len(document.text.encode())
    assert len(corpus.tokens) == corpus.offsets[-1] >= 60_000 > corpus.offsets[-2]


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 300_000), st.integers(1, 300_000))
def test_a_larger_corpus_begins_with_the_smaller(one, other):
    small, large = (micro.corpus(tokens, seed=1) for tokens in sorted([one, other]))
    assert np.array_equal(large.tokens[: len(small.tokens)], small.tokens)
    assert np.array_equal(large.offsets[: len(small.offsets)], small.offsets)
    assert np.array_equal(large.families[: len(small.families)], small.families)


def test_validation_is_another_stream_of_the_same_distribution():
    training, held_out = micro.corpus(400_000, seed=0), micro.validation(400_000, seed=0)
    assert not np.array_equal(training.tokens[:1000], held_out.tokens[:1000])
    sizes = [len(c.tokens) / len(c.families) for c in (training, held_out)]
    assert abs(sizes[0] - sizes[1]) < 1.5


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=80))
def test_any_text_survives_the_tokenizer_and_none_ends_a_document(words):
    bpe = micro.tokenizer()
    ids = bpe.encode(words + "<|end|>")
    assert bpe.eos not in ids and bpe.decode(ids) == words + "<|end|>"


def test_the_shipped_tokenizer_is_the_one_its_function_makes():
    assert text.make_tokenizer(512).to_json() == micro.tokenizer(512).to_json()
    assert micro.tokenizer(300).vocab_size == 300


def test_a_prompt_ends_where_a_training_token_ends(problems):
    bpe = micro.tokenizer()
    for problem in problems:
        whole, prompt = bpe.encode(problem.prompt + problem.canonical_solution), bpe.encode(problem.prompt)
        assert whole[: len(prompt)] == prompt


def test_entropy_agrees_with_the_mean_surprise_of_drawn_documents(draws):
    known = micro.entropy()
    sample = 4000
    surprise = np.array([-log_probability([int(v) for v in row if v >= 0]) for row in draws.variants[:sample]])
    family = draws.families[:sample]
    surprise += np.log(1 - known.held_out[family]) - np.log(grammar.grammar().families[family])
    error = surprise.std() / math.sqrt(sample)
    assert error < 0.15 and abs(surprise.mean() - known.nats_per_document) < 3.5 * error


def test_expected_tokens_agree_with_a_corpus(draws):
    sizes = np.diff(text.encode_draws(draws).offsets)
    error = sizes.std() / math.sqrt(DOCUMENTS)
    known = micro.entropy()
    assert abs(sizes.mean() - known.tokens_per_document) < 3.5 * error
    assert known.nats_per_token == pytest.approx(known.nats_per_document / known.tokens_per_document)


@pytest.mark.parametrize("name", ["grids", "loops"])
def test_entropy_equals_the_sum_over_all_short_pipelines(monkeypatch, name):
    """With depths 1 and 2 only, every pipeline of a family can be listed."""
    whole = grammar.grammar()
    fields = {field: getattr(whole, field) for field in whole.__dataclass_fields__}
    short = grammar.Grammar(**{**fields, "depths": np.array([0.6, 0.4])})
    monkeypatch.setattr(information, "grammar", lambda: short)
    family = micro.FAMILIES.index(name)
    nats, tokens, held_out = information.of_family(family)

    pipelines, chances = [], []
    for first in np.flatnonzero(whole.first[family]):
        pipelines.append([first])
        chances.append(0.6 * whole.first[family, first])
        following = whole.later[family, whole.target[first]]
        for later in np.flatnonzero(following):
            pipelines.append([first, later])
            chances.append(0.4 * whole.first[family, first] * following[later])
    grid = np.full((len(pipelines), grammar.DEEPEST), -1, np.int32)
    for row, steps in enumerate(pipelines):
        grid[row, : len(steps)] = steps
    depths = np.array([len(steps) for steps in pipelines], np.int16)
    listed = grammar.Draws(np.full(len(grid), family, np.int16), depths, grid)
    chance, kept = np.array(chances), ~grammar.is_held_out(listed)
    assert chance.sum() == pytest.approx(1.0, abs=1e-12)
    assert held_out == pytest.approx(1 - chance[kept].sum(), abs=1e-12)
    left = chance[kept] / chance[kept].sum()
    assert nats == pytest.approx(-(left * np.log(left)).sum(), rel=1e-12)
    assert tokens == pytest.approx(left @ np.diff(text.encode_draws(listed).offsets)[kept], rel=1e-12)


def test_entropy_of_mixtures():
    base = micro.entropy()
    one = np.eye(len(micro.FAMILIES))[3]
    assert micro.entropy(one).nats_per_document == pytest.approx(base.family_nats[3])
    assert micro.entropy(base.mixture).nats_per_document == pytest.approx(base.nats_per_document)
    concentration = 0.5
    drawn = np.random.default_rng(0).dirichlet(concentration * base.mixture + 1e-12, size=20_000)
    labels = -(drawn * np.log(np.maximum(drawn, 1e-300))).sum(axis=1)
    expected = labels.mean() + base.mixture @ base.family_nats
    mixed = micro.entropy(concentration=concentration)
    assert mixed.nats_per_document == pytest.approx(expected, abs=4 * labels.std() / math.sqrt(20_000))
    assert micro.entropy(concentration=1e9).nats_per_document == pytest.approx(base.nats_per_document, rel=1e-6)
    for x in (1.0, 1.37, 12.0):
        assert information.digamma(x) == pytest.approx(digamma(x), abs=1e-12)


@pytest.mark.parametrize("mixture", [[1.0], np.full(16, 0.1), np.linspace(-1, 1.125, 16)])
def test_a_wrong_mixture_is_refused(mixture):
    with pytest.raises(ConfigError, match="probabilities that sum to 1"):
        micro.entropy(np.array(mixture))
    with pytest.raises(ConfigError, match="must be positive"):
        micro.entropy(concentration=0.0)


def test_no_pipeline_of_a_problem_is_in_any_training_or_validation_text(problems, draws):
    held_out = {skeleton(problem.prompt) for problem in problems}
    primitive = np.array([variant.primitive for variant in table().variants] + [-1])
    for some in (draws, grammar.draw(DOCUMENTS, seed=0, purpose="validation")):
        assert not held_out & {tuple(p for p in row if p >= 0) for row in primitive[some.variants]}
        assert not grammar.is_held_out(some).any()


def test_the_held_out_share_is_what_entropy_says():
    some = grammar.draw(DOCUMENTS, seed=0, purpose="problems", held_out=True)
    share = float(grammar.grammar().families @ micro.entropy().held_out)
    assert abs(grammar.is_held_out(some).mean() - share) < 4 * math.sqrt(share / DOCUMENTS)


def test_problems_are_distinct_seeded_and_grow_by_appending(problems):
    assert len({p.prompt for p in problems}) == len({p.task_id for p in problems}) == 164
    assert micro.problems(20, seed=0) == problems[:20]
    assert micro.problems(20, seed=1) != problems[:20]
    depths = np.bincount([len(read(p.prompt)) for p in problems])
    assert (depths[1:5] >= 5).all() and (depths[6:].sum() >= 1)


RUNNER = """
import json, sys
verdicts = []
for program, test, name in json.load(sys.stdin):
    space = {}
    try:
        exec(program, space)
        exec(test, space)
        space["check"](space[name])
        verdicts.append(True)
    except Exception:
        verdicts.append(False)
print(json.dumps(verdicts))
"""


def judge(programs):
    sent = json.dumps(programs)
    done = subprocess.run(
        [sys.executable, "-c", RUNNER], input=sent, capture_output=True, text=True, check=True, timeout=60
    )
    return json.loads(done.stdout)


def test_every_solution_passes_its_test_and_programs_that_are_nearly_right_fail(problems):
    solutions = [(p.prompt + p.canonical_solution, p.test, p.entry_point) for p in problems]
    assert all(judge(solutions))
    wrong = []
    for p in problems:
        lines = p.canonical_solution.rstrip("\n").split("\n")
        result = lines[-1].split()[-1]
        wrong.append(
            (p.prompt + f"\n    {result} = None" + p.canonical_solution[len(p.canonical_solution) - 1 :], p.test, "f")
        )
        wrong.append((p.prompt + "\n    return None\n", p.test, "f"))
    assert not any(judge(wrong))
    swapped = [
        (p.prompt + q.canonical_solution, p.test, p.entry_point)
        for p, q in zip(problems, problems[1:] + problems[:1], strict=True)
    ]
    assert np.mean(judge(swapped)) < 0.03


def test_near_misses_that_inputs_can_expose_are_exposed(problems):
    """Of programs that differ from a solution in one step, those that differ on fresh inputs fail the test, mostly."""
    caught = differing = 0
    for number, problem in enumerate(problems[:60]):
        steps = np.array(read(problem.prompt), np.int32)
        kind = TYPES[grammar.grammar().source[steps[0]]]
        fresh = [compile(s, "", "eval") for s in inputs(kind, 30, rng(1, "fresh", number))]
        right = problem_set.results_of(problem_set.program_of(steps), fresh)
        space = {}
        exec(problem.test, space)
        for near in problem_set.near_misses(steps, rng(2, "fresh", number)):
            program = problem_set.program_of(near)
            if problem_set.results_of(program, fresh) == right:
                continue
            differing += 1
            try:
                space["check"](program)
            except Exception:
                caught += 1
    assert differing > 500 and caught / differing > 0.97


@pytest.mark.parametrize("kind", TYPES)
def test_inputs_have_their_type_and_begin_with_the_empty_one(kind):
    values = [eval(source) for source in inputs(kind, 20, rng(0, "test"))]
    assert not any(values[0]) if kind == "pair" else not values[0]
    assert len(values) == (2 if kind == "b" else 20)
    assert len({type(value) for value in values}) == 1
