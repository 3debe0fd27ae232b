"""Survey outputs, read back with the libraries of those who use them: LAS, LAZ, GeoTIFF, cameras.csv, trajectories."""

from __future__ import annotations

import csv
import errno
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export.geo_scene import ALTITUDE, FLIGHT_M, LATITUDE, LONGITUDE, colour, flight, ground, located
from export.scene import make_scene
from lean3r.errors import InputError, MissingExtraError, UsageError
from lean3r.export import EXPORTERS, ExportOptions, export
from lean3r.export.geo import check, check_place, geo_frame, wkt_of
from lean3r.export.trajectory import lines
from lean3r.geometry.earth import geodetic
from lean3r.geometry.overhead import Grid, highest
from lean3r.geometry.rotation import so3_exp
from lean3r.inputs.trajectory import read_trajectory
from lean3r.refine.scale import with_places
from lean3r.types import with_warning

pyproj = pytest.importorskip("pyproj", reason="the extra geo is not installed")
laspy, rasterio = pytest.importorskip("laspy"), pytest.importorskip("rasterio")
ZONE = pyproj.CRS.from_epsg(32615)
TO_UTM = pyproj.Transformer.from_crs(4326, ZONE, always_xy=True)
EAST, NORTH = TO_UTM.transform(LONGITUDE, LATITUDE)


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """Everything written of the flight."""
    return export(located(), tmp_path_factory.mktemp("geo") / "out", "csv,las,laz,geotiff")


def off_centre(places: np.ndarray) -> np.ndarray:
    """Metres east and north of the centre of UTM coordinates, in true directions and lengths."""
    lon, lat = TO_UTM.transform(*places.T, direction="INVERSE")
    azimuth, _, metres = pyproj.Geod(ellps="WGS84").inv(
        np.full(len(lon), LONGITUDE), np.full(len(lon), LATITUDE), lon, lat
    )
    return np.stack([metres * np.sin(np.radians(azimuth)), metres * np.cos(np.radians(azimuth))], axis=1)


def test_las_and_laz_lie_on_the_true_ground_in_utm(survey) -> None:
    cloud = laspy.read(survey / "points.las")
    assert cloud.header.version == "1.4" and cloud.header.parse_crs().to_epsg() == 32615
    places = np.stack([cloud.x, cloud.y, cloud.z], axis=1)
    assert len(places) > 5000
    at = off_centre(places[:, :2])
    heights = ground(*at.T) + ALTITUDE - FLIGHT_M
    assert np.abs(places[:, 2] - heights).max() < 0.05
    rgb = np.stack([cloud.red, cloud.green, cloud.blue], axis=1) / 257
    assert np.abs(rgb - colour(*at.T)).max() < 3
    assert cloud.confidence.min() > 0 and set(np.unique(cloud.point_source_id)) <= set(range(1, 10))
    packed = laspy.read(survey / "points.laz")
    assert (packed.X == cloud.X).all() and (survey / "points.laz").stat().st_size < (
        survey / "points.las"
    ).stat().st_size / 2


def test_las_is_what_strict_readers_of_the_standard_demand(survey, tmp_path) -> None:
    """PDAL and QGIS refuse point formats from 6 on without the flag of WKT, also without any coordinate system; the
    standard wants the older WKT, of 2001, and returns that count from 1."""
    local = export(flight()[0], tmp_path / "local", "las")
    for folder, crs in ((survey, "PROJCS["), (local, None)):
        cloud = laspy.read(folder / "points.las")
        assert cloud.header.global_encoding.wkt
        assert [vlr.string[:7] for vlr in cloud.header.vlrs.get("WktCoordinateSystemVlr")] == ([crs] if crs else [])
        assert (cloud.return_number == 1).all() and (cloud.number_of_returns == 1).all()
        assert cloud.header.number_of_points_by_return[0] == len(cloud.points)
    equal_earth = pyproj.CRS.from_epsg(8857)
    assert wkt_of(equal_earth).startswith("PROJCRS["), "a projection that the older WKT lacks"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk is imitated by a device of Linux")
@pytest.mark.parametrize(
    "name, file",
    [("las", "points.las"), ("laz", "points.laz"), ("geotiff", "elevation.tif"), ("geotiff", "orthophoto.tif")],
)
def test_a_full_disk_is_told_apart_from_other_failures(tmp_path, name: str, file: str) -> None:
    (tmp_path / file).symlink_to("/dev/full")
    with pytest.raises(OSError) as caught:
        EXPORTERS.get(name)(flight()[0], tmp_path, ExportOptions())
    assert caught.value.errno == errno.ENOSPC


