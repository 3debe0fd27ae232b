"""Which way is up on a page: as asked for, as the result says, or else the mean of the cameras' own up."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lean3r.errors import UsageError
from lean3r.view.content import Camera

AXES = {"x": (1.0, 0.0, 0.0), "y": (0.0, 1.0, 0.0), "z": (0.0, 0.0, 1.0)}
DOWN_IS_Y = np.array([0.0, -1.0, 0.0])


def parse_up(text: str) -> np.ndarray | None:
    """The unit vector [3] of "z", "-y" or "0,0.2,1"; None for "auto"; UsageError for anything else."""
    plain = text.strip().lower()
    if plain == "auto":
        return None
    sign, axis = (-1.0, plain[1:]) if plain.startswith("-") else (1.0, plain.removeprefix("+"))
    if axis in AXES:
        return sign * np.array(AXES[axis])
    try:
        values = np.array([float(part) for part in plain.split(",")])
    except ValueError:
        values = np.zeros(0)
    length = math.hypot(*values.tolist())
    if len(values) != 3 or not math.isfinite(length) or length < 1e-9:
        raise UsageError(f"--up is {text!r}; expected auto, an axis (z, or --up=-y) or a vector X,Y,Z.")
    return values / length


def estimate_up(cameras: Sequence[Camera]) -> np.ndarray:
    """The unit vector [3] up: the mean of the cameras' up directions, without those that may be far off."""
    certain = [camera for camera in cameras if camera.registration != "uncertain"] or list(cameras)
    if not certain:
        return DOWN_IS_Y
    ups = np.stack([-camera.pose[1, :3] for camera in certain])
    mean = ups.mean(axis=0)
    up = mean if np.linalg.norm(mean) > 1e-3 else ups[0]
    return up / max(float(np.linalg.norm(up)), 1e-30)
