"""Can the code that runs here still come back? A proof that it cannot, so that a loop need not be waited for.

Asked of a sample that has computed for a while, in its own process, by a signal. Two proofs, both of the frame that the
judge itself called:

* *No way out*: from where it is, no ``return`` can be reached and no handler is in force, so only an exception leaves.
* *Recurrence*: all that it can see is as it was at the same instruction before, no loop around it has moved on, and
  its code is tame (``allowlist.py``): then it does the same for ever. (That a program's end hangs on the addresses of
  its objects is left out of account.)

Anything that is not understood is no proof, and costs some milliseconds. A sample that lies here calls itself endless,
and nobody else.
"""

import dis
import re
import sys
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any

_EVENTS = 30_000  # instructions of the frame that are watched for a recurrence, about 20 ms
_VALUES = 2_000  # values that a state may hold
_BITS = 1 << 16  # longest number, and characters of the longest text, that is compared

PROOFS = {
    "no way out": "an endless loop: no return can be reached from it",
    "recurrence": "an endless loop: it came back to where it was with nothing changed",
}
"""What can be proved, and how it is told."""

_LEAVES = ("RETURN_VALUE", "RETURN_CONST", "RETURN_GENERATOR", "YIELD_VALUE", "SEND")
_ENDS_A_PATH = (*_LEAVES, "RAISE_VARARGS", "RERAISE", "JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT")
_RESUMABLE = 0x20 | 0x80 | 0x100 | 0x200  # generators and coroutines, inspect.CO_*


def examine(frame: types.FrameType, *, tame: bool, proved: Callable[[str], object]) -> None:
    """Look for a proof that ``frame``, called by the judge itself, never returns; ``proved`` hears which, now or soon.

    Args:
        frame: running, of the sample's code.
        tame: whether all its code is tame.
        proved: called with a key of PROOFS.
    """
    if no_way_out(frame):
        proved("no way out")
    elif tame:
        Watch(frame, proved).start()


def no_way_out(frame: types.FrameType) -> bool:
    """True if this frame cannot return any more, whatever it computes: an exception is its only end."""
    code = frame.f_code
    if code.co_flags & _RESUMABLE or sys.gettrace() is not None:
        return False
    instructions = {step.offset: step for step in dis.get_instructions(code)}
    following = dict(zip(instructions, list(instructions)[1:], strict=False))
    todo, reached = [frame.f_lasti], set[int]()
    while todo:
        offset = todo.pop()
        step = instructions.get(offset)
        if step is None or step.opname in _LEAVES:
            return False
        if offset in reached:
            continue
        reached.add(offset)
        if step.opcode in dis.hasjrel or step.opcode in dis.hasjabs:
            todo.append(int(step.argval))
        if step.opname not in _ENDS_A_PATH:
            todo.append(following.get(offset, -1))
    handled = dis.Bytecode(code).exception_entries  # type: ignore[attr-defined]
    return not any(entry.start <= offset < entry.end for entry in handled for offset in reached)


class Watch:
    """Follows a frame, instruction by instruction, until its state recurs or it has cost enough."""

    def __init__(self, frame: types.FrameType, proved: Callable[[str], object]):
        """Args: frame: of tame code, running. proved: called with ``recurrence``, at most once."""
        self._frame, self._proved, self._left = frame, proved, _EVENTS
        steps = list(dis.get_instructions(frame.f_code))
        jumps = [step for step in steps if step.opcode in dis.hasjrel or step.opcode in dis.hasjabs]
        self._heads = {int(step.argval) for step in jumps if int(step.argval) < step.offset}
        self._fors = {step.offset: int(step.argval) for step in jumps if step.opname == "FOR_ITER"}
        self._seen: dict[int, _Visits] = {}

    def start(self) -> None:
        """Watch from here on; other frames go at full speed."""
        if self._heads and sys.gettrace() is None and not any(_compares_identity(c) for c in _codes(self._frame)):
            self._frame.f_trace, self._frame.f_trace_opcodes, self._frame.f_trace_lines = self._step, True, False
            sys.settrace(lambda *_: None)

    def _step(self, frame: types.FrameType, event: str, _: Any) -> Any:
        self._left -= 1
        if self._left < 0 or event in ("return", "exception"):
            return self._stop()
        if event != "opcode":
            return self._step
        offset = frame.f_lasti
        if offset in self._fors:  # what it loops over moves on, unseen: no state inside of it counts any more
            end = self._fors[offset]
            self._seen = {head: visits for head, visits in self._seen.items() if not offset <= head < end}
        if offset in self._heads:
            try:
                state = _state(frame)
            except Exception:  # above all _HiddenError; whatever it is, the sample must not notice
                return self._stop()
            self._left -= len(state)
            if self._seen.setdefault(offset, _Visits()).again(state):
                self._stop()
                self._proved("recurrence")
        return self._step

    def _stop(self) -> None:
        sys.settrace(None)
        self._frame.f_trace = None


