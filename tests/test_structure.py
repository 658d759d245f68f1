"""The plan of the package: rooms, floors and one way down, as BUILD.md draws it."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pni_tf"
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path):
    """A top-level file, or a folder taken as one."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_by(path):
    """Yields the files of the package that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.split(".")[0] == "pni_tf":
                yield file_of(name.split(".")[1:])


def file_of(parts):
    """Returns the file of a dotted name: its longest beginning that is a module."""
    while parts:
        base = PACKAGE.joinpath(*parts)
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.exists():
                return path
        parts = parts[:-1]
    return PACKAGE / "__init__.py"


def imports_between(of):
    """Returns what each room, or each file, imports of the others."""
    graph = {}
    for path in FILES:
        found = graph.setdefault(of(path), set())
        found |= {of(other) for other in imported_by(path)} - {of(path)}
    return graph


def floors_of(graph):
    """Returns the floor of each room: it stands above all that it imports."""
    floors = {}
    for room in graphlib.TopologicalSorter(graph).static_order():
        floors[room] = 1 + max((floors[below] for below in graph[room]), default=0)
    return floors


def drawn():
    """Returns the floors that BUILD.md draws."""
    text = (ROOT / "BUILD.md").read_text(encoding="utf-8")
    return {
        name: int(floor)
        for floor, line in re.findall(r"^floor (\d) +(.+)$", text, re.MULTILINE)
        for name in re.findall(r"(\w+)(?:/|\.py)(?= |$)", line)
    }


def test_no_circle_of_files():
    graphlib.TopologicalSorter(imports_between(lambda path: path)).prepare()


def test_no_circle_of_rooms_and_few_floors():
    # This raises a CycleError for a circle.
    floors = floors_of(imports_between(room_of))
    assert len(floors) <= 16
    assert max(floors.values()) <= 6


def test_the_plan_in_build_md_is_the_plan_of_the_code():
    """A room stands where BUILD.md draws it, and imports only from below."""
    graph, plan = imports_between(room_of), drawn()
    assert plan == floors_of(graph)


def test_file_sizes():
    sizes = {path: len(path.read_text("utf-8").splitlines()) for path in FILES}
    assert {path.name: n for path, n in sizes.items() if n > 400} == {}
    assert sum(sizes.values()) <= 15_500


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_each_module_says_what_it_is_for(path):
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert re.match(r".+[.?:]$", docstring.split("\n\n")[0].replace("\n", " "))
