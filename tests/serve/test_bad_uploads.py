"""Uploads that must not get in, and what happens to strange ones that may: nothing is trusted, nothing is left."""

from __future__ import annotations

import asyncio
import io
import json
import random
import socket
import struct
import time
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lean3r.inputs.cameras import COLMAP_FILES
from lean3r.inputs.listing import VIDEO_SUFFIXES
from lean3r.serve.content import check_archive, stored_name, suffix_of
from lean3r.serve.given import MODEL
from lean3r.serve.options import ServeOptions
from lean3r.serve.places import NoRoomError
from lean3r.serve.uploads import Receiver, RefusedError
from serve.conftest import Service, picture, wait_for

FILES, MEGABYTES = 6, 3


@pytest.fixture(scope="module")
def tight(lasting: Callable[..., Service]) -> Service:
    """A service that takes little."""
    return lasting(upload_files=FILES, upload_gb=MEGABYTES / 1000)


def zipped(**members: bytes) -> bytes:
    """An archive."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def send(service: Service, *files: tuple[str, bytes], **fields: str) -> tuple[int, dict[str, Any]]:
    """Upload files; the status and the answer."""
    answer = service.client.post("/api/jobs", files=[("files", file) for file in files], data=fields)
    return answer.status_code, answer.json()


def test_what_is_refused_leaves_nothing(tight: Service) -> None:
    photo = picture()
    many = zipped(**{f"{n}.jpg": b"x" for n in range(FILES + 1)})
    bomb = zipped(**{"a.jpg": bytes(13_000_000)})
    claims_64 = photo_zip = zipped(**{"a.jpg": photo})
    claims_64 = photo_zip[:-22] + b"PK\x06\x07" + bytes(16) + photo_zip[-22:]
    long_list = bytearray(photo_zip)
    long_list[-10:-6] = struct.pack("<I", 1 << 30)
    cases: list[tuple[int, str, list[tuple[str, bytes]], dict[str, str]]] = [
        (422, "there are no files", [], {"options": "{}"}),
        (422, "empty", [("a.jpg", b"")], {}),
        (422, "not a picture", [("a.jpg", b"<html><script>alert(1)</script>")], {}),
        (422, "not a picture", [("a.jpg", b"%PDF-1.7"), ("b.exe", b"MZ\x90\0"), ("c.png", b"\x7fELF")], {}),
        (422, "300 characters", [("x" * 296 + ".jpg", photo)], {}),
        (413, "service takes (--upload-files)", [(f"{n}.jpg", photo) for n in range(FILES + 1)], {}),
        (413, f"more than {MEGABYTES} MB", [("a.jpg", photo + bytes(3_100_000))], {}),
        (413, f"more than {MEGABYTES} MB", [("a.jpg", bytes(1_100_000))] * 3, {}),
        (422, "7 members; this service takes at most 6 (--upload-files)", [("a.zip", many)], {}),
        (422, "unpacks to 13 MB", [("a.zip", bomb)], {}),
        (422, "zip64", [("a.zip", claims_64)], {}),
        (422, "list of members", [("a.zip", bytes(long_list))], {}),
        (422, "incomplete", [("a.zip", photo_zip[:60])], {}),
        (422, "unknown option 'nonsense'", [("a.jpg", photo)], {"nonsense": "1"}),
        (422, "names a file", [("a.jpg", photo)], {"cameras": "/etc/passwd"}),
        (422, "four numbers", [("a.jpg", photo)], {"options": '{"intrinsics": "/etc/passwd"}'}),
        (422, "not offered here", [("a.jpg", photo)], {"model": "vggt"}),
        (422, "is not JSON", [("a.jpg", photo)], {"options": "{"}),
        (422, "not a JSON object", [("a.jpg", photo)], {"options": "[1]"}),
        (422, "JSON does not have", [("a.jpg", photo)], {"options": '{"refine_seconds": Infinity}'}),
        (422, "JSON does not have", [("a.jpg", photo)], {"options": r'{"model": "\ud800"}'}),
        (422, "--undistort writes pictures only with", [("a.jpg", photo)], {"undistort": "1", "format": "ply"}),
        (422, "--lens radial is of a refinement", [("a.jpg", photo)], {"lens": "radial", "refine": "off"}),
        (422, "needs a place on earth", [("a.jpg", photo)], {"crs": "utm"}),
        (422, "resolution is 99999999; expected 48 to 4096", [("a.jpg", photo)], {"resolution": "99999999"}),
        (422, "expected a whole number", [("a.jpg", photo)], {"options": '{"max_views": "some"}'}),
        (413, "more than 65,536 bytes", [("a.jpg", photo)], {"options": " " * 70_000}),
        (413, "more than 100 fields", [("a.jpg", photo)], {f"f{n}": "" for n in range(101)}),
    ]  # fmt: skip
    for status, said, files, fields in cases:
        found, answer = send(tight, *files, **fields) if files else _form(tight, fields)
        assert found == status and said in json.dumps(answer), (said, answer)
    plain = tight.client.post("/api/jobs", json={"files": []})
    assert plain.status_code == 415 and "multipart" in plain.json()["error"]
    assert tight.client.get("/api/jobs").json() == [] and tight.starts() == []
    assert not any((tight.data / "incoming").iterdir()) and not any((tight.data / "jobs").iterdir())
    assert "lean3r_uploads 0" in tight.client.get("/metrics").text


def _form(service: Service, fields: dict[str, str]) -> tuple[int, dict[str, Any]]:
    answer = service.client.post("/api/jobs", files={name: (None, value) for name, value in fields.items()})
    return answer.status_code, answer.json()


def test_what_could_mean_two_things_is_refused(tight: Service) -> None:
    """Of two values of an option one would be left out silently; so would a file in a field that is none."""
    photo, text = ("files", ("a.jpg", picture())), (None, "3")
    cases: dict[str, list[Any]] = {
        "the field max_views came twice": [("max_views", text), ("max_views", (None, "4"))],
        "the option max_views is given twice": [("max_views", text), ("max-views", text)],
        "max_views stands in the field options": [("max_views", text), ("options", (None, '{"max_views": 3}'))],
        "the field options came twice": [("options", (None, "{}")), ("options", (None, '{"max_views": 3}'))],
        "file came in the field 'options'": [("options", ("options.json", b'{"max_views": 3}'))],
        "file came in the field 'mask'": [("mask", ("masks.zip", zipped(**{"a.jpg.png": png()})))],
        "the field files came without a filename": [("files", (None, "photos/a.jpg"))],
    }
    for said, fields in cases.items():
        answer = tight.client.post("/api/jobs", files=[photo, *fields])
        assert answer.status_code == 422 and said in answer.json()["error"], (said, answer.text)
    assert not any((tight.data / "incoming").iterdir())


def test_cameras_and_masks_that_get_in_and_that_do_not(tight: Service) -> None:
    photo, mask, pose = picture(), png(), np.eye(4).tolist()
    known = b"\n" + json.dumps({"views": [{"name": "endless.jpg", "cam_from_world": pose}]}).encode()
    trap = zipped(
        **{"../../evil.jpg.png": mask, "b/../../evil.png": mask, "/a b/x\\endless.jpg.png": mask, "c.txt": b"1"}
    )
    clash = zipped(**{"a.png": mask, "a.png/b.png": mask})
    torn = bytearray(zipped(**{"a.jpg.png": bytes(range(256)) * 40}))
    torn[60:90] = bytes(30)
    before = {job["id"] for job in tight.client.get("/api/jobs").json()}
    refused = [
        ("masks", "a.jpg.png", photo, "a mask is a PNG"),
        ("masks", "a.png", b"", "the file is empty"),
        ("masks", "a.zip", zipped(**{"notes.txt": b"x"}), "it holds no masks"),
        ("masks", "a.zip", zipped(**{f"{n}.png": mask for n in range(FILES + 1)}), "7 members"),
        ("masks", "a.zip", zipped(**{"a.png": bytes(3_100_000)}), "unpacks to 3 MB"),
        ("masks", "a.zip", clash, "it is damaged"),
        ("masks", "a.zip", bytes(torn), "it is damaged"),
        ("masks", "a.zip", zipped(**{"x/a.png": mask, "x//a.png": mask}), "two files"),
        ("cameras", "c.json", photo, "not a JSON file"),
        ("cameras", "c.zip", trap, "it holds no cameras"),
        ("cameras", "x" * 300, b"{}", "300 characters"),
    ]
    for role, name, content, said in refused:
        files = [("files", ("a.jpg", photo)), (role, (name, content))]
        answer = tight.client.post("/api/jobs", files=files)
        assert answer.status_code == 422 and said in answer.json()["error"], (said, answer.text)
    two = [("files", ("a.jpg", photo)), ("cameras", ("a.json", b"{}")), ("cameras", ("b.json", b"[]"))]
    assert "two of them" in tight.client.post("/api/jobs", files=two).json()["error"]
    alone = tight.client.post("/api/jobs", files=[("masks", ("a.jpg.png", mask))])
    assert alone.status_code == 422 and "no files" in alone.json()["error"]
    without = tight.client.post("/api/jobs", files=two[:1], data={"known": "poses"})
    assert without.status_code == 422 and "--cameras, which is missing" in without.json()["error"]
    assert not any((tight.data / "incoming").iterdir())
    assert {job["id"] for job in tight.client.get("/api/jobs").json()} == before
    good = [("files", ("endless.jpg", photo)), ("masks", ("m.zip", trap)), ("cameras", ("c.JSON", known))]
    job = tight.client.post("/api/jobs", files=good, data={"known": "poses"}).json()
    assert job["title"] == "endless.jpg" and [file["kind"] for file in job["files"]] == ["picture", "masks", "cameras"]
    inputs = tight.data / "jobs" / job["id"] / "input"
    stored = {path.relative_to(inputs).as_posix() for path in inputs.rglob("*") if path.is_file()}
    assert stored == {"endless.jpg", ".masks/a b/x/endless.jpg.png", ".cameras/cameras.json"}
    assert job["bytes"] >= len(photo) + len(mask) and not list(tight.data.parent.rglob("evil*"))
    assert tight.client.delete(f"/api/jobs/{job['id']}").status_code == 204
    assert COLMAP_FILES < MODEL


def png() -> bytes:
    """A small mask."""
    out = io.BytesIO()
    Image.new("L", (64, 48), 255).save(out, "PNG")
    return out.getvalue()


def test_names_are_shown_and_never_used(tight: Service) -> None:
    names = [
        "../../../etc/passwd.jpg",
        "<img src=x onerror=alert(1)>.jpg",
        "C:\\windows\\CON.jpg",
        "a\tb\u202e.jpg",
        "-rf *.jpg",
    ]
    status, job = send(tight, *((name, picture(seed=n)) for n, name in enumerate(names)), ("notes.txt", b"hello"))
    assert status == 201 and [file["name"] for file in job["files"]][1] == names[1]
    assert all(file["name"].isprintable() for file in job["files"])
    assert [(one["name"], one["reason"]) for one in job["skipped"]] == [
        ("notes.txt", "it is not a picture, a video or a zip by its content")
    ]
    stored = [file["stored"] for file in job["files"]]
    assert all(not set(name) & set("/\\<>*~\t\u202e") and not name.startswith(("-", ".")) for name in stored), stored
    assert tight.until(job["id"])["state"] == "done"
    outside = [p for p in tight.data.parent.rglob("*") if p.is_file() and not p.is_relative_to(tight.data)]
    assert all(path.name.endswith(".log") for path in outside)


def test_stored_names_are_short_and_different() -> None:
    used: set[str] = set()
    made = [stored_name(name, ".jpg", used) for name in ("a.jpg", "A.JPG", "a.jpg", "ü" * 150, "", "...", "x.png")]
    assert made[:3] == ["a.jpg", "A~2.JPG", "a~3.jpg"] and made[4:] == ["file.jpg", "file~2.jpg", "x.png.jpg"]
    assert len(made[3].encode()) <= 120 and made[3].endswith(".jpg")


def test_content_not_names_says_what_a_file_is(tmp_path: Path) -> None:
    assert suffix_of(picture()) == ".jpg" and suffix_of(b"\x89PNG\r\n\x1a\n") == ".png"
    assert suffix_of(b"\0\0\0\x18ftypheic") == ".heic" and suffix_of(b"\0\0\0\x18ftypisom") == ".mp4"
    assert suffix_of(b"P6 3 4") == ".ppm" and suffix_of(b"P6M is text") is None
    films = (
        b"OggS\0",
        b"DKIF\0\0",
        b"\x1f\x07\0",
        b"\0\0\0\1\x67",
        b"\0\0\0\1\x40\1",
        b"\x06\x0e+4\x02\x05\x01\x01",
        b"YUV4MPEG2 ",
    )
    found = {suffix_of(head) for head in (*films, b"nut/multimedia container\0", b"FLV\1", b"\x1aE\xdf\xa3")}
    assert len(found) == 10 and found <= set(VIDEO_SUFFIXES) and suffix_of(b"II+\0") == ".tif", found
    for text in (b"", b"BMW is a car", b"#!/bin/sh", b"GIF", b"<svg", b"RIFF1234WAVE", b"PK", b"\x93NUMPY"):
        assert suffix_of(text) is None, text
    archive = tmp_path / "a.zip"
    archive.write_bytes(zipped(**{"a.jpg": b"1" * 50}))
    assert check_archive(archive, 1, 50) == "" and "unpacks" in check_archive(archive, 1, 49)


def test_zips_keep_their_rules(tight: Service) -> None:
    """A member that points outside is the worker's to refuse; here the archive gets in, and only its bytes."""
    status, job = send(tight, ("scan.zip", zipped(**{"../../evil.jpg": picture(), "good.jpg": picture(seed=1)})))
    assert status == 201 and job["files"][0]["kind"] == "archive"
    tight.until(job["id"])
    assert not list(tight.data.parent.rglob("evil*"))


