"""A program in a process of its own, which stays: it is asked for one run at a time, and may fail or be killed."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from lean3r.bench.settings import Cell, Program
from lean3r.errors import OutOfMemoryError
from lean3r.processes import end_with_parent, safely_started
from lean3r.scratch import DISK_FULL

SPAWN = multiprocessing.get_context("spawn")
END_S = 5.0
MOST_TEXT = 300


class Failed(Exception):
    """A program could not do what it was asked; `costly`: more views would fail as well."""

    def __init__(self, reason: str, *, costly: bool = False) -> None:
        super().__init__(reason)
        self.costly = costly


@dataclass(frozen=True)
class Answer:
    """What a process says: a value, or why there is none; `full`: because the disk is."""

    value: Any = None
    failure: str | None = None
    costly: bool = False
    full: OSError | None = None


class Worker:
    """The process of one program. `ask` raises Failed, and the process is gone then; OSError if the disk is full."""

    def __init__(self, program: Program, threads: int | None, log: Path, limit_s: float) -> None:
        self.log, self.limit_s = log, limit_s
        self._pipe, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(target=serve, args=(theirs, program, threads, log), daemon=True)
        with safely_started():
            self._process.start()
        theirs.close()

    def ask(self, request: str, *arguments: object) -> Any:
        """The answer to a method of `Served`."""
        try:
            self._pipe.send((request, arguments))
            if not self._pipe.poll(self.limit_s):
                raise Failed(f"took more than {self.limit_s:g} s (--limit)", costly=True)
            answer: Answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(END_S)
            reason = self._how_it_ended()
            self.close()
            raise Failed(reason, costly=self._process.exitcode == -signal.SIGKILL) from None
        except Failed:
            self.close()
            raise
        if answer.full is not None:
            answer.full.filename = answer.full.filename or str(self.log.parent)
            raise answer.full
        if answer.failure is not None:
            self.close()
            raise Failed(answer.failure, costly=answer.costly)
        return answer.value

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        if self._process.is_alive():
            self._process.kill()
        self._process.join(END_S)

    def _how_it_ended(self) -> str:
        code = self._process.exitcode
        if code == -signal.SIGKILL:
            return "its process was killed (SIGKILL), perhaps because memory ran out"
        how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        lines = self.log.read_text(errors="replace").split("\n") if self.log.exists() else []
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"its process ended with {how}" + (f": {last[:MOST_TEXT]}" if last else "")


def serve(pipe: Connection, program: Program, threads: int | None, log: Path) -> None:
    """What the process does: answer until the pipe ends. All that it prints goes to a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends this
    end_with_parent()
    served: Served | None = None
    while True:
        try:
            request, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            served = served or Served(program, threads)
            answer = Answer(getattr(served, request)(*arguments))
        except Exception as error:
            answer = failure_of(error)
        pipe.send(answer)


def failure_of(error: Exception) -> Answer:
    """The reason in one line, and whether it is memory."""
    from lean3r.pipeline.memory import is_out_of_memory

    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return Answer(full=OSError(error.errno, error.strerror, error.filename))
    if isinstance(error, OutOfMemoryError) or is_out_of_memory(error):
        return Answer(failure="out of memory", costly=True)
    first = (str(error).strip().splitlines() or [""])[0]
    kind = "" if type(error).__module__.startswith("lean3r.") else f"{type(error).__name__}: "
    return Answer(failure=f"{kind}{first}"[:MOST_TEXT])


class Served:
    """The requests that a process answers; the program is built with the first one."""

    def __init__(self, program: Program, threads: int | None) -> None:
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        self.program = program
        self._run: Callable[[], Any] | None = None

    def peaks(self) -> dict[str, float]:
        """What the device reaches, in the number type of the program."""
        import torch

        from lean3r.bench.machine import peaks
        from lean3r.pipeline.devices import resolve_dtype

        return peaks(torch.device(self.program.device), resolve_dtype(self.program.dtype) or torch.float32)

    def build(self) -> dict[str, Any]:
        """Build the program; its device, number type, weights and their bytes."""
        import torch

        from lean3r.bench.meter import Meter
        from lean3r.bench.programs import prepare

        ready = self._ready = prepare(self.program)
        self._meter = Meter(ready.parts.clock, ready.parts)
        return {
            "device": str(ready.device),
            "dtype": str(ready.dtype).removeprefix("torch."),
            "weights": ready.weights,
            "weight_bytes": ready.weight_bytes,
            "threads": torch.get_num_threads(),
        }

    def verify(self, cell: Cell, reference: Path | None, save: Path | None) -> dict[str, Any]:
        """Run once on pictures of a size, which warms up; its operations, and its outputs beside those of `reference`.

        LeanError where an output is not finite, or where this program must equal its reference and does not. `save`:
        where to keep the outputs, to be a reference.
        """
        from lean3r.bench import verify
        from lean3r.bench.programs import operations, pictures

        ready, height_width = self._ready, cell.pixels(self.program.model)
        images = pictures(cell.views, *height_width).to(ready.device)
        self._run = lambda: ready.call(images, cell)
        flops: int | None = None
        if ready.flops is not None:
            flops, outputs = ready.flops(images), self._run()
        elif self.program.kind == "official":
            outputs, flops = operations(self._run)
        else:
            outputs = self._run()
        verify.check_finite(outputs)
        kept = verify.sample(outputs)
        shape = outputs["depth"].shape[-2:] if "depth" in outputs and self.program.whole else height_width
        if save is not None:
            verify.save(kept, save)
        found = {} if reference is None else verify.decibels(kept, verify.read(reference))
        if self.program.kind == "sdpa" and reference is not None:
            verify.check_equal(found, ready.dtype)
        del outputs, kept
        gc.collect()
        return {"flops": flops, "decibels_by_output": found, "height": shape[0], "width": shape[1]}

    def measure(self) -> dict[str, Any]:
        """The costs of one more run."""
        assert self._run is not None
        return self._meter(self._run)

    def trace(self, path: Path) -> None:
        """Write torch's trace of one more run."""
        import torch
        from torch.profiler import ProfilerActivity, profile

        assert self._run is not None
        gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        with profile(activities=[ProfilerActivity.CPU, *gpu]) as watch:
            self._run()
            self._ready.parts.clock.wait()
        watch.export_chrome_trace(str(path))
