"""Who is let in, and what every answer looks like: no other site, no other name, nobody without the token."""

from __future__ import annotations

import http.client
import io
import os
import re
import urllib.parse
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image
from starlette.datastructures import Headers

from lean3r.serve.downloads import Zip, asked_range, attachment, type_of
from lean3r.serve.given import MASKS, Given
from lean3r.serve.guard import POLICY, Gate
from lean3r.serve.logs import Scrubber
from serve.conftest import Service

SECRET = "a-token-of-some-length"


@pytest.fixture(scope="module")
def closed(lasting: Callable[..., Service]) -> Service:
    """A service with a token, on all addresses, with a done job."""
    service = lasting(host="0.0.0.0", token=SECRET, names="scan.example")
    service.client.headers["Authorization"] = f"Bearer {SECRET}"
    service.done = service.upload("a.jpg")["id"]  # type: ignore[attr-defined]
    service.until(service.done)  # type: ignore[attr-defined]
    return service


@pytest.fixture
def stranger(closed: Service) -> Iterator[httpx.Client]:
    """Somebody who knows nothing."""
    with httpx.Client(base_url=closed.address, trust_env=False, timeout=30) as client:
        yield client


def test_without_the_token_nothing_is_answered(closed: Service, stranger: httpx.Client) -> None:
    assert stranger.get("/healthz").text == "ok\n" and stranger.get("/readyz").status_code == 200
    paths = ["/api/jobs", f"/api/jobs/{closed.done}", f"/api/jobs/{closed.done}/zip", "/metrics", "/openapi.json",
             f"/api/jobs/{closed.done}/view", "/api/options", "/page/start.js", "/nothing"]  # type: ignore[attr-defined]  # fmt: skip
    wrong = [
        "",
        "Bearer",
        "Bearer wrong",
        f"Basic {SECRET}",
        f"Bearer {SECRET}x",
        f"Bearer {SECRET[:-1]}",
        "Bearer \xff",
    ]
    for path in paths:
        for header in wrong:
            answer = stranger.get(path, headers={"Authorization": header.encode("latin-1")} if header else {})
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer", (path, header)
            assert answer.json() == {"error": "a token is needed: Authorization: Bearer TOKEN"}
    for method in ("post", "delete"):
        assert getattr(stranger, method)("/api/jobs").status_code == 401
    for cookie in ("wrong", SECRET):
        name = Gate((), SECRET).cookie
        assert stranger.get("/api/jobs", headers={"cookie": f"{name}={cookie}"}).status_code == 401
    assert closed.client.get("/api/jobs").status_code == 200
    assert SECRET not in closed.log.read_text()


def test_browsers_get_a_cookie_for_the_token(closed: Service, stranger: httpx.Client) -> None:
    page = stranger.get("/")
    assert page.status_code == 401 and 'name="token"' in page.text and page.headers["content-security-policy"] == POLICY
    deep = stranger.get("/jobs/nothing/x", headers={"accept": "text/html"}).text
    assert 'href="../../page/style.css"' in deep and 'action="../../login"' in deep, "a proxy may take a path away"
    assert stranger.get("/", params={"token": "wrong"}).status_code == 401
    assert stranger.post("/login", data={"token": "wrong"}).status_code == 401
    assert stranger.post("/login", data={"token": "x" * 5000}).status_code == 413
    ways = (
        lambda: stranger.get("/", params={"token": SECRET}),
        lambda: stranger.post("/login", data={"token": SECRET}),
    )
    for come in ways:
        answer = come()
        assert answer.status_code == 303 and answer.headers["location"] == "./"
        cookie = answer.headers["set-cookie"]
        assert "Secure" not in cookie and "HttpOnly" in cookie and "SameSite=strict" in cookie and SECRET not in cookie
        assert stranger.get("/api/jobs").status_code == 200
        stranger.cookies.clear()
    own = {"Host": "scan.example", "Origin": "https://scan.example"}
    sealed = stranger.post("/login", data={"token": SECRET}, headers=own)
    assert sealed.status_code == 303 and "Secure" in sealed.headers["set-cookie"], "behind a proxy with HTTPS"


