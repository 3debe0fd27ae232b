"""A scene in the browser while it is made: each stage replaces what the stage before it showed."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from lean3r.geometry.fusion import with_cloud
from lean3r.types import Reconstruction
from lean3r.view.browser import open_page
from lean3r.view.content import input_name, of_scene, title_of
from lean3r.view.folder import surface_in
from lean3r.view.packing import Package
from lean3r.view.server import Server, Shown

FIRST_POINTS = 300_000  # before the end: quickly made, and good enough to see


class Live:
    """Serves the scene of a run that goes on; a context that ends with it. `source` names a scene that names no inputs.

    Scenes are prepared in a thread of their own, so that the run need not wait; of several in a row the last counts.
    """

    def __init__(self, source: str, opener: Callable[[str], bool] = open_page) -> None:
        self.title = input_name(source)
        self.shown = Shown(stage="reading")
        self._server, self._opener = Server(self.shown), opener
        self._next: tuple[Reconstruction, bool, Path | None] | None = None
        self._wake, self._is_closed = threading.Condition(), False
        self._worker = threading.Thread(target=self._work, daemon=True)

    @property
    def address(self) -> str:
        """Of the page."""
        return self._server.address

    def __enter__(self) -> Live:
        self._worker.start()
        self._opener(self.address)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._wake:
            self._is_closed = True
            self._wake.notify_all()
        self._server.close()

    def says(self, text: str) -> None:
        """What happens now."""
        self.shown.stage = text

    def show(self, scene: Reconstruction, *, is_done: bool = False, folder: Path | None = None) -> None:
        """Show a scene from the next moment on, with the mesh in the folder of the result; `is_done`: it is the last
        one."""
        with self._wake:
            self._next = scene, is_done, folder
            self._wake.notify_all()

    def wait(self) -> None:
        """Go on serving until Ctrl-C."""
        with contextlib.suppress(KeyboardInterrupt):
            self._server.wait()

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._next is not None or self._is_closed)
                if self._is_closed or self._next is None:
                    return
                (scene, is_done, folder), self._next = self._next, None
            if not len(scene.points.xyz):
                most = min(scene.point_options.max_points, FIRST_POINTS)
                scene = with_cloud(replace(scene, point_options=replace(scene.point_options, max_points=most)))
            surface = None if folder is None else surface_in(folder, [])
            content = replace(of_scene(scene, title_of(scene) or self.title), is_done=is_done, surface=surface)
            self.shown.put([Package(content)], is_done=is_done)
            if is_done:
                self.shown.stage = ""
