"""The whole way with the real network: upload, events, result, downloads; by REST and in a browser."""

from __future__ import annotations

import http.client
import io
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serve.conftest import Service

SMALL = {"resolution": 64, "refine": "off", "dense": "network", "format": "cameras,npz,ply,colmap,preview"}
HOSTILE = "<img src=x onerror=alert(1)>.jpg"


@pytest.fixture(scope="module")
def real(lasting: Callable[..., Service]) -> Service:
    """`lean3r serve` as it is."""
    return lasting("--offline", "--models", "nano", "--devices", "cpu")


@pytest.fixture(scope="module")
def photos() -> list[tuple[str, bytes]]:
    """Three views of one picture, as files."""
    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    large, files = Image.fromarray(noise).resize((400, 300), Image.Resampling.BICUBIC), []
    for number in range(3):
        out = io.BytesIO()
        large.crop((8 * number, 0, 8 * number + 320, 240)).save(out, "JPEG")
        files.append((f"img_{number}.jpg", out.getvalue()))
    return files


def send(service: Service, files: list[tuple[str, bytes]], **options: Any) -> dict[str, Any]:
    """Queue a job; the answer."""
    form = {"options": json.dumps(SMALL | options)}
    answer = service.client.post("/api/jobs", files=[("files", file) for file in files], data=form)
    assert answer.status_code == 201, answer.text
    return answer.json()


def events_of(service: Service, id: str) -> list[tuple[str, dict[str, Any]]]:
    """All events of a job, to the end."""
    found, kind = [], ""
    with service.client.stream("GET", f"/api/jobs/{id}/events", timeout=120) as told:
        assert told.headers["content-type"].startswith("text/event-stream")
        for line in told.iter_lines():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: "):
                found.append((kind, json.loads(line.removeprefix("data: "))))
    return found


def test_from_upload_to_zip(real: Service, photos: list[tuple[str, bytes]]) -> None:
    job = send(real, [*photos[:2], (HOSTILE, photos[2][1]), ("notes.txt", b"hello"), ("cut.jpg", photos[0][1][:3000])])
    assert [one["name"] for one in job["skipped"]] == ["notes.txt"]
    told = events_of(real, job["id"])
    stages = {event["progress"]["stage"] for _, event in told if event["progress"]}
    assert (
        {kind for kind, _ in told} == {"job", "end"}
        and told[-1][0] == "end"
        and stages & {"loading", "network", "writing"}
    )
    assert all("files" not in event and "summary" not in event for _, event in told[:-1]), "there may be thousands"
    done = told[-1][1]
    assert done["skipped"] == job["skipped"] and len(done["files"]) == 4, "what was left out is remembered"
    assert done["state"] == "done" and done["summary"]["views"] == 3 and done["summary"]["points"] > 100
    assert [one["name"] for one in done["summary"]["skipped"]] == ["cut.jpg"], "as on the command line"
    at = f"/api/jobs/{job['id']}"
    listed = real.client.get("/api/jobs").json()[0]
    assert listed == {name: value for name, value in done.items() if name not in ("files", "skipped", "summary")}
    assert real.client.get(at).json() == done
    files = {file["path"]: file["bytes"] for file in real.client.get(f"{at}/files").json()["files"]}
    assert {"manifest.json", "points.ply", "view.html", "report.html", "sparse/0/cameras.bin"} <= files.keys()
    contents = {path: real.client.get(f"{at}/files/{path}").content for path in files}
    assert {path: len(content) for path, content in contents.items()} == files
    with zipfile.ZipFile(io.BytesIO(real.client.get(f"{at}/zip").content)) as archive:
        assert archive.testzip() is None and {name: archive.read(name) for name in archive.namelist()} == contents
    part = real.client.get(f"{at}/files/points.ply", headers={"Range": "bytes=0-2"})
    assert part.status_code == 206 and part.content == b"ply"
    assert real.client.get(f"{at}/view").content == contents["view.html"]
    assert real.client.get(f"{at}/report").content == contents["report.html"]
    here = [str(real.data.parent), str(Path.home()) + "/", str(Path(__file__).parents[2])]
    for path, content in {**contents, "events": json.dumps(told).encode()}.items():
        assert not any(folder.encode() in content for folder in here), f"{path} names a folder of the machine"
    assert json.loads(contents["manifest.json"])["command"] == f"lean3r serve, job {job['id']}"


