"""Ray: scenes and jobs on a cluster, whose workers and whose head are killed while they run: each ends exactly once."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serve.conftest import Service, wait_for
from serve.test_lives import is_whole

from lean3r.cli.main import main
from lean3r.errors import UsageError
from lean3r.pipeline.batch import Batch, find_scenes
from lean3r.pipeline.cluster import ClusterOptions, connect

ROOT = Path(__file__).parents[2]
QUICK = ["--refine", "off", "--dense", "network", "--resolution", "96", "--format", "cameras"]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of this machine alone."""
    pytest.importorskip("ray")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, "-P", str(ROOT / "tests" / "ray_cluster.py")]
    pipe = subprocess.PIPE
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"MODE": "token", "TOKEN": secrets.token_hex(32)}.items():
            patch.setenv(f"RAY_AUTH_{name}", value)
        environment = os.environ | {"PYTHONPATH": paths}
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as head:
            assert head.stdout is not None and head.stdin is not None
            yield head.stdout.readline().strip()
            head.stdin.close()


def scene(folder: Path, views: int) -> None:
    folder.mkdir(parents=True)
    for number in range(views):
        noise = np.random.default_rng(number).integers(0, 255, (9, 12, 3), np.uint8)
        Image.fromarray(noise).resize((96, 72)).save(folder / f"{number}.jpg")


def start(scenes: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    """`lean3r batch` as a process."""
    paths = os.pathsep.join([str(ROOT), *sys.path])
    call = ["batch", str(scenes), "-o", str(out), "--json", f"--options={' '.join(QUICK)}", *more]
    code = f"import sys; from lean3r.cli.main import main; sys.exit(main({call!r}))"
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-P", "-c", code], stdout=pipe, stderr=pipe, env=environment)


def running(out: Path) -> int:
    """The process that reconstructs a scene now; 0 if there is none."""
    for lock in out.glob(".lean3r-*.part/.lean3r-lock"):
        if (text := lock.read_text(errors="replace").partition("\n")[0]).isdecimal():
            return int(text)
    return 0


def is_there(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])


def whole(out: Path) -> list[str]:
    """The results, complete."""
    found = sorted(path.parent.name for path in out.glob("*/manifest.json"))
    for name in found:
        listed = json.loads((out / name / "manifest.json").read_text())["files"]
        assert sorted(p.relative_to(out / name).as_posix() for p in (out / name).rglob("*") if p.is_file()) == listed
    return found


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@linux
def test_scenes_end_with_a_batch_that_is_killed(tmp_path: Path) -> None:
    scenes, out = tmp_path / "scenes", tmp_path / "out"
    scene(scenes / "a", 2)
    batch = start(scenes, out)
    child = wait_for(lambda: running(out))
    batch.send_signal(signal.SIGKILL)
    batch.communicate()
    wait_for(lambda: not is_there(child))
    assert whole(out) in ([], ["a"]) and not list(out.glob(".lean3r-*.part")), "it has removed what is unfinished"
    (outcome,) = Batch(find_scenes(scenes, out), out, QUICK).run()
    assert outcome.state == "done" and whole(out) == ["a"]


@linux
def test_every_scene_ends_once_on_a_cluster_whose_workers_are_killed(tmp_path: Path, address: str) -> None:
    scenes, out = tmp_path / "scenes", tmp_path / "out"
    for name in ("a", "b"):
        scene(scenes / name, 2)
    (scenes / "empty").mkdir()
    there = ("--engine", "ray", "--ray-address", address, "--cpus", "0.5", "-j", "1")
    batch = start(scenes, out, *there)
    child = wait_for(lambda: running(out))
    os.kill(parent(child), signal.SIGKILL)  # Ray's worker: the scene ends with it, and runs again
    wait_for(lambda: not is_there(child))
    again = wait_for(lambda: (now := running(out)) != child and now)
    batch.send_signal(signal.SIGKILL)  # now the head: what runs on the cluster ends with it
    batch.communicate()
    wait_for(lambda: not is_there(again))
    assert set(whole(out)) <= {"a", "b"}
    said, errors = start(scenes, out, *there).communicate(timeout=400)
    table = {row["name"]: row for row in json.loads(said)}
    assert {name: row["state"] for name, row in table.items()} == {"a": "done", "b": "done", "empty": "failed"}, errors
    assert "no" in table["empty"]["reason"] and whole(out) == ["a", "b"] and not list(out.glob(".lean3r-*.part"))


