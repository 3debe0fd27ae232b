"""The last adjustment of photos: as exact as most measurements, and with distortion only where they show it."""

from __future__ import annotations

import numpy as np
import pycolmap
import pytest

from lean3r.refine.adjust import Mapper
from lean3r.refine.features import camera_of
from lean3r.refine.job import Group, Job, View
from lean3r.refine.reversal import turned_inside_out
from lean3r.refine.sharpen import adjusted, errors_px, solid_of_hollow

VIEWS, POINTS, FOCAL = 8, 250, 290.0


def model_of(
    job: Job, distortion: float, depth: tuple[float, float] = (4, 7), step: float = 0.6
) -> tuple[pycolmap.Reconstruction, np.ndarray]:
    """Photos of a lens, zoomed a little differently, after an adjustment; and the true focal lengths [S]. Nine of ten
    measurements are within a tenth of a pixel or two, one is off by up to four."""
    rng = np.random.default_rng(0)
    focals = FOCAL * np.linspace(1, 1.2, VIEWS)
    xyz = rng.uniform((-2, -1.5, depth[0]), (2, 1.5, depth[1]), (POINTS, 3))
    model, poses = pycolmap.Reconstruction(), []
    for view in range(VIEWS):
        turn = pycolmap.Rotation3d(np.array([0.02 * view, 0.09 * (view - 3.5), 0.01 * view]))
        centre = np.array([step * (view - 3.5), 0.1 * view, 0.05 * view])
        pose = pycolmap.Rigid3d(turn, -(turn.matrix() @ centre))
        camera = camera_of(job.groups[view], view + 1)
        camera.params = [focals[view], *job.groups[view].params[1:3], distortion]
        xy = np.asarray(camera.img_from_cam(pose * xyz)) + rng.normal(0, 0.12, (POINTS, 2))
        off = rng.random(POINTS) < 0.1
        xy[off] += rng.uniform(-4, 4, (off.sum(), 2))
        model.add_camera_with_trivial_rig(camera)
        points = pycolmap.Point2DList([pycolmap.Point2D(place) for place in xy])
        image = pycolmap.Image(name=f"{view}.bmp", points2D=points, camera_id=view + 1, image_id=view + 1)
        model.add_image_with_trivial_frame(image, pose)
        poses.append(pose)
    for number, place in enumerate(xyz):
        seen = rng.choice(VIEWS, 3, replace=False).tolist()
        model.add_point3D(place, pycolmap.Track([pycolmap.TrackElement(view + 1, number) for view in seen]))
    pycolmap.bundle_adjustment(model, mapper_of(job).adjustment(model, 1e-8))
    return model, focals


def job_of(lens_assumed: bool) -> Job:
    group = Group(320, 240, "SIMPLE_RADIAL", (FOCAL, 160.0, 120.0, 0.0), lens_assumed=lens_assumed)
    views = tuple(View(view, 1.0, f"{view}.bmp") for view in range(VIEWS))
    poses, pinholes = np.tile(np.eye(4), (VIEWS, 1, 1)), np.tile([FOCAL, FOCAL, 160, 120], (VIEWS, 1))
    return Job(views, (group,) * VIEWS, poses, pinholes, poses, np.zeros(VIEWS, bool), None, 100, 1)


def mapper_of(job: Job) -> Mapper:
    """A mapper without a database: only its settings are asked for."""
    mapper = Mapper.__new__(Mapper)
    mapper.job, mapper.view_of = job, {f"{view}.bmp": view for view in range(VIEWS)}
    return mapper


def off(model: pycolmap.Reconstruction, focals: np.ndarray) -> float:
    """The mean error of focal lengths, in per cent."""
    found = np.array([model.cameras[view + 1].params[0] for view in range(VIEWS)])
    return 100 * float(np.abs(found / focals - 1).mean())


@pytest.mark.parametrize("distortion", [0.0, -0.12])
def test_bad_measurements_pull_less_and_lenses_distort_if_measurements_say_so(distortion: float) -> None:
    job = job_of(lens_assumed=True)
    before, focals = model_of(job, distortion)
    after = adjusted(mapper_of(job), before)
    assert off(after, focals) < 0.75 * off(before, focals)
    kinds = {camera.model.name for camera in after.cameras.values()}
    assert kinds == ({"SIMPLE_RADIAL"} if distortion else {"SIMPLE_PINHOLE"})
    assert {camera.model.name for camera in before.cameras.values()} == {"SIMPLE_RADIAL"}, "it is a copy"


def test_a_lens_that_was_asked_for_is_found() -> None:
    job = job_of(lens_assumed=False)
    before, _ = model_of(job, 0.0)
    after = adjusted(mapper_of(job), before)
    assert all(camera.model.name == "SIMPLE_RADIAL" and camera.params[3] for camera in after.cameras.values())


def turns_deg(model: pycolmap.Reconstruction) -> np.ndarray:
    """The angles between the first camera and each of the others about the vertical axis."""
    poses = [model.images[view + 1].cam_from_world().rotation.matrix() for view in range(VIEWS)]
    return np.rad2deg([np.arctan2(*(pose @ poses[0].T)[0, [2, 0]]) for pose in poses[1:]])


def test_what_is_turned_inside_out_twice_is_as_it_was() -> None:
    model, _ = model_of(job_of(lens_assumed=True), 0.0)
    twice = turned_inside_out(turned_inside_out(model))
    assert errors_px(twice) == pytest.approx(errors_px(model), abs=1e-6)
    assert np.median(errors_px(turned_inside_out(model))) > 10, "there is much perspective"


def test_flat_ground_is_solid_though_the_model_is_hollow() -> None:
    job = job_of(lens_assumed=False)
    model, _ = model_of(job, 0.0, depth=(5.4, 5.6), step=0.45)
    hollow = turned_inside_out(model)
    pycolmap.bundle_adjustment(hollow, mapper_of(job).adjustment(hollow, 1e-8))
    assert np.median(errors_px(hollow)) < 1, "the errors alone do not tell"
    assert np.abs(turns_deg(hollow) - turns_deg(model)).max() > 10
    solid = solid_of_hollow(mapper_of(job), hollow)
    assert solid is not None
    assert np.abs(turns_deg(solid) - turns_deg(model)).max() < 2
    assert solid_of_hollow(mapper_of(job), model) is None
