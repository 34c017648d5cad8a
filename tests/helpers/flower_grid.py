"""Flower's grid in this process, and an environment for Flower's own processes."""

import importlib.util
import os
import random
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]


def flower_here(monkeypatch) -> None:
    """Flower ready to make messages in this process; the test skips where it is not installed."""
    if importlib.util.find_spec("flwr") is None:
        pytest.skip("needs the extra 'flower'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what its dependencies say of each other on import
        from flwr import app, serverapp  # noqa: F401
        from flwr.supercore.task_identity import TaskIdentity
    for name in ("_task_id", "_run_id", "_node_id"):  # what Flower sets in a process of its own
        monkeypatch.setattr(TaskIdentity, name, 1)


def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "FLWR_HOME": str(tmp_path / "flower"),
            "SCALEFED_CACHE": str(tmp_path / "cache"),
            "RAY_ADDRESS": "local"}  # fmt: skip  # none that another test has started


class Grid:
    """Flower's grid in this process: random node ids, answers in any order, everything through Flower's bytes."""

    def __init__(self, client_app, nodes: int, *, seed: int | None = None, run_config=None, late: int = 0) -> None:
        from flwr.app import Context, RecordDict

        self.uniforms = random.Random(seed)
        ids = [self.uniforms.getrandbits(62) for _ in range(nodes)]
        self.nodes = [SimpleNamespace(node_id=one, registered_at=f"2026-01-01T00:00:0{k}") for k, one in enumerate(ids)]
        self.app, self.late, self.answers, self.served = client_app, late, {}, []
        self.contexts = {
            node.node_id: Context(1, node.node_id, {"partition-id": k}, RecordDict(), run_config or {})
            for k, node in enumerate(self.nodes)
        }

    def get_nodes(self):
        self.late -= 1
        nodes = self.nodes if self.late < 0 else self.nodes[:1]
        return self.uniforms.sample(nodes, len(nodes))

    def get_node_ids(self):
        return [node.node_id for node in self.get_nodes()]

    def push_messages(self, messages):
        return [self._serve(message) for message in messages]

    def pull_messages(self, message_ids):
        ready = [one for one in message_ids if one in self.answers]
        self.uniforms.shuffle(ready)
        return [self.answers.pop(one) for one in ready[:2]]

    def send_and_receive(self, messages, *, timeout=None):
        del timeout
        ids = list(self.push_messages(messages))
        self.uniforms.shuffle(ids)
        return [self.answers.pop(one) for one in ids]

    def _serve(self, message) -> str:
        from flwr.app import Error, Message
        from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

        name = f"m{len(self.served)}"
        node = message.metadata.dst_node_id
        self.served.append(node)
        message.metadata.__dict__["_message_id"] = name
        try:
            inside = Message(recorddict_from_proto(recorddict_to_proto(message.content)), metadata=message.metadata)
            reply = self.app(inside, self.contexts[node])
            reply.content = recorddict_from_proto(recorddict_to_proto(reply.content))
        except ArithmeticError as error:
            reply = Message(Error(code=1, reason=str(error)), reply_to=message)
        self.answers[name] = reply
        return name
