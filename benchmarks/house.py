"""The state of the house: rooms and arrows, sizes, types, disk accesses of a run, seconds of common commands.

    python benchmarks/house.py --before OTHER_CHECKOUT [--after .] [--runs 5]     (needs radon: pip install radon)

Measures one or two checkouts of the project; with both it writes benchmarks/results/house.json. Both run in this
environment, with their own folder first on the path; commands alternate between them, and medians of CPU seconds (user
and system, children included) are given. Nothing of the project is imported here: a checkout is read as text and run
as a user would run it, so its internal structure does not matter.

- rooms: modules and folders at the top of the package; arrows: pairs of them of which one imports the other, wherever
  the import statement is. File circles: groups of files that import each other, imports for type checkers left out.
- functions: lines from `def` to the end; the widest outside Triton's kernels. Any is counted as a name, so not in
  comments or text, and type ignores as comments.
- complexity: McCabe's, as radon counts it.
- disk: a run of 5 photos that refines the cameras, copies the pictures and has a memory budget, under the spy of
  tests/pipeline/spied: listings of the folder, and openings of pictures by purpose.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import hardware, write_result
from radon.complexity import cc_visit

HERE = Path(__file__).resolve().parents[1]
SPY = HERE / "tests" / "pipeline" / "spied"
LONG = 60
COMPLEX = 20
PICTURES = 5
SILENCED = ("type: ignore", "pyright:")
SIGNATURE = "import inspect, lean3r; print(len(inspect.signature(lean3r.reconstruct).parameters))"


def main() -> None:
    """Measure, print, and write the JSON if two checkouts were given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="a checkout to compare with")
    parser.add_argument("--after", type=Path, default=HERE)
    parser.add_argument("--runs", type=int, default=5, help="of each command and checkout")
    given = parser.parse_args()
    trees = {name: path.resolve() for name, path in (("before", given.before), ("after", given.after)) if path}
    with tempfile.TemporaryDirectory() as folder:
        photos = photographs(trees["after"], Path(folder))
        figures = {name: {**source(tree), "disk": disk(tree, photos)} for name, tree in trees.items()}
        for name, seconds in cpu_seconds(trees, photos, given.runs).items():
            figures[name]["cpu_seconds"] = seconds
    result = {"hardware": hardware(), "runs": given.runs, **figures}
    print(json.dumps(result, indent=2))
    if given.before:
        print(write_result("house", result))


def source(tree: Path) -> dict[str, Any]:
    """Figures from the source text of the package."""
    package = tree / "lean3r"
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))}
    parsed = {path: ast.parse(text) for path, text in texts.items()}
    imports = {path: {p for p in imported(parsed[path], package) if p != path} for path in parsed}
    needed = {path: {p for p in imported(at_run_time(parsed[path]), package) if p != path} for path in parsed}
    room = {path: path.relative_to(package).with_suffix("").parts[0] for path in parsed}
    arrows = {(room[a], room[b]) for a in imports for b in imports[a] if room[a] != room[b]}
    nodes = [n for module in parsed.values() for n in functions(module)]
    lengths = [(n.end_lineno or n.lineno) - n.lineno + 1 for n in nodes]
    lines = sum(text.count("\n") for text in texts.values())
    words = Counter(word for text in texts.values() for word in count_words(text))
    blocks = [block for text in texts.values() for block in cc_visit(text) if block.letter != "C"]
    widest = max((n for p in parsed if not p.name.startswith("kernel") for n in functions(parsed[p])), key=parameters)
    hardest = max(blocks, key=lambda b: b.complexity)
    commit = ["git", "-C", str(tree), "rev-parse", "--short", "HEAD"]
    return {
        "commit": subprocess.run(commit, capture_output=True, text=True).stdout.strip(),
        "rooms": len(set(room.values()) - {"__init__", "__main__"}),
        "arrows_between_rooms": len(arrows),
        "file_circles": [sorted(p.relative_to(package).as_posix() for p in c) for c in circles(needed)],
        "files": len(texts),
        "lines": lines,
        "longest_file_lines": max(text.count("\n") for text in texts.values()),
        "functions": len(nodes),
        "function_lines_median": statistics.median(lengths),
        "function_lines_longest": max(lengths),
        f"functions_over_{LONG}_lines": sum(length > LONG for length in lengths),
        "parameters_of_reconstruct": int(python(tree, ["-c", SIGNATURE]).stdout),
        "parameters_of_the_widest": {"function": widest.name, "parameters": parameters(widest)},
        "any_per_1000_lines": round(1000 * words["Any"] / lines, 2),
        "type_ignores_per_1000_lines": round(1000 * words["ignore"] / lines, 2),
        "complexity_highest": {"function": hardest.fullname, "complexity": hardest.complexity},
        f"functions_of_complexity_over_{COMPLEX}": sum(block.complexity > COMPLEX for block in blocks),
    }


