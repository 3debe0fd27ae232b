"""How the camera turns between keyframes: as the pictures say, not evenly."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

import lean3r
from lean3r.geometry.rotation import so3_exp
from lean3r.inputs.flow import nodes_of
from lean3r.inputs.motion import small_size
from lean3r.stream import sim3
from lean3r.stream.looks import Seen
from lean3r.stream.result import Result
from lean3r.stream.turns import Turns
from lean3r.types import Lens, Prediction, Views
from stream.test_film import result
from stream.walk import DEPTH, FOCAL, HEIGHT, PAINTED, WIDTH, Knows

SIZE = (WIDTH, HEIGHT)
K = np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])
LENS = Lens("SIMPLE_RADIAL", (FOCAL, WIDTH / 2, HEIGHT / 2, -0.1))
REFERENCES = {11: 9, 12: 9, 13: 12, 14: 13, 15: 13, 16: 13}  # of frames; 10 and 16 are keyframes, 10 has 9, too


def turned_by(vector: np.ndarray) -> np.ndarray:
    return so3_exp(torch.from_numpy(np.asarray(vector, float))).numpy()


def shaken() -> dict[int, np.ndarray]:
    """Cameras [4, 4] of frames 9 to 16, that go evenly to the side and shake."""
    rng, found = np.random.default_rng(0), {}
    for index in range(9, 17):
        rotation = turned_by(0.03 * rng.normal(size=3))
        found[index] = sim3.make(1.0, rotation, -rotation @ np.array([0.1 * (index - 9), 0, 0]))
    return found


def pixels(points: np.ndarray, pose: np.ndarray, lens: Lens | None) -> np.ndarray:
    """Where a camera sees points [N, 3] of the world."""
    seen = points @ pose[:3, :3].T + pose[:3, 3]
    slopes = seen[:, :2] / seen[:, 2:]
    if lens is not None:
        slopes = slopes * (1 + lens.params[3] * (slopes**2).sum(1, keepdims=True))
    return slopes * FOCAL + K[:2, 2]


def seen_frames(cameras: dict[int, np.ndarray], lens: Lens | None = None) -> list[Seen]:
    """The frames from keyframe 10 on, that see a plane at DEPTH from each reference frame."""
    frames = []
    for index, reference in {10: 9, **REFERENCES}.items():
        nodes = nodes_of(*SIZE)
        slopes = (nodes - K[:2, 2]) / FOCAL
        for _ in range(20):
            bend = 0.0 if lens is None else lens.params[3]
            slopes = (nodes - K[:2, 2]) / FOCAL / (1 + bend * (slopes**2).sum(1, keepdims=True))
        there = DEPTH * np.column_stack([slopes, np.ones(len(nodes))])
        points = (there - cameras[reference][:3, 3]) @ cameras[reference][:3, :3]
        flow = (pixels(points, cameras[index], lens) - nodes)[:, ::-1] / max(SIZE)
        frames.append(Seen(index, index / 10, SIZE, 0.1 * index, index / 10, True, reference, flow.astype(np.float32)))
    return frames


def keyframe(index: int, pose: np.ndarray, lens: Lens | None = None) -> Result:
    found = result(index, pose, size=SIZE)
    depth = np.full((2, 2), DEPTH, np.float32)
    return replace(found, intrinsics=K, depth=depth, lens=lens, moving_s=index / 10, travelled=0.1 * index)


def off_rad(frames: list[Seen], cameras: dict[int, np.ndarray], lens: Lens | None = None) -> np.ndarray:
    """By how far the frames between the keyframes 10 and 16 are turned wrongly; their centres must be right."""
    results = [keyframe(index, cameras[index], lens) for index in (10, 16)]
    turns = Turns(frames)
    poses = {each.index: turns.pose(each, *results, results) for each in frames if 10 < each.index < 16}
    for index, pose in poses.items():
        assert np.allclose(sim3.centres(pose), sim3.centres(cameras[index]))
    return sim3.angle_rad(np.stack([pose[:3, :3] @ cameras[index][:3, :3].T for index, pose in poses.items()]))


@pytest.mark.parametrize("lens", [None, LENS])
def test_cameras_turn_as_their_pictures_move(lens: Lens | None) -> None:
    """References are keyframes, frames behind them, and frames before, with which the keyframe was compared as well."""
    cameras = shaken()
    frames = seen_frames(cameras, lens)
    assert off_rad(frames, cameras, lens).max() < 2e-3
    rng = np.random.default_rng(1)
    for each in frames:  # a third of each picture goes its own way
        assert each.flow is not None
        some = rng.choice(len(each.flow), len(each.flow) // 3, replace=False)
        each.flow[some] += np.float32(0.05)
    assert off_rad(frames, cameras, lens).max() < 6e-3


def test_where_the_motion_is_not_known_all_the_way_cameras_turn_evenly() -> None:
    cameras = shaken()
    evenly = off_rad([each._replace(flow=None) for each in seen_frames(cameras)], cameras)
    assert evenly.max() > 0.03
    broken = {
        "without the motion of one": lambda each: each._replace(flow=None) if each.index == 13 else each,
        "of another size": lambda each: each._replace(size=SIZE[::-1]) if each.index == 10 else each,
        "of one that is larger": lambda each: each._replace(size=(320, 224)) if each.index == 12 else each,
        "of a frame that is not known": lambda each: each._replace(reference=3) if each.index == 14 else each,
        "elsewhere in the end": lambda each: each._replace(flow=each.flow + 0.08) if each.index == 16 else each,
    }
    for name, change in broken.items():
        assert np.array_equal(off_rad([change(each) for each in seen_frames(cameras)], cameras), evenly), name
    assert np.array_equal(off_rad(seen_frames(cameras)[1:], cameras), evenly), "the keyframe's own motion is not known"


@pytest.mark.parametrize("size", [(1920, 480), (600, 2560)])
def test_cameras_of_very_wide_and_high_pictures_turn_as_these_move(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Motion is measured in a small frame, which is never narrower than its blocks: it has another shape."""
    monkeypatch.setattr("stream.test_turns.SIZE", size)
    monkeypatch.setattr("stream.test_turns.FOCAL", 0.8 * max(size))
    monkeypatch.setattr("stream.test_turns.K", np.array([[FOCAL, 0, size[0] / 2], [0, FOCAL, size[1] / 2], [0, 0, 1]]))
    across, down = small = np.array(small_size(*size))
    assert across / down != size[0] / size[1]
    cameras = shaken()
    measured = np.divide(small, size)[::-1] * max(size) / max(small)  # of motion that `seen_frames` has in pixels
    frames = [each._replace(flow=(each.flow * measured).astype(np.float32)) for each in seen_frames(cameras)]
    assert off_rad(frames, cameras).max() < 2e-3


