"""How far is a client's step from what a core can do, and from torch's? One table with goals.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_step.py [--cells 14000:128 55000:512] [--ways compiled]

torch      the step of our kernels over torch's as it is chosen by itself: several small clients at once
ceiling    the time of the step's products alone, made by torch's library (oneDNN, MKL) at the same level, over the step
square     the same share, where the products go at the speed of a large square one at the machine's best level
fused, foreach   over a bare loop with torch.optim.AdamW's own fast ways, one client after the other
compiled   over torch.compile of the loss; compiling takes minutes and is not counted

Everything of a cell is taken in turn, in processor time; a ratio is the median of those of neighbours. The machine may
be busy: that slows both sides of a ratio. A share is the library's best over our best, each product's own best, or the
median over neighbours, whichever is lower: on a busy machine the library loses more, and one lucky turn of ours would
do for the former. The
library makes each product of all tokens of a step, float32, one thread, again and again, warm, and nothing else: no
norm, softmax, gate or optimizer. Attention sees half of the scores, so half the time of full squares counts. A level
is fixed when a process starts, so that the library has one for each.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

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
HEAD = 24  # width of a head of the decoder
LIBRARY_LEVELS = {"x86-64-v4": "AVX512", "x86-64-v3": "AVX2"}  # what MKL calls them
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

    def ours(self, level: str, tasks: list[ClientTask] | None = None) -> Callable[[], object]:
        def train() -> None:
            os.environ[LEVEL_VARIABLE] = level
            self.train("native", tasks)

        return train

    def train(self, kernels: str, tasks: list[ClientTask] | None = None) -> None:
        tasks = tasks or self.tasks
        config = RunConfig(kernels=kernels, client_batching="loop" if kernels == "compiled" else "auto")
        local_updates(self.model, self.start, tasks, config, learning_rates=[1e-3] * len(tasks[0].batches))

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
        attention = 12 * shape.layers * shape.heads * HEAD * LENGTH / 2
        return tokens * (6 * (shape.params + shape.vocab * shape.width) + attention)


class Library:
    """The products of a step by torch's library at one level, in a process of its own."""

    def __init__(self, params: int, tokens: int, level: str) -> None:
        call = [sys.executable, __file__, "--products", f"{params}:{tokens}"]
        named = LIBRARY_LEVELS.get(level, "")
        limit = {"MKL_ENABLE_INSTRUCTIONS": named, "ONEDNN_MAX_CPU_ISA": named.replace("512", "512_CORE")}
        self.process = subprocess.Popen(call, env=os.environ | (limit if named else {}), stdin=-1, stdout=-1, text=True)

    def seconds(self) -> tuple[float, float]:
        """Processor seconds of a step's products, each the mean of five calls: now, and each at its best so far."""
        print(file=self.process.stdin, flush=True)
        now, best = map(float, self.process.stdout.readline().split())
        return now, best

    def close(self) -> None:
        self.process.communicate()


