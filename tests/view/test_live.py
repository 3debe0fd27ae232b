"""A run is shown while it is made: cameras and a first cloud after the network, all at the end."""

from __future__ import annotations

import json
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lean3r.cli.main import main
from lean3r.types import Reconstruction
from lean3r.view import live as lives
from lean3r.view.content import of_scene
from lean3r.view.live import Live
from lean3r.view.packing import Package
from lean3r.view.server import Server, Shown
from view.conftest import small_scene


def state(live: Live, least: int) -> dict[str, Any]:
    """What a page gets, once there is so new a version."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with urllib.request.urlopen(f"{live.address}state", timeout=20) as answer:
            found = json.load(answer)
        if found["version"] >= least:
            return found
        time.sleep(0.02)
    raise AssertionError("it was never shown")


def without_points(scene: Reconstruction) -> Reconstruction:
    nothing = replace(scene.points, **{name: value[:0] for name, value in vars(scene.points).items()})
    return replace(scene, points=nothing)


def test_stages_replace_one_another_and_the_last_one_stays() -> None:
    scene = small_scene()
    asked: list[str] = []
    with Live("/photos/garden", lambda address: bool(asked.append(address))) as live:
        assert asked == [live.address]
        assert state(live, 0) == {"version": 0, "aligned": "", "stage": "reading", "isDone": False, "results": []}
        live.says("network")
        live.show(without_points(scene))
        first = state(live, 1)
        assert first["stage"] == "network" and not first["isDone"]
        assert first["results"][0]["points"]["count"] > 1000 and first["results"][0]["title"] == "photos/garden"
        live.show(scene, is_done=True)
        last = state(live, 2)
        assert last["isDone"] and last["stage"] == "" and last["results"][0]["points"]["total"] == len(scene.points.xyz)


def test_the_command_shows_every_stage(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[tuple[int, bool, int]] = []

    class Noted(Live):
        def __init__(self, source: str) -> None:
            super().__init__(source, lambda address: False)

        def show(self, scene: Reconstruction, *, is_done: bool = False, folder: Path | None = None) -> None:
            shown.append((len(scene.cam_from_world), is_done, len(scene.points.xyz)))
            assert folder == (out if is_done else None)
            super().show(scene, is_done=is_done, folder=folder)

        def wait(self) -> None:
            assert state(self, 1)["results"]

    monkeypatch.setattr(lives, "Live", Noted)
    out = tmp_path / "out"
    options = ["--resolution", "96", "--dense", "network", "-f", "ply,html", "--view"]
    assert main(["reconstruct", str(photos), "-o", str(out), *options]) == 0
    assert [done for _, done, _ in shown] == [False, False, True], "network, refinement, end"
    assert shown[0][2] == 0 < shown[-1][2] and (out / "points.ply").is_file()
    said = capsys.readouterr().err
    assert (
        said.count("http://127.0.0.1:") == 2 and f"view.html, {(out / 'view.html').stat().st_size / 1e6:.1f} MB" in said
    )


def test_a_page_that_loads_slowly_goes_on_with_what_there_is_by_then(opened: Any) -> None:
    class Hasty(Shown):
        """The first result has been replaced so often that it is gone when its parts are asked for."""

        def of(self, version: int) -> Any:
            while self.version < 4:
                self.put([Package(of_scene(small_scene(3)))], is_done=True)
            return super().of(version)

    shown = Hasty()
    shown.put([Package(of_scene(small_scene(2)))], is_done=False)
    server = Server(shown)
    page = opened(server.address)
    server.close()
    assert page.page.evaluate("document.documentElement.dataset.state") == "still"
    assert page.page.locator("#camera-lists canvas").count() == 3


def test_the_page_turns_to_the_next_stage(opened: Any) -> None:
    scene = small_scene()
    with Live("garden", lambda address: True) as live:
        live.show(without_points(replace(scene, depth=np.where(scene.depth > 4, 0, scene.depth))))
        state(live, 1)
        page = opened(live.address)
        before = page.shot()
        eye = page.page.evaluate("lean3r.viewer.eye.place")
        live.show(scene, is_done=True)
        page.page.wait_for_selector("#status:empty", state="attached", timeout=15_000)
        page.settle()
        assert page.page.evaluate("lean3r.viewer.eye.place") == eye, "the view stays where the user had it"
        assert (np.abs(before - page.shot()).max(axis=-1) > 12).mean() > 0.02 and page.problems == []
