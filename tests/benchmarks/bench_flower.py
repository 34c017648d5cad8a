"""How much slower is Flower's simulation than the native loop, for one job and for one round?

    python tests/benchmarks/bench_flower.py [--repeats 3] [--workers 1]

native    scalefed's own loop
flower    the same config with engine="flower": Flower's simulation, with our short polls and ordered messages
fedavg    Flower as its users run it: its own FedAvg strategy and loop over ten simulated nodes, which train the same
          model on the same tokens with the same steps, but which it draws by itself

The job is a dozen rounds of 5 of 10 clients with about 1e5 parameters, two SGD steps of 16 x 128 tokens each. The first
two make the same data, do the same arithmetic and end with the same bits, which is checked. Every repeat is a fresh
process of each, one after the other, so that load on the machine falls on all; start-up is the time from the start of
the process to the end of round 1, less a median round. Memory is the largest sum of proportional set sizes over the
process and all its descendants. The corpus and its exact entropy are made anew by every process that trains.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from scalefed.config import RunConfig

ENGINES = ("native", "flower", "fedavg")
CONFIG = RunConfig(
    params=100_000, clients=10, clients_per_round=5, local_steps=2, batch_size=16, sequence_length=128,
    tokens=12 * 5 * 2 * 16 * 128, inner_optimizer="sgd", learning_rate=0.1, client_batching="loop",
    validation_tokens=8_192,
)  # fmt: skip


def one_job(engine: str, workers: int) -> None:
    """Run the job in this process, and print when its rounds ended."""
    import torch

    torch.set_num_threads(1)
    ends, weights, total = (fedavg if engine == "fedavg" else ours)(engine, workers)
    digest = hashlib.sha256(weights.numpy().tobytes()).hexdigest()[:12]
    print(json.dumps({"ends": ends, "hash": digest, "params": total}))


def ours(engine: str, workers: int) -> tuple:
    """The native loop, or the same over Flower."""
    from scalefed.federated import rounds
    from scalefed.federated.preparation import prepare

    task = prepare(CONFIG)
    state = rounds.initial_state(CONFIG, task.model)
    if engine == "native":
        loop = rounds.run_rounds(CONFIG, task.model, task.data, state)
    else:
        from scalefed.federated.flower import engine as flower

        loop = flower.run_rounds(CONFIG, task.model, task.data, state, workers=workers)
    ends, weights = [], state.weights
    for done in loop:
        ends.append(time.time())
        weights = done.state.weights
    return ends, weights, task.model.params_total


def fedavg(engine: str, workers: int) -> tuple:
    """Flower's own strategy."""
    import logging

    import torch
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    from scalefed.federated.flower.engine import task_of
    from scalefed.models import build_model

    logging.getLogger("flwr").setLevel(logging.ERROR)
    server, client = ServerApp(), ClientApp()
    model, ends, last = build_model(CONFIG), [], []

    @client.train()
    def train(message: Message, context: object) -> Message:
        torch.set_num_threads(1)
        task = task_of(CONFIG)  # once in a client process
        weights = message.content["arrays"].to_torch_state_dict()["weights"]
        batches = task.data.batches(int(context.node_config["partition-id"]), visit=0, steps=CONFIG.local_steps)
        leaf = torch.nn.Parameter(weights.clone())
        optimizer = torch.optim.SGD([leaf], lr=0.1)
        for blocks in torch.from_numpy(batches.astype("int64")):
            optimizer.zero_grad(set_to_none=True)
            loss = task.model.loss(leaf, blocks)
            loss.backward()
            torch.nn.utils.clip_grad_norm_([leaf], 1.0)
            optimizer.step()
        metrics = MetricRecord({"loss": float(loss.detach()), "num-examples": batches.size})
        arrays = ArrayRecord({"weights": leaf.detach()})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    @server.main()
    def serve(grid: object, context: object) -> None:
        del context
        start = ArrayRecord({"weights": model.initial(CONFIG.seed)})
        strategy = FedAvg(fraction_train=0.5, fraction_evaluate=0.0, min_available_nodes=CONFIG.clients)
        result = strategy.start(
            grid=grid, initial_arrays=start, num_rounds=CONFIG.rounds,
            evaluate_fn=lambda number, arrays: ends.append(time.time()) if number else None,
        )  # fmt: skip
        last.append(result.arrays.to_torch_state_dict()["weights"])

    run_simulation(
        server_app=server, client_app=client, num_supernodes=CONFIG.clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": workers, "include_dashboard": False, "log_to_driver": False},
        },
    )  # fmt: skip
    return ends, last[0], model.params_total


