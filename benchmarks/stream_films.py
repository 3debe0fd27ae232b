"""The walk that a person took, filmed differently: frames in another order, turned, shrunk, or through another lens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from lean3r.geometry.lens import colmap_camera
from lean3r.inputs.trajectory import Trajectory
from lean3r.types import Lens


class Filmed(NamedTuple):
    """Which frames, turned by so many quarters, so many times smaller or larger, through a lens (focal length in
    pixels, k1)."""

    frames: Sequence[int] = range(200)
    turns: int = 0
    shrink: int = 1
    enlarge: int = 1
    lens: tuple[float, float] | None = None

    def camera(self, width: int, height: int) -> dict[str, float]:
        """What `--intrinsics` takes for this lens."""
        focal, k1 = self.lens or (0.0, 0.0)
        middle = {"cx": width / 2, "cy": height / 2, "width": width, "height": height}
        return {"fx": focal, "fy": focal, "k1": k1, **middle}


BENT = (565.0, -0.2)  # a corner lies 5 % of the longer side from where a pinhole would have it
FILMED = {
    "on its side": Filmed(turns=1),
    "backwards": Filmed(range(199, -1, -1)),
    "every second frame": Filmed(range(0, 200, 2)),
    "two takes": Filmed((*range(110), *range(199, 109, -1))),  # a cut; the second take comes back to the first
    "half size": Filmed(shrink=2),
    "enlarged": Filmed(enlarge=3),
    "bent": Filmed(lens=BENT),
    "bent, lens known": Filmed(lens=BENT),
}


def filmed(film: Path, truth: Trajectory, how: Filmed, out: Path, own: Mapping[str, float]) -> Trajectory:
    """Write a film's frames, taken by the pinhole camera `own`, as `how` says; where the camera was."""
    import av
    from PIL import Image

    with av.open(str(film)) as file:
        whole = [np.rot90(frame.to_ndarray(format="rgb24"), how.turns) for frame in file.decode(video=0)]
        small = (Image.fromarray(whole[number]).reduce(how.shrink) for number in how.frames)
        taken = [np.asarray(image.resize([how.enlarge * side for side in image.size])) for image in small]
        rate = file.streams.video[0].average_rate
    if how.lens is not None:
        taken = bent(taken, own, how.lens)
    height, width = taken[0].shape[:2]
    with av.open(str(out), "w") as file:
        # Without loss: the same film each time.
        stream = file.add_stream("ffv1", rate=rate, width=width, height=height, pix_fmt="bgr0")
        for image in taken:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image))))
        file.mux(stream.encode())
    turn = np.linalg.matrix_power(np.array([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), how.turns)
    poses = truth.world_from_cam[list(how.frames)] @ turn
    return replace(truth, times_s=truth.times_s[: len(taken)], world_from_cam=poses)


def bent(pictures: Sequence[np.ndarray], own: Mapping[str, float], lens: tuple[float, float]) -> list[np.ndarray]:
    """Pictures [H, W, 3] of a pinhole camera as a lens (focal length, k1) would have them; its corners look beyond the
    pictures' own, where the edge is repeated."""
    height, width = pictures[0].shape[:2]
    camera = colmap_camera(Lens("SIMPLE_RADIAL", (lens[0], width / 2, height / 2, lens[1])), width, height)
    y, x = np.indices((height, width)) + 0.5
    slopes = np.asarray(camera.cam_from_img(np.stack([x, y], -1).reshape(-1, 2))).reshape(height, width, 2)
    place = slopes * [own["fx"], own["fy"]] + [own["cx"], own["cy"]]
    grid = torch.from_numpy(2 * place / [width, height] - 1)[None].float()
    found = []
    for picture in pictures:
        image = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float()
        seen = torch.nn.functional.grid_sample(image, grid, "bicubic", "border", align_corners=False)
        found.append(seen[0].permute(1, 2, 0).clamp(0, 255).byte().numpy())
    return found
