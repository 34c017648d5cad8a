"""What does a GPU gain? A local step of all clients of a batch: processor, GPU step by step, GPU recorded.

    python tests/benchmarks/bench_gpu.py [steps compiled processes same whole ...]

steps      milliseconds of a local step (4 blocks of 128 tokens a client) by size and clients at once, from whole rounds
compiled   the same of a recording of ``torch.compile``'s kernels
processes  rounds a second of 1 and 8 processes that share the GPU
same       whether a round on the GPU comes out equal to the last bit twice, and how far it is from the processor's
whole      whole runs with data, samples that are executed, and storing, by a sweep

The machine may be busy: compare ratios. Without a GPU it says so and ends.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from scalefed.config import RunConfig
from scalefed.experiment import train_all
from scalefed.federated import client
from scalefed.federated.client import local_updates
from scalefed.federated.cuda_graph import can_record
from scalefed.federated.state import ClientTask, ClientUpdate
from scalefed.models import Decoder, shape_for

STEPS = 25
SIZES = (14_000, 55_000, 332_000)
CLIENTS = (1, 16, 64)


def a_round(params: int, clients: int, config: RunConfig) -> Callable[[], list[ClientUpdate]]:
    """A round of clients with random text, as a function that trains it."""
    model = Decoder(shape_for(params, 512))
    start, draw = model.initial(0), torch.Generator().manual_seed(0)
    tasks = [ClientTask(k, torch.randint(512, (STEPS, 4, 129), generator=draw)) for k in range(clients)]
    return lambda: local_updates(model, start, tasks, config, learning_rates=[1e-4] * STEPS)


def milliseconds(way: Callable[[], object], *, most: float = 3.0) -> float:
    """Median milliseconds of a step, of as many rounds as fit."""
    way()
    times: list[float] = []
    end = time.perf_counter() + most
    while len(times) < 3 or (time.perf_counter() < end and len(times) < 20):
        start = time.perf_counter()
        way()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times)) / STEPS


def steps() -> None:
    for params in SIZES:
        for clients in CLIENTS:
            cpu = milliseconds(a_round(params, clients, RunConfig()), most=0.0) if clients == 1 else float("nan")
            client.can_record = lambda *_: False
            eager = milliseconds(a_round(params, clients, RunConfig(device="cuda")), most=0.5)
            client.can_record = can_record
            recorded = milliseconds(a_round(params, clients, RunConfig(device="cuda")), most=0.5)
            rate = 1e-3 * clients * 512 / recorded
            print(f"steps      {params:>9,} parameters, {clients:>2} clients: processor {cpu:7.2f} ms, GPU {eager:6.2f}"
                  f", recorded {recorded:6.3f}: {eager / recorded:.1f} and {cpu / recorded:.0f} times as fast, "
                  f"{rate:.2f}M tokens/s", flush=True)  # fmt: skip


def compiled() -> None:
    for params, clients in ((55_000, 16),):
        start = time.perf_counter()
        way = a_round(params, clients, RunConfig(device="cuda", kernels="compiled"))
        way()
        ready = time.perf_counter() - start
        plain = milliseconds(a_round(params, clients, RunConfig(device="cuda")), most=0.5)
        fused = milliseconds(way, most=0.5)
        print(f"compiled   {params:>9,} parameters, {clients:>2} clients: {fused:.3f} ms, {plain / fused:.2f} times as "
              f"fast as without; ready after {ready:.0f} s", flush=True)  # fmt: skip


def processes() -> None:
    for count in (1, 8):
        command = [sys.executable, __file__, "endless"]
        crew = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
        rates = [float(one.communicate()[0].split()[-1]) for one in crew]
        print(f"processes  {count}: {sum(rates):.0f} rounds of 24,000 parameters and 8 clients a second in all",
              flush=True)  # fmt: skip


def endless() -> None:
    way = a_round(24_000, 8, RunConfig(device="cuda"))
    way()
    start, rounds = time.perf_counter(), 0
    while time.perf_counter() < start + 6:
        way()
        rounds += time.perf_counter() > start + 2
    print(rounds / (time.perf_counter() - start - 2))


def same() -> None:
    for params, clients in ((24_000, 4), (152_000, 16)):
        gpu = RunConfig(device="cuda")
        first, second = (torch.stack([one.weights for one in a_round(params, clients, gpu)()]) for _ in range(2))
        alone = a_round(params, 1, gpu)()[0].weights
        cpu = torch.stack([one.weights for one in a_round(params, clients, RunConfig())()])
        print(f"same       {params:>9,} parameters, {clients:>2} clients: twice equal {torch.equal(first, second)}, "
              f"equal to one alone {torch.equal(first[0], alone)}, "
              f"{float((first - cpu).norm() / cpu.norm()):.1e} from the processor's", flush=True)  # fmt: skip


def whole() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SCALEFED_CACHE"] = f"{folder}/cache"
        base = RunConfig(params=14_000, tokens=1_000_000, clients_per_round=1, device="cuda")
        configs = [base.replace(seed=seed) for seed in range(3)] + [base.replace(clients_per_round=4, params=55_000)]
        start = time.perf_counter()
        for run in train_all(configs, runs=Path(folder), workers=2):
            print(f"whole      {run.run_id}: loss {run.loss:.3f}, pass@1 {run.pass_at_1:.3f}, trained in "
                  f"{run.wall_s:.1f} s, scored in {run.evaluate_s:.1f} s", flush=True)  # fmt: skip
        print(f"whole      {len(configs)} runs in {time.perf_counter() - start:.0f} s", flush=True)


def main() -> None:
    parts = {"steps": steps, "compiled": compiled, "processes": processes, "same": same, "whole": whole}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(parts), help="what to measure; all by default")
    chosen = parser.parse_args().parts
    torch.set_num_threads(1)
    if not torch.cuda.is_available():
        print("no GPU here")
    elif chosen == ["endless"]:
        endless()
    elif unknown := set(chosen) - set(parts):
        parser.error(f"unknown part {sorted(unknown)[0]!r}; allowed: {', '.join(parts)}")
    else:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
        for part in chosen:
            parts[part]()


if __name__ == "__main__":
    main()
