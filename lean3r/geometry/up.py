"""Which way is up in a scene: as its cameras measured it, or from cameras that people hold level; floors and walls
settle a vague estimate; or as given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lean3r.errors import UsageError
from lean3r.geometry.align import Similarity

if TYPE_CHECKING:
    from lean3r.types import Reconstruction

ROLL_RAD = math.radians(3.0)  # usual tilt to the side of a camera in a hand
PITCH_RAD = math.radians(25.0)  # usual tilt up or down: nearly common to all views, hence counted once
INDEPENDENT = 4  # errors of the views are not independent: many level views are no better than so many
CERTAIN_DEG = 10.0  # an estimate with a larger standard deviation is only the best guess
ALIKE = math.cos(math.radians(20.0))  # mean cosine from which all cameras look in one direction
SURFACES_DEG = (10.0, 8.0, 6.0, 5.0, 4.0, 4.0, 4.0)  # width of a level or upright surface, narrowing in on it
LEVEL, UPRIGHT = 0.05, 0.3  # share of a cloud that must be one or the other, to be believed: many times chance
WALLS_DEG = 5.0  # error of the cameras' estimate from which walls alone are worth more
SETTLED_DEG = 2.0  # error of an up that surfaces confirm
MEASURED_DEG = 3.0  # usual error of what one camera measures: accelerometers see the hand move, too
AGREED_DEG = 15.0  # within which most measured cameras must agree
MOST_COMPARED = 500
MOST_NORMALS = 50_000
FLAT, SPREAD = 0.15, 0.25  # extent of a flight along its gaze and across its line, relative to that along it
AXES = {"x": (1.0, 0.0, 0.0), "y": (0.0, 1.0, 0.0), "z": (0.0, 0.0, 1.0)}
EXPECTED = "auto, an axis of the world (z, or --up=-y) or a vector X,Y,Z"


@dataclass(frozen=True)
class Up:
    """The up direction of a world, a unit vector (x, y, z).

    `source` is "exif", "cameras", either of them "and surfaces", "gps" or "given"; `assumes` says what an estimate
    rests on; `error_deg` is its standard deviation (None: not estimated).
    """

    direction: tuple[float, float, float]
    source: str
    assumes: str | None = None
    error_deg: float | None = None

    @property
    def is_certain(self) -> bool:
        """Whether more than a guess supports the direction."""
        return self.error_deg is None or self.error_deg <= CERTAIN_DEG

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, with the rotation into a world whose y axis points down."""
        return {
            "direction": [round(value, 6) for value in self.direction],
            "source": self.source,
            "assumes": self.assumes,
            "error_deg": None if self.error_deg is None else round(self.error_deg, 2),
            "certain": self.is_certain,
            "upright_from_world": np.round(rotation_down(self.direction), 9).tolist(),
        }


def parse_up(text: str) -> tuple[float, float, float] | None:
    """The direction of "z", "-y" or "0,0.2,1", at length 1; None for "auto"; UsageError for anything else."""
    plain = text.strip().lower()
    if plain == "auto":
        return None
    sign, axis = (-1.0, plain[1:]) if plain.startswith("-") else (1.0, plain.removeprefix("+"))
    if axis in AXES:
        x, y, z = (sign * value if value else 0.0 for value in AXES[axis])
        return x, y, z
    try:
        values = [float(part) for part in plain.split(",")]
    except ValueError:
        values = []
    length = math.hypot(*values)
    if len(values) != 3 or not math.isfinite(length) or length < 1e-9:
        raise UsageError(f"--up is {text!r}; expected {EXPECTED}.")
    x, y, z = (value / length for value in values)
    return x, y, z