def answer_products(params: int, tokens: int) -> None:
    """What the process of :class:`Library` does: a line for every line it reads."""
    shape = shape_for(params, 512)
    width, inner = shape.width, HEAD * shape.heads
    layer = [(3 * inner, width), (width, inner), (2 * shape.hidden, width), (width, shape.hidden)]
    weights = layer * shape.layers + [(shape.vocab, width)]
    made = [
        (torch.randn(tokens, inputs), torch.randn(tokens, outputs), torch.randn(outputs, inputs),
         torch.empty(tokens, outputs), torch.empty(tokens, inputs), torch.empty(outputs, inputs))
        for outputs, inputs in weights
    ]  # fmt: skip
    heads = torch.randn(tokens // LENGTH * shape.heads, LENGTH, HEAD)
    scores, mixed = torch.randn(len(heads), LENGTH, LENGTH), torch.empty_like(heads)

    calls = [
        call
        for x, dy, weight, y, dx, d_weight in made
        for call in (
            lambda x=x, weight=weight, y=y: torch.mm(x, weight.t(), out=y),
            lambda dy=dy, weight=weight, dx=dx: torch.mm(dy, weight, out=dx),
            lambda dy=dy, x=x, d_weight=d_weight: torch.mm(dy.t(), x, out=d_weight),
        )
    ]
    attention = [
        lambda: torch.bmm(heads, heads.transpose(1, 2), out=scores),
        lambda: torch.bmm(scores, heads, out=mixed),
        lambda: torch.bmm(scores.transpose(1, 2), heads, out=mixed),
    ]  # each twice a layer: scores and their gradient; what is mixed, and that of queries; that of keys and values
    times = np.array([1.0] * len(calls) + [shape.layers] * len(attention))
    best = np.full(len(times), np.inf)
    for _ in sys.stdin:
        now = times * [_mean_of_five(call) for call in [*calls, *attention]]
        best = np.minimum(best, now)
        print(now.sum(), best.sum(), flush=True)


def _mean_of_five(call: Callable[[], object]) -> float:
    """Processor seconds of a call that was just made once."""
    call()
    begin = time.process_time()
    for _ in range(5):
        call()
    return (time.process_time() - begin) / 5


@dataclass(frozen=True)
class Share:
    """Of the library's products in our step, in percent: best over best, and turn by turn."""

    best: float
    turns: list[float]

    @property
    def safe(self) -> float:
        return min(self.best, float(np.median(self.turns)))


def ceiling_shares(cell: Cell, params: int, tokens: int, seconds: float) -> dict[str, Share]:
    """For each level the time of the library's products over that of our steps.

    Turns are visits of one client of some hundredths of a second, so that some are undisturbed on a busy machine.
    """
    steps = max(2, min(25, 500_000 // params))
    visit = [ClientTask(0, cell.tasks[0].batches[:1].expand(steps, -1, -1).contiguous())]
    libraries = {level: Library(params, tokens, level) for level in LEVELS}
    products: dict[str, list[tuple[float, float]]] = {level: [] for level in LEVELS}
    ways: dict[str, Callable[[], object]] = {}
    for level, library in libraries.items():
        ways[f"products {level}"] = lambda level=level, library=library: products[level].append(library.seconds())
        ways[level] = cell.ours(level, visit)
    times = interleaved(ways, seconds)
    found = {}
    for level, library in libraries.items():
        library.close()
        ours = np.array(times[level]) / steps
        turns = np.array([now for now, _ in products[level][1:]])  # the first turn warmed up, as did the first of ours
        found[level] = Share(100 * products[level][-1][1] / min(ours), list(100 * turns / ours))
    return found


def rows(params: int, tokens: int, ways: list[str], seconds: float) -> list[str]:
    """A line for each level."""
    cell, square = Cell(params, tokens), torch.randn(SIDE, SIDE)
    taken = {
        "torch": lambda: cell.train("eager"),
        "fused": lambda: cell.bare(fused=True),
        "foreach": lambda: cell.bare(foreach=True),
        "compiled": lambda: cell.train("compiled"),
    }
    taken = {"square": lambda: square @ square} | {name: taken[name] for name in ways}
    times = interleaved(taken | {level: cell.ours(level) for level in LEVELS}, seconds)
    shares = ceiling_shares(cell, params, tokens, seconds)
    goal, wanted = GOALS.get((params, tokens), (0, 0))
    lines = []
    for level in LEVELS:
        over = {name: float(np.median(np.divide(times[name], times[level]))) for name in taken}
        share, (low, high) = shares[level].safe, np.quantile(shares[level].turns, [0.25, 0.75])
        square_share = 100 * over["square"] * cell.steps * cell.products(tokens) / (2 * SIDE**3)
        others = "".join(f"{over[name]:>9.2f}" for name in ways if name != "torch")
        lines.append(
            f"{cell.model.params:>9,}{tokens:>7}  {level:<10}{1e3 * min(times[level]) / cell.steps:>8.2f}"
            f"{over['torch']:>7.2f}{_asked(over['torch'], goal)}{share:>7.0f}%{_asked(share, wanted)}"
            f" {low:>3.0f} to {high:<3.0f}{square_share:>7.0f}%{others}"
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
    parser.add_argument("--products", default="", help="make the products of a cell in this process")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.products:
        return answer_products(*map(int, chosen.products.split(":")))
    ways = ["torch", *chosen.ways]
    print(f"{'params':>9}{'tokens':>7}  {'level':<10}{'ms':>8}{'torch':>7}  goal {'ceiling':>8}  goal  quartiles "
          f"{'square':>7}" + "".join(f"{name:>9}" for name in ways[1:]) + f"{'turns':>6}")  # fmt: skip
    for cell in chosen.cells:
        params, tokens = map(int, cell.split(":"))
        print("\n".join(rows(params, tokens, ways, chosen.seconds)), flush=True)


if __name__ == "__main__":
    main()
