"""Does a sweep on a broken machine end with the log of one left alone? Kills, full disks, two at once, odd folders.

Run ``python tests/benchmarks/bench_broken.py [kills] [workers] [two] [full] [readonly] [clock] [core] [paths] [pack]``;
all if none is named. ``full`` and ``readonly`` mount a small file system and need root. Each case prints the
differences of its log from an untouched sweep's (0 is what must be), tracebacks on the console, and what was
said. Run it from a checkout that stays as it is.
"""

import contextlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from scalefed.config import RunConfig
from scalefed.runs.log import log_differences

ROOT = Path(__file__).resolve().parents[2]

TINY = RunConfig(
    params=3_500, clients=4, clients_per_round=2, local_steps=5, concentration=0.5, problem_count=6, samples=2,
    validation_tokens=4_096, server_momentum=0.5,
)  # fmt: skip
_SWEEP = """
import sys, time
from scalefed.errors import ScalefedError
shift = float(sys.argv[3])
if shift:
    now, begin = time.time, time.monotonic()
    time.time = lambda: now() - (shift if time.monotonic() - begin > 3 else 0)
from scalefed.experiment import train_all
from scalefed.sweeps import load_sweep
try:
    train_all(load_sweep(sys.argv[1]), runs=sys.argv[2], workers=2)
except ScalefedError as error:
    sys.exit(f"error: {error}")
"""


class Bench:
    """A sweep of six small runs, made once untouched."""

    def __init__(self, folder: Path):
        self.folder = folder
        lines = [f"{name} = {json.dumps(value)}" for name, value in TINY.changed().items()]
        grid = "\n[[grid]]\nseed = [0, 1, 2]\ntokens = [20000, 50000]\n"
        (folder / "sweep.toml").write_text("[base]\n" + "\n".join(lines) + grid)
        self.end(self.start(folder / "alone"))

    def start(self, runs: Path, *, shift: float = 0.0) -> subprocess.Popen[str]:
        """A sweep into this folder, under way."""
        environment = os.environ | {"SCALEFED_CACHE": f"{self.folder}/cache-{runs.name[:20]}", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", _SWEEP, str(self.folder / "sweep.toml"), str(runs), str(shift)]
        environment["PYTHONPATH"] = str(ROOT)
        return subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)

    def end(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        """Its exit status and what it said."""
        said = process.communicate(timeout=900)[1]
        return process.returncode, said

    def tell(self, case: str, runs: Path, said: list[str]) -> None:
        """One line of the table."""
        found = log_differences(self.folder / "alone", runs)
        text = "".join(said)
        last = next((line for line in reversed(text.splitlines()) if line.startswith("error")), "")
        print(f"{case}: differences {len(found)}, tracebacks {text.count('Traceback')} {last[:150]}", flush=True)
        for line in found[:5]:
            print("  ", line)


def kills(bench: Bench, count: int = 20) -> None:
    """kill -9 of the sweep at random moments of its and its workers' work; then it is started again."""
    dice, runs, said = random.Random(7), bench.folder / "killed", []
    for _ in range(count):
        process, life = bench.start(runs), dice.uniform(1.0, 14.0)
        while process.poll() is None and _seconds(process.pid) + sum(_workers(process.pid).values()) < life:
            time.sleep(0.05)
        process.kill()
        time.sleep(1.5)  # its workers notice within a second
        said.append(bench.end(process)[1])
    said.append(bench.end(bench.start(runs))[1])
    bench.tell(f"{count} kills of the sweep", runs, said)


def kills_of_workers(bench: Bench, count: int = 20) -> None:
    """kill -9 of workers at random moments of their work; a sweep is then started again for what failed."""
    dice, killed, sweeps = random.Random(7), 0, 0
    while killed < count:
        runs, sweeps = bench.folder / f"workers-{sweeps}", sweeps + 1
        process, lives = bench.start(runs), {}
        while process.poll() is None and killed < count:
            time.sleep(0.1)
            for worker, seconds in _workers(process.pid).items():
                if seconds > lives.setdefault(worker, dice.uniform(1.0, 5.0)):
                    os.kill(worker, signal.SIGKILL)
                    killed, lives[worker] = killed + 1, math.inf
        said = [bench.end(process)[1], bench.end(bench.start(runs))[1]]
        bench.tell(f"{killed} kills of workers in {sweeps} sweeps", runs, said)


def _workers(sweep: int) -> dict[int, float]:
    """The workers of a sweep's process and the seconds that each has computed, however busy the machine is."""
    found = {}
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{sweep}/task/{sweep}/children").read_text().split():
            if b"scalefed.experiment.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                found[int(child)] = _seconds(int(child))
    return found


def _seconds(process: int) -> float:
    """The seconds that a process has computed; 0 for one that is gone."""
    try:
        ticks = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    except OSError:
        return 0.0
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def two(bench: Bench) -> None:
    """Two sweeps into one folder at once."""
    runs = bench.folder / "two"
    both = [bench.start(runs), bench.start(runs)]
    bench.tell("two at once", runs, [bench.end(process)[1] for process in both])


def full(bench: Bench) -> None:
    """The disk is full, then there is room again."""
    runs = bench.folder / "full"
    runs.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "none", str(runs)], check=True)
    try:
        status, said = bench.end(bench.start(runs))
        print(f"disk full: status {status}, {said.strip().splitlines()[-1][:150] if said else 'nothing said'}")
        subprocess.run(["mount", "-o", "remount,size=64m", str(runs)], check=True)
        bench.tell("disk full, then room", runs, [said, bench.end(bench.start(runs))[1]])
    finally:
        subprocess.run(["umount", str(runs)], check=True)


