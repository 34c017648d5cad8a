"""The kinds of files that scalefed reads: good ones, their reader, and what must hold of a reading of broken ones."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from damage import Kind, quiet

import scalefed as sf
from scalefed.allocation.optimum import Optimum
from scalefed.config import RunConfig
from scalefed.laws.simulate import simulate_runs

FIXTURES = Path(__file__).parents[1] / "runs" / "fixtures"


# ---------------------------------------------------------------------- what cannot be
def impossible(row: dict[str, Any]) -> str | None:
    """What number of a run's row cannot be, by rules of our own; None if all can."""
    diverged = row.get("status") == "diverged"
    for name, value in row.items():
        if not isinstance(value, (int, float, np.number)) or isinstance(value, bool) or value != value:
            continue
        number = float(value)
        if (name.startswith("pass_at_") or name in ("participation", "skew")) and not 0 <= number <= 1:
            return f"nonsense: {name} {number}"
        if name in ("loss", "bits_per_byte", "train_loss") and (
            number < 0 or (math.isinf(number) and not diverged and "seed" in row)
        ):
            return f"nonsense: {name} {number}"
        if name in ("params", "tokens", "compute", "clients", "clients_per_round", "rounds") and not 0 <= number < 1e40:
            return f"nonsense: {name} {number}"
    clients, cohort = row.get("clients"), row.get("clients_per_round")
    if clients is not None and cohort is not None and cohort > clients:
        return f"nonsense: {cohort} of {clients} clients"
    return None


def rows_by(frame: pd.DataFrame, key: str) -> dict[Any, dict[str, Any]]:
    return {row[key]: row for row in frame.to_dict("records")}


def lost(before: pd.DataFrame, after: pd.DataFrame, broken: set[Any], key: str = "run_id") -> str | None:
    """Which good row is not there as it was."""
    old, new = rows_by(before, key), rows_by(after, key)
    if len(new) < len(after):
        return f"nonsense: a {key} stands twice"
    for name, row in old.items():
        if name in broken:
            continue
        if name not in new:
            return f"lost: {name}"
        for column, value in row.items():
            other = new[name].get(column)
            if (
                column not in ("sweep",)
                and repr(value) != repr(other)
                and not (value != value and (other is None or other != other))
            ):
                same = isinstance(value, (int, float)) and isinstance(other, (int, float)) and value == other
                if not same:
                    return f"lost: {name} {column} was {value!r:.40}, is {other!r:.40}"
    return next((fault for row in new.values() if (fault := impossible(row))), None)


# ---------------------------------------------------------------------- the kinds
def write_log(folder: Path) -> None:
    for seed in range(3):
        sf.write_run(
            folder / "sweep", run_id=f"run{seed}", config=RunConfig(seed=seed).to_dict(),
            result={"loss": 1.0 + seed / 8, "params": 14000, "tokens": 400000, "skew": 0.25, "rounds": 2},
            rounds=[
                {"round": 1, "loss": 2.0, "clients": [0, 1]}, {"round": 2, "loss": 1.0, "client_losses": [1.0, 2.0]},
            ],
            evaluation={"task_ids": ["a", "b"], "samples": 2, "correct": [1, 2], "pass_at_1": 0.75},
        )  # fmt: skip


def _of_log(name: str) -> Callable[[Path], list[Path]]:
    return lambda folder: sorted((folder / "sweep").glob(f"run*/{name}"))


def _wrong_log(before: pd.DataFrame, after: pd.DataFrame, target: Path) -> str | None:
    return lost(before, after, {target.parent.name})


def _wrong_rounds(before: pd.DataFrame, after: pd.DataFrame, target: Path) -> str | None:
    broken = target.parent.name
    kept = before[before["run_id"] != broken]
    here = after[after["run_id"].isin(set(kept["run_id"]))]
    if (
        not here[["run_id", "round", "loss"]]
        .reset_index(drop=True)
        .equals(kept[["run_id", "round", "loss"]].reset_index(drop=True))
    ):
        return "lost: rounds of a good run"
    own = after[after["run_id"] == broken]
    if "round" in own and own["round"].dropna().duplicated().any():
        return "nonsense: a round twice"
    return None


