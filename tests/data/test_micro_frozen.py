"""The benchmark's text and problems never change: every run in ``runs/`` was measured with exactly these.

A change of grammar, primitives, tokenizer or problems makes old and new runs incomparable. If one is unavoidable, all
committed sweeps have to be made again.
"""

import hashlib

from scalefed.data import micro


def digest(*parts):
    state = hashlib.blake2b(digest_size=8)
    for part in parts:
        state.update(part if isinstance(part, bytes) else part.encode())
        state.update(b"\0")
    return state.hexdigest()


def test_the_training_and_validation_text_is_what_the_runs_saw():
    text, held_out = micro.corpus(200_000, seed=0), micro.validation(65_536, seed=0)
    assert digest(text.tokens.tobytes(), text.offsets.tobytes(), text.families.tobytes()) == "5914d9f4a56536c0"
    assert digest(held_out.tokens.tobytes()) == "0297815a04753483"


def test_the_problems_are_what_the_runs_were_judged_by():
    problems = micro.problems(164, seed=0)
    assert digest(*(p.prompt + p.canonical_solution + p.test for p in problems)) == "1952fa395437b487"
