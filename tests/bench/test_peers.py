"""Official programs that agree, differ, crash, are killed, hang or run out of memory: each is a row with its reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lean3r.bench.run import bench
from lean3r.bench.settings import Program, Settings
from lean3r.bench.worker import Answer, Failed, Worker, failure_of
from lean3r.errors import UsageError

OFFICIAL = Program("da3-small", "dense", "official", "cpu", "float32")
CONFIG = """
def load_config(path): return path
def create_object(config):
    import official_fake
    return official_fake.Net()
"""
NETWORK = """
import os, signal, sys, time, torch
from torch import nn
from lean3r.bench.official import IMAGENET_MEAN, IMAGENET_STD, build_ours
from lean3r.types import Views

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        {start}
        self.ours = [build_ours("da3-small")]  # in a list: no parameters of this network

    def forward(self, x):
        if x.shape[1] == 2:
            {at_two_views}
        ours = self.ours[0]
        mean, std = (torch.tensor(t)[:, None, None] for t in (IMAGENET_MEAN, IMAGENET_STD))
        found = ours.outputs(ours.encode(Views(x * std + mean)))
        return found if {right} else {{name: value + 1 for name, value in found.items()}}
"""


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a stand-in for the package depth-anything-3 that runs ours."""

    def write(start: str = "pass", at_two_views: str = "pass", right: bool = True) -> None:
        package = tmp_path / "peers" / "depth_anything_3"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "registry.py").write_text("MODEL_REGISTRY = {'da3-small': ''}")
        (package / "cfg.py").write_text(CONFIG)
        text = NETWORK.format(start=start, at_two_views=at_two_views, right=right)
        (package.parent / "official_fake.py").write_text(text)
        monkeypatch.syspath_prepend(package.parent)

    return write


def reason(tmp_path: Path, limit_s: float = 120.0) -> Failed:
    """Why the official program cannot be built."""
    worker = Worker(OFFICIAL, 1, tmp_path / "log", limit_s)
    with pytest.raises(Failed) as caught:
        worker.ask("build")
    assert not worker._process.is_alive()
    return caught.value


@pytest.mark.parametrize(
    ("start", "said", "costly"),
    [
        ("print('no licence'); sys.stdout.flush(); os._exit(7)", "ended with exit code 7: no licence", False),
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed", True),
        ("raise ModuleNotFoundError('x', name='xformers')", "misses the module 'xformers'", False),
    ],
)
def test_a_peer_that_ends_says_why(official, tmp_path: Path, start: str, said: str, costly: bool) -> None:
    official(start)
    error = reason(tmp_path)
    assert said in str(error) and "\n" not in str(error) and error.costly == costly


@pytest.mark.parametrize(
    ("error", "said", "costly"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "out of memory", True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory", True),
        (ValueError("bad config\nmore"), "ValueError: bad config", False),
        (UsageError("not so"), "not so", False),
    ],
)
def test_an_error_is_a_reason(error: Exception, said: str, costly: bool) -> None:
    assert failure_of(error) == Answer(failure=said, costly=costly)


def test_a_peer_that_hangs_is_ended(official, tmp_path: Path) -> None:
    official("time.sleep(1000)")
    error = reason(tmp_path, limit_s=1.0)
    assert "--limit" in str(error) and error.costly


def test_a_peer_that_differs_is_not_timed(official, tmp_path: Path) -> None:
    official(right=False)
    assert "differ from ours" in str(reason(tmp_path))


def test_a_run_goes_on_without_a_peer_that_is_killed(official, tmp_path: Path) -> None:
    """At one view it agrees and is timed; at two it is killed; with three it is not run. Ours have all rows."""
    official(at_two_views="os.kill(os.getpid(), signal.SIGKILL)")
    settings = Settings(("da3-small",), against=("official",), views=(1, 2, 3), sizes=(28,), dtypes=("float32",))
    rows = bench(replace(settings, repeats=1, threads=1), tmp_path / "bench.json")["rows"]
    ours = [row for row in rows if row["program"] == "lean3r"]
    one, two, three = (row for row in rows if row["program"] == "official")
    assert [row["error"] for row in ours] == [None] * 3 and {row["weights"] for row in ours} == {"random"}
    assert one["error"] is None and one["decibels"] > 94 and one["flops"] > 1e8 and set(one["parts"]) == {"network"}
    assert "killed" in two["error"] and two["seconds"] is None
    assert three["error"].startswith("not run, because at 2 views: its process was killed")
