"""How far is a client's step from what a core can do, and from torch's? One table with goals.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_step.py [--cells 14000:128 55000:512] [--ways compiled]

torch      the step of our kernels over torch's as it is chosen by itself: several small clients at once
ceiling    the share of a large product's speed on this core that the step's own products reach
fused, foreach   over a bare loop with torch.optim.AdamW's own fast ways, one client after the other
compiled   over torch.compile of the loss; compiling takes minutes and is not counted

Everything of a cell is taken in turn, in processor time; a ratio is the median of those of neighbours. The machine may
be busy: that slows both sides of a ratio. The ceiling is that of the machine's best level, at every level.
"""

import argparse
import os
from collections.abc import Callable

import numpy as np
import torch
from bench_training import interleaved

from scalefed.config import RunConfig
from scalefed.federated.client import clients_at_once, local_updates
from scalefed.federated.native.build import LEVEL_VARIABLE, levels
from scalefed.federated.state import ClientTask
from scalefed.models import Decoder, shape_for

# parameters, tokens a step: how many times torch's speed, and which share of the ceiling in percent; 0 asks nothing
GOALS = {
    (3_500, 512): (0, 60),
    (14_000, 128): (2.5, 0),
    (14_000, 512): (2.5, 75),
    (23_000, 128): (2, 0),
    (55_000, 512): (2, 75),
    (152_000, 512): (2, 75),
    (1_000_000, 512): (1.4, 80),
}
LENGTH, STEPS, SIDE = 128, 2, 1_024
LEVELS = [level for level in levels() if level.startswith("x86")] or list(levels()[:1])


class Cell:
    """Clients of one size, and the ways to train them."""

    def __init__(self, params: int, tokens: int) -> None:
        self.model = Decoder(shape_for(params, 512))
        self.start = self.model.initial(0)
        draw, shape = torch.Generator().manual_seed(0), (STEPS, tokens // LENGTH, LENGTH + 1)
        batched = clients_at_once(self.model, torch.zeros(shape), RunConfig(kernels="eager")) > 1
        self.tasks = [ClientTask(k, torch.randint(512, shape, generator=draw)) for k in range(16 if batched else 1)]
        self.steps = STEPS * len(self.tasks)

    def ours(self, level: str) -> Callable[[], object]:
        def train() -> None:
            os.environ[LEVEL_VARIABLE] = level
            self.train("native")

        return train

    def train(self, kernels: str) -> None:
        config = RunConfig(kernels=kernels, client_batching="loop" if kernels == "compiled" else "auto")
        local_updates(self.model, self.start, self.tasks, config, learning_rates=[1e-3] * STEPS)

    def bare(self, **way: bool) -> None:
        for task in self.tasks:
            leaf = torch.nn.Parameter(self.start.clone())
            optimizer = torch.optim.AdamW([leaf], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01, **way)
            for blocks in task.batches:
                optimizer.zero_grad(set_to_none=True)
                self.model.loss(leaf, blocks).backward()
                torch.nn.utils.clip_grad_norm_([leaf], 1.0)
                optimizer.step()

    def products(self, tokens: int) -> float:
        """Operations of a step in matrix products: weights, output layer, causal scores and what they mix."""
        shape = self.model.shape
        attention = 12 * shape.layers * shape.heads * 24 * LENGTH / 2
        return tokens * (6 * (shape.params + shape.vocab * shape.width) + attention)


def rows(params: int, tokens: int, ways: list[str], seconds: float) -> list[str]:
    """A line for each level."""
    cell, square = Cell(params, tokens), torch.randn(SIDE, SIDE)
    taken = {
        "torch": lambda: cell.train("eager"),
        "fused": lambda: cell.bare(fused=True),
        "foreach": lambda: cell.bare(foreach=True),
        "compiled": lambda: cell.train("compiled"),
    }
    taken = {"ceiling": lambda: square @ square} | {name: taken[name] for name in ways}
    times = interleaved(taken | {level: cell.ours(level) for level in LEVELS}, seconds)
    goal, wanted = GOALS.get((params, tokens), (0, 0))
    lines = []
    for level in LEVELS:
        over = {name: float(np.median(np.divide(times[name], times[level]))) for name in taken}
        share = 100 * over["ceiling"] * cell.steps * cell.products(tokens) / (2 * SIDE**3)
        others = "".join(f"{over[name]:>9.2f}" for name in ways if name != "torch")
        lines.append(
            f"{cell.model.params:>9,}{tokens:>7}  {level:<10}{1e3 * min(times[level]) / cell.steps:>8.2f}"
            f"{over['torch']:>7.2f}{_asked(over['torch'], goal)}{share:>8.0f}%{_asked(share, wanted)}{others}"
            f"{len(times[level]):>6}"
        )
    return lines


def _asked(found: float, goal: float) -> str:
    return f" {'>=' if found >= goal else '< '}{goal:<4g}" if goal else "  -    "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", default=[f"{p}:{t}" for p, t in GOALS], help="parameters:tokens a step")
    parser.add_argument("--seconds", type=float, default=15.0, help="time for each cell")
    parser.add_argument("--ways", nargs="*", default=["fused", "foreach", "compiled"], help="of torch's")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    ways = ["torch", *chosen.ways]
    print(f"{'params':>9}{'tokens':>7}  {'level':<10}{'ms':>8}{'torch':>7}  goal {'ceiling':>9}  goal "
          + "".join(f"{name:>9}" for name in ways[1:]) + f"{'turns':>6}")  # fmt: skip
    for cell in chosen.cells:
        params, tokens = map(int, cell.split(":"))
        print("\n".join(rows(params, tokens, ways, chosen.seconds)), flush=True)


if __name__ == "__main__":
    main()
