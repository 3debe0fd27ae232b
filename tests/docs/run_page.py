"""Run pages' steps as their readers would, in copies of one process: python -P run_page.py SOCKET MODULE...

Importing torch takes longer than most steps. So one process imports the modules, and waits at the socket (`start`).
Whoever has a `Job` asks it for a copy of itself, and hears how that ended (`ask`). It ends with its parent.

Shell commands run in bash, Python blocks in the process of their page, in one namespace. Commands that name the same
-o are alternatives, so an earlier result is removed first. A plain `lean3r ...` is a copy, too, of a process that has
imported most of lean3r, unless the page changes the code; and so are the processes that it starts for training, data
and measurements. If small, these and the Python blocks give nano and stereo pictures of a quarter of the side, which
takes half of the time. The examples run in such copies, too (test_examples.py).
"""

from __future__ import annotations

import gc
import importlib
import json
import multiprocessing
import os
import re
import runpy
import shlex
import shutil
import site
import socket
import socketserver
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

TORCH = ["torch", "numpy", "PIL.Image"]
MOST = [
    *TORCH,
    *("av", "matplotlib.figure", "torch._dynamo", "typeguard", "lean3r.cli.reconstruct", "lean3r.colmap_library"),
    *("lean3r.models.nano", "lean3r.pipeline.from_files", "lean3r.pipeline.load", "lean3r.refine.run"),
    *("lean3r.stereo.dense", "lean3r.data.world.synthetic"),
]
SIDES = 64, 80  # of nano's pictures and, larger as always, of measured depth
ALONE = 160  # of pictures that stereo has to itself
TEXELS = 16  # of the side of a texture of the synthetic world, which is painted anew for every process
SECONDS = 1500
PLAIN = re.compile(r"lean3r [^|&;<>$*?~\\\n`(){}]*")  # nothing that bash would read in another way than shlex


@dataclass(frozen=True)
class Job:
    """The `steps` of a page, or the `words` of a plain command (`lean3r ...` or `python FILE ...`), and their
    surroundings: the folder, the environment, whose PYTHONPATH and sitecustomize.py count, the file for what is
    printed, the socket of the process that has imported lean3r (None: every command of the page is a process of its
    own), the file for what is printed as errors (None: the same)."""

    folder: str
    environment: dict[str, str]
    log: str
    commands: str | None
    is_small: bool
    steps: list[dict]
    words: list[str]
    errors: str | None = None


class End(NamedTuple):
    """Exit code, and seconds of the processor."""

    code: int
    seconds: float


def surroundings() -> dict[str, str]:
    """The environment of everything that runs here: the tests run in two processes already, hence one thread."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    return kept | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


@contextmanager
def start(address: Path, modules: list[str], environment: dict[str, str]) -> Iterator[None]:
    """The process that is copied, as long as the block runs."""
    command = [sys.executable, "-P", __file__, str(address), *modules]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment)
    try:
        assert process.stdout is not None and process.stdout.readline(), "it ended before it could be asked"
        yield
    finally:
        process.kill()
        process.communicate()


def ask(address: str, job: Job) -> End:
    """Let a copy do the job."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        with connection.makefile("rw", encoding="utf-8") as lines:
            lines.write(json.dumps(asdict(job)) + "\n")
            lines.flush()
            answer = lines.readline()
    assert answer, f"no answer: {job.log}"
    return End(*json.loads(answer))


def main() -> None:
    """Import, and answer as long as the parent lives."""
    parent = os.getppid()
    for name in sys.argv[2:]:
        importlib.import_module(name)
    gc.freeze()
    with Copies(sys.argv[1], Answer) as copies:
        print("ready", flush=True)
        while os.getppid() == parent:
            copies.handle_request()