class _Visits:
    """States of one place, compared by Brent's rule: with the one that came 1, 2, 4, 8, ... visits after the last."""

    __slots__ = ("count", "kept", "span")

    def __init__(self) -> None:
        self.kept: list[Any] | None = None
        self.count, self.span = 0, 1

    def again(self, state: list[Any]) -> bool:
        """True if this state was here before."""
        if state == self.kept:
            return True
        self.count += 1
        if self.kept is None or self.count == self.span:
            self.kept, self.count, self.span = state, 0, 2 * self.span
        return False


class _HiddenError(Exception):
    """Something whose state cannot be told."""


def _state(frame: types.FrameType) -> list[Any]:
    """All data that the frame's code can see, flat; equal lists are equal states, shared objects included."""
    found: list[Any] = []
    met: dict[int, int] = {}
    todo: list[Any] = [*_named(frame.f_locals)]
    if frame.f_globals is not frame.f_locals:
        todo += _named({name: value for name, value in frame.f_globals.items() if name[:2] != "__"})
    while todo:
        value = todo.pop()
        if len(found) > _VALUES:
            raise _HiddenError
        kind = type(value)
        if kind in _PLAIN:
            if kind is int and value.bit_length() > _BITS or kind in (str, bytes) and len(value) > _BITS:
                raise _HiddenError
            found.append((kind, repr(value) if kind in (float, complex) else value))
        elif kind in _CONSTANT:
            found.append(id(value))
        elif id(value) in met:
            found.append(("met", met[id(value)]))
        else:
            met[id(value)] = len(met)
            parts = _parts(value, kind)
            found.append((kind, len(parts)))
            todo += parts
    return found


def _named(names: Any) -> Iterator[Any]:
    for name, value in names.items():
        yield value
        yield name


def _parts(value: Any, kind: type) -> list[Any]:
    """What a container or function consists of; raises for what has a state that does not show."""
    if kind in (list, deque):
        return [*value, getattr(value, "maxlen", None)]
    if isinstance(value, tuple):  # named ones too
        return list(value)
    if kind in (dict, Counter, OrderedDict, defaultdict):
        return [*_named(value), getattr(value, "default_factory", None)]
    if kind is types.FunctionType:
        try:
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
        except ValueError as error:  # not yet filled
            raise _HiddenError from error
        return [value.__code__, value.__defaults__, value.__kwdefaults__, *cells]
    if kind is types.BuiltinFunctionType and not isinstance(value.__self__, types.ModuleType):
        return [value.__name__, value.__self__]  # a method of that object
    if kind is types.BuiltinFunctionType or type(value).__module__ == "typing":
        return [value.__class__.__name__, str(value)]  # never changes
    raise _HiddenError


_PLAIN = frozenset({int, float, complex, bool, str, bytes, type(None)})
_CONSTANT = frozenset({types.ModuleType, types.CodeType, types.GenericAlias, type, range, re.Pattern})


def _codes(frame: types.FrameType) -> Iterator[types.CodeType]:
    """The code of a frame, of the functions in its module, and all code in these."""
    todo = [frame.f_code, *(v.__code__ for v in frame.f_globals.values() if type(v) is types.FunctionType)]
    while todo:
        code = todo.pop()
        yield code
        todo += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]


def _compares_identity(code: types.CodeType) -> bool:
    """True if it asks whether two objects are the same one, which no comparison of states can answer."""
    return any(op == dis.opmap["IS_OP"] for op in code.co_code[::2])
