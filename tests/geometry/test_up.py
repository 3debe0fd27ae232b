"""Up: from level cameras, from surfaces, as given; and the rotation that stands a scene upright."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from export.scene import look_at, make_scene, orbit
from hypothesis import given, settings
from hypothesis import strategies as st

from lean3r.errors import UsageError
from lean3r.geometry.align import Similarity
from lean3r.geometry.rotation import so3_exp
from lean3r.geometry.up import (
    estimate_up,
    move_scene,
    parse_up,
    rotation_down,
    settle_up,
    stand_upright,
    turned_up,
    upright_from_world,
    with_up,
)

TRUE_UP = np.array([0.0, -1.0, 0.0])  # of make_scene


def angle_deg(first, second) -> float:
    return float(np.degrees(2 * np.arcsin(min(1.0, np.linalg.norm(np.subtract(first, second)) / 2))))


def moved(poses: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """The same cameras in a world turned by `rotation` [3, 3]."""
    fit = Similarity(torch.tensor(1.0, dtype=torch.float64), torch.from_numpy(rotation), torch.zeros(3).double())
    return fit.apply_to_poses(torch.from_numpy(poses)).numpy()


def tilted(poses: np.ndarray, roll_deg) -> np.ndarray:
    turn = np.tile(np.eye(4), (len(poses), 1, 1))
    turn[:, :3, :3] = so3_exp(torch.deg2rad(torch.as_tensor(roll_deg).double())[:, None] * torch.eye(3)[2]).numpy()
    return turn @ poses


vectors = st.tuples(*[st.floats(-3, 3)] * 3)


@settings(deadline=None, max_examples=30)
@given(vectors, st.integers(0, 10_000))
def test_level_cameras_tell_up_in_any_world(axis, seed) -> None:
    rng = np.random.default_rng(seed)
    eyes = rng.normal(size=(9, 3)) * [2, 0.3, 2]
    poses = np.stack([look_at(eye, eye + rng.normal(size=3) * [1, 0.4, 1]) for eye in eyes])
    rolls = rng.normal(size=9) * 1.5
    rolls[0] = 60  # one picture taken askew
    world = so3_exp(torch.tensor(axis, dtype=torch.float64)).numpy()
    up = estimate_up(moved(tilted(poses, rolls), world))
    assert angle_deg(up.direction, world @ TRUE_UP) < 6
    assert up.is_certain and up.source == "cameras"


def test_one_view_is_only_a_guess_and_a_drone_looks_down() -> None:
    one = estimate_up(orbit(1))
    assert not one.is_certain and angle_deg(one.direction, -orbit(1)[0, 1, :3]) < 1e-6
    down = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # a camera that looks along y, which points down
    places = [(x, -50.0, z) for x in range(0, 40, 10) for z in (0, 15, 30)]
    for turns in (lambda i: 0, lambda i: i % 2):  # the pictures of every second line upside down
        flight = np.tile(np.eye(4), (len(places), 1, 1))
        for i, place in enumerate(places):
            flip = np.diag([-1.0, -1, 1]) if turns(i) else np.eye(3)
            flight[i, :3, :3] = flip @ down
            flight[i, :3, 3] = -flip @ down @ place
        found = estimate_up(flight)
        assert angle_deg(found.direction, TRUE_UP) < 1e-6 and "flight" in (found.assumes or "") and not found.is_certain


def test_floors_and_walls_settle_an_estimate_that_is_near() -> None:
    scene = make_scene(6)
    off = so3_exp(torch.tensor([0.1, 0.0, 0.05], dtype=torch.float64)).numpy() @ TRUE_UP
    up = replace(estimate_up(scene.cam_from_world), direction=tuple(off), error_deg=6.0)
    settled = settle_up(up, scene.points.normals)
    assert angle_deg(settled.direction, TRUE_UP) < 1.5 < angle_deg(off, TRUE_UP) and settled.error_deg <= 2
    rng = np.random.default_rng(0)
    scattered = rng.normal(size=(5000, 3))
    scattered /= np.linalg.norm(scattered, axis=1, keepdims=True)
    for nothing in (
        scattered,
        np.zeros((500, 3)),
        np.zeros((0, 3)),
        scene.points.normals @ so3_exp(torch.tensor([0.0, 0, 0.7])).numpy(),
    ):
        assert settle_up(up, nothing.astype(np.float32)) == up


def test_a_scene_stands_upright_about_its_origin_unless_its_world_was_given() -> None:
    world = so3_exp(torch.tensor([0.3, 0.4, -0.3], dtype=torch.float64)).numpy()
    fit = Similarity(torch.tensor(2.0, dtype=torch.float64), torch.from_numpy(world), torch.zeros(3).double())
    scene = with_up(move_scene(make_scene(5), fit), world @ TRUE_UP)
    upright = stand_upright(scene)
    assert upright.info["up"]["direction"] == pytest.approx(TRUE_UP, abs=1e-5)
    assert (upright_from_world(upright) == pytest.approx(np.eye(3), abs=1e-5)) and (upright.scale == scene.scale)
    np.testing.assert_array_equal(upright.depth, scene.depth)
    # What the cameras see stays: points and normals in the frame of a camera.
    seen = [
        np.concatenate([one.points.xyz @ cam[:3, :3].T + cam[:3, 3], one.points.normals @ cam[:3, :3].T])
        for one, cam in ((one, one.cam_from_world[2]) for one in (scene, upright))
    ]
    np.testing.assert_allclose(*seen, atol=1e-5)
    for known in ({"known": {"views": {"cam_from_world": 2}}}, {"gps": {}}):
        held = replace(scene, info={**scene.info, **known})
        assert stand_upright(held) is held


def test_the_scene_keeps_its_world_and_says_how_to_turn_it_upright() -> None:
    world = so3_exp(torch.tensor([1.0, 0.4, -0.3], dtype=torch.float64)).numpy()
    scene = make_scene(5)
    fit = Similarity(torch.tensor(2.0, dtype=torch.float64), torch.from_numpy(world), torch.zeros(3).double())
    turned = with_up(move_scene(scene, fit))
    rotation = upright_from_world(turned)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
    assert angle_deg(rotation @ turned.info["up"]["direction"], TRUE_UP) < 1e-3
    assert angle_deg(rotation @ world @ TRUE_UP, TRUE_UP) < 3
    again = move_scene(turned, fit.inverse())
    assert angle_deg(again.info["up"]["direction"], world.T @ turned.info["up"]["direction"]) < 1e-3
    np.testing.assert_allclose(upright_from_world(again), again.info["up"]["upright_from_world"], atol=1e-5)
    assert turned_up({}, world) == {} and (upright_from_world(scene) == np.eye(3)).all()


@settings(deadline=None)
@given(vectors.filter(lambda v: np.linalg.norm(v) > 1e-3))
def test_the_rotation_is_the_smallest_that_turns_up_to_where_it_belongs(up) -> None:
    up = np.array(up) / np.linalg.norm(up)
    rotation = rotation_down(up)
    np.testing.assert_allclose(rotation @ up, TRUE_UP, atol=1e-7)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-7)
    assert np.linalg.det(rotation) > 0
    turn_deg = np.degrees(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1)))
    assert abs(turn_deg - angle_deg(up, TRUE_UP)) < 0.01


def test_up_as_given() -> None:
    assert parse_up("auto") is None
    assert parse_up(" -Y ") == (0.0, -1.0, 0.0) and parse_up("z") == (0.0, 0.0, 1.0)
    np.testing.assert_allclose(parse_up("0,3,4"), (0, 0.6, 0.8))
    for wrong in ("w", "", "1,2", "0,0,0", "1,nan,0", "inf,0,0", "--y"):
        with pytest.raises(UsageError, match="--up is"):
            parse_up(wrong)