def functions(module: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions and methods of a file."""
    return [n for n in ast.walk(module) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def imported(module: ast.AST, package: Path) -> Iterator[Path]:
    """The package's files that the statements in a file import."""

    def file_of(name: str) -> Path | None:
        top, *rest = name.split(".")
        path = package.joinpath(*rest)
        files = (path.with_suffix(".py"), path / "__init__.py") if top == package.name and rest else ()
        return next((p for p in files if p.is_file()), None)

    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            found = [file_of(alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = [file_of(f"{node.module}.{a.name}") or file_of(node.module or "") for a in node.names]
        else:
            continue
        yield from (path for path in found if path)


def at_run_time(module: ast.Module) -> ast.Module:
    """A file without imports for type checkers only."""

    class Run(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)

    return Run().visit(ast.parse(ast.unparse(module)))


def circles(edges: dict[Path, set[Path]]) -> list[set[Path]]:
    """Groups of more than one file that reach each other."""
    reach = {path: reached(path, edges) for path in edges}
    groups = {frozenset({a, *(b for b in reach[a] if a in reach[b])}) for a in edges}
    return [set(group) for group in groups if len(group) > 1]


def reached(start: Path, edges: dict[Path, set[Path]]) -> set[Path]:
    """All files that a file imports, directly or not."""
    found, waiting = set(), [start]
    while waiting:
        new = edges[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many parameters a function takes, without `self`."""
    a = node.args
    names = [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if x]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def count_words(text: str) -> Iterator[str]:
    """`Any` for each such name in a text, `ignore` for each comment that silences the type checker."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME and token.string == "Any":
            yield "Any"
        if token.type == tokenize.COMMENT and any(mark in token.string for mark in SILENCED):
            yield "ignore"


def photographs(tree: Path, folder: Path) -> Path:
    """A folder of photos: those of the demo."""
    python(tree, ["-m", "lean3r", "demo", "--out", str(folder / "demo")])
    photos = folder / "photos"
    photos.mkdir()
    pictures = [p for p in sorted((folder / "demo" / "photos").iterdir()) if p.suffix in (".jpg", ".png")]
    for picture in pictures[:PICTURES]:
        shutil.copy(picture, photos)
    return photos


def disk(tree: Path, photos: Path) -> dict[str, Any]:
    """Listings of the folder, and openings of pictures by purpose, in one run."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        options = ["--refine", "on", "--images", "always", "--memory", "8GB", "-f", "colmap", "-q"]
        command = ["-m", "lean3r", "reconstruct", str(photos), "-o", str(Path(folder) / "out"), *options]
        python(tree, command, PYTHONPATH=f"{SPY}:{tree}", SPIED_FOLDER=str(photos), SPIED_LOG=str(log))
        events = [line.split("\t") for line in log.read_text(encoding="utf-8").splitlines()]
    opens = Counter(purpose for what, purpose, _ in events if what == "open")
    each = Counter((purpose, name) for what, purpose, name in events if what == "open")
    return {
        "pictures": PICTURES,
        "listings": sum(what == "list" for what, _, _ in events),
        "opens": dict(opens),
        "opens_of_one_picture_for_one_purpose": max(each.values()),
    }


def cpu_seconds(trees: dict[str, Path], photos: Path, runs: int) -> dict[str, dict[str, float]]:
    """Median CPU seconds of three commands in each checkout; a first round that is not counted writes byte code."""
    two = sorted(str(p) for p in photos.iterdir())[:2]
    found: dict[tuple[str, str], list[float]] = {}
    for index in range(runs + 1):
        for name, tree in trees.items():
            with tempfile.TemporaryDirectory() as folder:
                commands = {
                    "help": ["--help"],
                    "models": ["models"],
                    "reconstruct_2_photos": ["reconstruct", *two, "-o", f"{folder}/out", "-q"],
                }
                for key, command in commands.items():
                    before = os.times()
                    python(tree, ["-m", "lean3r", *command])
                    after = os.times()
                    spent = sum(after[2:4]) - sum(before[2:4])
                    if index:
                        found.setdefault((name, key), []).append(spent)
    return {
        name: {key: round(statistics.median(v), 2) for (owner, key), v in found.items() if owner == name}
        for name in trees
    }


def python(tree: Path, arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run this environment's Python with a checkout's package."""
    around = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree), **environment}
    done = subprocess.run([sys.executable, *arguments], cwd=tree, env=around, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed in the checkout at {tree}:\n{done.stderr}")
    return done


if __name__ == "__main__":
    main()
