"""What does a Flower strategy do, round by round? A log that stands between its loop and its methods.

Made by :func:`scalefed.federated.flower.recording.log_flower`; imports nothing of Flower.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from scalefed.seeds import stream_seed

WRAPPED = ("start", "configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate")
"""The methods of a strategy that the log stands before."""


class StrategyLog:
    """Stands between a strategy's loop and its methods, and tells a function what happens.

    Every record has a ``kind``: ``start`` with the arrays' sizes; ``nodes`` with how many there are, whenever that
    changes; ``sampled`` with how many are asked in a round; ``round`` with wall time, bytes down and up, the nodes that
    were sampled, how many failed and why, the aggregated metrics and each client's; ``server_eval`` and ``client_eval``
    with metrics; ``end`` or ``failed``. Nodes are named by the order in which they registered where that is known.
    """

    def __init__(
        self,
        tell: Callable[[dict[str, Any]], None],
        seed: int | None,
        inner: Mapping[str, Callable[..., Any]],
        private_sampling: Callable[[int], AbstractContextManager[None]],
    ) -> None:
        """A log that is not attached yet.

        Args:
            tell: is given every record.
            seed: of the sampling; None leaves sampling and order as they are.
            inner: the strategy's own methods, those of :data:`WRAPPED`.
            private_sampling: a context in which Flower samples nodes from a stream of the seed given.
        """
        self.tell, self.seed, self.inner, self.private_sampling = tell, seed, inner, private_sampling
        self.order: dict[int, int] = {}
        self.sampled: list[int] = []
        self.clock, self.down, self.nodes = 0.0, 0, -1

    def start(self, *args: Any, **options: Any) -> Any:
        """The whole run, with the server's evaluations told."""
        began = time.perf_counter()
        arrays = options.get("initial_arrays", args[1] if len(args) > 1 else None)
        self.tell({"kind": "start", "seed": self.seed, "time": time.time(), "arrays": _sizes(arrays)})
        if evaluate := options.get("evaluate_fn"):

            def noted(server_round: int, arrays: Any) -> Any:
                metrics = evaluate(server_round, arrays)
                self.tell({"kind": "server_eval", "round": server_round, "metrics": dict(metrics or {})})
                return metrics

            options["evaluate_fn"] = noted
        try:
            result = self.inner["start"](*args, **options)
        except BaseException as error:
            self.tell({"kind": "failed", "error": f"{type(error).__name__}: {error}"[:500]})
            raise
        rounds = len(result.train_metrics_clientapp)
        self.tell({"kind": "end", "rounds": rounds, "wall_s": time.perf_counter() - began})
        return result

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        """Sample the round's nodes."""
        self.clock = time.perf_counter()
        messages = self._configure("configure_train", server_round, arrays, config, grid)
        self.down = sum(_bytes(message.content) for message in messages)
        self.sampled = [self.order.get(m.metadata.dst_node_id, m.metadata.dst_node_id) for m in messages]
        self.tell({"kind": "sampled", "round": server_round, "asked": len(messages)})
        return messages

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        """Average the round's replies, and tell of the round."""
        ordered = self._sorted(replies)
        result = self.inner["aggregate_train"](server_round, ordered)
        good = [reply for reply in ordered if not reply.has_error()]
        reasons = sorted({str(reply.error.reason)[:200] for reply in ordered if reply.has_error()})
        self.tell({
            "kind": "round", "round": server_round, "wall_s": time.perf_counter() - self.clock,
            "bytes_down": self.down, "bytes_up": sum(_bytes(reply.content) for reply in good), "sampled": self.sampled,
            "failed": len(self.sampled) - len(good), "reasons": reasons, "metrics": dict(result[1] or {}),
            "clients": [{"node": self._name(reply)} | _metrics(reply.content) for reply in good],
        })  # fmt: skip
        return result

    def configure_evaluate(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        """Sample the nodes that evaluate."""
        return self._configure("configure_evaluate", server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Any) -> Any:
        """Average the clients' evaluations, and tell of them."""
        metrics = self.inner["aggregate_evaluate"](server_round, self._sorted(replies))
        if metrics is not None:
            self.tell({"kind": "client_eval", "round": server_round, "metrics": dict(metrics)})
        return metrics

    def _configure(self, step: str, server_round: int, arrays: Any, config: Any, grid: Any) -> list[Any]:
        seen = WatchedGrid(grid, self._count)
        if self.seed is None:
            return list(self.inner[step](server_round, arrays, config, seen))
        ordered = OrderedGrid(seen)
        with self.private_sampling(stream_seed(self.seed, f"flower {step}", server_round)):
            messages = list(self.inner[step](server_round, arrays, config, ordered))
        self.order = {node: index for index, node in enumerate(ordered.get_node_ids())}
        return messages

    def _count(self, nodes: int) -> None:
        """Tell how many nodes there are, when that is new; Flower asks again and again while it waits for more."""
        if nodes != self.nodes:
            self.nodes = nodes
            self.tell({"kind": "nodes", "connected": nodes})

    def _sorted(self, replies: Any) -> list[Any]:
        return sorted(replies, key=self._name) if self.seed is not None else list(replies)

    def _name(self, reply: Any) -> int:
        node = int(reply.metadata.src_node_id)
        return self.order.get(node, node)


class WatchedGrid:
    """A grid that tells how many nodes it has whenever it is asked for them."""

    def __init__(self, grid: Any, count: Callable[[int], None]) -> None:
        self._grid, self._count = grid, count

    def get_node_ids(self) -> list[int]:
        """Node ids, as the grid has them."""
        return self._counted(list(self._grid.get_node_ids()))

    def get_nodes(self) -> list[Any]:
        """Nodes, as the grid has them."""
        return self._counted(list(self._grid.get_nodes()))

    def _counted(self, nodes: list[Any]) -> list[Any]:
        self._count(len(nodes))
        return nodes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)


class OrderedGrid:
    """A grid that lists its nodes in the order in which they registered."""

    def __init__(self, grid: Any) -> None:
        self._grid = grid

    def get_node_ids(self) -> list[int]:
        """Node ids, first come first."""
        nodes = sorted(self._grid.get_nodes(), key=lambda node: (node.registered_at, node.node_id))
        return [node.node_id for node in nodes]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)


def _sizes(arrays: Any) -> dict[str, int]:
    """How many numbers each array holds."""
    found = {}
    for name, array in dict(arrays or {}).items():
        size = 1
        for length in array.shape:
            size *= int(length)
        found[str(name)] = size
    return found


def _bytes(content: Any) -> int:
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())


def _metrics(content: Any) -> dict[str, Any]:
    return {name: value for record in content.metric_records.values() for name, value in dict(record).items()}
