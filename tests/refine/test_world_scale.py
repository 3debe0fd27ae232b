"""Metres from a known distance and from GPS: exact on exact numbers, robust, refused where they say nothing."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from export.scene import make_scene
from PIL import Image

from lean3r.data.sets.colmap import read_cameras
from lean3r.errors import InputError, UsageError
from lean3r.geometry.align import Similarity
from lean3r.geometry.consistency import Scene
from lean3r.geometry.lens import Optics
from lean3r.geometry.rotation import so3_exp
from lean3r.geometry.up import Up
from lean3r.inputs.pictures import Pictures
from lean3r.refine.options import ScaleOptions
from lean3r.refine.scale import Distance, Place, local_metres, place_of, read_places, with_distance, with_places
from lean3r.types import SparsePoints

METRES_PER_DEGREE = 111_195.0  # along a meridian, roughly


def centres(scene) -> np.ndarray:
    return np.stack([-p[:3, :3].T @ p[:3, 3] for p in scene.cam_from_world])


def with_sparse(scene):
    one = np.zeros(1, np.int32)
    xyz, rgb = scene.points.xyz[:1].astype(float), scene.points.rgb[:1]
    sparse = SparsePoints(xyz, rgb, np.ones(1), one, one, np.ones((1, 2)))
    return replace(scene, sparse=sparse)


def test_a_known_distance_gives_metres():
    scene = with_sparse(make_scene(4))
    found = with_distance(scene, Distance.parse("IMG_000.jpg, IMG_003.jpg=7.5"))
    assert np.linalg.norm(np.subtract(*centres(found)[[0, 3]])) == pytest.approx(7.5)
    factor = 7.5 / np.linalg.norm(np.subtract(*centres(scene)[[0, 3]]))
    np.testing.assert_allclose(found.depth, scene.depth * factor, rtol=1e-6)
    np.testing.assert_allclose(found.points.xyz, scene.points.xyz * factor, rtol=1e-5)
    np.testing.assert_allclose(found.sparse.xyz, scene.sparse.xyz * factor)
    np.testing.assert_allclose(found.cam_from_world[:, :3, :3], scene.cam_from_world[:, :3, :3], atol=1e-12)
    assert (found.scale, scene.scale) == ("metric", "relative")
    json.dumps(found.info)


def test_an_uncertain_camera_far_away_does_not_belittle_a_distance(caplog):
    scene = make_scene(5)
    away = scene.cam_from_world.copy()
    away[2, :3, 3] += 1e9
    registration = tuple("uncertain" if view == 2 else "refined" for view in range(5))
    found = with_distance(
        replace(scene, cam_from_world=away, registration=registration), Distance.parse("IMG_000.jpg,IMG_004.jpg=7.5")
    )
    assert np.linalg.norm(np.subtract(*centres(found)[[0, 4]])) == pytest.approx(7.5)
    assert not caplog.text


@pytest.mark.parametrize(
    "text", ["", "a.jpg=1", "a,b", "a,b=0", "a,b=-2", "a,b=x", ",b=1", "a,=1", "a,b=nan", "a,b=inf"]
)
def test_invalid_distances_are_refused(text):
    with pytest.raises(UsageError, match="expected two pictures"):
        Distance.parse(text)


def test_names_are_found_by_their_end_and_only_if_one_fits():
    scene = make_scene(3, names=["a/x.jpg", "b/x.jpg", "c.jpg"])
    assert with_distance(scene, Distance("b/x.jpg", "c.jpg", 2.0)).scale == "metric"
    for wrong, message in (("x.jpg", "matches 2 pictures"), ("d.jpg", "matches no picture")):
        with pytest.raises(InputError, match=message):
            with_distance(scene, Distance(wrong, "c.jpg", 2.0))
    with pytest.raises(UsageError, match="one picture"):
        with_distance(scene, Distance("c.jpg", "c.jpg", 2.0))
    assert with_distance(scene, Distance("photos/c.jpg", "in/a/x.jpg", 2.0)).scale == "metric"
    with pytest.raises(InputError, match="one place"):
        still = np.repeat(scene.cam_from_world[:1], 3, axis=0)
        with_distance(replace(scene, cam_from_world=still), Distance("b/x.jpg", "c.jpg", 2.0))
    doubted = replace(scene, registration=("refined", "uncertain", *["refined"] * (len(scene.names) - 2)))
    with pytest.raises(InputError, match=f"camera of {doubted.names[1]} is uncertain"):
        with_distance(doubted, Distance(doubted.names[0], doubted.names[1], 2.0))


def test_names_with_commas_are_found():
    scene = make_scene(3, names=["a, b.jpg", "c,d,e.jpg", "c"])
    found = with_distance(scene, Distance.parse("a, b.jpg,c,d,e.jpg=2"))
    assert np.linalg.norm(np.subtract(*centres(found)[:2])) == pytest.approx(2)
    assert found.info["known_distance"]["second"] == "c,d,e.jpg"
    with pytest.raises(InputError, match="'a' matches no picture"):
        with_distance(scene, Distance.parse("a,c,x.jpg=2"))


def test_a_scale_is_refused_before_anything_is_computed_and_loses_nothing_afterwards(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (32, 24)).save(tmp_path / name)
    pictures = Pictures(str(tmp_path))
    with pytest.raises(InputError, match=r"--scale: 'd\.png' matches no picture; the pictures used are a\.png, b\.png"):
        ScaleOptions(scale="a.png,d.png=1").check(pictures)
    options = ScaleOptions(scale="a.png,b.png=1")
    options.check(pictures)
    scene = replace(make_scene(3, names=pictures.names), registration=("refined", "uncertain", "refined"))
    kept = options.apply(scene, pictures)
    assert kept.scale == "relative" and kept.depth is scene.depth
    assert [warning["code"] for warning in kept.info["warnings"]] == ["no-scale"]
    assert "the camera of b.png is uncertain" in kept.info["warnings"][0]["text"]


def test_local_metres_against_arithmetic():
    north, east = math.degrees(100 / 6_356_752.3), math.degrees(100 / 6_378_137.0)
    metres, _ = local_metres([Place(-north, 0), Place(north, 0), Place(0, east), Place(0, -east)])
    # 100 m on the equator: its own radius east and west, and b^2 / a (6 335 439 m) north and south.
    np.testing.assert_allclose(metres[2] - metres[3], [200, 0, 0], atol=1e-6)
    np.testing.assert_allclose(metres[1] - metres[0], [0, 0, 200 * 6_335_439.3 / 6_356_752.3], atol=1e-3)
    heights, middle = local_metres([Place(52, 13, 30), Place(52, 13, 50)])
    np.testing.assert_allclose(heights[1] - heights[0], [0, -20, 0], atol=1e-6)
    assert middle.altitude_m == 40
    heights, middle = local_metres([Place(52, 13, 30), Place(52, 13), Place(52, 13, 50)])
    np.testing.assert_allclose(heights[:, 1], [10, 0, -10], atol=1e-6)
    assert middle.altitude_m == 40 and local_metres([Place(52, 13)])[1].altitude_m is None
    across, middle = local_metres([Place(10, 179.9999), Place(10, -179.9999)])
    assert np.linalg.norm(across[1] - across[0]) < 30 and abs(abs(middle.longitude_deg) - 180) < 1e-6


def places_of(scene, rng, noise_m: float, metres: float) -> dict[str, Place]:
    """GPS of a scene as if `metres` were its unit, x east, y down, z north."""
    at = metres * (centres(scene) - centres(scene).mean(0)) + rng.normal(0, noise_m, (len(scene.names), 3))
    lat, lon = 47.0, 8.5
    return {
        name: Place(lat + z / METRES_PER_DEGREE, lon + x / (METRES_PER_DEGREE * math.cos(math.radians(lat))), 400 - y)
        for name, (x, y, z) in zip(scene.names, at, strict=True)
    }


def test_gps_gives_metres_axes_and_its_accuracy(caplog):
    scene = with_sparse(make_scene(8))
    places = places_of(scene, np.random.default_rng(0), 0.4, 25.0)
    places["IMG_004.jpg"] = replace(places["IMG_004.jpg"], altitude_m=700.0)  # one fix gone wrong
    found = with_places(scene, places)
    said = found.info["gps"]
    assert said["left_out"] == ["IMG_004.jpg"] and said["used"] == 7 and 0.1 < said["rms_m"] < 1
    assert said["origin"]["latitude_deg"] == pytest.approx(47, abs=1e-3)
    after, before = (np.linalg.norm(np.subtract(*centres(s)[[0, 7]])) for s in (found, scene))
    assert after / before == pytest.approx(25.0, rel=0.02)
    turn = found.cam_from_world[0, :3, :3].T @ scene.cam_from_world[0, :3, :3]
    assert math.degrees(math.acos((np.trace(turn) - 1) / 2)) < 3
    cols, rows = found.points.xy[found.points.view == 2].astype(int).T
    again = Scene(found.depth, found.cam_from_world, Optics.of(found)).world_points(2, rows, cols)
    np.testing.assert_allclose(again, found.points.xyz[found.points.view == 2], atol=1e-3)
    in_camera = [
        np.einsum("pij,pj->pi", s.cam_from_world[s.points.view, :3, :3], s.points.normals) for s in (scene, found)
    ]
    np.testing.assert_allclose(*in_camera, atol=1e-5)
    assert found.scale == "metric" and found.sparse.xyz.shape == (1, 3)
    json.dumps(found.info)
    caplog.clear()
    near = with_places(scene, places_of(scene, np.random.default_rng(0), 1.0, 1.0))
    assert "the scale is only rough" in caplog.text
    assert [warning["code"] for warning in near.info["warnings"]] == ["rough-scale"]


@pytest.mark.parametrize("wrong", ["uncertain", "far off"])
def test_two_positions_that_fit_do_not_turn_the_world(caplog, wrong):
    """Any two positions fit any cameras, turned as one likes around their line: the pictures say what is up."""
    scene = make_scene(8)
    flat = np.eye(4)[None].repeat(8, 0)
    flat[:, :3, 3] = -np.array([[i, 0.0, 0.3 * i * (i - 4)] for i in range(8)])  # level, on a bend
    scene = replace(scene, cam_from_world=flat)
    whole = places_of(scene, np.random.default_rng(0), 0.0, 25.0)
    names = [scene.names[i] for i in (0, 3, 6)]
    places = {name: whole[name] for name in names}
    good = with_places(scene, places)
    assert good.info["gps"]["used"] == 3 and not good.info["gps"]["on_a_line"]
    places[names[2]] = replace(places[names[2]], altitude_m=520.0)
    if wrong == "uncertain":
        scene = replace(scene, registration=tuple("uncertain" if n == names[2] else "refined" for n in scene.names))
    found = with_places(scene, places)
    said = found.info["gps"]
    assert said["used"] == 2 and said["on_a_line"] and said["scale_error"] is None
    assert "the line of the positions" in found.info["up"]["assumes"] and "directions are uncertain" in caplog.text
    if wrong == "uncertain":
        down = found.cam_from_world[0, :3, :3] @ [0, 1, 0]
        assert down[1] > 0.99


def test_flights_that_look_straight_down_hardly_know_their_height():
    scene = make_scene(6)
    down = np.eye(4)[None].repeat(6, 0)
    down[:, :3, :3] = [[1, 0, 0], [0, 0, -1], [0, 1, 0]]  # y, down in the world of places, is the camera's z
    down[:, :3, 3] = -np.einsum("sij,sj->si", down[:, :3, :3], [[i, 0.0, i % 3] for i in range(6)])
    scene = replace(scene, cam_from_world=down)
    places = places_of(scene, np.random.default_rng(0), 0.0, 25.0)

    def codes(scene):
        return [warning["code"] for warning in with_places(scene, places).info.get("warnings", [])]

    assert codes(scene) == ["straight-down"]
    assert not codes(replace(scene, info={**scene.info, "known": {"views": {"intrinsics": 6}}}))


def test_noise_leaves_three_positions_in_use():
    scene, rng = make_scene(6), np.random.default_rng(1)
    for _ in range(20):
        places = places_of(scene, rng, 1.0, 25.0)
        found = with_places(scene, {name: places[name] for name in scene.names[::2]})
        assert found.info["gps"]["used"] == 3


def test_positions_without_heights_say_what_that_assumes():
    scene = make_scene(8)
    places = {
        name: replace(place, altitude_m=None)
        for name, place in places_of(scene, np.random.default_rng(0), 0.2, 25.0).items()
    }
    found = with_places(scene, places).info
    assert "at one height" in found["up"]["assumes"] and found["up"]["certain"]
    assert not found["gps"]["with_altitude"] and {row["up_m"] for row in found["gps"]["residuals"]} == {None}


def test_insufficient_gps_is_refused():
    scene = make_scene(4)
    places = places_of(scene, np.random.default_rng(0), 0.1, 25.0)
    with pytest.raises(InputError, match="0 of 4 pictures"):
        with_places(scene, {})
    with pytest.raises(InputError, match="2 of 4 pictures"):
        with_places(scene, dict(list(places.items())[:2]))
    with pytest.raises(InputError, match="at one place"):
        with_places(scene, dict.fromkeys(scene.names, Place(47, 8.5, 400)))
    doubted = replace(scene, registration=("uncertain", "uncertain", "uncertain", "refined"))
    with pytest.raises(InputError, match="fewer than two cameras"):
        with_places(doubted, dict(list(places.items())[:3]))


def test_positions_on_a_line_leave_the_vertical_to_the_pictures():
    """Cameras in a row, the world turned around that row: the pictures are level, so it is turned back."""
    scene = make_scene(5)
    poses = np.repeat(scene.cam_from_world[2:3], 5, axis=0)
    poses[:, 0, 3] -= np.arange(5) * 0.3
    row = torch.from_numpy(poses[0, 0, :3]) * math.radians(50)  # the cameras' x in the world
    turn = Similarity(torch.tensor(1.0).double(), so3_exp(row), torch.zeros(3).double())
    scene = replace(scene, cam_from_world=turn.apply_to_poses(torch.from_numpy(poses)).numpy())
    east = 1.0 / (METRES_PER_DEGREE * math.cos(math.radians(47)))
    places = {name: Place(47, 8.5 + 6 * i * east, 400.0) for i, name in enumerate(scene.names)}
    found = with_places(scene, places)
    assert found.info["gps"]["on_a_line"]
    assert np.linalg.norm(np.subtract(*centres(found)[[0, 4]])) == pytest.approx(24, rel=0.01)
    x, y, z = found.cam_from_world[0, :3, :3]
    assert abs(x[1]) < 0.02 < 0.99 < x[0] and y[1] + z[1] > 0


@pytest.mark.parametrize("held", ["ahead", "down", "down, measured"])
def test_rows_along_a_line_of_positions_do_not_turn_the_world(caplog, held):
    """Along a street, sideways: rows that run along the line are horizontal however the world is turned around it."""
    scene, rng = make_scene(6), np.random.default_rng(0)
    poses = np.eye(4)[None].repeat(6, 0)
    poses[:, :3, :3] = so3_exp(torch.from_numpy(rng.normal(0, math.radians(1.0), (6, 3)))).numpy()
    poses[:, 0, 3] = -np.arange(6.0)
    east = 1.0 / (METRES_PER_DEGREE * math.cos(math.radians(47)))
    places = {name: Place(47, 8.5 + 6 * i * east, 400.0) for i, name in enumerate(scene.names)}
    scene = replace(scene, cam_from_world=poses)
    if held == "down, measured":
        scene = replace(scene, info={"up": Up((0.0, 0.0, -1.0), "exif", error_deg=2.0).as_dict()})
    if held != "ahead":  # rows across the line
        row = so3_exp(torch.tensor([0.0, 0.0, math.pi / 2]).double()).numpy()
        poses[:, :3] = (row if held == "down" else np.eye(3)) @ poses[:, :3]
    found = with_places(scene, places)
    down = found.cam_from_world[:, :3, 1].mean(axis=0)  # of the world, in the cameras' axes
    assert down @ ([0, 1, 0] if held == "ahead" else [0, 0, 1]) > 0.999
    assert found.info["up"]["certain"] == (held != "ahead")
    said = {"ahead": "look ahead", "down": "rows are assumed to be horizontal", "down, measured": "cameras measured"}
    assert said[held] in caplog.text and "level" not in caplog.text


def test_how_uncertain_cameras_are_turned_does_not_tilt_the_world():
    """Cameras that move ahead, level; two of them uncertain and rolled."""
    scene = make_scene(5)
    poses = np.eye(4)[None].repeat(5, 0)
    poses[1:3, :3, :3] = so3_exp(torch.tensor([0.0, 0.0, 0.9]).double()).numpy()
    poses[:, 2, 3] = -np.arange(5.0)
    registration = tuple("uncertain" if view in (1, 2) else "refined" for view in range(5))
    scene = replace(scene, cam_from_world=poses, registration=registration)
    places = {name: Place(47 + 6 * i / METRES_PER_DEGREE, 8.5, 400.0) for i, name in enumerate(scene.names)}
    found = with_places(scene, places)
    assert found.info["gps"]["on_a_line"]
    assert found.cam_from_world[0, 1, 1] > 0.999  # down is down in the pictures


def test_exif_is_read_from_files(tmp_path):
    exif = Image.Exif()
    exif[0x8825] = {1: "S", 2: (33.0, 30.0, 36.0), 3: "E", 4: (151.0, 15.0, 0.0), 5: b"\x01", 6: 12.5}
    Image.new("RGB", (64, 48)).save(tmp_path / "a.jpg", exif=exif)
    Image.new("RGB", (64, 48)).save(tmp_path / "b.jpg")
    found = read_places(Pictures([tmp_path]), ["a.jpg", "b.jpg"])
    assert found == {"a.jpg": Place(pytest.approx(-33.51), pytest.approx(151.25), -12.5)}


@pytest.mark.parametrize(
    "fields", [{}, {2: (1, 2, 3)}, {2: "x", 4: "y"}, {2: (91, 0, 0), 4: (0, 0, 0)}, {2: (0, 0, 0), 4: (0, 0, 0)},
               {2: (float("nan"),) * 3, 4: (1, 0, 0)}, {2: (), 4: None}, {2: (47, 0, 0), 4: (8, 0, 0), 9: "V"}],
)  # fmt: skip
def test_invalid_gps_gives_none(fields):
    assert place_of(fields) is None


@pytest.mark.parametrize(("reference", "altitude_m"), [(0, 7), (1, -7), (2, 7), (3, -7), (b"\x03", -7)])
def test_gps_with_unused_seconds_and_heights_over_the_ellipsoid(reference: object, altitude_m: float):
    fields = {2: (47.0, 30.0, float("nan")), 4: (8.0, 15.0, 0.0), 5: reference, 6: 7.0, 9: "A"}
    assert place_of(fields) == Place(47.5, 8.25, altitude_m)


def test_drone_pictures_agree_with_their_gps(data_dir):
    """The cameras of the survey, whose scale is arbitrary, put into metres."""
    folder = data_dir / "scenes" / "brighton_beach_aerial"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    cameras = read_cameras(folder / "gt")
    names = list(cameras.names)
    places = read_places(Pictures([folder / "images"]), names)
    scene = make_scene(len(names), names=names, height=24, width=32)
    scene = replace(scene, cam_from_world=cameras.cam_from_world)
    found = with_places(scene, places)
    said = found.info["gps"]
    assert said["pictures"] == 6 and said["on_a_line"] and said["rms_m"] < 0.6 and said["scale_error"] < 0.02
    looking = found.cam_from_world[:, 2, :3]  # straight down: y of the world
    assert (looking[:, 1] > 0.95).all()
