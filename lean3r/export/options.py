"""What a user may choose about the files that are written."""

from __future__ import annotations

from dataclasses import dataclass

from lean3r.errors import UsageError


@dataclass(frozen=True)
class ExportOptions:
    """Choices for the exporters; each exporter reads only those that concern it.

    shared_camera: one COLMAP camera for all views (pictures of one size only).
    colmap_points: at most so many points with tracks go to COLMAP (its tools are slow with millions).
    """

    shared_camera: bool = False
    colmap_points: int = 50_000

    def __post_init__(self) -> None:
        if self.colmap_points < 0:
            raise UsageError(f"colmap_points is {self.colmap_points}; expected 0 or more.")