def test_elevation_and_orthophoto_are_the_ground_from_above(survey) -> None:
    with rasterio.open(survey / "elevation.tif") as file, rasterio.open(survey / "orthophoto.tif") as photo:
        assert file.crs == photo.crs == rasterio.crs.CRS.from_epsg(32615) and file.transform == photo.transform
        heights, (*rgb, alpha) = file.read(1, masked=True), photo.read()
        assert photo.colorinterp[3].name == "alpha"
        rows, cols = np.nonzero(~heights.mask & (alpha > 0))
        at = off_centre(np.stack(rasterio.transform.xy(file.transform, rows, cols), axis=-1).reshape(-1, 2))
        assert file.res[0] == pytest.approx(1.5, rel=0.15)
    assert len(rows) > 0.8 * heights.size, "most of the rectangle was seen"
    error = heights.data[rows, cols] - (ground(*at.T) + ALTITUDE - FLIGHT_M)
    assert np.abs(np.median(error)) < 0.02 and np.percentile(np.abs(error), 95) < 0.25
    wrong = np.abs(np.stack(rgb, axis=-1)[rows, cols] - colour(*at.T)).max(axis=1)
    assert np.percentile(wrong, 95) < 4
    manifest = json.loads((survey / "manifest.json").read_text())
    assert manifest["geotiff"]["crs"] == "EPSG:32615" and manifest["geotiff"]["height"] == heights.shape[0]
    assert manifest["up"]["source"] == "gps" and manifest["gps"]["rms_m"] < 0.01


@pytest.mark.parametrize("crs", ["utm", "EPSG:32615"])
def test_a_run_whose_cameras_give_no_place_keeps_its_result(tmp_path, caplog, crs: str) -> None:
    """Without GPS it is an error; with GPS that did not help, everything is written in local axes."""
    scene, options = flight()[0], ExportOptions(crs=crs)
    with pytest.raises(InputError, match="needs a place on earth"):
        export(scene, tmp_path / "none", "las", options=options)
    told = export(
        with_warning(scene, "no-scale", "lengths are not in metres"), tmp_path / "out", "las", options=options
    )
    assert laspy.read(told / "points.las").header.parse_crs() is None
    assert f"coordinates are local, not in {crs}" in caplog.text


def test_maps_of_elsewhere_are_refused_before_the_run_and_lose_nothing_after_it(tmp_path, caplog) -> None:
    places = [(place.latitude_deg, place.longitude_deg) for place in flight()[1].values()]
    for crs in ("EPSG:2056", "EPSG:25832", "EPSG:32633"):
        with pytest.raises(InputError, match=r"a map of .*; the pictures were taken at latitude 46\.843"):
            ExportOptions(crs=crs).check_map(places)
    for crs in ("auto", "enu", "utm", "EPSG:32615", "EPSG:32614", "EPSG:5070"):
        ExportOptions(crs=crs).check_map(places)
    ExportOptions(crs="EPSG:2056").check_map([])
    fiji = [(-17.0, 179.999), (-17.0, -179.999)]
    ExportOptions(crs="EPSG:3460").check_map(fiji)
    with pytest.raises(InputError, match="EPSG:32615"):
        ExportOptions(crs="EPSG:32615").check_map(fiji)
    with pytest.raises(InputError, match="no UTM zone"):
        ExportOptions(crs="utm").check_map([(89.9, 0.0)])
    scene = located()
    pole = {**scene.info["gps"], "origin": {**scene.info["gps"]["origin"], "latitude_deg": 89.9}}
    out = export(replace(scene, info={**scene.info, "gps": pole}), tmp_path / "pole", "las")
    assert laspy.read(out / "points.las").header.parse_crs() is None and "no UTM zone" in caplog.text


