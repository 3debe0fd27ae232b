"""Jobs live through everything: kills of the service and of its workers, limits, cancels; each ends exactly once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lean3r.cli.main import main
from lean3r.errors import UsageError
from lean3r.serve.jobs import QueueFullError, Store
from lean3r.serve.options import ServeOptions
from lean3r.serve.places import Places, Room
from serve.conftest import Service, wait_for

Start = Callable[..., Service]


def is_whole(service: Service, id: str) -> bool:
    """Whether a result is that of one start of one job."""
    files = service.client.get(f"/api/jobs/{id}/files").json()["files"]
    parts = [file["path"] for file in files if file["path"].startswith("part-")]
    said = {service.client.get(f"/api/jobs/{id}/files/{path}").text for path in parts}
    return len(said) == 1 and said.pop().startswith(id) and len(parts) == 5


def test_a_killed_service_comes_back_with_its_jobs(service: Start) -> None:
    one = service()
    running, *waiting = (one.upload(name)["id"] for name in ("slow.jpg", "a.jpg", "b.jpg"))
    one.until(running, "running")
    wait_for(lambda: one.job(running)["progress"]["done"] > 2)
    worker = one.logged("worker ready")[-1]["pid"]
    assert one.job(waiting[0])["place"] == 1 and one.job(waiting[1])["place"] == 2
    one.end(signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{worker}").exists())  # it goes with the service
    one.start()
    assert [one.until(id)["state"] for id in (running, *waiting)] == ["done"] * 3
    assert one.starts() == [running, running, *waiting] and one.job(running)["attempt"] == 2
    assert all(is_whole(one, id) for id in (running, *waiting))
    left = {path.name for id in (running, *waiting) for path in (one.data / "jobs" / id).iterdir()}
    assert left == {"done"}, "neither inputs nor attempts are left"


def test_a_killed_worker_is_replaced_and_its_job_started_again(service: Start) -> None:
    one = service(attempts=2)
    id = one.upload("endless.jpg")["id"]
    one.until(id, "running")
    for attempt in (1, 2):
        wait_for(lambda n=attempt: one.job(id)["attempt"] == n and one.job(id)["progress"]["done"] > 1)
        os.kill(one.logged("worker ready")[-1]["pid"], signal.SIGKILL)
    ended = one.until(id)
    assert ended["state"] == "failed" and "ended 2 times" in ended["reason"]
    assert one.until(one.upload("next.jpg")["id"])["state"] == "done", "the service goes on"


def test_a_stopped_service_gives_its_job_back(service: Start) -> None:
    one = service(attempts=1)
    id = one.upload("slow.jpg")["id"]
    wait_for(lambda: one.until(id, "running")["progress"]["done"] > 1)
    with one.client.stream("GET", f"/api/jobs/{id}/events") as told:
        next(told.iter_lines())
        begun = time.monotonic()
        assert one.end(signal.SIGTERM) == 0 and time.monotonic() - begun < 30, "open events do not hold it"
    one.start()
    assert one.until(id, "running", "done")["attempt"] == 2, "an orderly end is no loss"
    assert one.until(id)["state"] == "done" and one.starts() == [id, id]
    assert one.end(signal.SIGINT) == 0


def test_cancelling_removing_and_two_who_look_at_one_job(service: Start) -> None:
    one = service()
    running, waiting = (one.upload(name)["id"] for name in ("endless.jpg", "endless2.jpg"))
    wait_for(lambda: one.until(running, "running")["progress"]["done"] > 1)
    ends: list[str] = []

    def look() -> None:
        with one.client.stream("GET", f"/api/jobs/{running}/events") as told:
            ends.extend(line for line in told.iter_lines() if line.startswith("event: end"))

    both = [threading.Thread(target=look) for _ in range(2)]
    for each in both:
        each.start()
    for id in (waiting, running):
        assert one.client.post(f"/api/jobs/{id}/cancel").json()["state"] == "cancelled"
        assert one.client.post(f"/api/jobs/{id}/cancel").status_code == 409
    for each in both:
        each.join(30)
    assert len(ends) == 2
    wait_for(lambda: not (one.data / "jobs" / running / "input").exists())
    wait_for(lambda: 'lean3r_jobs_ended_total{state="cancelled"} 2' in one.client.get("/metrics").text)
    assert one.client.get(f"/api/jobs/{running}/files").status_code == 409
    third = one.upload("endless3.jpg")["id"]
    wait_for(lambda: one.until(third, "running"))
    for id in (running, waiting, third):
        assert one.client.delete(f"/api/jobs/{id}").status_code == 204
        assert one.client.get(f"/api/jobs/{id}").status_code == 404
        assert one.client.get(f"/api/jobs/{id}/zip").status_code == 404
    assert one.client.delete(f"/api/jobs/{third}").status_code == 404
    wait_for(lambda: not any((one.data / "jobs").iterdir()))
    after = one.upload("after.jpg")["id"]
    assert one.until(after)["state"] == "done"
    shutil.rmtree(one.data / "jobs" / after)  # behind its back
    for path in ("files", "files/view.html", "zip", "view", "report"):
        assert one.client.get(f"/api/jobs/{after}/{path}").status_code == 410
    assert one.client.delete(f"/api/jobs/{after}").status_code == 204
    assert third not in one.starts()[2:], "cancelled jobs are not started again"


def test_limits_on_time_and_memory_and_what_errors_tell(service: Start) -> None:
    one = service(minutes=0.05, memory_gb=0.3, queue=2)
    said = {}
    for name in ("endless.jpg", "hoard.jpg", "bug.jpg", "fail.jpg", "full.jpg"):
        ended = one.until(one.upload(name)["id"])
        assert ended["state"] == "failed"
        said[name] = ended["reason"]
    assert "more than 0.05 minutes" in said["endless.jpg"] and "more than 300 MB" in said["hoard.jpg"]
    assert said["bug.jpg"] == "an unexpected error (ValueError); the log of the service has more"
    assert said["fail.jpg"] == "no usable picture in fail.jpg; see passwd", "no paths of the machine"
    assert said["full.jpg"].startswith("the disk of the service is full")
    assert "ValueError" in one.log.read_text() and "is wrong" in one.log.read_text(), "the log has more"
    figures = one.client.get("/metrics").text
    assert 'lean3r_jobs{state="failed"} 5' in figures and "lean3r_worker_starts_total 3" in figures
    jobs = [one.upload("endless.jpg") for _ in range(3)]
    answer = one.client.post("/api/jobs", files={"files": ("a.jpg", b"\xff\xd8\xff")})
    assert answer.status_code == 503 and "2 jobs are waiting" in answer.json()["error"] and len(jobs) == 3
    place = one.address.removeprefix("http://").strip("/")
    head = f"POST /api/jobs HTTP/1.1\r\nHost: {place}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    with socket.create_connection((place.split(":")[0], int(place.split(":")[1])), timeout=20) as line:
        line.sendall(f"{head}Content-Length: 1000000000\r\n\r\n".encode())
        assert b" 503 " in line.recv(65536).split(b"\r\n")[0], "before anything is sent"


def test_results_expire_by_quota_and_age(service: Start, tmp_path: Path) -> None:
    one = service(quota_gb=4e-3, keep_hours=1e-3)
    first = one.upload("a.jpg")["id"]
    assert one.until(first)["state"] == "done"
    big = b"\xff\xd8\xff" + bytes(5_000_000)
    answer = one.client.post("/api/jobs", files={"files": ("b.jpg", big)})
    assert answer.status_code == 507 and "quota" in answer.json()["error"]
    assert one.job(first)["state"] == "expired", "it made room, in vain"
    assert one.client.get(f"/api/jobs/{first}/files").status_code == 410
    assert not any((one.data / "incoming").iterdir()) and not (one.data / "jobs" / first).exists()
    full = service(reserve_gb=1e9)
    answer = full.client.post("/api/jobs", files={"files": ("b.jpg", big)})
    assert answer.status_code == 507 and "disk" in answer.json()["error"]

    places = Places(tmp_path / "old")
    store = Store(places.base)
    room = Room(places, store, ServeOptions(keep_hours=1))
    places.incoming("x").mkdir()
    places.accept("x")
    store.add("x", "x", [], {}, 5, 9)
    job = store.claim()
    assert job is not None and store.fail(job, "no") and room.clean(time.time() + 3000) == []
    assert room.clean(time.time() + 4000) == ["x"] and store.get("x").state == "expired"  # type: ignore[union-attr]
    assert room.clean(time.time() + 40_000) == [] and store.get("x") is None and not places.job("x").exists()


def test_a_state_changes_once_whoever_asks(tmp_path: Path) -> None:
    store = Store(tmp_path / "jobs.sqlite3")
    for n in range(40):
        store.add(f"{n}", "t", [], {}, 1, 40)
    with pytest.raises(QueueFullError):
        store.add("one more", "t", [], {}, 1, 40)
    other, taken = Store(tmp_path / "jobs.sqlite3"), []

    def take(base: Store) -> None:
        while (job := base.claim()) is not None:
            taken.append(job)

    threads = [threading.Thread(target=take, args=(base,)) for base in (store, other, store, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(int(job.id) for job in taken) == list(range(40)), "each is taken once"
    first, second, third = taken[:3]
    placed: list[str] = []
    assert store.cancel(first.id) and not store.finish(first, {}, 1, lambda: placed.append("late"))
    assert store.finish(second, {"views": 3}, 7, lambda: placed.append("good"))
    assert not store.finish(second, {}, 7, lambda: placed.append("again")) and not store.fail(second, "no")
    assert placed == ["good"] and store.get(second.id).summary == {"views": 3}  # type: ignore[union-attr]

    def breaks() -> None:
        raise OSError("no")

    with pytest.raises(OSError):
        store.finish(third, {}, 1, breaks)
    assert store.is_running(third), "a result that was not placed does not count"
    found = dict(store.recover(lambda id: ({"views": 1}, 9) if id == third.id else None, 1))
    assert found.pop(third.id) == "done" and set(found.values()) == {"failed"} and len(found) == 37


def test_workers_without_jobs_do_not_wake_each_other(tmp_path: Path) -> None:
    store = Store(tmp_path / "jobs.sqlite3")
    claims = 0

    def serve() -> None:
        nonlocal claims
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            assert store.claim() is None
            claims += 1
            store.wait(0.5)

    threads = [threading.Thread(target=serve) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert claims <= 3 * 4 and store.version == 0
    assert store.cancel("nobody") is None and store.version == 0, "nothing has changed"


def test_what_lies_in_the_folder_when_a_service_starts(tmp_path: Path) -> None:
    places = Places(tmp_path / "data")
    with pytest.raises(UsageError, match="another service uses"):
        Places(tmp_path / "data")
    store = Store(places.base)
    for id in ("placed", "torn", "strange"):
        places.incoming(id).mkdir()
        (places.incoming(id) / "a.jpg").touch()
        places.accept(id)
    places.incoming("half").mkdir()
    for id in ("placed", "torn"):
        store.add(id, id, [], {}, 1, 9)
        attempt = places.attempt(job := store.claim())  # type: ignore[arg-type]
        (attempt / "files").mkdir(parents=True)
        (attempt / "files" / "x").write_text(id)
        (attempt / "summary.json").write_text('{"views": 2}')
    os.rename(places.attempt(store.get("placed")), places.done("placed"))  # type: ignore[arg-type]
    assert job is not None and dict(store.recover(places.placed, 3)) == {"placed": "done", "torn": "queued"}
    places.settle(store)
    left = sorted(path.relative_to(places.folder).as_posix() for path in places.folder.rglob("*") if path.is_file())
    assert left == ["jobs.sqlite3", "jobs.sqlite3-shm", "jobs.sqlite3-wal", "jobs/placed/done/files/x",
                    "jobs/placed/done/summary.json", "jobs/torn/input/a.jpg", "lock"]  # fmt: skip
    assert store.get("placed").summary == {"views": 2} and places.listing("placed") == {"x": 6}  # type: ignore[union-attr]
    store.close()
    with sqlite3.connect(places.base) as base:
        base.execute("PRAGMA user_version = 9")
    with pytest.raises(UsageError, match="another version"):
        Store(places.base)
    (tmp_path / "text").write_text("no database, but quite some text that goes on and on")
    with pytest.raises(UsageError, match="cannot be used as a database"):
        Store(tmp_path / "text")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--host", "0.0.0.0"], 2, "lets other machines in"),
        (["--host", "0.0.0.0", "--token", "short"], 2, "expected at least 16"),
        (["--token", "auto", "--insecure"], 2, "contradict"),
        (["--token-file", "nowhere"], 2, "cannot be read"),
        (["--port", "70000"], 2, "--port is 70000"),
        (["--host", "192.0.2.1", "--insecure"], 2, "cannot be used"),
        (["--models", "nobody"], 2, "unknown model"),
        (["--minutes", "0"], 2, "--minutes is 0"),
        (["--data", "/proc/nowhere"], 2, "cannot be used"),
        (["--workers", "2"], 2, "--workers is for a Ray cluster; give --engine ray, too"),
        (["--names", "scan.example,https://scan.example"], 2, "--names has 'https://scan.example'; expected names"),
        (["--names", "scan.example:8443"], 2, "--names has 'scan.example:8443'; expected names"),
    ],
)
def test_what_the_command_refuses(
    arguments: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    port = [] if "--port" in arguments else ["--port", "0"]
    assert main(["serve", "-q", *port, *arguments]) == code
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1


def test_a_port_in_use_and_a_device_that_is_not_there(
    service: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    port = service().address.rsplit(":", 1)[1].strip("/")
    assert main(["serve", "-q", "--port", port, "--data", str(tmp_path / "x")]) == 2
    assert f"port {port} of 127.0.0.1 is in use" in capsys.readouterr().err
    if not torch.cuda.is_available():
        monkeypatch.chdir(tmp_path)
        with pytest.raises(AssertionError, match="device cuda is not usable"):
            service("--devices", "cuda")


def test_the_service_itself_loads_no_torch() -> None:
    """Only its workers, and the process that checks cameras, do: it would treble the memory of the service."""
    code = """if True:
        import sys
        from pathlib import Path
        import lean3r.serve.app, lean3r.serve.server
        from lean3r.serve.request import Request, describe
        options = {"max_views": "8", "format": "all", "gps": "true", "known": "both", "up": "auto", "mesh": "on"}
        for crs in ("auto", "enu", "utm", "EPSG:32633"):
            assert Request.of(options | {"crs": crs}, ["nano", "nano-gsa-fp8"], Path("cameras")) and describe(["nano"])
        assert "torch" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    assert main(["serve"]) == 4
    assert capsys.readouterr().err == "error: serving needs an extra: pip install 'lean3r[serve]'\n"


def test_the_interface_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--openapi"]) == 0
    about = json.loads(capsys.readouterr().out)
    form = about["paths"]["/api/jobs"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    options = form["properties"]["options"]["properties"]
    assert options["max_views"]["type"] == "integer" and "cameras" not in options
    assert {"/healthz", "/readyz", "/metrics", "/api/jobs/{id}/zip"} <= about["paths"].keys()
    for path, methods in about["paths"].items():
        for answers in (method["responses"] for method in methods.values() if path.startswith("/api/")):
            refused = answers["4XX"]["content"]["application/json"]["schema"]["$ref"].split("/")[-1]
            assert "422" not in answers and about["components"]["schemas"][refused]["required"] == ["error"], path
