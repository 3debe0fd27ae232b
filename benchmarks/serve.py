"""Does the service hold under load, under kills and under attacks?

    python benchmarks/serve.py [--parts load kills attacks batching cluster] [--seconds N] [--rounds N]

A service of its own with a runner that needs no network (tests/serve/stub.py: a job takes a quarter of a second), so
that the service is measured, not the reconstruction.

Load: 200 clients that ask every second, one job or the list, and 20 that upload 4 MB at once every five seconds, for so
many seconds, twice; latencies, the memory of the service, and what it and the clients took of the processors, which
they share with whatever else the machine does.

Kills: SIGKILL to the service or to its worker at random moments while jobs are uploaded; every job that was accepted
must end exactly once, with the files of one start.

Attacks: everything that must not get in or out, with counts.

Batching: small scenes of the same size in one pass of nano against one after the other, by turns, in processor time;
and what that would save of a whole job.

Cluster: kills as above, of the service or of its worker on a Ray cluster of this machine (extra cluster), in a fifth of
the rounds.

Writes benchmarks/results/serve.json; exit 1 if something got through or was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, ROOT, hardware, write_result

sys.path.insert(0, str(ROOT / "tests"))

from serve.conftest import Service, picture
from serve_attacks import attacks

import lean3r
from lean3r.export import DEFAULT_FORMATS
from lean3r.processes import memory_status_mb

CLIENTS, UPLOADERS, UPLOAD_BYTES = 200, 20, 4_000_000
THINK_SECONDS, UPLOAD_EVERY = 1.0, 5.0
SETTLED = ("done", "failed", "cancelled", "expired")
SCENES, TURNS = 4, 5  # together in one pass; how often each is measured
BATCHED = ((2, 96), (2, 192), (4, 192))  # views of a scene, and the side of its pictures


def main() -> None:
    """Run the parts, and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["load", "kills", "attacks", "batching", "cluster"])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    path = options.out / "serve.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    parts = {
        "load": lambda d: load(d, options.seconds),
        "kills": lambda d: kills(d, options.rounds),
        "attacks": attacks,
        "batching": lambda d: batching(),
        "cluster": lambda d: on_cluster(d, options.rounds // 5),
    }
    for name in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = parts[name](Path(folder) / "data")
        print(name, json.dumps(found[name], indent=1), flush=True)
    write_result("serve", found | {"hardware": hardware()}, options.out)
    got_through = sum(row["got_through"] for row in found.get("attacks", {}).values())
    problems = [found.get(part, {}).get("problems") for part in ("kills", "cluster")]
    sys.exit(bool(got_through or any(problems)))


def load(data: Path, seconds: float) -> dict[str, Any]:
    """Latencies in milliseconds and memory in MB, in two halves of so many seconds."""
    service = Service(data, quota_gb=1.0, queue=100_000)
    assert service.process is not None
    pid, rows = service.process.pid, []
    at_start = memory_status_mb("VmRSS", pid)
    try:
        for _ in range(2):
            before, waited = (_cpu_seconds(pid), time.process_time()), _waited_seconds(pid)
            row = asyncio.run(_crowd(service.address, seconds))
            row["waited_for_a_processor_seconds"] = _waited_seconds(pid) - waited
            row["load_of_machine"] = os.getloadavg()[0]
            row["cpu_seconds"] = {"service": _cpu_seconds(pid) - before[0], "clients": time.process_time() - before[1]}
            row["memory_mb"] = {"end": memory_status_mb("VmRSS", pid), "peak": memory_status_mb("VmHWM", pid)}
            rows.append(row)
    finally:
        service.end(signal.SIGKILL)
    sizes = {"clients": CLIENTS, "uploaders": UPLOADERS, "upload_mb": UPLOAD_BYTES / 1e6, "seconds": seconds}
    return sizes | {"memory_mb_at_start": at_start, "halves": rows}


def _cpu_seconds(pid: int) -> float:
    """Of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _waited_seconds(pid: int) -> float:
    """How long the main thread of a process could have run, while something else did."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


