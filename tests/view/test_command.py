"""`lean3r view`: the file, the server, and what it refuses."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from lean3r.cli.main import main
from lean3r.errors import UsageError
from lean3r.export import export
from lean3r.view import browser as browsers
from lean3r.view.server import Server, is_here
from lean3r.view.watch import Watch
from view.conftest import FORMATS, Opened, small_scene


def test_one_file_is_written_whole_or_not(result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main(["view", str(result), "--html", str(page), "--max-points", "500", "--json"]) == 0
    out, err = capsys.readouterr()
    done = json.loads(out)
    assert done == {"html": str(page), "bytes": page.stat().st_size, "points": [500]}
    assert "500 of" in err and "MB" in err
    before = page.read_bytes()
    assert main(["view", str(result), "--html", str(page)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["view", str(tmp_path / "nothing"), "--html", str(page), "--overwrite"]) == 3
    assert page.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert main(["view", str(result), "--html", str(page), "--overwrite", "-q", "--up", "z"]) == 0


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--html", "nowhere/page.html"], 2, "in no folder that exists"),
        (["--html", "."], 2, "is a folder"),
        (["--max-points", "-1"], 2, "--max-points is -1"),
        (["--up", "sideways"], 2, "--up is 'sideways'"),
        (["--port", "99999"], 2, "--port is 99999"),
        (["a", "b"], 2, "3 results are named"),
        (["--html", "page.html", "--port", "8300"], 2, "--port has no effect on what --html writes"),
        (["--report", "page.html", "--no-browser"], 2, "--no-browser has no effect on what --report writes"),
        (["--report", "page.html", "--up", "z"], 2, "--up has no effect on what --report writes"),
    ],
)
def test_what_is_refused(
    result: Path, options: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["view", str(result), *options]) == code
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1


def test_a_port_in_use(result: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["view", str(result), "--port", str(port), "--no-browser"]) == 2
        assert f"port {port} of this machine is in use" in capsys.readouterr().err
        watch = Watch([result])
        first, second = Server(watch.shown), Server(watch.shown)
        assert first.address != second.address, "the next free one"
        first.close()
        second.close()


def test_without_a_browser_it_prints_the_address_and_ctrl_c_ends_it(result: Path) -> None:
    # A shell's background ignores Ctrl-C.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from lean3r.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "view", str(result), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        try:
            address = run.stdout.readline().strip()
            with urllib.request.urlopen(address, timeout=20) as answer:
                assert b"<canvas" in answer.read()
            run.send_signal(signal.SIGINT)
            out, err = run.communicate(timeout=20)
        finally:
            run.kill()
    assert run.returncode == 0 and out == "" and "Traceback" not in err and "open http" in err
    port = urllib.parse.urlsplit(address).port
    assert f"or on another after `ssh -L {port}:localhost:{port}`" in " ".join(err.split())


def test_no_browser_is_found_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise browsers.webbrowser.Error("none")

    monkeypatch.setattr(browsers.webbrowser, "get", fails)
    assert not browsers.open_page("http://127.0.0.1:1/")
    monkeypatch.setattr(browsers.webbrowser, "get", lambda: browsers.webbrowser.GenericBrowser("w3m"))
    assert browsers.find_browser() is None, "it would take the terminal"


def test_only_this_machine_is_answered_and_only_the_result(result: Path) -> None:
    watch = Watch([result])
    watch.refresh()
    server = Server(watch.shown, refresh=watch.refresh)
    port, secret = re.fullmatch(r"http://127.0.0.1:(\d+)(/[\w-]{12}/)", server.address).groups()

    def ask(path: str, host: str = f"127.0.0.1:{port}", method: str = "GET", below: str = secret) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=20)
        connection.request(method, below + path, headers={"Host": host})
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.status

    try:
        assert ask("") == ask("state?0") == ask("parts/1/0/points-0") == ask("parts/1/0/photo-3") == 200
        assert ask("", "evil.example") == ask("state", f"evil.example:{port}") == ask("", " ") == 421
        assert ask("", below="/") == ask("state", below="/") == ask("state", below="/AAAAAAAAAAAA/") == 404, (
            "the secret"
        )
        for path in ("parts/1/0/photo-4", "parts/1/1/mesh", "parts/9/0/mesh", "parts/1/0/points-99", "out",
                     "../../etc/passwd", "parts/1/0/../../../x", "parts/1/0/photo-%C2%B2"):  # fmt: skip
            assert ask(path) == 404, path
        assert ask("", method="POST") == 501
    finally:
        server.close()
    assert is_here("localhost") and is_here("LOCALHOST:80") and is_here("[::1]:9") and not is_here("127.0.0.1.evil.org")


def test_the_served_page_follows_a_result_that_grows(tmp_path: Path, opened: Callable[..., Opened]) -> None:
    folder = export(small_scene(2), tmp_path / "out", FORMATS)
    (folder / "stream.json").write_text("{}")
    watch = Watch([folder])
    watch.refresh()
    server = Server(watch.shown, refresh=watch.refresh)
    try:
        page = opened(server.address)
        assert page.page.locator("#camera-lists button").count() == 2
        assert "running" in page.page.locator("#status").text_content()
        page.page.locator("#trim").check()
        export(small_scene(4), folder, FORMATS, overwrite=True)
        page.page.wait_for_selector("#camera-lists li:nth-child(4)", timeout=15_000)
        page.settle()
        assert page.shot().std() > 30 and page.problems == []
        trim, sides = page.page.evaluate(
            "[lean3r.viewer.look.trim.flat(), ['left', 'bottom', 'back', 'right', 'top', 'front'].map("
            "(side) => Number(document.getElementById(`trim-${side}`).value))]"
        )
        assert trim == sides, "the box is where the sliders say"
        assert all(url.startswith((server.address, "data:")) for url in page.asked)
    finally:
        server.close()


def test_a_port_must_be_one() -> None:
    with pytest.raises(UsageError, match="expected 1 to 65535"):
        Server(Watch([Path()]).shown, 0)
