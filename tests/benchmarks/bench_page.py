"""How large is the page, how soon can it be used, and how long does it think? In a browser, median of several.

    python tests/benchmarks/bench_page.py [fits/grid.json ...]

Prints for each fit: size of the page; milliseconds of wall clock, which other work on the machine stretches, until it
stands with its printed answer and its sliders, and until the law of every replicate is compiled and the charts in view
are drawn; CPU of the page's main thread for all of that; one answer with all replicates after a slider moved; and CPU
of Python for that answer, so that the two can be compared on one machine.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from browser import Browser, find  # noqa: E402

import scalefed as sf  # noqa: E402

QUESTION = {"clients": 16, "clients_per_round": 4, "skew": 0.0}
TIMES = 9


def main() -> None:
    """Measure every fit that is named."""
    browser = Browser(find() or sys.exit("no Chromium here"))
    for name in sys.argv[1:] or [ROOT / "fits" / "grid.json", ROOT / "fits" / "study.json"]:
        fit = sf.load_fit(name)
        compute = float((6 * fit.runs["params"] * fit.runs["tokens"]).max())
        with tempfile.TemporaryDirectory() as folder:
            file = sf.write_report(fit, out=Path(folder) / "page.html", question={"compute": compute, **QUESTION})
            size = file.stat().st_size
            ready, drawn, work = [], [], []
            for _ in range(TIMES):
                page = browser.open("about:blank")
                page.ask("Performance.enable", timeDomain="threadTicks")
                page.go(file.as_uri())
                ready.append(page.evaluate("performance.getEntriesByType('navigation')[0].domInteractive"))
                drawn.append(page.evaluate("performance.getEntriesByName('answered')[0].startTime"))
                told = {one["name"]: one["value"] for one in page.ask("Performance.getMetrics")["metrics"]}
                work.append(1000 * told["ThreadTime"])
                page.close()
            page = browser.open(file.as_uri())
            asks = [{"compute": compute * 1.1**i, "level": 0.95, **QUESTION} for i in range(TIMES)]
            thought = page.evaluate(
                f"{json.dumps(asks)}.map((ask) => {{ const start = performance.now(); plan(data, ask);"
                " return performance.now() - start; })"
            )
            page.close()
        spent = []
        for ask in asks:
            start = time.process_time()
            fit.optimal_size(**ask)
            spent.append(time.process_time() - start)
        print(
            f"{Path(name).name}: {len(fit.runs)} runs, {len(fit.replicates)} replicates, {size / 1e6:.2f} MB, "
            f"ready in {statistics.median(ready):.0f} ms, computed and drawn in {statistics.median(drawn):.0f} ms "
            f"({statistics.median(work):.0f} ms of CPU), an answer in "
            f"{statistics.median(thought):.0f} ms; Python {1000 * statistics.median(spent):.0f} ms of CPU"
        )
    browser.close()


if __name__ == "__main__":
    main()
