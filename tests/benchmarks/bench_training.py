"""How fast is training? Ratios from interleaved runs in one process, in processor time.

    OMP_NUM_THREADS=1 taskset -c 1 python tests/benchmarks/bench_training.py [overhead batching ceiling ...]

overhead   a round of scalefed, record written as a line of JSON, over a bare torch loop of the same functional model
           (torch.optim.AdamW, clip_grad_norm_, a mean, nothing else); 5 clients of 2 steps of 1,024 tokens
batching   the loop over clients, over clients trained at once in groups of 2 to 16, and over what is chosen by itself
ceiling    matrix products of a training step a second, as a share of a large product on this core, for every size
cost       4 clients a round over one client that holds everything, at equal tokens
together   seeds of one-client runs advanced together over one after the other
sweep      twelve seeds of 13,944 parameters with one client a round, whole runs with data, checkpoints and storing: one
           after the other over the bundles that a sweep makes by itself

The machine may be busy: compare ratios, not times. Each line gives the median ratio over the repetitions, and the ratio
of the smallest times.
"""

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from scalefed.config import RunConfig
from scalefed.experiment import train
from scalefed.experiment.bundles import bundles, train_together
from scalefed.federated import client
from scalefed.federated.batched_runs import Job, run_many
from scalefed.federated.client import local_updates
from scalefed.federated.preparation import prepare
from scalefed.federated.rounds import initial_state, one_round, run_rounds
from scalefed.federated.schedule import learning_rates
from scalefed.federated.state import ClientTask
from scalefed.models import Decoder, build_model, shape_for

LADDER = (3_500, 13_000, 24_000, 55_000, 147_000)
STEPS = {32: (1, 32), 64: (1, 64), 128: (1, 128), 256: (2, 128), 512: (4, 128), 1_024: (8, 128)}


class Data:
    """Random tokens, drawn once."""

    def __init__(self, config: RunConfig) -> None:
        size = (config.local_steps, config.batch_size, config.sequence_length + 1)
        self.tokens = np.random.default_rng(0).integers(config.vocab_size, size=(16, *size))

    def batches(self, client: int, *, visit: int, steps: int) -> np.ndarray:
        return self.tokens[(client + visit) % 16][:steps]


