"""How fast and how exact is the planner?

Run ``python tests/benchmarks/bench_optimum.py`` with the package on the path and ``OMP_NUM_THREADS=1``. It prints, for
every named law, the time of one query with 1,000 bootstrap replicates and of 10,000 queries at once, and how far the
answer is from a refined grid; then scipy's SLSQP on the same question, interleaved in one process. Times are CPU
seconds of this process (medians), so that a busy machine does not distort the ratios.
"""

import time
from collections.abc import Callable
from functools import partial

import numpy as np
from scipy.optimize import minimize

from scalefed.allocation.budgets import Budget, Setting
from scalefed.allocation.optimum import least_compute, minimise
from scalefed.laws import LAWS

VALUES = {
    "E": 1.69, "A": 406.4, "a": 0.34, "B": 410.7, "b": 0.28, "g": 0.3, "s": 0.8, "h": 0.2, "G": 300.0, "c": 0.3,
    "F": 10.0, "r": 0.5, "R": 15.0, "t": 0.4, "d": 0.3,
}  # fmt: skip
SPECIAL = {
    "coupled": {**VALUES, "A": 4.0, "B": 4.0, "c": 1.3},
    "kaplan": {"A": 100.0, "a": 0.8, "B": 1e9, "c": 0.1},
}
SETTING = Setting(clients=100, clients_per_round=16, skew=0.2, local_steps=30, batch_tokens=4096, unique_tokens=1e9)
FREE = Setting(clients=100, clients_per_round=16, skew=0.2, batch_tokens=4096)
MIXED = {
    "compute": 1e20, "bytes_per_client": 2e12, "rounds": 2e4, "memory": 16e9, "seconds": 864000.0,
    "flops_per_second": 1e13, "bandwidth": 1e8, "latency": 1.0,
}  # fmt: skip


def cpu(call: Callable[[], object], repeats: int = 15) -> float:
    """Median CPU milliseconds."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return 1e3 * float(np.median(times))


def grid_answer(name: str, values: dict[str, float]) -> tuple[float, float]:
    """Best params and loss on a refined grid at 1e20 FLOPs."""
    low, high = np.log(1e4), np.log(1e13)
    for _ in range(5):
        mesh = np.linspace(low, high, 4001)
        params = np.exp(mesh)
        tokens = 1e20 / (6 * params)
        known = {"params": params, "tokens": tokens, "clients_per_round": 16.0, "skew": 0.2, "local_steps": 30.0}
        known |= {"rounds": tokens / (16 * 30 * 4096), "unique_tokens": 1e9}
        columns = {n: np.broadcast_to(known[n], params.shape) for n in LAWS[name].columns}
        loss = LAWS[name].predict(values, columns)
        best = int(np.argmin(loss))
        low, high = mesh[max(best - 2, 0)], mesh[min(best + 2, 4000)]
    return float(params[best]), float(loss[best])


def slsqp(values: dict[str, float], compute: float) -> float:
    """The same two-term question for a general optimiser, in logarithms, from a fair start."""
    a, b = values["a"], values["b"]
    log_a, log_b = np.log(values["A"]), np.log(values["B"])

    def loss(x: np.ndarray) -> float:
        return float(np.logaddexp(log_a - a * x[0], log_b - b * x[1]))

    def gradient(x: np.ndarray) -> np.ndarray:
        first = 1 / (1 + np.exp(log_b - b * x[1] - log_a + a * x[0]))
        return np.array([-a * first, -b * (1 - first)])

    held = {"type": "ineq", "fun": lambda x: np.log(compute / 6) - x.sum(), "jac": lambda x: -np.ones(2)}
    start = np.full(2, np.log(compute / 6) / 2)
    found = minimize(loss, start, jac=gradient, constraints=[held], method="SLSQP", options={"ftol": 1e-14})
    return float(np.exp(found.x[0]))


def table() -> None:
    """One line a named law."""
    generator = np.random.default_rng(0)
    print("law                one query, 1,001 replicates   10,000 queries   params off grid   loss above grid")
    sweep = Budget(compute=np.geomspace(1e17, 1e24, 10_000))
    for name, law in LAWS.items():
        if not {"params", "tokens"} <= set(law.columns):
            continue
        values = {p: SPECIAL.get(name, VALUES)[p] for p in law.free}
        spread = {p: v * np.exp(0.02 * generator.standard_normal(1001)) for p, v in values.items()}
        one = cpu(partial(minimise, law, spread, budget=Budget(compute=1e20), setting=SETTING))
        many = cpu(partial(minimise, law, values, budget=sweep, setting=SETTING), 5)
        found = minimise(law, values, budget=Budget(compute=1e20), setting=SETTING)
        params, loss = grid_answer(name, values)
        print(
            f"{name:18s} {one:12.1f} ms {many:23.0f} ms {abs(float(found.params) / params - 1):17.1e}"
            f" {float(found.loss) - loss:+17.1e}"
        )


def harder() -> None:
    """Many limits, rounds to choose, and the inverse question."""
    generator = np.random.default_rng(0)
    steps = {p: VALUES[p] for p in LAWS["federated-steps"].free}
    drift = {p: VALUES[p] for p in LAWS["federated-drift"].free}
    spread = {p: v * np.exp(0.02 * generator.standard_normal(1001)) for p, v in steps.items()}
    six = cpu(partial(minimise, "federated-steps", spread, budget=Budget(**MIXED), setting=SETTING))
    limits = Budget(compute=1e20, bytes_per_client=1e12)
    free = cpu(partial(minimise, "federated-drift", drift, budget=limits, setting=FREE))
    inverse = cpu(partial(least_compute, "federated-steps", steps, loss=2.5, setting=SETTING))
    print(f"six limits, 1,001 replicates {six:.1f} ms; local steps free, one query {free:.1f} ms;")
    print(f"least compute for a loss, one query {inverse:.1f} ms")


def against_scipy() -> None:
    """100 two-term questions, ours and SLSQP in turn."""
    plain = {p: VALUES[p] for p in LAWS["chinchilla"].free}
    budgets = np.geomspace(1e18, 1e23, 100)
    ours = minimise("chinchilla", plain, budget=Budget(compute=budgets)).params
    theirs = np.array([slsqp(plain, c) for c in budgets])
    ratios = []
    for _ in range(5):
        here = cpu(partial(minimise, "chinchilla", plain, budget=Budget(compute=budgets)), 3)
        ratios.append(cpu(lambda: [slsqp(plain, c) for c in budgets], 1) / here)
    print(
        f"100 budgets: scipy SLSQP takes {np.median(ratios):.0f}x the time ({min(ratios):.0f} to {max(ratios):.0f});"
        f" its params are off by up to {np.abs(theirs / ours - 1).max():.1e}"
    )


if __name__ == "__main__":
    table()
    harder()
    against_scipy()