async def _crowd(address: str, seconds: float) -> dict[str, Any]:
    end, asked, sent, errors = time.monotonic() + seconds, [], [], Counter()
    host, port = address.removeprefix("http://").strip("/").split(":")
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n\xff\xd8\xff'
    body, known = head + os.urandom(UPLOAD_BYTES) + b"\r\n--b--\r\n", [""]

    async def visit(every: float, first: float, into: list[float], request: Any, content: bytes = b"") -> None:
        """One client on one connection; plainer than httpx, which takes more of the processors than the service."""
        await asyncio.sleep(first)
        reader, writer = await asyncio.open_connection(host, int(port))
        while time.monotonic() < end:
            begun = time.monotonic()
            writer.write(f"{request()} HTTP/1.1\r\nHost: {host}\r\n".encode())
            if content:
                writer.write(
                    f"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {len(content)}\r\n".encode()
                )
            writer.write(b"\r\n" + content)
            await writer.drain()
            said = await reader.readuntil(b"\r\n\r\n")
            length = int(said.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            answer = await reader.readexactly(length)
            into.append(1000 * (time.monotonic() - begun))
            status = int(said.split()[1])
            if status == 201:
                known.append(json.loads(answer)["id"])
            elif status != 200:
                errors[str(status)] += 1
            await asyncio.sleep(every)
        writer.close()

    def one() -> str:
        return f"GET /api/jobs/{known[-1]}" if known[-1] else "GET /api/jobs?limit=20"

    polls = [
        visit(THINK_SECONDS, THINK_SECONDS * n / CLIENTS, asked, one if n % 4 else lambda: "GET /api/jobs?limit=20")
        for n in range(CLIENTS)
    ]
    uploads = [visit(UPLOAD_EVERY, 0.0, sent, lambda: "POST /api/jobs", body) for _ in range(UPLOADERS)]
    await asyncio.gather(*polls, *uploads)
    return {"polls": _spread(asked), "uploads": _spread(sent), "errors": dict(errors)}


def _spread(milliseconds: list[float]) -> dict[str, float]:
    p50, p95 = np.percentile(milliseconds, [50, 95])
    return {"count": len(milliseconds), "p50_ms": p50, "p95_ms": p95, "most_ms": max(milliseconds)}


def batching() -> dict[str, Any]:
    """Processor seconds of scenes one after the other, and of all in one pass; medians over turns, on one thread."""
    torch.set_num_threads(1)
    model, rows = lean3r.load("nano", device="cpu"), []
    for views, side in BATCHED:
        images = torch.rand(SCENES, views, 3, side, side)
        spent: dict[str, list[float]] = {"alone": [], "together": []}
        for turn in range(TURNS + 1):
            for way, pieces in (("alone", images.split(1)), ("together", (images,))):
                begun = time.process_time()
                with torch.inference_mode():
                    for piece in pieces:
                        model(lean3r.Views(piece))
                if turn:  # the first is for warming up
                    spent[way].append(time.process_time() - begun)
        alone, together = (float(np.median(spent[way])) for way in ("alone", "together"))
        job = _job_seconds(model, views, side)
        row = {"views": views, "side": side, "alone_s": alone, "together_s": together, "job_s": job}
        rows.append(row | {"saved": 1 - together / alone, "saved_of_job": (alone - together) / SCENES / job})
    return {"model": "nano", "scenes": SCENES, "turns": TURNS, "rows": rows}


def _job_seconds(model: Any, views: int, side: int) -> float:
    """Processor seconds of a whole job of that size, without refinement and stereo; the median of three."""
    spent = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(views):
            (Path(folder) / f"{number}.jpg").write_bytes(picture(side, seed=number))
        for turn in range(4):
            begun = time.process_time()
            scene = lean3r.reconstruct(model, folder, resolution=side, refine="off", dense="network")
            lean3r.export(scene, Path(folder) / f"out-{turn}", [*DEFAULT_FORMATS, "html", "report"])
            spent.append(time.process_time() - begun)
    return float(np.median(spent[1:]))


def on_cluster(data: Path, rounds: int) -> dict[str, Any]:
    """`kills` with the workers on a Ray cluster of this machine."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    command = [sys.executable, "-P", str(ROOT / "tests" / "ray_cluster.py")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=os.environ | {"PYTHONPATH": paths}) as head:
        assert head.stdout is not None and head.stdin is not None
        address = head.stdout.readline().strip()
        found = kills(data, rounds, cluster={"engine": "ray", "ray_address": address, "cpus": 0.5})
        head.stdin.close()
    return found


def kills(data: Path, rounds: int, **options: Any) -> dict[str, Any]:
    """What became of the jobs that were accepted while the service and its workers were killed."""
    chance = random.Random(0)
    service = Service(data, attempts=10_000, queue=10_000, **options)
    accepted: set[str] = set()
    counts: Counter[str] = Counter()
    for number in range(rounds):
        whom = ("service", "worker")[number % 2]
        end = time.monotonic() + chance.uniform(0.0, 1.2)
        while time.monotonic() < end:
            accepted.add(service.upload("a.jpg", "b.jpg")["id"])
            time.sleep(chance.uniform(0.0, 0.2))
        counts[f"killed: {whom}"] += 1
        if whom == "service":
            service.end(signal.SIGKILL)
            service.start()
        else:
            with suppress(ProcessLookupError):
                os.kill(service.logged("worker ready")[-1]["pid"], signal.SIGKILL)
    problems, shown = [], {}
    end = time.monotonic() + 60 + len(accepted)
    while time.monotonic() < end:
        shown = {id: service.job(id) for id in accepted}
        if all(job.get("state") in SETTLED for job in shown.values()):
            break
        time.sleep(1)
    starts = Counter(service.starts())
    for id, job in shown.items():
        counts[f"ended: {job.get('state', 'lost')}"] += 1
        files = service.client.get(f"/api/jobs/{id}/files").json().get("files", [])
        parts = [file["path"] for file in files if file["path"].startswith("part-")]
        said = {service.client.get(f"/api/jobs/{id}/files/{part}").text for part in parts}
        if job.get("state") != "done" or len(parts) != 5 or len(said) != 1 or not said.pop().startswith(id):
            problems.append(f"{id}: {job.get('state')}, {len(parts)} parts")
    counts["started more than once"] = sum(count > 1 for count in starts.values())
    strange = set(starts) - accepted
    counts["accepted without an answer that arrived"] = len(strange)
    service.end(signal.SIGKILL)
    return {"rounds": rounds, "accepted": len(accepted), "counts": dict(sorted(counts.items())), "problems": problems}


if __name__ == "__main__":
    main()
