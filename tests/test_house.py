"""The house stays tidy: constants say what they are for, modules are short, and none imports itself by a detour."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "scalefed"
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def is_number(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, (int, float)) and not isinstance(node.value, bool)
    if isinstance(node, ast.Tuple):
        return bool(node.elts) and all(map(is_number, node.elts))
    return isinstance(node, (ast.UnaryOp, ast.BinOp)) and all(
        is_number(part) for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)
    )


def unexplained(text: str) -> list[str]:
    """Numeric constants of a module with neither a comment beside or above them nor a docstring below."""
    lines, body, found = text.split("\n"), ast.parse(text).body, []
    for node, below in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, (ast.Assign, ast.AnnAssign)) or node.value is None or not is_number(node.value):
            continue
        told = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        above = lines[node.lineno - 2].startswith("#") and "-----" not in lines[node.lineno - 2]
        if not (told or above or any("#" in line for line in lines[node.lineno - 1 : node.end_lineno])):
            found.append(lines[node.lineno - 1])
    return found


def test_every_numeric_constant_says_what_it_is_for():
    assert unexplained("A = 1\nB = 2  # why\n# why\nC = (1, -2)\nD = 2 * 3\n'''Why.'''\n") == ["A = 1"]
    bare = {str(path.relative_to(PACKAGE)): found for path in FILES if (found := unexplained(path.read_text()))}
    assert bare == {}, "add a comment with the reason, the source, or the command that calibrated it"


def test_modules_are_short():
    lines = {str(path.relative_to(PACKAGE)): len(path.read_text().split("\n")) for path in FILES}
    assert {name: count for name, count in lines.items() if count > 400} == {}


def imports(path: Path, modules: set[str]) -> Iterator[str]:
    """Modules of the package that a module imports, as it is loaded or later, types aside."""
    tree = ast.parse(path.read_text())
    types = {n for node in tree.body if isinstance(node, ast.If) for n in ast.walk(node)}
    for node in set(ast.walk(tree)) - types:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_no_module_imports_itself_by_a_detour():
    modules = {name_of(path): path for path in FILES}
    graph = {
        name: {other for other in imports(path, set(modules)) if other in modules} for name, path in modules.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            pytest.fail(" -> ".join([*trail[trail.index(name) :], name]))
        if name not in done:
            for other in graph[name]:
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_the_top_of_the_package_is_short():
    assert len([path for path in PACKAGE.iterdir() if path.name != "__pycache__"]) <= 35


PRIVATE = re.compile(r"_(?!_)\w")


def private_names(path: Path) -> Iterator[str]:
    """Names with an underscore of a module of the package, which a test imports, reads or replaces."""
    tree, ours = ast.parse(path.read_text()), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scalefed"):
            ours |= {alias.asname or alias.name for alias in node.names}
            yield from (alias.name for alias in node.names if PRIVATE.match(alias.name))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ours:
            yield from [node.attr] * bool(PRIVATE.match(node.attr))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr":
            words = [part.value for part in node.args if isinstance(part, ast.Constant) and isinstance(part.value, str)]
            owner = isinstance(node.args[0], ast.Name) and node.args[0].id in ours
            yield from (word for word in words if re.search(r"^scalefed.*\._(?!_)", word))
            yield from (word for word in words if owner and PRIVATE.match(word))


def test_tests_use_no_private_name():
    here = Path(__file__).parent
    found = {str(path.relative_to(here)): [*private_names(path)] for path in here.rglob("*.py")}
    assert {path: names for path, names in found.items() if names} == {}
