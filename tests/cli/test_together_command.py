"""`lean3r reconstruct --parallel`: the same result from several processes, and how they end when things go wrong."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lean3r.cli.main import main

QUICK = ["--resolution", "64", "-f", "npz,cameras", "--refine", "off", "--dense", "network", "-q"]
DIES = """
import os
from lean3r.group import Group
group = Group.join(60.0)
assert group.hear() == "nano"
os._exit(9)
"""


def arguments(photos: Path, weights: Path, out: Path, *more: str) -> list[str]:
    return ["reconstruct", str(photos), "-o", str(out), "--weights", str(weights), *QUICK, *more]


def alone(**variables: str) -> dict[str, str]:
    """The environment of a process on one core that talks to others on this machine."""
    return os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} | variables


def test_two_processes_write_what_one_writes(photos: Path, weights: Path, tmp_path: Path) -> None:
    assert main(arguments(photos, weights, tmp_path / "one")) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "lean3r"]
    command = [*launch, *arguments(photos, weights, tmp_path / "two", "--parallel", "--json")]
    done = subprocess.run(command, env=alone(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1, "process 0 alone prints"
    assert json.loads(done.stdout)["views"] == ["img_1.jpg", "img_2.jpg", "img_3.jpg"]
    one, two = (np.load(tmp_path / name / "predictions.npz") for name in ("one", "two"))
    assert set(one.files) == set(two.files)
    for name in one.files:
        if one[name].dtype.kind == "f":
            np.testing.assert_allclose(two[name], one[name], rtol=1e-5, atol=1e-5, err_msg=name)
    manifest = json.loads((tmp_path / "two" / "manifest.json").read_text())
    assert manifest["processes"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"], "nothing is left beside them"


def test_a_process_that_dies_ends_the_run(photos: Path, weights: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    other = subprocess.Popen([sys.executable, "-c", DIES], env=alone(RANK="1", LOCAL_RANK="1", **place))
    command = [sys.executable, "-m", "lean3r", *arguments(photos, weights, tmp_path / "out", "--parallel")]
    done = subprocess.run(
        command, env=alone(RANK="0", LOCAL_RANK="0", **place), capture_output=True, text=True, timeout=300
    )
    assert other.wait(60) == 9
    assert done.returncode == 1 and done.stdout == ""
    assert "process 0 of 2 lost the others while" in done.stderr and "Nothing was written" in done.stderr
    assert list(tmp_path.iterdir()) == [], "nothing half written"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), "but this one was started alone; expected torchrun: torchrun --nproc-per-node"),
        (("--memory", "8GB"), "--memory does not work together with --parallel"),
        (("--compile",), "--compile does not work together with --parallel"),
        (("--cuda-graphs",), "--cuda-graphs does not work together with --parallel"),
    ],
)
def test_what_does_not_go_together_is_refused(
    photos: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], said: str
) -> None:
    assert main(arguments(photos, weights, tmp_path / "out", "--parallel", *more)) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
