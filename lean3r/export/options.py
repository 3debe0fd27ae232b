"""What a user may choose about the files that are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lean3r.errors import UsageError

if TYPE_CHECKING:
    from lean3r.originals import Originals


@dataclass(frozen=True)
class ExportOptions:
    """Choices for the exporters; each exporter reads only those that concern it.

    shared_camera: one COLMAP camera for all views (pictures of one size only).
    originals: the pictures to write into images/ beside the COLMAP model (None: none are).
    colmap_points: at most so many points with tracks go to COLMAP (its tools are slow with millions).
    """

    shared_camera: bool = False
    originals: Originals | None = None
    colmap_points: int = 50_000

    def __post_init__(self) -> None:
        if self.colmap_points < 0:
            raise UsageError(f"colmap_points is {self.colmap_points}; expected 0 or more.")