def test_known_cameras_and_masks(real: Service, photos: list[tuple[str, bytes]], tmp_path: Path) -> None:
    """As on the command line: the cameras of an earlier result come back, and what masks cover has no points."""
    first = real.until(send(real, photos, format="cameras")["id"])
    cameras = real.client.get(f"/api/jobs/{first['id']}/files/cameras.json").content
    half = Image.new("L", (320, 240), 255)
    half.paste(0, (0, 0, 320, 120))
    half.save(tmp_path / "mask.png")
    masks = [("masks", (f"{name}.png", (tmp_path / "mask.png").read_bytes())) for name, _ in photos]
    files = [*(("files", file) for file in photos), ("cameras", ("known.json", cameras)), *masks]
    form = {"options": json.dumps(SMALL | {"known": "poses", "conf_percentile": 0, "format": "cameras,ply"})}
    job = real.until(real.client.post("/api/jobs", files=files, data=form).json()["id"])
    assert job["state"] == "done", job["reason"]
    assert 0 < job["summary"]["points"] < 0.7 * first["summary"]["points"] / 0.8
    again = json.loads(real.client.get(f"/api/jobs/{job['id']}/files/cameras.json").content)
    poses = [[view["cam_from_world"] for view in views] for views in (json.loads(cameras)["views"], again["views"])]
    assert np.allclose(poses[0], poses[1], atol=1e-4)
    name, mask = masks[0][1]
    Image.new("L", (50, 50), 255).save(tmp_path / "square.png")
    for role, file, content, said in (
        ("masks", "nobody.jpg.png", mask, "fits a picture"),
        ("masks", name, (tmp_path / "square.png").read_bytes(), "aspect ratios must agree"),
        ("masks", name, mask[:60], "cannot be read"),
        ("cameras", "a.json", cameras.replace(b"img_", b"other_"), "matches a picture by file name"),
        ("cameras", "a.json", b'{"a": 1}', "has none of `views`"),
        ("cameras", "a.json", b'{"views": [', "cannot be read as JSON"),
    ):
        wrong = [*(("files", file) for file in photos), (role, (file, content))]
        answer = real.client.post("/api/jobs", files=wrong, data={"options": json.dumps(SMALL)})
        assert answer.status_code == 422 and said in answer.json()["error"], (said, answer.text)
        assert not any(text in answer.text for text in (str(real.data.parent), ".masks", ".cameras")), answer.text
    for options, said in (({"scale": "nobody.jpg,img_1.jpg=1"}, "nobody.jpg"), ({"gps": True}, "position"),
                          ({"intrinsics": "300,300,999,120"}, "999")):  # fmt: skip
        form = {"options": json.dumps(SMALL | options)}
        answer = real.client.post("/api/jobs", files=[("files", file) for file in photos], data=form)
        assert answer.status_code == 422 and said in answer.json()["error"], (said, answer.text)
    assert not any((real.data / "incoming").iterdir())