def interleaved(ways: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Processor seconds of each way, taken in turn until the time is up; the first turn is not counted."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for name, way in ways.items():
            start = time.process_time()
            way()
            times[name].append(time.process_time() - start)
    return times


def ratio(times: dict[str, list[float]], first: str, second: str) -> str:
    """First over second: median of the ratios of neighbours, and the ratio of the minima."""
    pairs = sorted(a / b for a, b in zip(times[first], times[second], strict=True))
    return f"{pairs[len(pairs) // 2]:.3f} (min/min {min(times[first]) / min(times[second]):.3f}, n={len(pairs)})"


# ---------------------------------------------------------------------- overhead
def overhead(seconds: float) -> None:
    for params in (100_000, 1_000_000):
        config = RunConfig(params=params, clients=10, clients_per_round=5, local_steps=2, batch_size=8,
                           tokens=10 * 5 * 2 * 1_024, clip_norm=1.0, client_batching="auto")  # fmt: skip
        model, data = build_model(config), Data(config)
        state = initial_state(config, model)
        log = Path(tempfile.mkdtemp()) / "rounds.jsonl"

        def ours(config=config, model=model, data=data, state=state, log=log) -> None:
            done = one_round(config, model, data, state)
            with log.open("a") as file:
                file.write(json.dumps(done.record) + "\n")

        def bare(config=config, model=model, data=data, state=state) -> None:
            bare_round(config, model, data, state.weights)

        times = interleaved({"scalefed": ours, "bare": bare}, seconds)
        print(f"overhead  {model.params_total:>9,} parameters: scalefed / bare loop {ratio(times, 'scalefed', 'bare')}"
              f"  {1e3 * np.median(times['bare']):.0f} ms a bare round", flush=True)  # fmt: skip


def bare_round(config: RunConfig, model: Decoder, data: Data, weights: torch.Tensor) -> torch.Tensor:
    """What anybody would write first."""
    total = torch.zeros_like(weights)
    rates = learning_rates(config, 0)
    for k in range(config.clients_per_round):
        leaf = torch.nn.Parameter(weights.clone())
        optimizer = torch.optim.AdamW([leaf], lr=rates[0], betas=(0.9, 0.95), weight_decay=0.01)
        for step, blocks in enumerate(torch.from_numpy(data.batches(k, visit=0, steps=config.local_steps))):
            optimizer.param_groups[0]["lr"] = rates[step]
            optimizer.zero_grad(set_to_none=True)
            model.loss(leaf, blocks).backward()
            torch.nn.utils.clip_grad_norm_([leaf], 1.0)
            optimizer.step()
        total += leaf.detach() - weights
    return weights + total / config.clients_per_round


# ---------------------------------------------------------------------- batching
def batching(seconds: float) -> None:
    chosen_size = client.group_size
    for params in LADDER:
        model = Decoder(shape_for(params, 512))
        start = model.initial(0)
        for tokens, (batch, length) in STEPS.items():
            draw = torch.Generator().manual_seed(0)
            tasks = [ClientTask(k, torch.randint(512, (2, batch, length + 1), generator=draw)) for k in range(16)]

            def go(size: int, model=model, start=start, tasks=tasks) -> None:
                client.group_size = (lambda *_: size) if size else chosen_size
                local_updates(model, start, tasks, RunConfig(), learning_rates=[1e-3] * 2)

            ways = {str(size): (lambda size=size, go=go: go(size)) for size in (0, 1, 2, 4, 8, 16)}
            times = interleaved(ways, seconds)
            client.group_size = chosen_size
            gains = "  ".join(f"{size}: {np.median(np.divide(times['1'], times[str(size)])):.2f}"
                              for size in (2, 4, 8, 16))  # fmt: skip
            picked = chosen_size(model, tasks[0], RunConfig())
            alone = 1e3 * min(times["1"]) / 32
            print(f"batching  {model.params:>7,} parameters {tokens:>5} tokens: loop {alone:6.2f} ms a step; over "
                  f"groups of {gains}; chosen {picked}: {ratio(times, '1', '0')}", flush=True)  # fmt: skip


# ---------------------------------------------------------------------- ceiling
def ceiling(seconds: float) -> None:
    a, b = torch.randn(1_024, 1_024), torch.randn(1_024, 1_024)
    for params in (*LADDER, 1_000_000, 3_000_000):
        model = Decoder(shape_for(params, 512))
        shape, start = model.shape, model.initial(0)
        task = ClientTask(0, torch.randint(512, (2, 4, 129), generator=torch.Generator().manual_seed(0)))
        times = interleaved(
            {
                "product": lambda: a @ b,
                "train": lambda model=model, start=start, task=task: local_updates(
                    model, start, [task], RunConfig(), learning_rates=[1e-3] * 2
                ),
            },
            seconds,
        )
        attention = 12 * shape.layers * shape.heads * 24 * 128 / 2  # causal scores and mixing, forward and backward
        flops = 2 * 512 * (6 * (shape.params + shape.vocab * shape.width) + attention)
        peak = 2e-9 * 1_024**3 / np.median(times["product"])
        speed, rate = 1e-9 * flops / np.median(times["train"]), 1.024 / np.median(times["train"])
        print(f"ceiling   {shape.params:>9,} parameters, 512 tokens a step: {speed:6.1f} of {peak:.0f} GFLOP/s, "
              f"{100 * speed / peak:.0f}%; {rate:.1f} thousand tokens/s", flush=True)  # fmt: skip


# ---------------------------------------------------------------------- cost of federation, and runs together
def cost(seconds: float) -> None:
    for params in (13_000, 55_000, 147_000):
        ways = {}
        for name, clients, algorithm in (("four", 4, "fedavg"), ("central", 1, "central")):
            config = RunConfig(params=params, clients=16 if clients > 1 else 1, clients_per_round=clients,
                               algorithm=algorithm, tokens=4 * 25 * 512, local_steps=25)  # fmt: skip
            model, data = build_model(config), Data(config)

            def whole(config=config, model=model, data=data) -> None:
                for done in run_rounds(config, model, data, initial_state(config, model)):
                    json.dumps(done.record)

            ways[name] = whole
        print(f"cost      {params:>7,} parameters: 4 clients / central at equal tokens"
              f" {ratio(interleaved(ways, seconds), 'four', 'central')}", flush=True)  # fmt: skip


def together(seconds: float) -> None:
    for params, batch, length in ((3_500, 1, 64), (13_000, 1, 128), (24_000, 4, 128), (55_000, 4, 128)):
        jobs = []
        for seed in range(4):
            config = RunConfig(
                params=params, clients=1, clients_per_round=1, algorithm="central", local_steps=25, batch_size=batch,
                sequence_length=length, tokens=25 * batch * length, seed=seed,
            )  # fmt: skip
            model = build_model(config)
            jobs.append(Job(config, model, Data(config), initial_state(config, model)))

        def at_once(jobs=jobs) -> None:
            list(run_many(jobs))

        def in_turn(jobs=jobs) -> None:
            for job in jobs:
                list(run_rounds(job.config, job.model, job.data, job.state))

        times = interleaved({"in turn": in_turn, "at once": at_once}, seconds)
        print(f"together  {params:>7,} parameters, {batch * length} tokens a step: four seeds in turn / at once"
              f" {ratio(times, 'in turn', 'at once')}", flush=True)  # fmt: skip


def in_bundles(_: float) -> None:
    """Weights are compared too: they must be equal to the last bit."""
    for batch in (1, 4):
        base = RunConfig(params=14_000, clients_per_round=1, batch_size=batch, tokens=8 * 25 * batch * 128,
                         problems="none", validation_tokens=8_192)  # fmt: skip
        configs = [base.replace(seed=seed) for seed in range(12)]
        prepare(base)  # the text is made once a process
        spent, made = {}, {}
        for name in ("alone", "bundles"):
            with tempfile.TemporaryDirectory() as folder:
                os.environ["SCALEFED_CACHE"] = f"{folder}/cache"
                start = time.process_time()
                if name == "bundles":
                    for bundle in bundles(configs, workers=1):
                        train_together(bundle, runs=folder)
                runs = [train(config, runs=folder) for config in configs]
                whole = time.process_time() - start
                spent[name] = (sum(run.cpu_s for run in runs), whole)
                made[name] = [run.weights_hash for run in runs]
        assert made["alone"] == made["bundles"]
        (train_alone, alone), (train_bundles, bundled) = spent["alone"], spent["bundles"]
        print(f"sweep     {12} seeds, {batch * 128} tokens a step: training {train_alone:.1f} s alone, "
              f"{train_bundles:.1f} s in bundles, ratio {train_alone / train_bundles:.2f}; all in all {alone:.1f} s, "
              f"{bundled:.1f} s, ratio {alone / bundled:.2f}", flush=True)  # fmt: skip


def main() -> None:
    parts = {"overhead": overhead, "batching": batching, "ceiling": ceiling, "cost": cost, "together": together,
             "sweep": in_bundles}  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(parts), help="what to measure; all by default")
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each line")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if unknown := set(chosen.parts) - set(parts):
        parser.error(f"unknown part {sorted(unknown)[0]!r}; allowed: {', '.join(parts)}")
    for part in chosen.parts:
        parts[part](chosen.seconds if math.isfinite(chosen.seconds) else 5.0)


if __name__ == "__main__":
    main()