def test_other_names_and_other_sites_are_refused(closed: Service) -> None:
    port = urllib.parse.urlsplit(closed.address).port
    own = f"127.0.0.1:{port}"

    def ask(method: str, path: str, host: str | None, **headers: str) -> int:
        line = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        line.putrequest(method, path, skip_host=True)
        for name, value in {"Authorization": f"Bearer {SECRET}", "Content-Length": "0", **headers}.items():
            line.putheader(name.replace("_", "-"), value)
        if host is not None:
            line.putheader("Host", host)
        line.endheaders()
        status = line.getresponse().status
        line.close()
        return status

    for host in (own, "localhost", f"LOCALHOST.:{port}", "scan.example", "[::1]:80", "10.1.2.3:80"):
        assert ask("GET", "/api/jobs", host) == 200, host
    for host in ("evil.example", f"evil.example:{port}", "", "127.0.0.1.evil.example", "scan.example.evil", "a b",
                 "scan.example@evil", "127.0.0.1:80:80"):  # fmt: skip
        assert ask("GET", "/api/jobs", host) in (400, 421), host
    assert ask("GET", "/api/jobs", None) == 400
    cancel = f"/api/jobs/{closed.done}/cancel"  # type: ignore[attr-defined]
    for origin in ("http://evil.example", "null", f"http://evil.example:{port}", "http://127.0.0.1:1", "file://", ""):
        assert ask("POST", cancel, own, Origin=origin) == 403, origin
        assert ask("DELETE", cancel.removesuffix("/cancel"), own, Origin=origin) == 403
        assert ask("POST", "/api/jobs", own, Origin=origin) == 403
        assert ask("POST", "/login", own, Origin=origin) == 403
    for site in ("cross-site", "same-site"):
        assert ask("POST", cancel, own, Sec_Fetch_Site=site) == 403
    assert ask("POST", cancel, own, Origin=f"http://{own}", Sec_Fetch_Site="same-origin") == 409, "it is done"
    assert ask("POST", cancel, "scan.example", Origin="https://scan.example") == 409, "behind a proxy"
    assert ask("OPTIONS", "/api/jobs", own, Origin="http://evil.example") == 405, "no preflight is answered"


def test_every_answer_has_its_headers_and_no_path(closed: Service) -> None:
    done = f"/api/jobs/{closed.done}"  # type: ignore[attr-defined]
    names = ["/", "/api/jobs", done, f"{done}/files", f"{done}/zip", f"{done}/view", f"{done}/report", "/metrics",
             f"{done}/files/part-0.txt", "/page/start.js", "/nothing", f"{done}/files/nothing", "/openapi.json",
             "/api/jobs?limit=x", f"/api/jobs?before={2**70}", "/docs", "/page/..%2fapp.py", f"/jobs/{closed.done}"]  # type: ignore[attr-defined]  # fmt: skip
    for path in names:
        answer = closed.client.get(path)
        headers = answer.headers
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "same-origin", path
        assert (
            "default-src 'none'" in headers["content-security-policy"]
            or "sandbox" in headers["content-security-policy"]
        )
        assert headers["x-frame-options"] in ("DENY", "SAMEORIGIN") and "server" not in headers
        assert str(closed.data.parent) not in answer.text and "/home" not in answer.text, path
        assert "Traceback" not in answer.text
    view = closed.client.get(f"{done}/view").headers["content-security-policy"]
    assert "allow-scripts" in view and "allow-same-origin" not in view, "a result's scripts are not the service's"
    file = closed.client.get(f"{done}/files/" + urllib.parse.quote('a b;"c.txt'))
    assert file.text == "odd" and file.headers["content-type"] == "text/plain; charset=utf-8"
    assert file.headers["content-disposition"] == (
        "attachment; filename=\"a_b__c.txt\"; filename*=UTF-8''a%20b%3B%22c.txt"
    )
    page = closed.client.get(f"{done}/files/view.html")
    assert page.headers["content-type"] == "application/octet-stream" and "attachment" in str(page.headers)