def test_a_zip_a_black_picture_and_nothing_usable(real: Service, photos: list[tuple[str, bytes]]) -> None:
    out, black = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in [*photos, ("../../evil.jpg", photos[0][1])]:
            archive.writestr(name, content)
    Image.new("RGB", (160, 120)).save(black, "PNG")
    jobs = [
        send(real, [("scan.zip", out.getvalue())], format="cameras")["id"],
        send(real, [("black.png", black.getvalue())])["id"],
        send(real, [("cut.jpg", photos[0][1][:3000])])["id"],
        send(real, photos, memory="1MB")["id"],
    ]
    zipped, dark, cut, tight = (real.until(id) for id in jobs)
    assert zipped["state"] == "done" and zipped["summary"]["views"] == 3, zipped["reason"]
    assert any("points outside" in one["reason"] for one in zipped["summary"]["skipped"])
    assert not list(real.data.parent.rglob("evil*"))
    assert dark["summary"].get("warnings") or dark["reason"], "it says that nothing is to be seen"
    assert cut["state"] == "failed" and cut["reason"].startswith("no usable picture in cut.jpg (1 skipped)")
    assert tight["state"] == "failed" and "1" in tight["reason"]
    for job in (dark, cut, tight):
        assert str(real.data.parent) not in json.dumps(job)


@pytest.fixture
def page(browser: Any) -> Iterator[tuple[Any, list[str], list[str]]]:
    """A page of a browser, what went wrong on it, and what it asked for."""
    context = browser.new_context(accept_downloads=True)
    page, problems, asked = context.new_page(), [], []
    page.on("console", lambda said: problems.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    yield page, problems, asked
    context.close()


@pytest.fixture
def home(real: Service) -> Iterator[str]:
    """The address of the service at a proxy, which has it under a path of its own."""

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            asked = http.client.HTTPConnection(real.address.split("/")[2])
            asked.request(self.command, self.path.removeprefix("/scan"), body, dict(self.headers))
            answer = asked.getresponse()
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):
                while piece := answer.read1():
                    self.wfile.write(piece)

        do_POST = do_DELETE = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{proxy.server_port}/scan/"
        proxy.shutdown()


def test_the_pages_in_a_browser(
    real: Service, home: str, photos: list[tuple[str, bytes]], page: tuple[Any, list[str], list[str]], tmp_path: Path
) -> None:
    """Under a path of its own, which a proxy in front takes away."""
    browser, problems, asked = page
    for name, content in photos[:2]:
        (tmp_path / name).write_bytes(content)
    (tmp_path / HOSTILE).write_bytes(photos[2][1])
    (tmp_path / "notes.txt").write_text("hello")
    browser.goto(home)
    browser.get_by_label("Drop photos").set_input_files([path for path in sorted(tmp_path.iterdir()) if path.is_file()])
    browser.locator("#limits", has_text="30 minutes").wait_for()
    assert "4 files" in browser.locator("#chosen").text_content()
    browser.locator("summary").click()
    for option, value in SMALL.items():
        field = browser.get_by_label(option, exact=True)
        field.select_option(value) if option in ("refine", "dense") else field.fill(str(value))
    browser.get_by_role("button", name="Reconstruct").click()
    browser.wait_for_selector("html[data-state=done]", timeout=120_000)
    assert browser.url.startswith(f"{home}jobs/")
    assert "notes.txt: it is not a picture" in browser.locator("#notes").text_content()
    assert HOSTILE in browser.locator("#input").text_content() and HOSTILE in browser.locator("#title").text_content()
    frame = browser.frame_locator("#frame")
    frame.locator("html[data-state=still]").wait_for(timeout=60_000)
    assert frame.locator("#camera-lists button").count() == 3
    browser.locator("#files tbody tr").first.wait_for()
    for link, name in (("Download all (.zip)", ".zip"), ("points.ply", "points.ply")):
        with browser.expect_download() as saved:
            browser.get_by_role("link", name=link).click()
        assert saved.value.suggested_filename.endswith(name) and Path(saved.value.path()).stat().st_size > 500
    browser.goto(home)
    browser.locator("#jobs tbody tr").first.wait_for()
    assert HOSTILE in browser.locator("#jobs").text_content()
    browser.locator("#jobs a").first.click()
    browser.get_by_role("button", name="Remove job").click()
    browser.wait_for_url(home)
    hidden = [text for text in problems if "WebGL" not in text and "GPU stall" not in text]
    assert hidden == [] and all(url.startswith((home, "data:", "blob:")) for url in asked), (hidden, asked)