def test_slow_dropped_and_damaged_uploads(tight: Service) -> None:
    host, port = tight.address.removeprefix("http://").strip("/").split(":")

    def raw(body: bytes, length: int, wait: bool) -> bytes:
        head = (
            f"POST /api/jobs HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            f"Content-Length: {length}\r\n\r\n"
        )
        with socket.create_connection((host, int(port)), timeout=30) as line:
            line.sendall(head.encode() + body)
            if wait:
                return line.recv(65536)
            wait_for(lambda: "lean3r_uploads 1" in tight.client.get("/metrics").text)
        return b""

    part = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n' + picture()
    assert raw(part, 10**6, wait=False) == b"", "the sender goes away"
    wait_for(lambda: "lean3r_uploads 0" in tight.client.get("/metrics").text)
    assert not any((tight.data / "incoming").iterdir())
    assert b"413" in raw(b"", 10**9, wait=True).split(b"\r\n")[0], "before anything is sent"
    assert b" 400 " in raw(part, len(part), wait=True).split(b"\r\n")[0], "no end"
    assert b" 400 " in raw(b"no boundary at all" * 9, 162, wait=True).split(b"\r\n")[0]
    strange = part.replace(b"files", b"files\xc3").replace(b"Content-D", b"Content\xc3D") + b"\r\n--b--\r\n"
    assert b" 400 " in raw(strange, len(strange), wait=True).split(b"\r\n")[0]
    assert all(line.startswith("{") for line in tight.log.read_text().splitlines()), "every line of the log is JSON"