def estimate_up(cam_from_world: np.ndarray) -> Up:
    """Up in the world of cameras [S, 4, 4], from the habit to hold them level.

    The x axes of level cameras are horizontal, so that up is perpendicular to all of them; outliers, such as pictures
    taken askew, lose their weight. Cameras that only look in one direction leave the tilt up or down undetermined: it
    is then taken to be none, with a large error. If their places spread over a plane across their gaze, they are
    taken for a flight that looks down.
    """
    right, down, ahead = (cam_from_world[:, axis, :3] for axis in range(3))
    weights, up, values, rolls = np.ones(len(right)), np.zeros(3), np.zeros(3), np.zeros(len(right))
    for _ in range(20):
        matrix = np.einsum("s,si,sj->ij", weights / ROLL_RAD**2, right, right)
        values, vectors = np.linalg.eigh(matrix + np.einsum("si,sj->ij", ahead, ahead) / len(ahead) / PITCH_RAD**2)
        up = vectors[:, 0]
        rolls = np.arcsin(np.clip(right @ up, -1, 1))
        weights = 1 / (1 + (rolls / ROLL_RAD) ** 2)
    if _is_flight(cam_from_world, right, ahead):
        return Up(_triple(-_unit(ahead.mean(axis=0))), "cameras", "a flight that looks down", 2 * CERTAIN_DEG)
    upright = float((-down @ up).mean())
    # Of cameras that look straight down or up, the pictures' own up says nothing, and down is far more usual.
    if (upright if abs(upright) > 0.3 else -float((ahead @ up).mean())) < 0:
        up = -up
    spread = max(float(np.sqrt(np.average(rolls**2, weights=weights))), ROLL_RAD) / ROLL_RAD
    gap = (values[1] - values[0]) * min(INDEPENDENT / weights.sum(), 1.0)
    error_deg = min(math.degrees(spread / math.sqrt(max(gap, 1e-12))), math.degrees(PITCH_RAD))
    assumes = "level cameras" if error_deg <= CERTAIN_DEG else "level cameras that look ahead"
    return Up(_triple(up), "cameras", assumes, error_deg)


