"""What becomes of a Flower run whose coordinator or one of whose nodes is killed in the middle?

Run ``python tests/benchmarks/bench_flower_kills.py [coordinator] [node]``; needs the extra ``flower``. The coordinator
is the process of the server app: killed with -9 after its first checkpoint and started again, the run must end with
the weights of a native one. So must it where a SuperNode is killed in the middle: its task goes to the other one, once
Flower has missed its heartbeat (a minute).
"""

import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from scalefed.config import RunConfig
from scalefed.experiment import train
from scalefed.federated.flower import app as flower_app

CONFIG = RunConfig(
    params=3_000, clients=4, clients_per_round=2, local_steps=2, batch_size=2, sequence_length=32, tokens=4 * 256,
    client_batching="loop", validation_tokens=2_048, unique_tokens=65_536, problems="none",
)  # fmt: skip


def processes(home: Path, word: str) -> list[int]:
    """Processes of this Flower whose command holds a word."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            mine = f"FLWR_HOME={home}".encode() in (folder / "environ").read_bytes()
            if mine and word in (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def case(folder: Path, who: str, expected: str) -> None:
    """Kill one kind of process once, start the app again if the run is not there, and compare."""
    home, cache = folder / "flower", folder / "cache"
    os.environ["SCALEFED_CACHE"] = str(cache)
    app = flower_app.to_flower_app(CONFIG, folder / "app", nodes=2, timeout_s=300.0)
    stored = app / "runs" / CONFIG.run_id / "run.json"
    with flower_app.loopback(nodes=2, home=home) as link:
        said: list[str] = []
        work = threading.Thread(target=lambda: said.append(link.run(app, timeout_s=1800.0)), daemon=True)
        work.start()
        begin = time.monotonic()
        while not list(cache.glob("checkpoints/*.pt")) and time.monotonic() - begin < 300:
            time.sleep(0.05)
        victims = processes(home, "serverapp" if who == "coordinator" else "supernode")
        print(f"{who}: killing {len(victims[-1:])} of {len(victims)}, {time.monotonic() - begin:.0f} s in", flush=True)
        for pid in victims[-1:] if who == "node" else victims:
            os.kill(pid, signal.SIGKILL)
        work.join(1200)
        if not stored.is_file():
            print(f"{who}: the run is not there after it; started again", flush=True)
            said.append(link.run(app, timeout_s=1800.0))
            deadline = time.monotonic() + 60
            while not stored.is_file() and time.monotonic() < deadline:
                time.sleep(0.2)
        if not stored.is_file():
            print(f"{who}: no run; said: {''.join(said)[-800:]}")
            return
        found = json.loads(stored.read_text())["result"]
        same = "equal to" if found["weights_hash"] == expected else "other than"
        answers, needed = (home / "process-0.log").read_text().count("Push replies"), 2 * found["rounds"]
        print(f"{who}: stored, {found['rounds']} rounds, weights {same} a native run's; {answers} answers of nodes, "
              f"{needed} are needed")  # fmt: skip


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        os.environ["SCALEFED_CACHE"] = f"{place}/native-cache"
        hashed = train(CONFIG, runs=Path(place) / "native").weights_hash
        for name in sys.argv[1:] or ("coordinator", "node"):
            (Path(place) / name).mkdir()
            case(Path(place) / name, name, hashed)