class Copies(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    """A copy of the process for each connection."""

    timeout = 1


class Answer(socketserver.StreamRequestHandler):
    """In such a copy, which waits for the one that does the job."""

    def handle(self) -> None:
        job = Job(**json.loads(self.rfile.readline()))
        process = multiprocessing.get_context("fork").Process(target=do, args=(job,))
        process.start()
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
        self.wfile.write(f"{json.dumps([process.exitcode, sum(os.times()[2:4])])}\n".encode())


def do(job: Job) -> None:
    """What the copy does that does the job."""
    os.chdir(job.folder)
    with open(job.log, "a") as log, open(job.errors or job.log, "a") as errors:
        os.dup2(log.fileno(), 1)
        os.dup2(errors.fileno(), 2)
    os.environ.clear()
    os.environ.update(job.environment)
    sys.path[:0] = job.environment["PYTHONPATH"].split(os.pathsep)
    site.execsitecustomize()
    if job.words[:1] == ["python"]:
        sys.argv[:] = job.words[1:]
        runpy.run_path(sys.argv[0], run_name="__main__")
    elif job.words:
        copy_this_process()
        run_lean3r(job.words, job.is_small)
    else:
        copy_this_process()
        run_page(job)


def run_page(job: Job) -> None:
    """Run all steps; the first that fails ends the process, and its place is the last line that was printed."""
    namespace: dict = {"__name__": "__main__"}
    for step in job.steps:
        text, start, others = step["text"], sum(os.times()[:4]), 0.0
        print(f"=== {step['page']}:{step['line']}: {text if step['kind'] == 'shell' else step['kind']}", flush=True)
        if step["kind"] == "shell":
            for out in re.findall(r"reconstruct .*-o (\S+)", text):
                shutil.rmtree(out, ignore_errors=True)
            call = re.sub(r"\s# .*", "", text).strip()
            if PLAIN.fullmatch(call) and job.commands is not None:
                code, others = ask(job.commands, replace(job, steps=[], words=shlex.split(call)))
                if code:
                    raise SystemExit(f"{text} ended with {code}")
            else:
                subprocess.run(["bash", "-c", text], check=True, stdin=subprocess.DEVNULL)
        elif step["kind"] == "python":
            if job.is_small:
                make_small()
            exec(compile(text, f"{step['page']}:{step['line']}", "exec", dont_inherit=True), namespace)
        elif step["kind"] == "file":
            Path(step["path"]).write_text(text)
        elif step["kind"] == "row":
            add_row(Path(step["path"]), step["table"], text)
        print(f"=== {sum(os.times()[:4]) - start + others:.1f} s of the processor", flush=True)


def run_lean3r(words: list[str], is_small: bool) -> None:
    """What the command `lean3r` does."""
    sys.argv[:] = words
    if is_small:
        make_small()
        from lean3r.data.world import synthetic

        paint = synthetic.atlas
        synthetic.atlas = lambda seed, tiles, size, *more: paint(seed, tiles, min(size, TEXELS), *more)
    from lean3r.cli.main import main as command

    sys.exit(command())


def copy_this_process() -> None:
    """Let processes that lean3r starts for training, data and measurements be copies, too, which import nothing."""
    multiprocessing.context._concrete_contexts["spawn"] = multiprocessing.get_context("fork")  # type: ignore[attr-defined]


def make_small() -> None:
    """Give nano and stereo small pictures."""
    from lean3r.models.nano import Nano
    from lean3r.models.no_network import NoNetwork
    from lean3r.pipeline import enlarging

    Nano.resolution, enlarging.FINER = SIDES
    NoNetwork.resolution = ALONE


def add_row(path: Path, table: str, row: str) -> None:
    """Add a line to a table of a file, as its first row."""
    lines = path.read_text().split("\n")
    start = next(i for i, line in enumerate(lines) if re.match(rf"{table}\b.*=", line))
    at = next(i for i, line in enumerate(lines) if i >= start and line.endswith("{"))
    path.write_text("\n".join([*lines[: at + 1], "    " + row, *lines[at + 1 :]]))


if __name__ == "__main__":
    main()