def readonly(bench: Bench) -> None:
    """A folder that cannot be written, then it can."""
    runs = bench.folder / "readonly"
    runs.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", str(runs)], check=True)
    try:
        said = bench.end(bench.start(runs))[1]
        subprocess.run(["mount", "-o", "remount,rw", str(runs)], check=True)
        bench.tell("read-only, then not", runs, [said, bench.end(bench.start(runs))[1]])
    finally:
        subprocess.run(["umount", str(runs)], check=True)


def clock(bench: Bench) -> None:
    """The clock is set back by a day in the middle."""
    runs = bench.folder / "clock"
    bench.tell("clock set back", runs, [bench.end(bench.start(runs, shift=86400.0))[1]])


def core(bench: Bench) -> None:
    """Two workers on one core, of which a busy loop takes its part."""
    runs, ours = bench.folder / "core", os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(ours)})
    spinner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        bench.tell("one busy core", runs, [bench.end(bench.start(runs))[1]])
    finally:
        spinner.kill()
        spinner.wait()
        os.sched_setaffinity(0, ours)


def paths(bench: Bench) -> None:
    """A very long path with letters of many kinds."""
    runs = bench.folder / "длинный путь — 長い" / ("ü" * 100) / ("d" * 200) / ("e" * 200)
    bench.tell("long path, not ASCII", runs, [bench.end(bench.start(runs))[1]])


def pack(bench: Bench, count: int = 20) -> None:
    """kill -9 of ``scalefed pack`` and ``unpack`` at random moments, in turn; then it is packed."""
    dice, runs, said = random.Random(7), bench.folder / "packed", []
    shutil.copytree(bench.folder / "alone", runs)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for number in range(count + 1):
        command = [sys.executable, "-m", "scalefed", "unpack" if number % 2 else "pack", str(runs)]
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        if number < count:
            time.sleep(dice.uniform(0.3, 3.0))
            process.kill()
        said.append(bench.end(process)[1])
    bench.tell(f"{count} kills of pack and unpack", runs, said)


CASES: dict[str, Callable[[Bench], None]] = {
    "kills": kills, "workers": kills_of_workers, "two": two, "full": full,
    "readonly": readonly, "clock": clock, "core": core, "paths": paths, "pack": pack,
}  # fmt: skip


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        made = Bench(Path(place))
        for name in sys.argv[1:] or CASES:
            CASES[name](made)
