"""How do JSON records become a Parquet table, and the same records again? One typed column a key, and the keys' order.

A record is a dict of numbers, words, lists of these, and dicts of the same. Every key becomes a column, one within a
dict under ``outer.inner``. What a table alone would lose, which keys a record has and in which order, is the column
``layout``. A record that does not fit (a key of several types, a number too large) is told by :func:`misfits`.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

Record = Mapping[str, Any]

LAYOUT = "layout"
_SAME = "same_as"
"""Key of a table's metadata: which column leaves its numbers out where another has them."""
_LARGEST = 2**63  # of Parquet's whole numbers


def misfits(records: Sequence[Record]) -> set[int]:
    """Positions of the records that the columns cannot hold: a value unlike most others of its key, or of no kind.

    >>> misfits([{"a": 1}, {"a": 2}, {"a": "three"}])
    {2}
    """
    flat = [dict(_leaves(record)) for record in records]
    kinds = _kinds(flat)
    return {
        position
        for position, (record, leaves) in enumerate(zip(records, flat, strict=True))
        if not _plain_keys(record) or any(not _fits(value, kinds[name]) for name, value in leaves.items())
    }


def encode(records: Sequence[Record]) -> "pa.Table":
    """The records as a table; none of them may be one of :func:`misfits`."""
    import pyarrow as pa

    flat = [dict(_leaves(record)) for record in records]
    types = {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_(), "str": pa.string()}
    columns: dict[str, Any] = {}
    for name, kind in _kinds(flat).items():
        base, is_list = kind.removesuffix("[]"), kind.endswith("[]")
        column_type = pa.list_(types[base]) if is_list else types[base]
        columns[name] = pa.array([leaves.get(name) for leaves in flat], type=column_type)
    layouts = [json.dumps(_skeleton(record), ensure_ascii=False, separators=(",", ":")) for record in records]
    columns[LAYOUT] = pa.array(layouts, type=pa.string()).dictionary_encode()
    return pa.table(columns)


def column_encodings(table: "pa.Table") -> dict[str, Any]:
    """Parquet's encodings by column, as ``pyarrow.parquet.write_table`` takes them; runs/grid is a quarter smaller.

    Numbers of full precision hardly repeat, so a dictionary of them only costs; their bytes do, place by place
    (BYTE_STREAM_SPLIT). Whole numbers mostly count up (DELTA_BINARY_PACKED). Words and lists of whole numbers repeat.

    >>> import pyarrow as pa
    >>> column_encodings(pa.table({"round": [1, 2], "loss": [0.5, 0.25], "word": ["a", "a"]}))
    {'use_dictionary': ['word'], 'column_encoding': {'round': 'DELTA_BINARY_PACKED', 'loss': 'BYTE_STREAM_SPLIT'}}
    """
    import pyarrow as pa

    encodings: dict[str, str] = {}
    for field in table.schema:
        if pa.types.is_floating(field.type):
            encodings[field.name] = "BYTE_STREAM_SPLIT"
        elif pa.types.is_integer(field.type):
            encodings[field.name] = "DELTA_BINARY_PACKED"
        elif pa.types.is_list(field.type) and pa.types.is_floating(field.type.value_type):
            encodings[f"{field.name}.list.element"] = "BYTE_STREAM_SPLIT"
    written = {name.removesuffix(".list.element") for name in encodings}
    return {
        "use_dictionary": [name for name in table.column_names if name not in written],
        "column_encoding": encodings,
    }


