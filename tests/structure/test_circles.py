"""Files of the package stand in an order: what one imports, at its top or later, never leads back to it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "lean3r").rglob("*.py"))
}


def imported(source: str) -> Iterator[tuple[str, str]]:
    """(module, name or "") of every import, in functions and for types too: these are only circles that wait."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


def needs(path: Path) -> set[str]:
    """The files that a file imports; of a package and one of its files, the file."""
    found = imported(path.read_text(encoding="utf-8"))
    names = {f"{module}.{name}" if f"{module}.{name}" in FILES else module for module, name in found}
    return {name for name in names if name in FILES and FILES[name] != path}


def test_no_import_cycles() -> None:
    try:
        TopologicalSorter({name: needs(path) for name, path in FILES.items()}).prepare()
    except CycleError as error:
        raise AssertionError(f"files import one another in a circle: {' <- '.join(error.args[1])}") from None


def test_what_is_private_to_a_file_stays_there() -> None:
    taken = [
        f"{path.relative_to(ROOT)} takes {name} from {module}"
        for path in FILES.values()
        for module, name in imported(path.read_text(encoding="utf-8"))
        if module.startswith("lean3r") and name.startswith("_") and not name.startswith("__")
    ]
    assert taken == []


def test_cycles_are_found_wherever_the_import_is() -> None:
    lazy = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import a\ndef f():\n    from b import c\n"
    assert list(imported(lazy)) == [("typing", "TYPE_CHECKING"), ("a", ""), ("b", "c")]