def test_a_camera_that_rests_behind_a_keyframe_does_not_turn_there() -> None:
    """What the measured turns miss the next keyframe by is of the frames whose pictures moved."""
    cameras = shaken()
    places_m = {11: 0.1, 12: 0.1, 13: 0.25, 14: 0.4, 15: 0.55, 16: 0.7}
    for index, x_m in places_m.items():
        rotation = cameras[10 if index < 13 else index][:3, :3]
        cameras[index] = sim3.make(1.0, rotation, -rotation @ np.array([x_m, 0, 0]))
    first, *frames = seen_frames(cameras)
    frames = [
        each._replace(travelled=0.9 + places_m[each.index], moving_s=0.9 + places_m[each.index]) for each in frames
    ]
    frames[-1] = frames[-1]._replace(flow=frames[-1].flow + np.float32(0.02))
    off = off_rad([first, *frames], cameras)
    assert off[:2].max() < 1e-3 and 5e-3 < off[2:].max() < 0.03


class Shakes(Knows):
    """Walks past the wall and turns to and fro."""

    @staticmethod
    def rotation(timestamp_s: float) -> np.ndarray:
        """From the wall to the camera."""
        return turned_by(0.04 * np.array([np.sin(11 * timestamp_s), np.sin(14 * timestamp_s + 1), 0.0]))

    def forward(self, views: Views, reference: int | None = None) -> Prediction:
        """See Knows."""
        found = super().forward(views, reference)
        turns = np.stack([self.rotation(source.timestamp_s or 0.0) for source in views.sources])
        shake = torch.eye(4).repeat(len(turns), 1, 1)
        shake[:, :3, :3] = torch.from_numpy(turns).float()
        return Prediction(shake @ found.cam_from_world, found.intrinsics, found.depth, found.conf)

    def picture(self, timestamp_s: float) -> np.ndarray:
        """What it sees at a time."""
        y, x = np.indices((HEIGHT, WIDTH)) + 0.5
        rays = np.stack([(x - WIDTH / 2) / FOCAL, (y - HEIGHT / 2) / FOCAL, np.ones_like(x)], -1)
        rays = rays @ self.rotation(timestamp_s)
        place = rays[..., :2] / rays[..., 2:] * FOCAL + [100 + WIDTH / 2, 90 + HEIGHT / 2]
        place[..., 0] += self.place(timestamp_s) * FOCAL / DEPTH
        grid = torch.from_numpy(2 * place / PAINTED.shape[1::-1] - 1)[None].float()
        wall = torch.from_numpy(PAINTED).permute(2, 0, 1)[None].float()
        seen = torch.nn.functional.grid_sample(wall, grid, align_corners=False)
        return seen[0].permute(1, 2, 0).round().to(torch.uint8).numpy()


def test_a_hand_that_shakes_turns_every_frame_of_a_stream() -> None:
    model = Shakes()
    film = [(index / 20, model.picture(index / 20)) for index in range(80)]
    options = lean3r.StreamOptions(window=8, overlap=3)
    found = list(lean3r.stream(model, film, options=options, refine="off"))
    true = [model.rotation(each.timestamp_s) for each in found]
    keys = [each.index for each in found if "keyframe" in each.flags]
    assert max(b - a for a, b in pairwise(keys)) > 3
    for each in found:
        if "between" in each.flags and keys[0] < each.index < keys[-1]:
            world = found[0].cam_from_world[:3, :3].T @ true[0]
            off = sim3.angle_rad(each.cam_from_world[:3, :3] @ world @ true[each.index].T)
            assert off < 0.008, each.index
