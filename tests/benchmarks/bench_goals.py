"""Where does making runs stand against its goals? One command, one table.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_goals.py [step whole memory ...]

step       a client's step, torch's (several clients at once where that is chosen) over ours, at every level
ceiling    the time of a step's products alone, by torch's library at the same level, over our step (bench_step.py)
whole      pilot runs with pass@k an hour, by our kernels over by torch's: the same seeds in turn in one process
clients    a round of 16 of 10,000 clients over one of 16 of 16, and its memory, by ``sf.train``
memory     the most that ``sf.train`` takes, with text, evaluation and judge
compiling  seconds of the first use of our kernels, and what a user without a compiler reads
questions  seconds of what a user asks: load, fit, optimal sizes, link, page, compare, judge (bench_questions.py)
peers      a dozen rounds in pfl-research (give the Python of an environment that has it by --pfl-python) and in Flower,
           over the same in ours

All but compiling is in processor seconds, in turn: the machine may be busy. ``bench_step.py`` says more of the step.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
STEPS = {  # parameters and tokens a step: how many times torch's speed
    (14_000, 128): 2.5, (14_000, 512): 2.5, (23_000, 128): 2.0, (55_000, 512): 2.0, (152_000, 512): 2.0,
    (1_000_000, 512): 1.4,
}  # fmt: skip
CEILING = {3_500: 60, 14_000: 75, 55_000: 75, 152_000: 75, 1_000_000: 80}  # percent, at 512 tokens a step
MEMORY_MB = 450
PARTS = ("step", "ceiling", "whole", "clients", "memory", "compiling", "questions", "peers")
Row = tuple[str, str, str, str]  # what, found, goal, whether it is met and by how many measurements


def row(what: str, found: list[float], goal: float, unit: str = "x", *, least: bool = True) -> Row:
    """A line of the table: the median of what was found."""
    middle = statistics.median(found)
    met = middle >= goal if least else middle <= goal
    spread = f"{min(found):.2f} to {max(found):.2f}, n={len(found)}" if len(found) > 1 else ""
    return (
        what,
        f"{middle:.4g} {unit}",
        f"{'>=' if least else '<='} {goal:g}",
        f"{'met' if met else 'MISSED'}  {spread}",
    )


# ---------------------------------------------------------------------- parts
def step(seconds: float) -> Iterator[Row]:
    from bench_step import LEVELS, Cell
    from bench_training import interleaved

    for (params, tokens), goal in STEPS.items():
        cell = Cell(params, tokens)
        ways = {"torch": lambda cell=cell: cell.train("eager")} | {level: cell.ours(level) for level in LEVELS}
        times = interleaved(ways, seconds)
        for level in LEVELS:
            ratios = [a / b for a, b in zip(times["torch"], times[level], strict=True)]
            yield row(f"step, {cell.model.params:,} parameters, {tokens} tokens, {level}", ratios, goal)


def ceiling(seconds: float) -> Iterator[Row]:
    from bench_step import Cell, ceiling_shares

    for params, goal in CEILING.items():
        cell = Cell(params, 512)
        for level, share in ceiling_shares(cell, params, 512, seconds).items():
            what = f"share of the ceiling, {cell.model.params:,} parameters, {level}"
            what, found, asked, met = row(what, [share.safe], goal, "%")
            low, middle, high = statistics.quantiles(share.turns, n=4)
            beside = f"neighbours {middle:.0f} ({low:.0f} to {high:.0f}), n={len(share.turns)}"
            yield what, found, asked, f"{met}best over best {share.best:.0f}, {beside}"


def whole(repeats: int) -> Iterator[Row]:
    from scalefed.config import RunConfig
    from scalefed.experiment import train

    spent: dict[str, list[float]] = {"eager": [], "native": []}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(repeats + 1):  # the first pair reads the text and compiles
            for kernels in list(spent)[:: 1 if seed % 2 else -1]:
                begin = _cpu()
                train(RunConfig(params=14_000, tokens=400_000, seed=seed, kernels=kernels), runs=f"{folder}/{kernels}")
                spent[kernels].append(_cpu() - begin)
    ratios = [a / b for a, b in zip(spent["eager"][1:], spent["native"][1:], strict=True)]
    an_hour = 3600 / statistics.median(spent["native"][1:])
    yield row(f"whole pilot run, 14k, 400k tokens, pass@k ({an_hour:.0f} a core-hour)", ratios, 2.0)


def clients() -> Iterator[Row]:
    few, many = (_job("clients", CLIENTS=str(count)) for count in (16, 10_000))
    yield row(
        "a round of 16 of 10,000 clients over 16 of 16, 14k parameters",
        [many["cpu_s"] / few["cpu_s"]],
        1.2,
        least=False,
    )
    yield row("peak memory of sf.train, 10,000 clients", [many["mb"]], MEMORY_MB, "MB", least=False)


def questions(repeats: int) -> Iterator[Row]:
    from bench_questions import measured

    for what, cpu, wall, goal in measured(repeats):
        what, found, asked, met = row(what, cpu, goal, "s", least=False)
        yield what, found, asked if goal else "", f"{met if goal else ''}  {statistics.median(wall):.1f} s by the clock"


def memory() -> Iterator[Row]:
    for params in (14_000, 55_000, 152_000):
        yield row(f"peak memory of sf.train, {params:,} parameters", [_job("memory", params)["mb"]], MEMORY_MB, "MB",
                  least=False)  # fmt: skip


def compiling() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        found = _job("compile", SCALEFED_CACHE=folder)
    yield "first use of our kernels", f"{found['cpu_s']:.1f} s", "", f"{found['wall_s']:.1f} s by the clock"
    with tempfile.TemporaryDirectory() as folder:
        print("without a compiler:", _job("compile", SCALEFED_CACHE=folder, CC="none")["said"])


def peers(repeats: int, pfl_python: str) -> Iterator[Row]:
    import bench_flower
    import bench_peers

    if pfl_python:
        ways = {"native": sys.executable, "pfl": pfl_python}
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(repeats):
            for name, python in ways.items():
                found[name].append(bench_peers.in_process(python, name, 100_000)["cpu_s"])
        ratios = [a / b for a, b in zip(found["pfl"], found["native"], strict=True)]
        yield row("12 rounds, 100k parameters, pfl-research over ours", ratios, 2.0)
    found = {name: [] for name in ("native", "fedavg")}
    for _ in range(repeats):
        for name, values in found.items():
            values.append(float(bench_flower.measured(name, 1)["cpu s"]))
    ratios = [a / b for a, b in zip(found["fedavg"], found["native"], strict=True)]
    yield row("12 rounds, 100k parameters, Flower's own loop over ours", ratios, 5.0)


# ---------------------------------------------------------------------- jobs in processes of their own
def _job(name: str, params: int = 0, **environment: str) -> dict[str, float]:
    call = [sys.executable, __file__, "--job", name, "--params", str(params)]
    return json.loads(subprocess.run(call, env=os.environ | environment, stdout=-1, check=True, text=True).stdout)


def do(job: str, params: int) -> dict[str, object]:
    import scalefed as sf
    from scalefed.config import RunConfig
    from scalefed.errors import ScalefedError
    from scalefed.experiment import train
    from scalefed.federated.native import choose
    from scalefed.models import Decoder, shape_for

    if job == "memory":
        with tempfile.TemporaryDirectory() as folder:
            return {"mb": train(RunConfig(params=params, tokens=200_000), runs=folder).peak_memory_mb}
    if job == "clients":
        with tempfile.TemporaryDirectory() as folder:
            config = RunConfig(
                params=14_000, clients=int(os.environ["CLIENTS"]), clients_per_round=16, tokens=16 * 12_800 * 6
            )
            mb = train(config, runs=folder).peak_memory_mb
            return {"cpu_s": sf.load_runs(folder, rounds=True)["cpu_s"].median(), "mb": mb}
    model, said, cpu, clock = Decoder(shape_for(3_500, 512)), "", _cpu(), time.monotonic()
    try:
        choose(model, RunConfig(kernels="native"))
    except ScalefedError as error:
        said = str(error)
    return {"cpu_s": _cpu() - cpu, "wall_s": time.monotonic() - clock, "said": said}


def _cpu() -> float:
    """Processor seconds of this process and of those that it has ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=15.0, help="by the clock, for each size of step")
    parser.add_argument("--repeats", type=int, default=3, help="of whole runs and peers")
    parser.add_argument("--pfl-python", default="", help="the Python of an environment that has pfl 0.6")
    parser.add_argument("--job", help="do one job in this process")
    parser.add_argument("--params", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    if chosen.job:
        print(json.dumps(do(chosen.job, chosen.params)))
        return
    made = {
        "step": lambda: step(chosen.seconds), "ceiling": lambda: ceiling(chosen.seconds),
        "whole": lambda: whole(chosen.repeats), "clients": clients, "memory": memory, "compiling": compiling,
        "questions": lambda: questions(chosen.repeats), "peers": lambda: peers(chosen.repeats, chosen.pfl_python),
    }  # fmt: skip
    for part in chosen.parts:
        for what, found, goal, met in made[part]():
            print(f"{what:<66}{found:>12}  {goal:>7}  {met}", flush=True)


if __name__ == "__main__":
    main()
