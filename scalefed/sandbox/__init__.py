"""Can untrusted code be judged without trusting it? Three kinds of process, so that no verdict is made where it runs.

* The *tester* (``tester.py``) is trusted: it holds the tests, compares, and decides. One per worker, outside.
* The *fork server* (``forkserver.py``) is a slim interpreter that entered the sandbox once (``isolation.py``,
  ``seccomp.py``, ``kernel.py``). It holds no tests and no samples and forks candidates.
* The *candidate* (``candidate.py``) is forked for one sample, or for many whose bytecode is tame (``allowlist.py``).
  It answers calls of its function with plain data (``wire.py``) over a socket (``session.py``).

So an overridden ``__eq__``, a patched builtin, a walk up the stack, an early exit or a printed "passed" cannot change
a verdict: to pass, a sample must send the right values. Standard library only.
"""

LEVELS = ("ns", "landlock", "seccomp", "none")
"""Isolation levels, strongest first."""

SANDBOXES = ("ns", "landlock")
"""The levels that deserve the name; the others must be asked for by name."""