class Endless:
    """Room that ends after some bytes, as a full disk does."""

    def __init__(self, error: Exception | None, bytes_left: int) -> None:
        self.error, self.left = error, bytes_left

    def take(self, size: int) -> None:
        self.left -= size
        if self.left < 0 and self.error is not None:
            raise self.error

    def give(self, size: int) -> None:
        self.left += size


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [(OSError(28, "No space left"), 507, "disk"), (NoRoomError("the quota is full"), 507, "quota")],
)
def test_a_disk_that_fills_up_on_the_way(error: Exception, status: int, said: str, tmp_path: Path) -> None:
    room = Endless(error, 2 << 20)
    receiver = Receiver(tmp_path / "in", room, ServeOptions())  # type: ignore[arg-type]

    async def chunks() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n\xff\xd8\xff'
        for _ in range(100):
            yield bytes(1 << 16)

    with pytest.raises(RefusedError, match=said) as refused:
        asyncio.run(receiver.receive("multipart/form-data; boundary=b", None, chunks()))
    receiver.give_up()
    assert refused.value.status == status and not (tmp_path / "in").exists()
    assert receiver.taken == 0 and room.left <= 2 << 20


def test_what_is_no_file_counts_too(tmp_path: Path) -> None:
    """What comes behind the end; without a Content-Length."""
    receiver = Receiver(tmp_path / "in", Endless(None, 0), ServeOptions(upload_gb=1e-3))  # type: ignore[arg-type]
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--b--\r\n'
        for _ in range(1000):
            yield bytes(60_000)
            sent += 1

    with pytest.raises(RefusedError, match="more than 1 MB"):
        asyncio.run(receiver.receive("multipart/form-data; boundary=b", None, chunks()))
    receiver.give_up()
    assert sent < 200


