"""The house rules, checked on the source: who imports whom, ceilings, docstrings, where the environment is read."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lean3r"
FILES = sorted(PACKAGE.rglob("*.py"))
CEILING = 500
OUTSIDE = [
    path
    for folder in ("benchmarks", "examples", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "lean3r.cli" in path.read_text(encoding="utf-8") and path.parts[len(ROOT.parts) :][:2] != ("tests", "cli")
]

# What each room may import of ours besides itself. Everybody may use COMMON; "*" is every room.
COMMON = {
    "",
    "types",
    "registry",
    "errors",
    "group",
    "colmap_library",
    "json_text",
    "options",
    "page_frame",
    "parallel",
    "processes",
    "recorded",
    "scratch",
    "tables",
    "tracing",
    "windows",
}
ROOMS = {
    "geometry": set(),
    "inputs": {"geometry"},
    "ops": set(),
    "attention": {"ops"},
    "layers": {"attention", "geometry", "ops"},
    "heads": {"attention", "layers", "geometry"},
    "models": {"heads", "layers", "attention", "geometry", "ops"},
    "compress": {"layers", "attention", "ops"},
    "data": {"geometry", "inputs"},
    "export": {"geometry", "inputs", "showing"},
    "eval": {"data", "geometry", "inputs"},
    "train": {"compress", "data", "geometry", "layers", "attention", "stereo"},
    "refine": {"geometry", "inputs"},
    "stereo": {"geometry", "refine"},
    "pipeline": {"models", "compress", "inputs", "geometry", "refine", "stereo"},
    "stream": {"models", "layers", "pipeline", "inputs", "geometry", "refine", "stereo", "export"},
    "grow": {"models", "pipeline", "inputs", "geometry", "refine", "stereo", "export", "stream"},
    "deploy": {"models", "compress", "layers", "attention"},
    "quality": {"pipeline", "grow", "export", "geometry"},
    "view": {"geometry", "inputs", "export"},
    "web": {"models", "export", "view"},
    "serve": {"models", "compress", "pipeline", "inputs", "geometry", "refine", "stereo", "export"},
    "bench": {"models", "compress", "pipeline", "inputs", "export", "layers", "testing"},
    "cli": {"*"},
    "testing": set(),
    "types": set(),
    "registry": set(),
    "colmap_library": set(),
    "errors": set(),
    "group": set(),
    "json_text": set(),
    "options": set(),
    "page_frame": {"errors"},
    "parallel": set(),
    "processes": set(),
    "recorded": {"tables"},
    "scratch": set(),
    "tables": {"tracing"},
    "tracing": set(),
    "windows": {"tables", "tracing"},
    "showing": {"types"},
    "__init__": {"*"},
    "__main__": {"cli"},
}
FORBIDDEN = {"plyfile", "evo", "open3d", "cv2", "argparse"}


def room_of(path: Path) -> str:
    """`geometry` of lean3r/geometry/pose.py, `types` of lean3r/types.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports(tree: ast.AST) -> list[str]:
    """Every module that a file imports, wherever the statement stands."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found += [node.module or ""]
            if node.module == "lean3r":
                found += [f"lean3r.{alias.name}" for alias in node.names if alias.name in ROOMS]
    return found


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_file_keeps_the_rules(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert text.count("\n") <= CEILING, f"{CEILING} lines at most: split the file"

    room = room_of(path)
    allowed = ROOMS[room] | COMMON | {room}
    for module in imports(tree):
        top, _, rest = module.partition(".")
        assert top not in FORBIDDEN, f"{top} may not be imported"
        if top == "lean3r" and "*" not in allowed:
            assert rest.split(".")[0] in allowed, f"{room} may not import {module}"

    kernel = room == "ops" and (path.name.startswith("kernel") or path.name == "tiles.py")
    assert kernel or not any(m.split(".")[0] == "triton" for m in imports(tree)), (
        "only ops/*/kernel*.py and ops/tiles.py import triton"
    )

    assert room == "colmap_library" or not any(m.split(".")[0] == "pycolmap" for m in imports(tree)), (
        "pycolmap comes from lean3r.colmap_library"
    )

    launcher = name(path) in ("lean3r/train/distributed.py", "lean3r/processes.py")
    environment = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)} & {"environ", "getenv", "putenv"}
    assert launcher or not environment, "the environment is read in train/distributed.py, and set in processes.py, only"

    assert undocumented(tree) == []


def undocumented(tree: ast.Module) -> list[str]:
    """Public modules, classes, functions and methods without a docstring (nested functions are private)."""
    missing = [] if ast.get_docstring(tree) else ["the module"]
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for node in tree.body:
        if isinstance(node, kinds) and not node.name.startswith("_"):
            missing += [] if ast.get_docstring(node) else [node.name]
            if isinstance(node, ast.ClassDef):
                methods = [n for n in node.body if isinstance(n, kinds) and not n.name.startswith("_")]
                missing += [f"{node.name}.{n.name}" for n in methods if not documented(node, n)]
    return missing


def documented(owner: ast.ClassDef, method: ast.AST) -> bool:
    """`forward` of a module is documented by its class."""
    assert isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    return bool(ast.get_docstring(method)) or (method.name == "forward" and bool(ast.get_docstring(owner)))


def test_every_room_has_a_rule() -> None:
    assert {room_of(path) for path in FILES} <= set(ROOMS)


def test_tests_mirror_the_package() -> None:
    """A folder of the package has a folder of tests."""
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    tested = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert rooms - tested == set()


@pytest.mark.parametrize("path", [*OUTSIDE], ids=name)
def test_the_command_line_holds_no_library(path: Path) -> None:
    """Benchmarks, examples and tests elsewhere run commands, and import nothing else from where they are."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lean3r.cli"):
            taken = {alias.name for alias in node.names}
            assert node.module in ("lean3r.cli", "lean3r.cli.main") and taken <= {"main", "run", "COMMANDS"}, taken


def test_test_files_can_be_collected_together() -> None:
    """Folders without __init__.py share one space of names."""
    loose = [p.name for p in (ROOT / "tests").rglob("*.py") if not (p.parent / "__init__.py").exists()]
    allowed = {"conftest.py", "sitecustomize.py"}
    assert {name for name in loose if loose.count(name) > 1} <= allowed