def test_only_files_of_the_result_are_sent(closed: Service) -> None:
    done = f"/api/jobs/{closed.done}/files/"  # type: ignore[attr-defined]
    (closed.data / "jobs" / closed.done / "done" / "files" / "link").symlink_to("/etc/passwd")  # type: ignore[attr-defined]
    for path in ("../summary.json", "..%2fsummary.json", "%2e%2e/summary.json", "/etc/passwd", "%2fetc%2fpasswd",
                 "link", "..%5c..%5c", "a/../../part-0.txt", "part-0.txt%00",
                 "..%2f..%2f..%2f..%2fjobs.sqlite3"):  # fmt: skip
        answer = closed.client.get(done + path)
        assert answer.status_code in (404, 405, 307) and "root:" not in answer.text, path
    names = [file["path"] for file in closed.client.get(done.rstrip("/")).json()["files"]]
    assert "link" not in names and "summary.json" not in names
    for id in ("../x", "0" * 16, "%2e%2e", "a' OR '1'='1"):
        assert closed.client.get(f"/api/jobs/{id}").status_code == 404


def test_heads_are_those_of_the_answers(closed: Service, stranger: httpx.Client) -> None:
    result = f"/api/jobs/{closed.done}"  # type: ignore[attr-defined]
    lasting = ("/healthz", "/readyz", "/", "/page/start.js", "/api/jobs", result, f"{result}/files", f"{result}/view")
    for path in (*lasting, f"{result}/files/view.html", f"{result}/zip"):
        head, whole = closed.client.head(path), closed.client.get(path)
        names = ("content-length", "content-type", "content-disposition", "content-security-policy")
        assert head.status_code == whole.status_code == 200 and head.content == b"", path
        assert [head.headers.get(name) for name in names] == [whole.headers.get(name) for name in names]
    assert closed.client.head("/api/jobs/nobody").status_code == 404
    assert stranger.head("/healthz").status_code == 200 and stranger.head(result).status_code == 401
    assert closed.client.head(f"{result}/events").status_code == 405, "it has no end"


