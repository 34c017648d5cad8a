"""How does a round compare with pfl-research and a bare torch loop, and a hundred small runs with Flower's simulation?

    python tests/benchmarks/bench_peers.py [pfl] [hundred] [--repeats 5] [--params 100000,1000000]

pfl       the same job in all three: a dozen rounds of 5 of 10 clients, two SGD steps of 8 x 128 tokens, no evaluation,
          the same model and tokens a step; ours writes its full record of every round to disk. Every repeat is a fresh
          process of each, one after the other. pfl 0.6 is installed into a virtual environment in a temporary folder
          that sees this one's packages (torch above all) and is deleted at the end, which needs a package index; or
          give the Python of an environment that has it (--pfl-python).
hundred   a hundred configurations of 13,944 parameters, 12 rounds of 10 clients each, in one native process, against a
          hundred times one Flower simulation of the same configuration (mean of --repeats runs, at most 3; flwr must be
          installed). Only the ratio of the totals means something.

For Flower's cost of one job and its memory see ``bench_flower.py``.
"""

import argparse
import json
import os
import shutil
import site
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import numpy as np
import torch

from scalefed.config import RunConfig
from scalefed.federated.rounds import initial_state, run_rounds
from scalefed.models import build_model

ROUNDS = 12


def job_config(params: int, *, batch: int = 8, seed: int = 0) -> RunConfig:
    return RunConfig(
        params=params, clients=10, clients_per_round=5, local_steps=2, batch_size=batch, sequence_length=128,
        tokens=ROUNDS * 5 * 2 * batch * 128, inner_optimizer="sgd", learning_rate=0.1, clip_norm=float("inf"),
        weight_decay=0.0, final_learning_rate=1.0, warmup=0.0, weighting="uniform", seed=seed,
    )  # fmt: skip


class Data:
    """Random tokens, the same for both sides."""

    def __init__(self, config: RunConfig) -> None:
        shape = (config.clients, config.local_steps, config.batch_size, config.sequence_length + 1)
        self.tokens = np.random.default_rng(0).integers(config.vocab_size, size=shape)

    def batches(self, client: int, *, visit: int, steps: int) -> np.ndarray:
        return self.tokens[client][:steps]


# ---------------------------------------------------------------------- jobs; each runs in a process of its own
def native(config: RunConfig) -> list[float]:
    model = build_model(config)
    ends = [time.process_time()]
    with tempfile.TemporaryDirectory() as folder:
        for done in run_rounds(config, model, Data(config), initial_state(config, model)):
            with Path(folder, "rounds.jsonl").open("a") as log:
                log.write(json.dumps(done.record) + "\n")
            ends.append(time.process_time())
    return ends


def bare(config: RunConfig) -> list[float]:
    """What anybody would write first."""
    model, data = build_model(config), Data(config)
    weights, draw = model.initial(0), np.random.default_rng(0)
    ends = [time.process_time()]
    for _ in range(ROUNDS):
        total = torch.zeros_like(weights)
        for user in draw.choice(config.clients, config.clients_per_round, replace=False):
            leaf = torch.nn.Parameter(weights.clone())
            optimizer = torch.optim.SGD([leaf], lr=0.1)
            for blocks in torch.from_numpy(data.batches(user, visit=0, steps=config.local_steps)):
                optimizer.zero_grad(set_to_none=True)
                model.loss(leaf, blocks).backward()
                optimizer.step()
            total += leaf.detach() - weights
        weights = weights + total / config.clients_per_round
        ends.append(time.process_time())
    return ends


def pfl(config: RunConfig) -> list[float]:
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.model.pytorch import PyTorchModel

    decoder, data = build_model(config), Data(config)

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.Parameter(decoder.initial(0))

        def loss(self, blocks: torch.Tensor, eval: bool = False) -> torch.Tensor:
            return decoder.loss(self.weights, blocks)

        def metrics(self, blocks: torch.Tensor, eval: bool = False) -> dict:
            return {}

    class Clock(TrainingProcessCallback):
        ends = [time.process_time()]

        def after_central_iteration(self, *_: object, **__: object) -> tuple:
            from pfl.metrics import Metrics

            self.ends.append(time.process_time())
            return False, Metrics()

    def client(user: int) -> Dataset:
        blocks = torch.from_numpy(data.batches(user, visit=0, steps=config.local_steps)).flatten(0, 1)
        return Dataset(raw_data=[blocks])

    module, clock = Flat(), Clock()
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    users = FederatedDataset(client, get_user_sampler("random", list(range(config.clients))))
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=ROUNDS, evaluation_frequency=10**9, train_cohort_size=5, val_cohort_size=None
        ),
        backend=SimulatedBackend(training_data=users, val_data=None), model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=0.1, local_batch_size=config.batch_size
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=config.batch_size), callbacks=[clock],
    )  # fmt: skip
    return clock.ends