def test_yaw_of_a_camera_about_straight_down_is_that_of_its_top(tmp_path) -> None:
    """Tilted by some degrees in any direction, the direction in which it looks hardly tells where it points."""
    scene = located()
    tilts = torch.tensor([[0.1, 0, 0], [0, 0.1, 0], [-0.1, 0, 0], [0, -0.1, 0], [0.2, 0.2, 0]], dtype=torch.float64)
    poses = scene.cam_from_world.copy()
    poses[:5, :3] = so3_exp(tilts).numpy() @ poses[:5, :3]
    out = export(replace(scene, cam_from_world=poses), tmp_path / "out", "csv")
    with (out / "cameras.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[:5]
    yaws = [(float(row["yaw_deg"]) + 180) % 360 - 180 for row in rows]
    assert np.abs(yaws).max() < 3
    rolls = [float(row["roll_deg"]) for row in rows]
    assert rolls[0] == pytest.approx(0, abs=0.1) and abs(rolls[1]) == pytest.approx(np.degrees(0.1), abs=0.1)
    assert rolls[1] == pytest.approx(-rolls[3], abs=0.1)


@pytest.mark.parametrize("scale", ["metric", "relative"])
def test_a_length_of_unknown_unit_is_not_read_as_metres(tmp_path, scale: str) -> None:
    out = export(replace(flight()[0], scale=scale), tmp_path / "out", "geotiff")
    for name in ("elevation.tif", "orthophoto.tif"):
        with rasterio.open(out / name) as file:
            assert file.transform.a == pytest.approx(3, rel=0.15)
            assert ('UNIT["metre",1' in file.crs.to_wkt()) if scale == "metric" else not file.crs


def test_a_cell_too_small_for_the_scene_is_told(tmp_path, caplog) -> None:
    cells = {}
    for asked in (1e-6, 3.0):
        out = export(located(), tmp_path / str(asked), "geotiff", options=ExportOptions(ground_cell=asked))
        cells[asked] = json.loads((out / "manifest.json").read_text())["geotiff"]["cell"]
    assert cells[1e-6] > 1e-3 and cells[3.0] == 3
    said = [text for text in caplog.messages if "cells" in text]
    assert said == [f"cells of 1e-06 are too many for this scene: the GeoTIFFs have cells of {cells[1e-6]:g}"]


def test_camera_table_has_places_residuals_and_angles(survey) -> None:
    with (survey / "cameras.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    places = flight()[1]
    assert [row["name"] for row in rows] == list(places)
    for row in rows:
        place = places[row["name"]]
        assert abs(float(row["latitude_deg"]) - place.latitude_deg) < 1e-7
        assert abs(float(row["longitude_deg"]) - place.longitude_deg) < 1e-7
        assert abs(float(row["altitude_m"]) - ALTITUDE) < 0.01 and float(row["gps_residual_m"]) < 0.01
        assert float(row["pitch_deg"]) == pytest.approx(-90, abs=0.1)
        assert min(float(row["yaw_deg"]), 360 - float(row["yaw_deg"])) < 0.1
    scene, moved = flight()[0], dict(places)
    moved["DJI_0004.jpg"] = replace(moved["DJI_0004.jpg"], altitude_m=ALTITUDE + 2.0)
    off = with_places(scene, moved).info["gps"]
    (row,) = [row for row in off["residuals"] if row["name"] == "DJI_0004.jpg"]
    assert row["up_m"] == pytest.approx(-2, abs=0.3) and off["left_out"] == ["DJI_0004.jpg"]


def test_an_unknown_altitude_is_empty(tmp_path) -> None:
    scene, places = flight()
    flat = with_places(scene, {name: replace(place, altitude_m=None) for name, place in places.items()})
    (path,) = EXPORTERS.get("csv")(flat, tmp_path, ExportOptions())
    with path.open(newline="", encoding="utf-8") as file:
        row = next(csv.DictReader(file))
    assert row["altitude_m"] == row["gps_residual_up_m"] == "" and abs(float(row["latitude_deg"])) > 0
    said = flat.info["gps"]["residuals"][0]
    assert said["up_m"] is None, "nobody stated a height"
    level = [float(row[f"gps_residual_{key}_m"]) for key in ("east", "north")]
    assert float(row["gps_residual_m"]) == pytest.approx(np.hypot(*level), abs=2e-3)


def test_what_is_not_known_is_empty_and_no_name_is_a_formula(tmp_path) -> None:
    names = ["=1+1.jpg", 'a"b,c\n.jpg', "\udcff.jpg"]
    (path,) = EXPORTERS.get("csv")(make_scene(3, names=names), tmp_path, ExportOptions())
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["'=1+1.jpg", names[1], "\\udcff.jpg"]
    assert {row["latitude_deg"] + row["gps_residual_m"] + row["error_px"] + row["time_s"] for row in rows} == {""}


@pytest.mark.parametrize("crs", ["enu", "EPSG:3857", "EPSG:2180", "utm"])
def test_coordinates_lead_back(crs: str) -> None:
    scene = located()
    if crs == "EPSG:2180":  # axes north, east in the registry: always_xy puts east first
        with pytest.raises(InputError, match="--gps or --positions"):
            geo_frame(make_scene(2), crs)
    frame = geo_frame(scene, crs) if crs != "EPSG:2180" else geo_frame(scene, "EPSG:26915")
    places = frame.of_world(scene.points.xyz)
    np.testing.assert_allclose(frame.to_world(places), scene.points.xyz, atol=1e-3)
    if crs == "enu":
        assert frame.crs is None and np.allclose(places[:, 0], scene.points.xyz[:, 0], atol=1e-5)
        assert np.allclose(places[:, 2], -scene.points.xyz[:, 1], atol=1e-5)


@pytest.mark.parametrize(("crs", "place"), [("EPSG:3857", (46, 10)), ("EPSG:3031", (-75, 0)), ("EPSG:3832", (0, -170))])
def test_maps_of_the_whole_circle_cover_every_longitude(crs: str, place: tuple[float, float]) -> None:
    check_place(crs, [place])


@pytest.mark.parametrize("wrong", ["EPSG:4326", "EPSG:999999", "epsg:", "WGS84", "EPSG:2264", ""])
def test_coordinate_systems_that_do_not_fit(wrong: str) -> None:
    with pytest.raises(UsageError, match="crs"):
        geo_frame(located(), wrong)


def test_a_missing_extra_says_what_to_install(monkeypatch, tmp_path) -> None:
    for module, format in (("pyproj", "las"), ("laspy", "laz"), ("lazrs", "las"), ("rasterio", "geotiff")):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, module, None)
            for call in (check, lambda name=format: EXPORTERS.get(name)(located(), tmp_path, ExportOptions())):
                with pytest.raises(MissingExtraError, match=r"pip install 'lean3r\[geo\]'"):
                    call()


@pytest.mark.parametrize("factor", [1e-30, 1e-9, 1e12, 1e30])
@pytest.mark.parametrize("scale", ["relative", "metric"])
def test_absurd_sizes(tmp_path, factor: float, scale: str) -> None:
    scene = make_scene(2, height=24, width=32)
    points = replace(scene.points, xyz=scene.points.xyz * np.float32(factor))
    poses = scene.cam_from_world.copy()
    poses[:, :3, 3] *= factor
    absurd = {"depth": scene.depth * np.float32(factor), "cam_from_world": poses, "points": points, "scale": scale}
    out = export(replace(scene, **absurd), tmp_path / "out", "csv,las,geotiff,trajectory,report")
    xyz = laspy.read(out / "points.las").xyz
    assert np.abs(np.ptp(xyz, axis=0) / np.ptp(points.xyz, axis=0)[[0, 2, 1]] - 1).max() < 1e-4


@settings(deadline=None)
@given(st.floats(-89.99, 89.99), st.floats(-180, 180), st.floats(-400, 9000), st.tuples(*[st.floats(-5e4, 5e4)] * 3))
def test_degrees_are_those_of_proj(latitude: float, longitude: float, height: float, enu) -> None:
    steps = (
        f"+proj=pipeline +step +inv +proj=topocentric +lat_0={latitude!r} +lon_0={longitude!r} +h_0={height!r} "
        "+ellps=WGS84 +step +inv +proj=cart +ellps=WGS84 +step +proj=unitconvert +xy_in=rad +xy_out=deg"
    )
    lon, lat, up = pyproj.Transformer.from_pipeline(steps).transform(*enu)
    found = geodetic(np.array([enu]), latitude, longitude, height)[0]
    assert abs(found[0] - lat) < 1e-9 and abs(found[2] - up) < 1e-4
    assert abs((found[1] - lon + 180) % 360 - 180) * np.cos(np.radians(lat)) < 1e-9


def test_trajectories_come_back_with_their_times(tmp_path) -> None:
    scene = make_scene(4)
    times = [0.4, 1_305_031_102.175304, 0.1, 0.2]
    labels = ("refined", "refined", "uncertain", "refined")
    sources = tuple(replace(s, timestamp_s=t) for s, t in zip(scene.sources, times, strict=True))
    EXPORTERS.get("trajectory")(replace(scene, sources=sources, registration=labels), tmp_path, ExportOptions())
    tum = read_trajectory(tmp_path / "trajectory_tum.txt")
    order = [3, 0, 1]
    assert tum.times_s.tolist() == [times[view] for view in order]
    truth = np.linalg.inv(scene.cam_from_world)[order]
    np.testing.assert_allclose(tum.world_from_cam, truth, atol=1e-7)
    kitti = np.loadtxt(tmp_path / "trajectory_kitti.txt").reshape(-1, 3, 4)
    np.testing.assert_allclose(kitti, truth[:, :3], atol=1e-7)
    assert (np.loadtxt(tmp_path / "times.txt") == tum.times_s).all()


def test_each_video_has_a_trajectory_of_its_own(tmp_path) -> None:
    names = ["a/walk_000000.png", "a/walk_000010.png", "b/walk_000000.png", "b/walk_000010.png"]
    scene = make_scene(4, names=names)
    sources = tuple(replace(s, timestamp_s=t) for s, t in zip(scene.sources, [0.0, 0.4, 0.0, 0.4], strict=True))
    files = EXPORTERS.get("trajectory")(replace(scene, sources=sources), tmp_path, ExportOptions())
    assert sorted(path.name for path in files)[-2:] == ["trajectory_tum_walk.txt", "trajectory_tum_walk_2.txt"]
    second = read_trajectory(tmp_path / "trajectory_tum_walk_2.txt")
    assert second.times_s.tolist() == [0.0, 0.4]
    np.testing.assert_allclose(second.world_from_cam, np.linalg.inv(scene.cam_from_world)[2:], atol=1e-7)


def test_times_from_names_or_numbers(tmp_path) -> None:
    for folder, names, wanted in (
        ("stamps", ["1305031102.175304.png", "1305031102.211214.png"], [1305031102.175304, 1305031102.211214]),
        ("plain", ["a.jpg", "b.jpg"], [0, 1]),
        ("pairs", ["left/1305031102.175304.png", "right/1305031102.175304.png"], [0, 1]),
    ):
        (tmp_path / folder).mkdir()
        EXPORTERS.get("trajectory")(make_scene(2, names=names), tmp_path / folder, ExportOptions())
        text = (tmp_path / folder / "trajectory_tum.txt").read_text()
        assert np.loadtxt(text.splitlines())[:, 0].tolist() == wanted
        assert ("numbers of the views" in text) == (folder != "stamps")
    assert lines(0.0, np.eye(4))[0] == "0 0 0 0 0 0 0 1\n"


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.floats(-100, 100)] * 3), min_size=1, max_size=30), st.floats(0.1, 10))
def test_a_grid_holds_every_point_in_one_cell(points, cell: float) -> None:
    east, north, height = np.array(points).T
    grid = Grid.around(east, north, cell)
    at = grid.cells(east, north)
    assert (at >= 0).all()
    top = highest(grid, east, north, height)
    for number in np.unique(at):
        assert height[top.flat[number]] == height[at == number].max()
    assert (top >= 0).sum() == len(np.unique(at))