def without_repeats(table: "pa.Table") -> "pa.Table":
    """The table without numbers that a row has twice; its metadata says in which other column each still stands.

    With one client a round, its loss is the round's and its norm that of the update: an eighth of runs/grid.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    same: dict[str, str] = {}
    lists = [field.name for field in table.schema if field.type == pa.list_(pa.float64())]
    sources = {name: _single(table[name]) for name in lists}
    for name in [field.name for field in table.schema if field.type == pa.float64()]:
        hits = {other: _repeats(table[name], source) for other, source in sources.items()}
        best = max(hits, key=lambda other: hits[other].sum(), default=None)
        if best is None or not hits[best].any():
            sources[name] = table[name]
            continue
        same[name] = best
        thin = pc.if_else(pa.array(hits[best]), None, table[name])
        table = table.set_column(table.column_names.index(name), name, thin)
    return table.replace_schema_metadata({_SAME: json.dumps(same)}) if same else table


def with_repeats(table: "pa.Table") -> "pa.Table":
    """The table again from which :func:`without_repeats` was made.

    >>> import pyarrow as pa
    >>> whole = pa.table({"train_loss": [2.0, 1.5], "client_losses": [[2.0], [1.0, 2.0]]})
    >>> without_repeats(whole)["train_loss"].to_pylist(), with_repeats(without_repeats(whole)).equals(whole)
    ([None, 1.5], True)
    """
    import pyarrow.compute as pc

    for name, other in json.loads((table.schema.metadata or {}).get(_SAME.encode(), b"{}")).items():
        whole = pc.coalesce(table[name], _single(table[other]))
        table = table.set_column(table.column_names.index(name), name, whole)
    return table


def decode(table: "pa.Table") -> Iterator[dict[str, Any]]:
    """The records of a table that :func:`encode` made, equal to those it was given.

    >>> records = [{"a": 1, "b": {"c": 0.5, "d": [1, 2]}}, {"b": {}, "a": None}]
    >>> list(decode(encode(records))) == records
    True
    """
    columns = {name: table.column(name).to_pylist() for name in table.column_names if name != LAYOUT}
    skeletons: dict[str, Any] = {}
    for position, layout in enumerate(table.column(LAYOUT).to_pylist()):
        if layout not in skeletons:
            skeletons[layout] = json.loads(layout)
        yield _fill(skeletons[layout], "", columns, position)


@dataclass(frozen=True)
class Presence:
    """Which keys the records of a table have.

    Attributes:
        layouts: the names of the leaves and, ending in a dot, of the dicts in each kind of record.
        kinds: (records,) the kind of each.
    """

    layouts: Sequence[frozenset[str]]
    kinds: Any

    def has(self, name: str) -> Any:
        """(records,) whether a record has the key whose column is ``name``."""
        import numpy as np

        return np.array([name in layout for layout in self.layouts], dtype=bool)[self.kinds]

    def has_block(self, name: str) -> Any:
        """(records,) whether a record has a dict under the key ``name``."""
        return self.has(f"{name}.")


def present(table: "pa.Table") -> Presence:
    """Which keys the records have of a table that :func:`encode` made; a column alone cannot tell None from nothing.

    >>> present(encode([{"a": 1, "b": {}}, {"a": None}, {}])).has("a").tolist()
    [True, True, False]
    """
    import pyarrow as pa

    layouts = pa.chunked_array(table.column(LAYOUT)).unify_dictionaries().combine_chunks()
    kinds = layouts.indices.to_numpy(zero_copy_only=False)
    return Presence([frozenset(_names(json.loads(text))) for text in layouts.dictionary.to_pylist()], kinds)


# ---------------------------------------------------------------------- numbers that stand twice
def _single(column: "pa.ChunkedArray") -> "pa.ChunkedArray":
    """The numbers of a column; of lists those that stand alone."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_list(column.type):
        return column
    alone = pc.equal(pc.list_value_length(column), 1)
    return pc.list_element(pc.if_else(alone, column, pa.scalar([None], type=column.type)), 0)


def _repeats(column: "pa.ChunkedArray", source: "pa.ChunkedArray") -> Any:
    """(rows,) where the source has the very same number; nowhere if it has one where the column has none."""
    import numpy as np

    there, given = (np.asarray(values.is_valid().to_numpy()) for values in (column, source))
    if (given & ~there).any():
        return np.zeros(len(column), dtype=bool)
    bits, others = (values.to_numpy().view(np.int64) for values in (column, source))  # -0.0 is not 0.0
    return there & given & (bits == others)


# ---------------------------------------------------------------------- keys
def _names(skeleton: Sequence[Any], before: str = "") -> Iterator[str]:
    for key in skeleton:
        if isinstance(key, str):
            yield before + key
        else:
            yield f"{before}{key[0]}."
            yield from _names(key[1], f"{before}{key[0]}.")


def _leaves(record: Record, before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _skeleton(record: Record) -> list[Any]:
    """The keys in order; one that holds a dict with that dict's keys beside it."""
    return [[key, _skeleton(value)] if isinstance(value, Mapping) else key for key, value in record.items()]


def _fill(skeleton: Sequence[Any], before: str, columns: Mapping[str, Sequence[Any]], position: int) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for key in skeleton:
        if isinstance(key, str):
            record[key] = columns[before + key][position]
        else:
            record[key[0]] = _fill(key[1], f"{before}{key[0]}.", columns, position)
    return record


def _plain_keys(record: Record) -> bool:
    """Whether keys are words without a dot, which divides an outer from an inner one, and none is our own."""
    return all(
        "." not in key and key != LAYOUT and (not isinstance(value, Mapping) or _plain_keys(value))
        for key, value in record.items()
    )


# ---------------------------------------------------------------------- kinds of values
def _kinds(flat: Sequence[Record]) -> dict[str, str]:
    """Each column's kind: that of most of its values; whole numbers, or lists of them, where all are empty."""
    seen: dict[str, Counter[str]] = {}
    lists: set[str] = set()
    for leaves in flat:
        for name, value in leaves.items():
            counter = seen.setdefault(name, Counter())
            if kind := _kind(value):
                counter[kind] += 1
            elif isinstance(value, list):
                lists.add(name)
    return {
        name: counter.most_common(1)[0][0] if counter else "int[]" if name in lists else "int"
        for name, counter in seen.items()
    }


def _kind(value: Any) -> str:
    """The kind of a value; empty for what any column holds (None, an empty list) and for what none does."""
    if isinstance(value, list):
        inner = {_kind(item) for item in value}
        kind = inner.pop() if len(inner) == 1 else ""
        return f"{kind}[]" if kind and not kind.endswith("[]") else ""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if -_LARGEST <= value < _LARGEST else ""
    return {float: "float", str: "str"}.get(type(value), "")


def _fits(value: Any, kind: str) -> bool:
    if value is None:
        return True
    if isinstance(value, list) and not value:
        return kind.endswith("[]")
    return bool(_kind(value)) and _kind(value) == kind
