"""Broken files of every kind: does anything but a clear refusal or the good rows come out?

    python tests/benchmarks/bench_damage.py [COUNT] [SEED] [KIND]

COUNT inputs (20,000) over all kinds, read in forked processes, so that a crash of the interpreter is counted too. It
prints, by kind: inputs, refused, read, and the faults: tracebacks, hangs, crashes, good rows lost, nonsense accepted.
The first words of every fault follow.
"""

import collections
import os
import pickle
import sys
import tempfile
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import damage
from damage_kinds import kinds
from damage_more import more_kinds

_BATCH = 250
FAULTS = ("traceback", "hang", "crash", "lost", "nonsense")


def batch(kind: damage.Kind, seeds: range, folder: Path) -> list[damage.Outcome]:
    """The outcomes of a batch, in a forked child; what is missing at the end was a crash."""
    out = folder / "outcomes"
    child = os.fork()
    if child == 0:
        done = []  # the good files are read in the child too: a library's threads do not survive a fork
        try:
            for seed in seeds:
                done.append(damage.attempt(kind, folder / "files", Random(f"{kind.name} {seed}")))
                out.write_bytes(pickle.dumps(done))
        finally:
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    done = pickle.loads(out.read_bytes()) if out.exists() else []
    out.unlink(missing_ok=True)
    if len(done) < len(seeds):
        crashed = damage.Outcome(kind.name, "crash", f"seed {seeds[len(done)]}, wait status {status}")
        return [*done, crashed, *batch(kind, seeds[len(done) + 1 :], folder)]
    return done


def main(count: int = 20_000, seed: int = 0, only: str = "") -> None:
    """Print the table."""
    chosen = [kind for kind in [*kinds(), *more_kinds()] if only in kind.name]
    each = -(-count // len(chosen))
    print(f"{'kind':<20}{'inputs':>8}{'refused':>9}{'read':>7}" + "".join(f"{fault:>11}" for fault in FAULTS))
    total: collections.Counter[str] = collections.Counter()
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in chosen:
            done = []
            for start in range(0, each, _BATCH):
                seeds = range(seed + start, seed + min(start + _BATCH, each))
                done += batch(kind, seeds, Path(folder))
            tally = collections.Counter(outcome.what for outcome in done)
            total += tally
            faults += [outcome for outcome in done if outcome.what in FAULTS]
            print(f"{kind.name:<20}{len(done):>8}{tally['refused']:>9}{tally['read']:>7}"
                  + "".join(f"{tally[fault]:>11}" for fault in FAULTS), flush=True)  # fmt: skip
    print(f"{'all':<20}{sum(total.values()):>8}{total['refused']:>9}{total['read']:>7}"
          + "".join(f"{total[fault]:>11}" for fault in FAULTS))  # fmt: skip
    for outcome in faults[:60]:
        print(f"{outcome.kind}, {outcome.what}: {outcome.words}")


if __name__ == "__main__":
    words = sys.argv[1:]
    main(*(int(word) for word in words[:2]), *words[2:])
