"""What an earlier run has found of a video, of which a run shows the next frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Past:
    """Frames of a video that lie before those of a run, all of one size: their times_s [P] and pictures [H, W] uint8,
    grey, as refinement searches them; their poses cam_from_world [P, 4, 4], found before; and poses [4, 4] in that
    world of frames of the run itself, as far as they are `known`, by name. If the video `ends` with the run, nothing
    knows its frames better later."""

    times_s: tuple[float, ...]
    pictures: tuple[np.ndarray, ...]
    cam_from_world: np.ndarray
    known: Mapping[str, np.ndarray]
    ends: bool = False