def test_the_page_counts_all_that_it_sends(
    real: Service, photos: list[tuple[str, bytes]], page: tuple[Any, list[str], list[str]]
) -> None:
    browser, (name, photo) = page[0], photos[0]
    about = real.client.get("/api/options").json()
    about["limits"] |= {"bytes": len(photo) + 1000, "files": 2}
    browser.route("**/api/options", lambda route: route.fulfill(json=about))
    browser.goto(real.address)
    browser.locator("summary").click()
    mask, large = ({"name": "m.png", "mimeType": "image/png", "buffer": bytes(n)} for n in (900, 1100))
    button, problem = browser.get_by_role("button", name="Reconstruct"), browser.locator("#problem")
    browser.locator("#masks").set_input_files([mask])
    assert button.is_disabled(), "masks alone are nothing to reconstruct"
    browser.locator("#files").set_input_files([{"name": name, "mimeType": "image/jpeg", "buffer": photo}])
    browser.locator("#chosen", has_text="2 files").wait_for()
    assert button.is_enabled() and problem.text_content() == ""
    for masks, said in (([large], "--upload-gb"), ([mask, mask], "3 files; at most 2 are taken at once")):
        browser.locator("#masks").set_input_files(masks)
        browser.locator("#problem", has_text=said).wait_for()
        assert button.is_disabled()


def test_the_token_is_typed_in(lasting: Callable[..., Service], page: tuple[Any, list[str], list[str]]) -> None:
    """Browsers say for a form where it comes from only if the policy for referrers lets them."""
    browser, closed = page[0], lasting(token="a-token-of-some-length")
    problem, enter = browser.get_by_role("alert"), browser.get_by_role("button", name="Enter")
    browser.goto(closed.address)
    assert problem.text_content() == ""
    browser.locator("#token").fill("a-token-of-another-time")
    enter.click()
    problem.filter(has_text="not the token").wait_for()
    browser.locator("#token").fill("a-token-of-some-length")
    enter.click()
    browser.get_by_role("button", name="Reconstruct").wait_for()
    assert browser.url == closed.address


def test_leaving_during_an_upload_asks_first(real: Service, page: tuple[Any, list[str], list[str]]) -> None:
    browser, asked = page[0], []
    browser.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    browser.route("**/api/jobs", lambda route: None if route.request.method == "POST" else route.continue_())
    browser.goto(real.address)
    picture = {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"a"}
    browser.locator("#files").set_input_files([picture])
    browser.locator("footer a").click()
    browser.wait_for_url("**/openapi.json")
    assert asked == [], "nothing is lost yet"
    browser.goto(real.address)
    browser.locator("#files").set_input_files([picture])
    browser.get_by_role("button", name="Reconstruct").click()
    browser.locator("#stop").wait_for()
    browser.locator("footer a").click()
    browser.wait_for_url("**/openapi.json")
    assert asked == ["beforeunload"]


def test_the_pages_are_accessible(real: Service, page: tuple[Any, list[str], list[str]]) -> None:
    axe = Path.home() / ".cache" / "lean3r-tests" / "node_modules" / "axe-core" / "axe.min.js"
    if not axe.is_file():
        pytest.skip("no axe-core: npm install axe-core")
    browser = page[0]
    id = real.until(send(real, [("cut.jpg", b"\xff\xd8\xff")])["id"])["id"]
    for path in ("", f"jobs/{id}", "login", "jobs/nothing"):
        browser.goto(real.address + path)
        browser.wait_for_timeout(300)
        browser.evaluate(axe.read_text(encoding="utf-8"))
        found = browser.evaluate(
            "axe.run(document, {iframes: false}).then(r => r.violations.map(v => v.id + v.nodes[0].html))"
        )
        assert found == [], path
