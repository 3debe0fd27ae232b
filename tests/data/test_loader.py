"""Prefetched batches equal those computed on request, errors are raised at their step, and all resources are freed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import wait
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lean3r.data import loader
from lean3r.data.base import SceneBatch
from lean3r.data.loader import Prefetch
from lean3r.errors import InputError, LeanError, UsageError

HANGS = 120.0  # seconds: not a requirement, but the end of a test that would hang


class Numbered:
    """A batch with the arguments of its call; some steps are slow, one fails, one kills its process."""

    def __init__(self, fails_at: int = -1, dies_at: int = -1) -> None:
        self.fails_at, self.dies_at = fails_at, dies_at

    def __call__(self, step: int, stage: str, rank: int, world_size: int) -> SceneBatch:
        if step == self.fails_at:
            raise InputError(f"step {step} has no data")
        if step == self.dies_at:
            os._exit(7)
        time.sleep(0.03 * (step % 2))
        images = torch.randn(1, 2, 3, 4, 5, generator=torch.Generator().manual_seed(97 * step + 7 * rank + world_size))
        eye = torch.eye(4).expand(1, 2, 4, 4)
        return SceneBatch(
            images, images[:, :, 0], eye[..., :3, :3], eye, ids=(f"{step} {stage} {rank}",), skipped=("x",)
        )


def run(prefetch: Prefetch, steps: int = 7) -> list[SceneBatch]:
    """Two batches per step, as in a run with two ranks; the stage changes after step 3."""
    return [prefetch(s, "one" if s < 4 else "two", rank, 2) for s in range(steps) for rank in (0, 1)]


def in_turn(step: int, stage: str, rank: int, world_size: int) -> tuple[int, str, int, int]:
    """The order of `run`, without the change of stage, which comes as a surprise."""
    return (step, stage, 1, world_size) if rank == 0 else (step + 1, stage, 0, world_size)


def same(a: SceneBatch, b: SceneBatch) -> bool:
    values = zip(vars(a).values(), vars(b).values(), strict=True)
    return all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in values)


def workers() -> list[object]:
    return [*multiprocessing.active_children(), *(t for t in threading.enumerate() if t.name.startswith("batches"))]


def expected() -> list[SceneBatch]:
    return run(Prefetch(Numbered(), 0))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_any_number_of_threads_gives_the_same_batches(count: int) -> None:
    with Prefetch(Numbered(), count, kind="threads", after=in_turn) as prefetch:
        assert all(same(made, wanted) for made, wanted in zip(run(prefetch), expected(), strict=True))
        assert same(prefetch(2, "one", 0, 2), expected()[4]), "a jump back"
    assert not workers()


def shared() -> set[Path]:
    """Blocks of shared memory of this process; a killed process with the same id may have left some."""
    return set(Path("/dev/shm").glob(f"lean3r_{os.getpid()}_*"))


def test_processes_give_the_same_batches_and_errors_at_their_step() -> None:
    before = shared()
    with Prefetch(Numbered(fails_at=8), 2, kind="processes", after=in_turn) as prefetch:
        assert all(same(made, wanted) for made, wanted in zip(run(prefetch), expected(), strict=True))
        children = multiprocessing.active_children()
        assert len(children) == 2
        assert same(prefetch(2, "one", 0, 2), expected()[4]), "a jump back gives up what was ahead"
        for child in children:
            assert child.pid is not None
            os.kill(child.pid, signal.SIGINT)  # Ctrl-C reaches the whole group, and the parent handles it
        with pytest.raises(InputError, match="step 8 has no data"):
            prefetch(8, "two", 0, 2)
    assert not workers() and not shared() - before


def test_a_worker_process_that_dies_is_an_error_and_leaves_nothing_behind() -> None:
    before = shared()
    # One worker: a second one could be killed while it fills a block.
    with (
        Prefetch(Numbered(dies_at=2), 1, ahead=2, kind="processes") as prefetch,
        pytest.raises(LeanError, match=r"step .* fewer workers"),
    ):
        for step in range(3):
            prefetch(step, "one", 0, 2)
    assert not workers() and not shared() - before


def test_without_shared_memory_arrays_go_through_the_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_compute", Numbered())
    name, values = loader._work(3, "one", 0, 2)
    assert name is not None and same(loader._unpack(name, values), Numbered()(3, "one", 0, 2))
    monkeypatch.setattr(loader, "_memory", lambda size: None)
    name, values = loader._work(3, "one", 0, 2)
    assert name is None and same(loader._unpack(name, values), Numbered()(3, "one", 0, 2))


def until_six(step: int, stage: str, rank: int, world_size: int) -> tuple[int, str, int, int] | None:
    return (step + 1, stage, rank, world_size) if step < 5 else None


def test_batches_are_ready_before_they_are_requested() -> None:
    with Prefetch(Numbered(), 1, ahead=3, kind="threads", after=until_six) as prefetch:
        prefetch(0, "one", 0, 1)
        ahead = [future for _, future in prefetch._waiting.values()]
        assert len(ahead) == 3 and not wait(ahead, HANGS).not_done, "they are computed without a request"
        prefetch(4, "one", 0, 1)
        assert [key[0] for key in prefetch._waiting] == [5], "nothing past the end"


def test_an_error_does_not_affect_other_steps() -> None:
    with Prefetch(Numbered(fails_at=2), 1, ahead=3, kind="threads") as prefetch:
        for step in (0, 1):
            prefetch(step, "one", 0, 1)
        with pytest.raises(InputError, match="step 2 has no data"):
            prefetch(2, "one", 0, 1)
        assert prefetch(3, "one", 0, 1).ids == ("3 one 0",)
    with pytest.raises(KeyboardInterrupt), Prefetch(Numbered(), 2, kind="threads") as prefetch:
        prefetch(0, "one", 0, 1)
        raise KeyboardInterrupt
    assert not workers()


def test_functions_that_cannot_be_pickled_run_in_threads_or_are_refused() -> None:
    here = Numbered()
    with Prefetch(lambda *call: here(*call), loader.MOST_THREADS + 1) as prefetch:
        assert prefetch(0, "one", 0, 1).ids == ("0 one 0",)
    with pytest.raises(UsageError, match="threads"):
        Prefetch(lambda *call: here(*call), 1, kind="processes")
    with pytest.raises(UsageError, match="workers"):
        Prefetch(here, -1)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_no_process_outlives_a_parent_that_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(
            """
            import multiprocessing, sys, time
            sys.path.insert(0, sys.argv[1])
            from test_loader import Numbered
            from lean3r.data.loader import Prefetch
            if __name__ == "__main__":
                with Prefetch(Numbered(), 1, kind="processes") as prefetch:
                    prefetch(0, "one", 0, 1)
                    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
                    time.sleep(60)
            """
        )
    )
    parent = subprocess.Popen(
        [sys.executable, script, str(Path(__file__).parent)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    children = [int(pid) for pid in parent.stdout.readline().split()]
    parent.kill()
    parent.communicate(timeout=HANGS)  # its output ends when no process has it open
    assert children
    until = time.monotonic() + HANGS
    while any(alive(pid) for pid in children) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in children)


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