def test_a_sender_that_falls_asleep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lean3r.serve.uploads.IDLE_SECONDS", 0.2)
    receiver = Receiver(tmp_path / "in", Endless(None, 0), ServeOptions())  # type: ignore[arg-type]

    async def chunks() -> AsyncIterator[bytes]:
        yield b"--b\r\n"
        await asyncio.sleep(60)

    begun = time.monotonic()
    with pytest.raises(RefusedError, match="nothing arrived"):
        asyncio.run(receiver.receive("multipart/form-data; boundary=b", None, chunks()))
    assert time.monotonic() - begun < 20
    receiver.give_up()


def test_damaged_bodies_are_taken_or_refused_and_nothing_else(tmp_path: Path) -> None:
    whole = b"".join(
        b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % part
        for part in (
            (b"options", b"", b'{"max_views": 3}'),
            (b"files", b'; filename="a.jpg"', picture()),
            (b"files", b"; filename=\"b.zip\"; filename*=UTF-8''%e6%97%a5.zip", zipped(**{"b.jpg": picture(seed=1)})),
        )
    )
    whole += b"--b--\r\n"
    chance, outcomes = random.Random(0), {"taken": 0, "refused": 0}

    async def take(number: int, body: bytes) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            for at in range(0, len(body), 700):
                yield body[at : at + 700]

        room = Endless(None, 0)
        receiver = Receiver(tmp_path / f"{number}", room, ServeOptions())  # type: ignore[arg-type]
        try:
            upload = await receiver.receive("multipart/form-data; boundary=b", None, chunks())
            upload.options()
            assert all((receiver.folder / file["stored"]).is_file() for file in upload.files)
            outcomes["taken"] += 1
        except RefusedError as error:
            assert 400 <= error.status < 500 and str(error)
            outcomes["refused"] += 1
        receiver.give_up()
        assert room.left == 0

    async def take_all() -> None:
        for number in range(400):
            body = bytearray(whole)
            for _ in range(chance.choice((0, 1, 3, 20))):
                at = chance.randrange(len(body))
                kind = chance.randrange(3)
                if kind == 0:
                    body[at] = chance.randrange(256)
                elif kind == 1:
                    del body[at : at + chance.randrange(1, 200)]
                else:
                    body[at:at] = body[chance.randrange(len(body)) :][: chance.randrange(1, 200)]
            await take(number, bytes(body))

    asyncio.run(take_all())
    assert min(outcomes.values()) > 50 and not any(tmp_path.iterdir()), outcomes
