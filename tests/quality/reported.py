"""A scene with everything that the quality report shows."""

from __future__ import annotations

from dataclasses import replace

from export.scene import make_scene

from lean3r.geometry.up import with_up
from lean3r.types import Reconstruction, with_warning


def rich_scene(names: list[str] | None = None) -> Reconstruction:
    """A scene with everything that a run may record."""
    scene = make_scene(5, names=names)
    records = [{"error_px": {"before": 2.5, "after": 0.25 + v / 10}, "part": 0, "uncertain": None} for v in range(5)]
    records[3]["uncertain"] = "too few points connect it"
    info = {
        "model": "nano",
        "licence": "Apache-2.0",
        "seconds": {"reading": 0.5, "network": 1.5},
        "peak_memory_mb": 812.5,
        "device": "cpu <&>",
        "command": "lean3r reconstruct 'a b' --up=-y",
        "sky": [0.1] * 5,
        "refinement": {
            "status": "refined",
            "error_px": {"before": 2.5, "after": 0.4},
            "matches": 900,
            "views": records,
        },
        "gps": {
            "pictures": 2,
            "used": 2,
            "rms_m": 0.5,
            "extent_m": 40.0,
            "residuals": [{"name": s.name, "east_m": 0.3, "north_m": -0.4, "up_m": 0.0} for s in scene.sources[:2]],
        },
        "config": {"inputs": ["photos/holiday"], "seed": 0, "refine": {"when": "on"}},
    }
    labels = ("refined", "fallback", "given", "uncertain", "predicted")
    scene = replace(scene, info=info, registration=labels, skipped=(("notes.txt", "not an image"),))
    return with_up(with_warning(scene, "uncertain-views", "1 of 5 views is uncertain", [3]))
