"""Whether views that share a camera by assumption really do: pictures of one size may be zoomed or cropped differently,
and a lens may zoom during a video; and whether the middle of the lens is that of the picture, as all cameras have it.

One camera explains nearly all of their matches too, with a made-up focal length and poses that are far off. What gives
it away is that the error falls as soon as every view may have its own focal length, or its own middle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from lean3r.colmap_library import pycolmap
from lean3r.refine.adjust import LEAST_ANGLE_DEG, MOST_UNLIKE, error_px, parallax_deg
from lean3r.refine.features import camera_of
from lean3r.refine.job import Answer, Job
from lean3r.refine.judge import centres_of

# Share of the mean error that is left when every view has its own focal length: 0.97 or more for true shared cameras
# (seven photo scenes, rendered ones from four views on; windows of a walk 0.98 or more), 0.96 or less for zooms by 10 %
# and more (0.82 to 0.89 where a film of that walk zooms by 40 and 50 %).
LEFT = 0.965
FIRST, HOPELESS = 10, 0.975  # steps that take nearly all of the error that can be taken; what is left if it is shared
STEPS = 50  # of an adjustment that goes to its end
# Median over pairs, of relative rotations and directions, by which cameras differ from those with a focal length each.
# Of seven sets where these fit better, five were wrong, and differed by 4 to 28 degrees, one right one by 3.
ELSEWHERE_DEG = 5.0
ELSEWHERE = "with a focal length each, the pictures fit clearly better, and other cameras"
CLEARLY = "the pictures fit clearly better with a focal length each, as if zoomed or cropped differently, "
DIFFERENT = CLEARLY + "but no such model was found: the cameras may be far off"
TURNED = CLEARLY + "and then were taken from nearly one place: nothing tells depth"
# Spread of the logarithms of focal lengths: before facades, where the error falls too, 0.06 at most if none is zoomed.
# Of a video from the tenth to the ninth tenth, since stabilised ones waver: 0.05 to 0.07 if none zooms; or of their
# middle from the one that they share.
ZOOM, TENTH, OTHER = 0.08, 0.1, 0.04
# Share of the mean error, with a focal length each, that is left with a principal point each too. Whole pictures: 0.965
# or more for sets of 8 of seven photo scenes, 0.944 or more for sets of 4 to 6. Cropped off their middle, by a tenth of
# the side or more: 0.65 to 0.90, with focal lengths that were off by 5 to 28 %; after few steps up to 0.906.
CENTRED, PERHAPS = 0.92, 0.95


class Own(NamedTuple):
    """The views of an answer with a focal length each [S] in pixels, nan where it has none; how far their cameras then
    differ from those of the answer, the median over pairs; and the parallax of their points."""

    focals_px: np.ndarray
    differ_deg: float
    parallax_deg: float

    @property
    def contradicts(self) -> bool:
        """Whether the cameras of the answer are wrong if these are right."""
        return self.differ_deg > ELSEWHERE_DEG or self.only_turns

    @property
    def only_turns(self) -> bool:
        """Whether the views are from one place, so that nothing tells depth."""
        return self.parallax_deg < LEAST_ANGLE_DEG

    @property
    def note(self) -> str:
        """For the user, where no model with a focal length each is found."""
        return TURNED if self.only_turns else DIFFERENT


def own_focals(job: Job, answer: Answer) -> Own | None:
    """The views of an answer as they fit with a focal length each, if that is clearly better, and these differ; else
    None."""
    model = with_a_camera_each(job, answer)
    before = error_px(model)
    for steps, most in ((FIRST, HOPELESS), (STEPS, LEFT)):
        if not adjusted_px(model, steps) < most * before:
            return None
    focals_px, poses = np.full(len(job.views), np.nan), answer.cam_from_world.copy()
    for number, image in model.images.items():
        focals_px[number - 1] = model.cameras[image.camera_id].mean_focal_length()
        poses[number - 1][:3] = image.cam_from_world().matrix()
    shared_px = np.array([answer.params[camera][0] for camera in answer.camera])
    with np.errstate(invalid="ignore"):
        focals_px[np.abs(np.log(focals_px / shared_px)) > np.log(MOST_UNLIKE)] = np.nan  # nothing holds them
    ratio = np.log(focals_px / shared_px)[np.isfinite(focals_px)]
    if not len(ratio):
        return None
    tail = TENTH if job.sequences else 0.0
    low, usual, high = np.quantile(ratio, (tail, 0.5, 1 - tail))
    if high - low < ZOOM and not (job.sequences and abs(usual) >= OTHER):
        return None
    xyz = np.full((len(answer.xyz), 3), np.nan)  # the adjustment drops points that fall behind a camera
    for number, each in model.points3D.items():
        xyz[number - 1] = each.xyz
    left = np.isfinite(xyz[answer.point]).all(axis=1)
    trusted = answer.has & answer.trusted
    return Own(
        focals_px,
        difference_deg(poses[trusted], answer.cam_from_world[trusted]),
        parallax_deg(centres_of(poses), xyz, answer.point[left], answer.view[left]),
    )


def difference_deg(poses: np.ndarray, others: np.ndarray) -> float:
    """How far poses [N, 4, 4] differ from others: the median over pairs of the larger of the angles between their
    relative rotations and between their relative directions. 0 for fewer than two."""
    first, second = np.triu_indices(len(poses), 1)
    if not len(first):
        return 0.0
    relative = [each[second] @ np.linalg.inv(each[first]) for each in (poses, others)]
    turns = np.einsum("nij,nij->n", *(each[:, :3, :3] for each in relative)) / 2 - 0.5
    moves = [each[:, :3, 3] for each in relative]
    lengths = np.prod([np.linalg.norm(each, axis=1) for each in moves], axis=0)
    cosines = np.minimum(turns, np.einsum("ni,ni->n", *moves) / np.maximum(lengths, np.finfo(float).tiny))
    return float(np.degrees(np.median(np.arccos(np.clip(cosines, -1, 1)))))


def are_off_centre(job: Job, answer: Answer) -> bool:
    """Whether views with a focal length each fit clearly better with a principal point each as well: they were cropped
    off their middle."""
    return _left_by_centres(job, answer, FIRST) < PERHAPS and _left_by_centres(job, answer, STEPS) < CENTRED


def _left_by_centres(job: Job, answer: Answer, steps: int) -> float:
    """Share of the error with a focal length each that is left with a principal point each too."""
    model = with_a_camera_each(job, answer)
    before = adjusted_px(model, steps)
    return adjusted_px(model, steps, frees_centres=True) / max(before, 1e-9)


def adjusted_px(
    model: pycolmap.Reconstruction, steps: int, frees_centres: bool = False, frees_focals: bool = True
) -> float:
    """The mean error after a bundle adjustment with focal lengths, unless they are right, and principal points if
    wanted, free."""
    options = pycolmap.BundleAdjustmentOptions()
    options.print_summary, options.refine_extra_params = False, False
    options.refine_principal_point, options.refine_focal_length = frees_centres, frees_focals
    options.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
    options.ceres.solver_options.num_threads = 1  # several would sum in varying order
    options.ceres.solver_options.max_num_iterations = steps
    pycolmap.bundle_adjustment(model, options)
    model.update_point_3d_errors()
    return error_px(model)


def with_a_camera_each(job: Job, answer: Answer) -> pycolmap.Reconstruction:
    """An answer as a model in which its views have a camera each."""
    cameras = {}
    for view in np.flatnonzero(answer.has).tolist():
        group, mine = job.groups[job.views[view].group], answer.camera[view]
        cameras[view] = camera_of(replace(group, model=answer.models[mine], params=answer.params[mine]), view + 1)
    return model_of(answer, cameras)


def model_of(answer: Answer, cameras: Mapping[int, pycolmap.Camera]) -> pycolmap.Reconstruction:
    """An answer as a model, with these cameras of its views, which may share some."""
    model = pycolmap.Reconstruction()
    for camera in {camera.camera_id: camera for camera in cameras.values()}.values():
        model.add_camera_with_trivial_rig(camera)
    place = np.zeros(len(answer.view), int)  # of each measurement among those of its view
    for view, camera in cameras.items():
        number, seen = view + 1, np.flatnonzero(answer.view == view)
        place[seen] = np.arange(len(seen))
        points = pycolmap.Point2DList([pycolmap.Point2D(xy) for xy in answer.xy[seen]])
        image = pycolmap.Image(name=str(number), points2D=points, camera_id=camera.camera_id, image_id=number)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(answer.cam_from_world[view][:3]))
    order = np.argsort(answer.point, kind="stable")
    starts = np.searchsorted(answer.point[order], np.arange(len(answer.xyz) + 1))
    for xyz, start, end in zip(answer.xyz, starts[:-1], starts[1:], strict=True):
        seen = [pycolmap.TrackElement(int(answer.view[o]) + 1, int(place[o])) for o in order[start:end]]
        model.add_point3D(xyz, pycolmap.Track(seen))
    model.update_point_3d_errors()
    return model