def descendants(root: int) -> list[int]:
    """A process and all that it started, by /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue  # it ended while we looked
            children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found


class Watch(threading.Thread):
    """Follows a process tree: the most memory it took, and the processor time of everything that was ever in it."""

    def __init__(self, root: int) -> None:
        super().__init__()
        self.root, self.over = root, threading.Event()
        self.memory_mb, self.cpu_s = 0.0, dict[int, float]()

    def run(self) -> None:
        tick = os.sysconf("SC_CLK_TCK")
        while not self.over.wait(0.25):
            total = 0
            for process in descendants(self.root):
                try:
                    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
                    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
                except OSError:
                    continue  # it ended while we looked
                total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
                self.cpu_s[process] = (int(fields[11]) + int(fields[12])) / tick
            self.memory_mb = max(self.memory_mb, total / 1024)


def measured(engine: str, workers: int) -> dict[str, float | str]:
    """One job in a fresh process: seconds in all, start-up, a round, processor seconds, memory."""
    command = [sys.executable, __file__, "--engine", engine, "--workers", str(workers)]
    began = time.time()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    watch = Watch(process.pid)
    watch.start()
    said, _ = process.communicate()
    wall = time.time() - began
    watch.over.set()
    watch.join()
    if process.returncode:
        raise SystemExit(f"the {engine} job failed")
    job = json.loads(said.splitlines()[-1])
    each = [b - a for a, b in zip(job["ends"], job["ends"][1:], strict=False)]
    middle = statistics.median(each)
    return {
        "job s": wall, "cpu s": sum(watch.cpu_s.values()), "start-up s": job["ends"][0] - began - middle,
        "round s": middle, "MB": watch.memory_mb, "hash": job["hash"], "params": job["params"],
    }  # fmt: skip


def main() -> None:
    """Interleave the engines and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--engine", choices=ENGINES, help="run one job in this process")
    options = parser.parse_args()
    if options.engine:
        one_job(options.engine, options.workers)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    runs: dict[str, list[dict[str, float | str]]] = {engine: [] for engine in ENGINES}
    for repeat in range(options.repeats):
        for engine in ENGINES[repeat % 3 :] + ENGINES[: repeat % 3]:
            runs[engine].append(measured(engine, options.workers))
            print(engine, runs[engine][-1], flush=True)
    hashes = {run["hash"] for engine in ("native", "flower") for run in runs[engine]}
    assert len(hashes) == 1, f"the engines disagree: {hashes}"
    print(f"{runs['native'][0]['params']} parameters, {CONFIG.rounds} rounds, equal bits in {options.repeats} pairs")
    for name in ("job s", "cpu s", "start-up s", "round s", "MB"):
        values = {engine: [float(run[name]) for run in done] for engine, done in runs.items()}
        line = f"{name:>10}: native {statistics.median(values['native']):8.2f}"
        for engine in ENGINES[1:]:
            ratios = sorted(b / a for a, b in zip(values["native"], values[engine], strict=True))
            line += (f"  {engine} {statistics.median(values[engine]):8.2f}, ratio {statistics.median(ratios):5.2f} "
                     f"({ratios[0]:.2f} to {ratios[-1]:.2f})")  # fmt: skip
        print(line)


if __name__ == "__main__":
    main()
