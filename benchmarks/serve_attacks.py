"""What must not get into the service or out of it, tried (a part of serve.py)."""

from __future__ import annotations

import io
import random
import signal
import struct
import zipfile
from pathlib import Path
from typing import Any

import httpx
from serve.conftest import Service, picture

TOKEN = "a-token-of-the-benchmark"


def attacks(data: Path) -> dict[str, dict[str, Any]]:
    """How many of each kind were tried, and how many got through."""
    service = Service(data, token=TOKEN, upload_files=50, upload_gb=0.01, quota_gb=0.05)
    service.client.headers["Authorization"] = f"Bearer {TOKEN}"
    done = service.upload("a.jpg")["id"]
    service.until(done)
    found: dict[str, dict[str, Any]] = {}

    def tried(kind: str, outcomes: list[bool]) -> None:
        found[kind] = {"tried": len(outcomes), "got_through": sum(outcomes)}

    def refused(answer: httpx.Response, *statuses: int) -> bool:
        return answer.status_code in statuses

    ups = ["../", "..%2f", "%2e%2e/", "..%5c", "....//", "%252e%252e%252f", "/", "%2f", "..;/", "\\..\\"]
    paths = [
        up * depth + name
        for up in ups
        for depth in (1, 3, 8)
        for name in ("summary.json", "etc/passwd", "jobs.sqlite3")
    ]
    answers = [service.client.get(f"/api/jobs/{done}/files/{path}") for path in paths]
    tried("traversal in paths", [answer.status_code == 200 for answer in answers])
    members = {up * depth + f"evil{number}.jpg": picture() for number, up in enumerate(ups) for depth in (1, 4)}
    id = _post(service, "scan.zip", _zip(members)).json()["id"]
    service.until(id)
    tried("traversal in archives", [any(data.parent.rglob(Path(name).name)) for name in members])
    bombs = [
        _zip({f"{n}.jpg": bytes(size) for n in range(count)})
        for size, count in ((45_000_000, 1), (900_000, 50), (1, 51))
    ]
    plain = bytearray(_zip({"a.jpg": picture()}))
    plain[-10:-6] = struct.pack("<I", 1 << 30)
    bombs += [bytes(plain), bytes(plain[:-22]) + b"PK\x06\x07" + bytes(16) + bytes(plain[-22:])]
    tried("zip bombs", [not refused(_post(service, "a.zip", bomb), 413, 422) for bomb in bombs])
    large = [b"\xff\xd8\xff" + bytes(size) for size in (10_100_000, 20_000_000, 60_000_000)]
    tried("oversized", [not refused(_post(service, "a.jpg", content), 413) for content in large])
    heads = [
        b"<html>",
        b"<svg>",
        b"MZ",
        b"\x7fELF",
        b"#!/bin/sh",
        b"%PDF",
        b"",
        b"\x80\x04pickle",
        b"RIFF1234WAVE",
        b"PK\x05\x06",
    ]
    tried(
        "wrong types",
        [
            not refused(_post(service, f"a{s}", head + bytes(60)), 422)
            for head in heads
            for s in (".jpg", ".zip", ".mp4")
        ],
    )
    port = service.address.rsplit(":", 1)[1].strip("/")
    names = [
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1.evil.example",
        "localhost.evil",
        "0x7f000001",
        "2130706433",
        "",
    ]
    tried(
        "foreign Host",
        [not refused(service.client.get("/api/jobs", headers={"Host": name}), 400, 421) for name in names],
    )
    origins = [
        "http://evil.example",
        "null",
        "file://",
        "http://127.0.0.1:1",
        f"https://localhost:{port}",
        "http://127.0.0.1",
    ]
    ways = [
        ("POST", "/api/jobs"),
        ("POST", f"/api/jobs/{done}/cancel"),
        ("DELETE", f"/api/jobs/{done}"),
        ("POST", "/login"),
    ]
    tried(
        "foreign Origin",
        [not refused(service.client.request(*way, headers={"Origin": o}), 403) for way in ways for o in origins],
    )
    wrong = [
        "",
        "Bearer",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}x",
        f"Basic {TOKEN}",
        "Bearer null",
        f"Bearer {TOKEN.upper()}",
    ]
    wrong += [f"Bearer {random.Random(n).getrandbits(128):x}" for n in range(100)]
    places = ["/api/jobs", f"/api/jobs/{done}/zip", "/metrics", "/openapi.json", "/page/job.js"]
    with httpx.Client(base_url=service.address, trust_env=False) as stranger:
        tried(
            "missing or wrong token",
            [stranger.get(p, headers={"Authorization": w}).status_code == 200 for p in places for w in wrong],
        )
    hostile = [
        "<img src=x onerror=alert(1)>.jpg",
        '"><script>alert(1)</script>.jpg',
        "a\r\nSet-Cookie: x=1.jpg",
        "'--.jpg",
    ]
    shown = [_post(service, name, picture()) for name in hostile]
    tried("markup and lines in names", [
        answer.status_code != 201 or not answer.headers["content-type"].startswith("application/json")
        or "x" in answer.cookies or any(set(file["stored"]) & set("<>\"'\r\n/") for file in answer.json()["files"])
        for answer in shown
    ])  # fmt: skip
    options = [
        {n: "/etc/passwd"}
        for n in ("cameras", "masks", "weights", "positions", "intrinsics", "plan", "out", "device", "model")
    ]
    tried("paths in options", [not refused(_post(service, "a.jpg", picture(), **option), 422) for option in options])
    full = [_post(service, "a.jpg", b"\xff\xd8\xff" + bytes(9_000_000)).status_code for _ in range(12)]
    tried("more than the quota", [_stored(data) > 50e6 for _ in full])
    service.end(signal.SIGKILL)
    return found


def _post(service: Service, name: str, content: bytes, **fields: str) -> httpx.Response:
    return service.client.post("/api/jobs", files={"files": (name, content)}, data=fields)


def _zip(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def _stored(data: Path) -> int:
    return sum(path.stat().st_size for path in (data / "jobs").rglob("*") if path.is_file())