def test_a_zip_goes_on_where_it_broke_off(closed: Service) -> None:
    path = f"/api/jobs/{closed.done}/zip"  # type: ignore[attr-defined]
    whole = closed.client.get(path)
    size, tag = len(whole.content), whole.headers["etag"]
    assert whole.headers["content-length"] == str(size) and whole.headers["accept-ranges"] == "bytes"
    for asked, first, last in ((f"bytes={size // 2}-", size // 2, size - 1), (f"bytes=3-{2 * size}", 3, size - 1),
                               ("bytes=0-0", 0, 0)):  # fmt: skip
        part = closed.client.get(path, headers={"range": asked, "if-range": tag})
        assert part.status_code == 206 and part.headers["content-range"] == f"bytes {first}-{last}/{size}", asked
        assert part.content == whole.content[first : last + 1]
    for headers in ({"range": "bytes=5-", "if-range": '"another"'}, {"range": "bytes=0-1,4-5"}, {"range": "bytes=5-4"}):
        assert closed.client.get(path, headers=headers).content == whole.content, headers
    beyond = closed.client.get(path, headers={"range": f"bytes={size}-"})
    assert beyond.status_code == 416 and beyond.headers["content-range"] == f"bytes */{size}"


def test_names_in_headers_and_archives(tmp_path: Path) -> None:
    hostile = ["a\r\nSet-Cookie: x=1", '"; filename="evil.exe', "日本.txt", "x" * 300, "../../up"]
    for name in hostile:
        header = attachment(name)
        assert header.isascii() and header.isprintable() and len(re.findall('"', header)) == 2 and ";" in header
        assert urllib.parse.unquote(header.split("UTF-8''")[1]) == name
    assert type_of("a.html") == type_of("a.svg") == type_of("a") == "application/octet-stream"
    (tmp_path / "sub").mkdir()
    (tmp_path / "big").write_bytes(bytes(3 << 20))
    (tmp_path / "sub" / "日本.txt").write_text("text")
    (tmp_path / "empty").touch()
    os.utime(tmp_path / "empty", (0, 0))  # before the first year of zips
    made = Zip(tmp_path, ["big", "empty", "sub/日本.txt"])
    pieces = list(made.pieces())
    whole = b"".join(pieces)
    assert len(whole) == made.size
    for start in (1, 40, 1 << 20, (3 << 20) + 30, *range(made.size - 300, made.size)):
        for stop in (start + 1, made.size):
            assert b"".join(made.pieces(start, stop)) == whole[start:stop]
    assert max(map(len, pieces)) <= (1 << 20) + 1000, "never more than a piece in memory"
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        assert archive.testzip() is None and archive.read("sub/日本.txt") == b"text"
        assert archive.getinfo("big").file_size == 3 << 20


def test_zips_of_more_than_four_gigabytes(tmp_path: Path) -> None:
    """Their headers; the bytes between are not read."""
    (tmp_path / "huge").touch()
    os.truncate(tmp_path / "huge", (1 << 32) + 5)
    (tmp_path / "last").write_text("text")
    made = Zip(tmp_path, ["huge", "last"])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("lean3r.serve.downloads.zlib.crc32", lambda *_: 0)
        patched.setattr("lean3r.serve.downloads._Member.read", lambda self, first: [])
        end = b"".join(made.pieces((1 << 32) + 4))
    tail = io.BytesIO(end)  # zipfile finds what stands before by the length of the rest
    with zipfile.ZipFile(tail) as archive:
        huge, last = archive.infolist()
        assert (huge.file_size, huge.compress_size, last.file_size) == ((1 << 32) + 5, (1 << 32) + 5, 4)


def test_paths_are_taken_out_of_texts(tmp_path: Path) -> None:
    scrub = Scrubber([tmp_path])
    assert scrub(f"cannot read {tmp_path}/jobs/a.jpg: damaged") == "cannot read jobs/a.jpg: damaged"
    assert scrub("see /etc/ssl/key.pem, or ~/x; 1/2 of a / b, and http://host/way") == (
        "see key.pem, or x; 1/2 of a / b, and http://host/way"
    )
    for name in ("holiday (2)/IMG_1.jpg", "album [2024]/x.jpg", "me & you!/x.jpg"):
        assert scrub(f"skipped {name}") == f"skipped {name}"
    assert scrub("(/etc/x.jpg) [/etc/y.jpg] '/etc/z.jpg'") == "(x.jpg) [y.jpg] 'z.jpg'"
    assert scrub(f"{Path(__file__).parents[2]}/lean3r/x.py") == "x.py"
    assert len(scrub("x" * 5000)) < 1100


@pytest.mark.parametrize("odd", ['prefs={"a":1}; ', "seen; ", "name=Jos\u00e9; ", "n@me=2; ", ""])
def test_cookies_of_other_programs_change_nothing(odd: str) -> None:
    """They are those of all ports of a machine."""
    gate = Gate(("127.0.0.1",), "a token of sufficient length")
    ours = f"{gate.cookie}={gate.session}"
    assert gate.is_known(Headers({"cookie": f"{odd}{ours}"})) and gate.is_known(Headers({"cookie": f"{ours}; {odd}"}))
    assert not gate.is_known(Headers({"cookie": f"{odd}{gate.cookie}=\u00e9"}))


@pytest.mark.parametrize(
    ("asked", "given"),
    [("bytes=600-", (500, 500)), ("bytes=500-", (500, 500)), ("bytes=600-700", (500, 500)), ("bytes=9-", (9, 500)),
     ("bytes=9-3", None), ("bytes=9-9", (9, 10)), ("lines=1-2", None)],
)  # fmt: skip
def test_ranges_of_downloads(asked: str, given: tuple[int, int] | None) -> None:
    assert asked_range({"range": asked}, 500, "tag") == given


def test_two_masks_of_one_name_are_refused(tmp_path: Path) -> None:
    taking = Given(tmp_path, 10, 10**6, lambda size: None)
    reasons = []
    for name in ("left/IMG_1.png", "right/IMG_1.png", "img_1.PNG", "IMG_2.png"):
        part = tmp_path / "part"
        Image.new("L", (4, 4)).save(part, "PNG")
        reasons.append(taking.take(MASKS, part, name, part.read_bytes()[:32]))
    assert reasons == ["", "there are two of them", "there are two of them", ""]


def test_a_gate_without_a_token_knows_everybody() -> None:
    gate = Gate(("127.0.0.1",), None)
    assert gate.is_known(Headers({})) and not gate.is_token("") and not gate.knows_host("10.0.0.1")
