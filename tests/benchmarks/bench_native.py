"""Is training with our own kernels the same experiment as training with torch's? Paired seeds at three sizes.

    OMP_NUM_THREADS=1 nice python tests/benchmarks/bench_native.py [--seeds 8] [--tokens 400000] [--level x86-64-v3]

Training is chaotic: a change of 1e-7 ends percents apart. So each size is trained with the same seeds by both, and the
mean of the differences of final loss is held against its standard error, as is the spread of the seeds.
"""

import argparse
import os
import time

import numpy as np
import torch

from scalefed.config import RunConfig
from scalefed.experiment.evaluation import score
from scalefed.federated.native.build import LEVEL_VARIABLE, level
from scalefed.federated.preparation import prepare
from scalefed.federated.rounds import initial_state, run_rounds

SIZES = (3_500, 14_000, 24_000)


def trained(config: RunConfig) -> tuple[float, float]:
    """Held-out loss, and processor seconds of training."""
    task = prepare(config)
    start = time.process_time()
    *_, last = run_rounds(config, task.model, task.data, initial_state(config, task.model))
    spent = time.process_time() - start
    return score(task, last.state.weights).loss, spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--level", default="")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.level:
        os.environ[LEVEL_VARIABLE] = chosen.level
    print(f"level {level()}, {chosen.tokens:,} tokens, {chosen.seeds} seeds, 4 of 16 clients", flush=True)
    for params in SIZES:
        base = RunConfig(params=params, tokens=chosen.tokens)
        pairs = [
            [trained(base.replace(seed=seed, kernels=kernels)) for kernels in ("eager", "native")]
            for seed in range(chosen.seeds)
        ]
        losses, seconds = np.array(pairs).transpose(2, 1, 0)
        apart = losses[1] - losses[0]
        error = apart.std(ddof=1) / np.sqrt(chosen.seeds)
        print(f"{params:>7,} parameters: loss {losses[0].mean():.4f} eager, {losses[1].mean():.4f} native; difference "
              f"{apart.mean():+.4f} +- {error:.4f} ({apart.mean() / error:+.1f} errors); one pair differs by "
              f"{apart.std(ddof=1):.4f}, seeds by {losses[0].std(ddof=1):.4f}; training "
              f"{np.median(seconds[0] / seconds[1]):.2f}x", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
