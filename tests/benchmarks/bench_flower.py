"""How much slower is Flower's simulation than the native loop, for one job and for one round?

    python tests/benchmarks/bench_flower.py [--repeats 3] [--workers 1]

The job is a dozen rounds of 5 of 10 clients with about 1e5 parameters, two SGD steps of 16 x 128 tokens each. Both
engines make the same data, do the same arithmetic and end with the same bits, which is checked. Every repeat is a fresh
process of each engine, one after the other, so that load on the machine falls on both; start-up is the time from the
start of the process to the end of round 1, less a median round. Memory is the largest sum of proportional set sizes
over the process and all its descendants.
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

CONFIG = RunConfig(
    params=100_000, clients=10, clients_per_round=5, local_steps=2, batch_size=16, sequence_length=128,
    tokens=12 * 5 * 2 * 16 * 128, inner_optimizer="sgd", learning_rate=0.1, client_batching="loop",
    validation_tokens=8_192,
)  # fmt: skip


def one_job(engine: str, workers: int) -> None:
    """Run the job in this process, and print when its rounds ended."""
    import torch

    torch.set_num_threads(1)
    from scalefed.federated import flower, rounds
    from scalefed.federated.preparation import prepare

    task = prepare(CONFIG)
    state = rounds.initial_state(CONFIG, task.model)
    if engine == "native":
        loop = rounds.run_rounds(CONFIG, task.model, task.data, state)
    else:
        loop = flower.run_rounds(CONFIG, task.model, task.data, state, workers=workers)
    ends, weights = [], state.weights
    for done in loop:
        ends.append(time.time())
        weights = done.state.weights
    digest = hashlib.sha256(weights.numpy().tobytes()).hexdigest()[:12]
    print(json.dumps({"ends": ends, "hash": digest, "params": task.model.params_total}))


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
    parser.add_argument("--engine", choices=("native", "flower"), help="run one job in this process")
    options = parser.parse_args()
    if options.engine:
        one_job(options.engine, options.workers)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    runs: dict[str, list[dict[str, float | str]]] = {"native": [], "flower": []}
    for repeat in range(options.repeats):
        for engine in ("native", "flower") if repeat % 2 == 0 else ("flower", "native"):
            runs[engine].append(measured(engine, options.workers))
            print(engine, runs[engine][-1], flush=True)
    hashes = {run["hash"] for done in runs.values() for run in done}
    assert len(hashes) == 1, f"the engines disagree: {hashes}"
    print(f"{runs['native'][0]['params']} parameters, {CONFIG.rounds} rounds, equal bits in {options.repeats} pairs")
    for name in ("job s", "cpu s", "start-up s", "round s", "MB"):
        native, flower = (statistics.median(float(run[name]) for run in runs[one]) for one in ("native", "flower"))
        ratios = sorted(float(f[name]) / float(n[name]) for n, f in zip(runs["native"], runs["flower"], strict=True))
        print(f"{name:>10}: native {native:8.2f}  flower {flower:8.2f}  ratio {statistics.median(ratios):5.2f} "
              f"({ratios[0]:.2f} to {ratios[-1]:.2f})")  # fmt: skip


if __name__ == "__main__":
    main()
