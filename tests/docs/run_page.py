"""Run a page's steps in the current folder, as its reader would: python run_page.py STEPS.json [--halved]

Shell commands run in bash, Python blocks in this process, in one namespace. Commands that name the same -o are
alternatives, so an earlier result is removed first. A plain `lean3r ...` is a copy of a process that has imported
torch and most of lean3r, which takes longer than most commands, unless the page changes the code. With --halved these
and the Python blocks give nano pictures of half the side, whose depth takes a quarter of the time.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

IMPORTED = ["torch", "lean3r.cli.reconstruct", "lean3r.pipeline.reconstruct", "lean3r.stereo.dense"]
HALF = 120  # of nano's resolution
PLAIN = re.compile(r"lean3r [^|&;<>$*?~\\\n`(){}]*")  # nothing that bash would read in another way than shlex


def main() -> None:
    """Run all steps; the first that fails ends the program, and its place is the last line that was printed."""
    namespace: dict = {"__name__": "__main__"}
    steps = json.loads(Path(sys.argv[1]).read_text())
    changes_code = any(step["kind"] in ("file", "row") for step in steps)
    is_halved = "--halved" in sys.argv and not changes_code
    for step in steps:
        text, start = step["text"], sum(os.times()[:4])
        print(f"=== {step['page']}:{step['line']}: {text if step['kind'] == 'shell' else step['kind']}", flush=True)
        if step["kind"] == "shell":
            for out in re.findall(r"reconstruct .*-o (\S+)", text):
                shutil.rmtree(out, ignore_errors=True)
            if PLAIN.fullmatch(text.strip()) and not changes_code:
                run_lean3r(shlex.split(text, comments=True), is_halved)
            else:
                subprocess.run(["bash", "-c", text], check=True, stdin=subprocess.DEVNULL)
        elif step["kind"] == "python":
            if is_halved:
                halve()
            exec(compile(text, f"{step['page']}:{step['line']}", "exec", dont_inherit=True), namespace)
        elif step["kind"] == "file":
            Path(step["path"]).write_text(text)
        elif step["kind"] == "row":
            add_row(Path(step["path"]), step["table"], text)
        print(f"=== {sum(os.times()[:4]) - start:.1f} s of the processor", flush=True)


def run_lean3r(words: list[str], is_halved: bool) -> None:
    """Run the command in a copy of a process that has imported IMPORTED; SystemExit unless it ends with 0."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    process = context.Process(target=lean3r, args=(words, is_halved))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{shlex.join(words)} ended with {process.exitcode}")


def lean3r(words: list[str], is_halved: bool) -> None:
    """What the command `lean3r` does."""
    sys.argv[:] = words
    if is_halved:
        halve()
    from lean3r.cli.main import main as command

    sys.exit(command())


def halve() -> None:
    """Give nano pictures of half the side."""
    from lean3r.models.nano import Nano

    Nano.resolution = HALF


def add_row(path: Path, table: str, row: str) -> None:
    """Add a line to a table of a file, as its first row."""
    lines = path.read_text().split("\n")
    start = next(i for i, line in enumerate(lines) if re.match(rf"{table}\b.*=", line))
    at = next(i for i, line in enumerate(lines) if i >= start and line.endswith("{"))
    path.write_text("\n".join([*lines[: at + 1], "    " + row, *lines[at + 1 :]]))


if __name__ == "__main__":
    main()