def flower(config: RunConfig) -> list[float]:
    from scalefed.federated.flower import engine
    from scalefed.federated.preparation import prepare

    task = prepare(config)
    for _ in engine.run_rounds(config, task.model, task.data, initial_state(config, task.model), workers=1):
        pass
    return []


# ---------------------------------------------------------------------- measuring
def in_process(python: str, job: str, params: int, count: int = 1) -> dict:
    """One job in a fresh process: wall seconds in all, processor seconds of a round, memory."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
    }
    began = time.time()
    command = [python, __file__, "--job", job, "--params", str(params), "--count", str(count)]
    said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(said.splitlines()[-1]) | {"wall_s": time.time() - began}


def environment_with_pfl(folder: Path) -> str:
    """A virtual environment that has pfl and sees the packages of this one; returns its Python."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    (own,) = folder.glob("lib/python*/site-packages")
    (own / "outer.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "pfl==0.6.0"], check=True)
    return python


def compare_pfl(repeats: int, sizes: list[int], python: str | None) -> None:
    folder = Path(tempfile.mkdtemp(prefix="peers-"))
    try:
        python = python or environment_with_pfl(folder)
        for params in sizes:
            runs: dict[str, list[dict]] = {"native": [], "pfl": [], "bare": []}
            for repeat in range(repeats):
                for job in list(runs)[repeat % 3 :] + list(runs)[: repeat % 3]:
                    runs[job].append(in_process(python, job, params))
            tell(runs, repeats)
    finally:
        shutil.rmtree(folder)


def tell(runs: dict[str, list[dict]], repeats: int) -> None:
    """Medians of all jobs and the ratios of ours to the others."""
    print(f"{runs['native'][0]['params']:,} parameters, {ROUNDS} rounds, {repeats} triples of processes")
    for name in ("round_cpu_s", "cpu_s", "wall_s", "memory_mb"):
        values = {job: [run[name] for run in done] for job, done in runs.items()}
        line = "  ".join(f"{job} {statistics.median(of):8.3f}" for job, of in values.items())
        for other in ("pfl", "bare"):
            ratios = sorted(a / b for a, b in zip(values["native"], values[other], strict=True))
            line += (f"  native/{other} {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}; min/min "
                     f"{min(values['native']) / min(values[other]):.3f})")  # fmt: skip
        print(f"{name:>12}: {line}", flush=True)


def compare_hundred(repeats: int) -> None:
    ours = in_process(sys.executable, "native", 14_000, count=100)
    print("native, a hundred configurations", ours, flush=True)
    theirs = [in_process(sys.executable, "flower", 14_000) for _ in range(repeats)]
    mean = statistics.mean(run["wall_s"] for run in theirs)
    print(
        f"hundred: scalefed {ours['wall_s']:.0f} s, Flower 100 x {mean:.1f} s; ratio {ours['wall_s'] / mean / 100:.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["pfl", "hundred"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--params", default="100000,1000000", help="sizes to compare with pfl at")
    parser.add_argument("--pfl-python", help="the Python of an environment that has pfl; made and deleted if not given")
    parser.add_argument("--job", choices=("native", "pfl", "bare", "flower"), help="run one job in this process")
    parser.add_argument("--count", type=int, default=1, help="configurations that the job makes one after the other")
    options = parser.parse_args()
    if options.job:
        torch.set_num_threads(1)
        params = int(options.params)
        for seed in range(options.count):
            config = job_config(params, batch=8 if params > 50_000 else 4, seed=seed)
            ends = {"native": native, "pfl": pfl, "bare": bare, "flower": flower}[options.job](config)
        each = [b - a for a, b in zip(ends, ends[1:], strict=False)]
        spent = time.process_time()
        from scalefed.experiment.training import peak_memory_mb  # its import is none of the job

        print(json.dumps({
            "round_cpu_s": statistics.median(each) if each else None, "cpu_s": spent,
            "memory_mb": peak_memory_mb(),
            "params": build_model(config).params_total,
        }))  # fmt: skip
        return
    if "pfl" in options.parts:
        compare_pfl(options.repeats, [int(size) for size in options.params.split(",")], options.pfl_python)
    if "hundred" in options.parts:
        compare_hundred(min(options.repeats, 3))


if __name__ == "__main__":
    main()