def _wrong_counts(before: pd.DataFrame, after: pd.DataFrame, target: Path) -> str | None:
    good = before if target.name == "counts.csv" else before[before["run_id"] != target.parent.name]
    if target.name != "counts.csv":
        kept = after[after["run_id"].isin(set(good["run_id"]))].reset_index(drop=True)
        if not kept.equals(good.reset_index(drop=True)):
            return "lost: counts of a good run"
    whole = (after["samples"] % 1 == 0) & (after["correct"] % 1 == 0)
    if not (
        whole & (after["correct"] >= 0) & (after["correct"] <= after["samples"]) & (after["samples"] < 2**53)
    ).all():
        return "nonsense: a count"
    if after.duplicated(["run_id", "task_id"]).any():
        return "nonsense: a problem twice"
    return None


def _frame() -> pd.DataFrame:
    truth = {"E": 1.8, "A": 480.0, "a": 0.35, "B": 2100.0, "b": 0.37}
    frame = simulate_runs(
        "chinchilla", truth, {"params": [1e6, 3e6, 1e7, 3e7], "tokens": [1e8, 3e8, 1e9, 3e9]}, noise=0.003
    )
    return frame.assign(clients=16, clients_per_round=[1, 2, 4, 8] * 4, skew=[0.0, 0.3] * 8, status="completed")