def measured_up(cam_from_world: np.ndarray, ups: np.ndarray) -> Up | None:
    """Up in the world of cameras [S, 4, 4] that measured it, as unit vectors [S, 3] in their axes: a mean in which
    outliers lose their weight. None if most of the cameras do not agree, or there are none."""
    world = np.einsum("sji,sj->si", cam_from_world[:, :3, :3], ups)
    some = world[:: 1 + len(world) // MOST_COMPARED]
    alike = np.count_nonzero(some @ some.T >= math.cos(math.radians(AGREED_DEG)), axis=1)
    if 2 * alike.max(initial=0) <= len(some):
        return None
    up, weights, angles_deg = some[alike.argmax()], np.ones(len(world)), np.zeros(len(world))
    for _ in range(20):
        angles_deg = np.degrees(np.arccos((world @ up).clip(-1, 1)))
        weights = 1 / (1 + (angles_deg / MEASURED_DEG) ** 2)
        up = _unit(weights @ world)
    spread_deg = max(float(np.sqrt(np.average(angles_deg**2, weights=weights))), MEASURED_DEG)
    error_deg = spread_deg / math.sqrt(min(len(world), INDEPENDENT))
    return Up(_triple(up), "exif", "gravity as the cameras measured it", error_deg)


def settle_up(up: Up, normals: np.ndarray) -> Up:
    """An estimate turned to the floors and walls near it, by the unit normals [P, 3] of the scene's surfaces.

    The estimate stays if too few surfaces are level or upright, or if they are far from it for its error.
    """
    normals = normals[:: 1 + len(normals) // MOST_NORMALS].astype(np.float64)
    normals = normals[np.abs(normals).max(axis=1, initial=0) > 0]
    if up.error_deg is None or len(normals) < 100:
        return up
    start = found = np.asarray(up.direction)
    for width_deg in SURFACES_DEG:
        slope = np.degrees(np.arccos(np.abs(normals @ found).clip(0, 1)))
        level, upright = (np.exp(-0.5 * (angle / width_deg) ** 2) for angle in (slope, 90 - slope))
        matrix = np.einsum("p,pi,pj->ij", upright - level, normals, normals)
        # Walls of one direction alone leave up free to turn in them: then the estimate decides.
        matrix -= 0.01 * len(normals) * np.outer(start, start)
        found = np.linalg.eigh(matrix)[1][:, 0]
        found = found * np.copysign(1.0, found @ start)
    turn_deg = math.degrees(math.acos(min(1.0, float(found @ start))))
    floors = level.mean() > LEVEL
    # Depth leans walls more than level cameras err.
    is_seen = floors or (upright.mean() > UPRIGHT and up.error_deg > WALLS_DEG)
    if not is_seen or turn_deg > max(2.5 * up.error_deg, CERTAIN_DEG):
        return up
    assumes = f"{up.assumes}, {'level ground' if floors else 'upright walls'}"
    error_deg = min(SETTLED_DEG, up.error_deg) if floors else up.error_deg
    return Up(_triple(found), f"{up.source} and surfaces", assumes, error_deg)


def _is_flight(cam_from_world: np.ndarray, right: np.ndarray, ahead: np.ndarray) -> bool:
    """Whether cameras that look one way, and do not turn, cover an area across their gaze: as aerial surveys do."""
    gaze, side = ahead.mean(axis=0), np.linalg.eigvalsh(right.T @ right / len(right))[-1]
    if len(ahead) < 4 or np.linalg.norm(gaze) < ALIKE or side < ALIKE**2:
        return False
    centres = -np.einsum("sji,sj->si", cam_from_world[:, :3, :3], cam_from_world[:, :3, 3])
    centres = centres - centres.mean(axis=0)
    along = centres @ _unit(gaze)
    across = np.linalg.svd(centres - along[:, None] * _unit(gaze), compute_uv=False)
    return bool(across[1] > SPREAD * across[0] > 0 and np.linalg.norm(along) < FLAT * across[0])


def with_up(scene: Reconstruction, direction: Sequence[float] | None = None) -> Reconstruction:
    """The scene with `info["up"]` (Up.as_dict): the given direction, or an estimate from its certain cameras and its
    cloud."""
    if direction is None:
        up = estimate_up(scene.cam_from_world[scene.is_certain])
        measured = _measured_in(scene)
        if measured is not None and (measured.error_deg or 0) < (up.error_deg or 0):
            up = measured
        # Ground may slope by more than a good measurement errs.
        if up is not measured or (up.error_deg or 0) > SETTLED_DEG:
            up = settle_up(up, scene.points.normals)
    else:
        up = Up(_triple(_unit(np.asarray(direction, np.float64))), "given")
    return replace(scene, info={**scene.info, "up": up.as_dict()})


def stand_upright(scene: Reconstruction) -> Reconstruction:
    """The scene turned about its origin so that `info["up"]` is (0, -1, 0).

    It stays as it is if its world is that of known poses or of GPS, or if up is not known.
    """
    if "cam_from_world" in (scene.info.get("known") or {}).get("views", {}) or "gps" in scene.info:
        return scene
    rotation = torch.from_numpy(upright_from_world(scene))
    return move_scene(scene, Similarity(torch.ones((), dtype=torch.float64), rotation, torch.zeros(3).double()))


def move_scene(scene: Reconstruction, new_from_world: Similarity) -> Reconstruction:
    """The whole scene under a similarity into another world: cameras, depth, cloud, sparse points and up."""

    def apply(xyz: np.ndarray) -> np.ndarray:
        return new_from_world.apply(torch.from_numpy(xyz.astype(np.float64))).numpy().astype(xyz.dtype)

    sparse, points, rotation = scene.sparse, scene.points, new_from_world.rotation.numpy()
    normals = (points.normals @ rotation.T).astype(points.normals.dtype)
    scale = np.float32(float(new_from_world.scale))
    return replace(
        scene,
        depth=scene.depth if scale == 1 else scene.depth * scale,  # it may fill gigabytes
        cam_from_world=new_from_world.apply_to_poses(torch.from_numpy(scene.cam_from_world)).numpy(),
        points=replace(points, xyz=apply(points.xyz), normals=normals),
        sparse=None if sparse is None else replace(sparse, xyz=apply(sparse.xyz)),
        info=turned_up(scene.info, rotation),
    )


def _measured_in(scene: Reconstruction) -> Up | None:
    """What the certain cameras of a scene measured."""
    ups = [(i, source.up_in_camera) for i, source in enumerate(scene.sources) if scene.is_certain[i]]
    found = [(i, up) for i, up in ups if up is not None]
    if not found:
        return None
    return measured_up(scene.cam_from_world[[i for i, _ in found]], np.array([up for _, up in found], np.float64))


def turned_up(info: dict[str, Any], rotation: np.ndarray) -> dict[str, Any]:
    """`info` of a scene whose world was rotated [3, 3]."""
    if "up" not in info:
        return info
    direction = _triple(rotation @ np.asarray(info["up"]["direction"], np.float64))
    return {**info, "up": {**info["up"], **_places(direction)}}


def upright_from_world(scene: Reconstruction) -> np.ndarray:
    """Rotation [3, 3] from the scene's world into one whose y axis points down; the identity if up is not known."""
    stored = (scene.info.get("up") or {}).get("direction")
    return np.eye(3) if stored is None else rotation_down(stored)


def rotation_down(up: Sequence[float]) -> np.ndarray:
    """The smallest rotation [3, 3] that turns a direction `up` to (0, -1, 0)."""
    down = -_unit(np.asarray(up, np.float64))
    cosine = down[1]
    axis = np.cross(down, [0.0, 1.0, 0.0])
    square = float(axis @ axis)
    if cosine < 0 and square < 1e-24:
        return np.diag([-1.0, -1.0, 1.0])
    bend = (1 - cosine) / square if cosine < 0 else 1 / (1 + cosine)  # the same, each exact where the other is not
    skew = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + skew + bend * (skew @ skew)


def _places(direction: tuple[float, float, float]) -> dict[str, Any]:
    turned = Up(direction, "").as_dict()
    return {key: turned[key] for key in ("direction", "upright_from_world")}


def _triple(vector: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in vector)
    return x, y, z


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-30)
