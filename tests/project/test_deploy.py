"""The files of deploy/: checked by the programs that read them, where these are, and against this package."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import pytest
import yaml
from serve.conftest import Service, picture, wait_for

from lean3r.cli.main import main

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
EXPOSURE = 2.0  # of 10, as systemd counts it


def program(name: str) -> str:
    """The path of a program; the test skips without it."""
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"])
    found = shutil.which(name, path=beside)
    if found is None:
        pytest.skip(f"no {name}")
    return found


def passes(*command: object) -> str:
    """What a program says that must be content."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_linters_find_nothing_in_the_image() -> None:
    passes(program("hadolint"), DEPLOY / "Dockerfile")


def test_linters_find_nothing_in_the_script_for_slurm() -> None:
    passes("bash", "-n", DEPLOY / "batch.slurm")
    passes(program("shellcheck"), DEPLOY / "batch.slurm")


def accepted(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`lean3r serve` knows the options."""
    assert command[0] == "serve" and main([*command, "--openapi"]) == 0, command
    assert "/api/jobs" in json.loads(capsys.readouterr().out)["paths"]


def test_the_image_takes_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    lines = re.sub(r"\\\n\s*", "", (DEPLOY / "Dockerfile").read_text()).splitlines()
    steps = [line.partition(" ")[::2] for line in lines if line and not line.startswith("#")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extras in re.findall(r"'\.\[(.*?)\]'", "\n".join(lines)):
        assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    copied = {name for kind, rest in steps if kind == "COPY" and "--from" not in rest for name in rest.split()[:-1]}
    assert {name.removeprefix("!") for name in ignored if name.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)
    needed = {*project["license-files"], "pyproject.toml", "constraints.txt", "lean3r"}
    assert needed <= copied, "what the build reads"
    targets = {rest.split(" AS ")[1]: at for at, (kind, rest) in enumerate(steps) if kind == "FROM"}
    for target in ("cuda", "cpu"):
        own = [step for step in steps[targets[target] + 1 :]]
        assert next(rest for kind, rest in own if kind == "USER") == "10001:10001"
    accepted(json.loads(next(rest for kind, rest in steps if kind == "CMD")), capsys)


def test_compose(capsys: pytest.CaptureFixture[str]) -> None:
    about = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    text = (DEPLOY / "Dockerfile").read_text()
    for service in about["services"].values():
        assert f" AS {service['build']['target']}\n" in text
        assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["ports"][0].startswith("127.0.0.1:")
        assert set(service["secrets"]) <= about["secrets"].keys()
        assert {volume.split(":")[0] for volume in service["volumes"]} <= about["volumes"].keys()
        accepted(service["command"], capsys)


def test_systemd(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (DEPLOY / "lean3r.service").read_text()
    command = shlex.split(re.search(r"^ExecStart=(.*)$", text, re.MULTILINE)[1])  # type: ignore[index]
    accepted(command[1:], capsys)
    analyze = program("systemd-analyze")
    unit = tmp_path / "lean3r.service"
    unit.write_text(text.replace(command[0], sys.executable))  # verify wants a program that exists
    said = passes(analyze, "verify", "--man=no", unit)
    assert "lean3r.service" not in said, said
    said = passes(analyze, "security", "--offline=true", f"--threshold={10 * EXPOSURE:.0f}", "--no-pager", unit)
    assert "Overall exposure level" in said


def test_nginx(tmp_path: Path) -> None:
    """The site as it is but for HTTPS, in front of a service: uploads, and events while the job runs."""
    nginx = program("nginx")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    site = re.sub(r"ssl_certificate(_key)? .*", "", (DEPLOY / "nginx.conf").read_text())
    site = site.replace("443 ssl", f"127.0.0.1:{port}").replace("listen 80;", f"listen unix:{tmp_path}/80;")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = "\n".join(f"{kind}_temp_path {tmp_path}/{kind};" for kind in kinds)
    whole = tmp_path / "nginx.conf"
    http = f"access_log off;\n{places}\n{site}"
    whole.write_text(f"pid {tmp_path}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\n{http}\n}}\n")
    passes(nginx, "-t", "-q", "-p", tmp_path, "-c", whole)
    service = Service(tmp_path / "data", names="scan.example")
    at = service.address.removeprefix("http://").strip("/")
    whole.write_text(whole.read_text().replace("127.0.0.1:8400", at))
    running = subprocess.Popen([nginx, "-g", "daemon off;", "-p", str(tmp_path), "-c", str(whole)])
    try:
        headers = {"Host": f"scan.example:{port}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, trust_env=False, timeout=30) as client:
            wait_for(lambda: _answers(client))
            answer = client.post("/api/jobs", files={"files": ("slow.jpg", picture())})
            assert answer.status_code == 201, answer.text
            with client.stream("GET", f"/api/jobs/{answer.json()['id']}/events") as told:
                lines = told.iter_lines()
                assert any('"state": "running"' in line or '"state":"running"' in line for line in lines)
            assert service.job(answer.json()["id"])["state"] == "running", "events arrive while it runs"
            assert client.get("/metrics").status_code == 403
    finally:
        running.terminate()
        running.wait(20)
        service.end(signal.SIGKILL)


def _answers(client: httpx.Client) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return client.get("/healthz").status_code == 200
    return False


def sent(tmp_path: Path, scenes: Path, results: Path, **array: int) -> subprocess.CompletedProcess[str]:
    """A task of an array of Slurm, with a stub that notes what `lean3r batch` was given."""
    tools = tmp_path / "bin"
    tools.mkdir(exist_ok=True)
    stub = tools / "lean3r"
    stub.write_text('#!/bin/bash\n[ "$1" = batch ] && ls "$2" > "$4/seen" && echo "${@:5}" > "$4/options"\n')
    stub.chmod(0o755)
    told = {f"SLURM_ARRAY_TASK_{name.upper()}": str(value) for name, value in array.items()}
    environment = os.environ | told | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", str(DEPLOY / "batch.slurm"), str(scenes), str(results), "--minutes", "30"]
    return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)


@pytest.mark.parametrize(("first", "step"), [(1, 1), (0, 2)])
def test_every_scene_is_in_one_share(tmp_path: Path, first: int, step: int) -> None:
    scenes, results = tmp_path / "sce nes", tmp_path / "results"
    names = {f"room {n}" for n in range(9)} | {"-x", "it's"}
    for name in names:
        (scenes / name).mkdir(parents=True)
    seen: list[str] = []
    array = {"min": first, "max": first + 2 * step, "step": step, "count": 3}
    for share in range(3):
        done = sent(tmp_path, scenes, results, **array, id=first + share * step)
        assert done.returncode == 0, done.stderr
        out = results / "of-3" / str(share)
        if "has no scenes" not in done.stdout:
            seen += (out / "seen").read_text().splitlines()
            assert (out / "options").read_text() == "--minutes 30\n"
    assert sorted(seen) == sorted(names)


def test_arrays_with_gaps_and_scenes_that_are_gone(tmp_path: Path) -> None:
    scenes, results = tmp_path / "scenes", tmp_path / "results"
    scenes.mkdir()
    assert "has no scenes" in sent(tmp_path, scenes, results).stdout, "an empty folder has none called *"
    for name in "ab":
        (scenes / name).mkdir()
    assert sent(tmp_path, scenes, results).returncode == 0
    (scenes / "b").rmdir()
    assert sent(tmp_path, scenes, results).returncode == 0
    assert (results / "of-1" / "0" / "seen").read_text() == "a\n"
    gaps = sent(tmp_path, scenes, results, min=1, max=7, count=3, id=1)
    assert gaps.returncode == 2 and "expected numbers without gaps" in gaps.stderr, "nobody would take their scenes"