def _tables(suffix: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        frame, path = _frame(), folder / f"runs.{suffix}"
        if suffix == "csv":
            frame.to_csv(path, index=False)
        elif suffix == "tsv":
            frame.to_csv(path, index=False, sep="\t")
        elif suffix == "parquet":
            frame.to_parquet(path)
        elif suffix == "jsonl":
            frame.to_json(path, orient="records", lines=True)
        else:
            path.write_text(json.dumps(frame.to_dict("records")))

    return build


def _only(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _read_table(suffix: str) -> Callable[[Path], pd.DataFrame]:
    return lambda folder: sf.load_runs(folder / f"runs.{suffix}")


def _wrong_table(before: pd.DataFrame, after: pd.DataFrame, target: Path) -> str | None:
    return next((fault for row in after.to_dict("records") if (fault := impossible(row))), None)


def _wrong_imported(before: pd.DataFrame, after: pd.DataFrame, target: Path) -> str | None:
    if "round" in after and (after["round"].duplicated().any() or (after["round"] < 0).any()):
        return "nonsense: a round twice"
    return next((fault for row in after.to_dict("records") if (fault := impossible(row))), None)


_FIT: list[str] = []


def _fit(folder: Path) -> None:
    if not _FIT:
        with quiet():
            found = sf.fit(_frame(), law="federated", resamples=12)
            made = found.save(folder / "fit.json")
        _FIT.append(made.read_text())
    (folder / "fit.json").write_text(_FIT[0])


def _ask(folder: Path) -> tuple[Any, Any]:
    fit = sf.load_fit(folder / "fit.json")
    str(fit), fit.summary(), repr(fit)
    band = fit.predict(params=1e7, tokens=1e9, clients_per_round=4, skew=0.1)
    try:
        best: Any = fit.optimal_size(compute=1e17, clients=16, participation=0.25, skew=0.1)
    except sf.ScalefedError as error:
        best = error
    return band, best


def _wrong_fit(before: Any, after: Any, target: Path) -> str | None:
    band, best = after
    numbers = band.iloc[0].to_numpy(dtype=float)
    if not np.isfinite(numbers).all() or numbers.min() <= 0:
        return f"nonsense: a band {numbers}"
    if isinstance(best, Optimum) and not (0 < best.params < math.inf and 0 < best.tokens < math.inf):
        return f"nonsense: a size {best.params}"
    return None


def _toml(folder: Path) -> None:
    RunConfig(params=55_000, concentration=0.1, learning_rate=0.003, algorithm="diloco", seed=3).save(
        folder / "run.toml"
    )


def _wrong_config(before: Any, after: Any, target: Path) -> str | None:
    for config in after:
        for name, value in config.items():
            if (
                isinstance(value, float)
                and not math.isfinite(value)
                and name not in ("concentration", "clip_norm", "synthetic_epsilon")
            ):
                return f"nonsense: {name} {value}"
        str(config.run_id)
    return None


def _sweep(folder: Path) -> None:
    (folder / "sweep.toml").write_text(
        "[base]\nclients = 16\n\n[[grid]]\nparams = [ 3500, 14000 ]\nclients_per_round = [ 1, 4 ]\n\n"
        "[[grid]]\nseed = [ 1, 2 ]\n"
    )


def _copy(name: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        source = FIXTURES / name
        if source.is_dir():
            shutil.copytree(source, folder / name)
        else:
            shutil.copy(source, folder / name)

    return build


def _rounds(name: str, columns: dict[str, str] | None = None) -> Callable[[Path], pd.DataFrame]:
    return lambda folder: sf.import_rounds(folder / name, columns=columns)


def _runs(name: str, columns: dict[str, str] | None = None) -> Callable[[Path], pd.DataFrame]:
    return lambda folder: sf.load_runs(folder / name, columns=columns)


def _rounds_csv(folder: Path) -> None:
    (folder / "rounds.csv").write_text(
        "round,client,loss,tokens,lr\n1,3,2.0,300,0.1\n1,5,4.0,100,\n2,1,1.0,100,0.1\n2,7,3.0,100,\n"
    )


def _rounds_jsonl(folder: Path) -> None:
    lines = [
        {"kind": "start"},
        {"kind": "round", "round": 1, "wall_s": 0.5, "metrics": {"loss": 3.0}, "clients": [{"node": "1"}]},
        {"kind": "server_eval", "round": 1, "metrics": {"loss": 2.5}},
        {"kind": "round", "round": 2, "metrics": {"loss": 2.0}},
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _counts_csv(folder: Path) -> None:
    (folder / "counts.csv").write_text("run_id,task_id,samples,correct\na,p,20,3\na,q,20,20\nb,p,20,0\nb,q,20,7\n")


_SEARCHED = {"params": "params.n_params", "tokens": "params.tokens", "loss": "metrics.val_loss"}


def kinds() -> list[Kind]:
    """Every kind of file that a reader of runs, fits or settings takes."""

    def log(folder: Path) -> pd.DataFrame:
        return sf.load_runs(folder)

    def log_rounds(folder: Path) -> pd.DataFrame:
        return sf.load_runs(folder, rounds=True)

    def mlflow(before: pd.DataFrame, after: pd.DataFrame, target: Path) -> str | None:
        return lost(before, after, {part for part in target.parts if len(part) == 32})

    tables = {"csv": "table", "tsv": "table", "parquet": "table", "jsonl": "lines", "json": "json"}
    loss = {"loss": "val/loss"}

    def rounds(name: str, file: str, style: str, columns: dict[str, str] | None = None, of: str = "") -> Kind:
        return Kind(name, _copy(file), _rounds(of or file, columns), _only, _wrong_imported, style)

    def runs(name: str, file: str, style: str, columns: dict[str, str] | None = None) -> Kind:
        return Kind(name, _copy(file), _runs(file, columns), _only, _wrong_table, style)

    return [
        Kind("run.json", write_log, log, _of_log("run.json"), _wrong_log, "json"),
        Kind("eval.json", write_log, log, _of_log("eval.json"), _wrong_log, "json"),
        Kind("rounds.jsonl", write_log, log_rounds, _of_log("rounds.jsonl"), _wrong_rounds, "lines"),
        Kind("eval.json as counts", write_log, sf.load_counts, _of_log("eval.json"), _wrong_counts, "json"),
        Kind("counts.csv", _counts_csv, lambda f: sf.load_counts(f / "counts.csv"), _only, _wrong_counts, "table"),
        *(Kind(f"runs.{suffix}", _tables(suffix), _read_table(suffix), _only, _wrong_table, style)
          for suffix, style in tables.items()),
        Kind("fit.json", _fit, _ask, _only, _wrong_fit, "json"),
        Kind("run.toml", _toml, lambda f: [RunConfig.load(f / "run.toml")], _only, _wrong_config, "text"),
        Kind("sweep.toml", _sweep, lambda f: sf.load_sweep(f / "sweep.toml"), _only, _wrong_config, "text"),
        Kind("rounds.csv", _rounds_csv, _rounds("rounds.csv"), _only, _wrong_imported, "table"),
        Kind("round log", _rounds_jsonl, _rounds("log.jsonl"), _only, _wrong_imported, "lines"),
        rounds("Flower history", "flower_history.json", "json"),
        rounds("Flower print", "flower_printed.log", "text"),
        rounds("Trainer", "trainer", "json"),
        runs("Trainer as run", "trainer", "json"),
        rounds("TensorBoard", "tensorboard", "bytes", loss, of="tensorboard/run-a"),
        Kind("MLflow folder", _copy("mlruns"), _runs("mlruns", _SEARCHED), _only, mlflow, "text"),
        runs("MLflow database", "mlflow.db", "bytes", _SEARCHED),
        runs("W&B export", "wandb_project.csv", "text", {"params": "n_params"}),
        rounds("W&B history", "wandb_history.csv", "table", loss),
        runs("lm-eval", "lm_eval", "json"),
        rounds("Lightning", "lightning_metrics.csv", "table", {"loss": "val_loss"}),
    ]  # fmt: skip
