"""What comes of attacks on the judge, by kind, tier and level? All columns but the first must be nothing.

Run ``python tests/benchmarks/bench_attacks.py [--as root|user|container] [--levels ns landlock] [--tiers shared]``.
Each attack stands between honest samples whose verdicts are looked at too (``tests/helpers/attack_table.py``).
``--as user`` gives up root first (with ``--python`` one that every user may run). ``--as container`` has what a
container has by default: few capabilities, no new namespaces, no mounts. ``--landlock N`` shows what an older kernel
gives: its Landlock is used as if it had version N.
"""

import argparse
import os
import shutil
import site
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

_DOCKER = """chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service net_raw sys_chroot mknod
audit_write setfcap""".split()
_NEEDS_SYS_ADMIN = (165, 166, 155, 272, 308, 428, 429, 430, 431, 432, 433, 442)
"""mount, umount2, pivot_root, unshare, setns and the new calls for mounts: what a container's filter refuses."""
_USER = 65534  # nobody


def main() -> None:
    """Print one table a level and tier."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--levels", nargs="+", default=["ns", "landlock"])
    parser.add_argument("--tiers", nargs="+", default=["fresh", "shared"])
    parser.add_argument("--kinds", nargs="+", help="beginnings of their names; all if none is given")
    parser.add_argument("--as", dest="who", choices=["here", "root", "user", "container"], default="root")
    parser.add_argument("--landlock", type=int)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--core", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.who != "here":
        sys.exit(_again(arguments))
    os.sched_setaffinity(0, {arguments.core})
    for level in arguments.levels:
        for tier in arguments.tiers:
            _table(level, tier, tuple(arguments.kinds or [""]))


def _again(arguments: argparse.Namespace) -> int:
    """This script as somebody else, with another copy of the package if its kernel is to look older."""
    call = [arguments.python, str(Path(__file__).resolve()), "--as", "here", "--core", str(arguments.core)]
    call += ["--levels", *arguments.levels, "--tiers", *arguments.tiers]
    call += ["--kinds", *arguments.kinds] if arguments.kinds else []
    if arguments.who == "user":
        call = ["setpriv", "--reuid", str(_USER), "--regid", str(_USER), "--clear-groups", "--bounding-set=-all", *call]
    if arguments.who == "container":
        kept = ",".join(["-all", *(f"+{name}" for name in _DOCKER)])
        call = ["setpriv", f"--bounding-set={kept}", f"--inh-caps={kept}", arguments.python, "-c", _REFUSE, *call]
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        package = ROOT
        if arguments.landlock is not None:
            package = Path(folder)
            shutil.copytree(ROOT / "scalefed", package / "scalefed")
            kernel = package / "scalefed" / "sandbox" / "kernel.py"
            text = kernel.read_text()
            assert text.count("return max(0, version)") == 1
            kernel.write_text(text.replace("return max(0, version)", f"return min({arguments.landlock}, version)"))
        path = ":".join([str(package), *site.getsitepackages()])
        return subprocess.run(call, env=os.environ | {"PYTHONPATH": path}).returncode


_REFUSE = f"""
import os, struct, sys
from scalefed.sandbox import kernel
steps = [(0x20, 0, 0, 0)]
for number in {_NEEDS_SYS_ADMIN}:
    steps += [(0x15, 0, 1, number), (6, 0, 0, 0x50001)]
kernel.allow_no_new_privileges()
kernel.seccomp(b"".join(struct.pack("HBBI", *step) for step in [*steps, (6, 0, 0, 0x7FFF0000)]))()
os.execv(sys.argv[1], sys.argv[1:])
"""


def _table(level: str, tier: str, kinds: tuple[str, ...]) -> None:
    """Try the kinds whose names begin so at one level and tier."""
    import attack_table
    from hostile_kinds import KINDS

    from scalefed.errors import SandboxError

    os.environ["CANARY"] = "sings"
    print(f"\n| {level}, {tier} | tried | wrong | harm | neighbours wrong | left behind |\n|---|---|---|---|---|---|")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        with attack_table.canary(Path(folder) / "canary") as canary:
            for kind, attacks in ((kind, attacks) for kind, attacks in KINDS.items() if kind.startswith(kinds)):
                try:
                    rows.append(attack_table.try_kind(kind, attacks, canary, level=level, tier=tier))
                except SandboxError as error:
                    print(f"| refused: {error} |")
                    return
                _print(rows[-1].kind, rows[-1:])
    _print("all", rows)
    for row in rows:
        for found in (*row.wrong, *row.harm, *row.neighbours, *row.left):
            print(f"{row.kind}: {found}")
    sys.stdout.flush()


def _print(name: str, rows: list) -> None:  # type: ignore[type-arg]
    """One line of the table."""
    counts = [sum(len(getattr(row, field)) for row in rows) for field in ("wrong", "harm", "neighbours", "left")]
    print("| " + " | ".join(map(str, [name, sum(row.tried for row in rows), *counts])) + " |", flush=True)


if __name__ == "__main__":
    main()
