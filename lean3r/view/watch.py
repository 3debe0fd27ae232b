"""Result folders that are shown, and read again when they change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lean3r.errors import InputError
from lean3r.view.compare import packages_of
from lean3r.view.folder import read_content, state_of
from lean3r.view.packing import Package
from lean3r.view.server import Shown


class Watch:
    """One or two result folders; `shown` is what a server shows of them. See `read_content` and `Package`."""

    def __init__(
        self,
        folders: Sequence[Path],
        stored: Sequence[Path] = (),
        up: np.ndarray | None = None,
        most: int | None = None,
        *,
        in_one_file: bool = False,
    ) -> None:
        self.folders, self.stored, self.up, self.most = folders, stored, up, most
        self.in_one_file, self.shown = in_one_file, Shown()
        self.notes: list[str] = []
        self._state: list[tuple[float, ...]] | None = None

    def packages(self) -> tuple[list[Package], str]:
        """What there is now, and how two results were brought together. InputError if nothing can be shown."""
        contents = [read_content(folder, self.stored) for folder in self.folders]
        self.notes = [note for content in contents for note in content.notes]
        return packages_of(contents, self.up, self.most, in_one_file=self.in_one_file)

    def refresh(self) -> None:
        """Read the folders again if they have changed. The first time InputError if nothing can be shown."""
        state = [state_of(Path(folder).expanduser()) for folder in self.folders]
        if state == self._state:
            return
        try:
            packages, aligned = self.packages()
        except InputError:
            if self._state is None:
                raise
            return  # it is just being replaced
        self._state = state
        is_done = all(package.content.is_done for package in packages)
        self.shown.put(packages, aligned, is_done=is_done)
        self.shown.stage = "" if is_done else "The stream is running."