@pytest.mark.parametrize(
    ("number", "latitude", "longitude"),
    [(2056, 46.95, 7.44), (27700, 51.5, -0.12), (28992, 52.09, 5.12), (32632, 50, 9)],
)
def test_heights_are_those_that_were_stated_in_every_system(number: int, latitude: float, longitude: float) -> None:
    """A national system has an ellipsoid of its own, up to 50 m below."""
    scene = located()
    origin = {"latitude_deg": latitude, "longitude_deg": longitude, "altitude_m": 240.0}
    frame = geo_frame(replace(scene, info=scene.info | {"gps": {"origin": origin}}), f"EPSG:{number}")
    world = np.array([[0.0, 0.0, 0.0], [30.0, -5.0, 40.0]])
    places = frame.of_world(world)
    assert np.allclose(places[:, 2], [240, 245], atol=1e-3)
    moved = np.linalg.norm(np.diff(places, axis=0)[0, :2])
    assert moved == pytest.approx(50, rel=1e-3), "the grid's scale differs a little from 1"
    assert np.allclose(frame.to_world(places), world, atol=0.01), "national grids go back to a millimetre or so"


def test_trajectories_in_coordinates_of_maps_keep_a_tenth_of_a_millimetre() -> None:
    pose = np.eye(4)
    pose[:3, 3] = -500000.1234567, 12.3456789, -5300000.1234567
    tum, kitti, _ = lines(1.0, pose)
    assert [float(text) for text in tum.split()[1:4]] == pytest.approx(
        [500000.1234567, -12.3456789, 5300000.1234567], abs=1e-5
    )
    assert float(kitti.split()[11]) == pytest.approx(5300000.1234567, abs=1e-5)