def test_every_job_ends_once_on_a_cluster_whose_workers_are_killed(tmp_path: Path, address: str) -> None:
    cluster = {"engine": "ray", "ray_address": address, "cpus": 0.5}
    service = Service(tmp_path / "data", cluster=cluster, workers=1, attempts=3)
    try:
        first, *others = (service.upload(name)["id"] for name in ("slow.jpg", "a.jpg", "fail.jpg"))
        wait_for(lambda: service.until(first, "running")["progress"]["done"] > 2)
        os.kill(service.logged("worker ready")[-1]["pid"], signal.SIGKILL)
        assert [service.until(id)["state"] for id in (first, *others)] == ["done", "done", "failed"]
        assert service.job(first)["attempt"] == 2 and service.logged("worker lost")
        endless, waiting = (service.upload(name)["id"] for name in ("endless.jpg", "slow2.jpg"))
        wait_for(lambda: service.until(endless, "running")["progress"]["done"] > 1)
        assert service.client.post(f"/api/jobs/{endless}/cancel").status_code == 200
        wait_for(lambda: service.until(waiting, "running")["progress"]["done"] > 1)
        worker = service.logged("worker ready")[-1]["pid"]
        service.end(signal.SIGKILL)
        wait_for(lambda: not is_there(worker))
        service.start()
        assert service.until(waiting)["state"] == "done" and service.job(endless)["state"] == "cancelled"
        for id in (first, others[0], waiting):
            assert is_whole(service, id)
        assert service.starts() == [first, first, *others, endless, waiting, waiting]
    finally:
        service.end()


class Stand:
    """A module ray that says what it is asked."""

    def __init__(self, nodes: list[dict[str, float]], error: Exception | None = None) -> None:
        self.found, self.error = nodes, error

    def is_initialized(self) -> bool:
        return False

    def init(self, **options: Any) -> None:
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
        if self.error is not None:
            raise self.error

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": each} for each in self.found]


@pytest.mark.parametrize(
    ("stand", "arguments", "code", "said"),
    [
        (None, [], 4, "--engine ray needs an extra: pip install 'lean3r[cluster]'"),
        (Stand([], ConnectionError("none")), [], 2, "no Ray cluster answers at --ray-address auto. Start one"),
        (Stand([{"CPU": 8.0}, {"CPU": 4.0}]), ["--gpus", "1"], 2, "the largest of 2 has 8 and 0. Lower --cpus"),
        (Stand([{"CPU": 1.0, "GPU": 2.0}]), ["--cpus", "2"], 2, "no machine of the cluster has 2 processors"),
        (None, ["--cpus", "0"], 2, "--cpus is 0"),
        (None, ["--engine", "local", "--gpus", "1"], 2, "give --engine ray, too"),
    ],
)
def test_what_stands_in_the_way_of_a_cluster(
    stand: Stand | None,
    arguments: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    monkeypatch.setitem(sys.modules, "ray", stand)  # type: ignore[arg-type]
    (tmp_path / "scenes" / "a").mkdir(parents=True)
    engine = [] if "--engine" in arguments else ["--engine", "ray"]
    for call in (["batch", str(tmp_path / "scenes"), "-o", str(tmp_path / "out")], ["serve", "-q", "--port", "0"]):
        monkeypatch.chdir(tmp_path)
        assert main([*call, *engine, *arguments]) == code
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1
    assert "RAY_USAGE_STATS_ENABLED" not in os.environ


def test_one_kind_of_device_on_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        main(["serve", "-q", "--port", "0", "--data", str(tmp_path), "--engine", "ray", "--devices", "cpu,cuda"]) == 2
    )
    ray = types.SimpleNamespace(is_initialized=lambda: True, nodes=lambda: [])
    monkeypatch.setitem(sys.modules, "ray", ray)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the largest of 0"):
        connect(ClusterOptions(engine="ray"))
