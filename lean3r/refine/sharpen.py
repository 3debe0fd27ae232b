"""The last adjustment of photos: robust to measurements that are worse than most, without distortion that they do not
show, and solid where the model was hollow.

Until then an error of a pixel has nearly full weight, since models are still rough. At the end most measurements fit
within a tenth or two; the others (mismatches, edges of things at different depths) pull at the cameras. And where every
view has a camera of its own, focal lengths and distortions that cancel each other are fitted to what noise there is.
"""

from __future__ import annotations

import numpy as np

from lean3r.colmap_library import pycolmap
from lean3r.refine.adjust import Mapper
from lean3r.refine.built import Built
from lean3r.refine.matching import Matches
from lean3r.refine.reversal import turned_inside_out

# Cauchy's scale in median errors: 2.385 standard deviations, which is 95 % as good as least squares where errors are
# Gaussian; their lengths in the plane have a median of 1.177.
ROBUST = 2.385 / 1.177
TIMES = 2  # adjustments, each with the scale of the errors that the one before left
# Twice the logarithm of a ratio of likelihoods for each camera. Rendered scenes without distortion: 7 and 8 where every
# view has a camera, 0 to 18 where they share one. Photo scenes: 2 and less where it moves corners by half a pixel, from
# 29 on where it moves them by one or two, 9,000 where by a twentieth of the picture.
DISTORTS = 20.0
LEAST_PX = 1e-3  # of a median, that may be 0
WIDELY_PX = 10.0, 3.0, 0.5  # usual errors that adjustments expect which may move far
REVERSIBLE = 0.05  # of the longer side: usual error, just turned inside out, above which a model cannot be so
CLEARLY = 10.0  # the logarithm of a ratio of likelihoods that tells solid from hollow; where it did, 300 and 600
# Times the doubt of a model: one turned inside out, being adjusted widely, that will not be right. Photos from the air,
# which nearly could be: 1.2 after each of these adjustments; five other scenes: 2.7 to 3.9, then 2.3 to 2.9.
HOPELESS = 2.0
HOLLOW = "the pictures fit better inside out, with too little parallax to tell where they were taken"
STRAIGHT = pycolmap.CameraModelId.SIMPLE_PINHOLE


def sharpened(matches: Matches, mapper: Mapper, built: Built) -> Built:
    """The model adjusted once more, or as it was if poses are held or fewer views would be trusted; none is, if the
    measurements contradict what it shows."""
    if mapper.job.held.any():
        return built
    model = adjusted(mapper, built.model)
    solid = solid_of_hollow(mapper, model)
    model = model if solid is None else adjusted(mapper, solid)
    again = Built.of(mapper.job, matches, model, built.answer.report["start"])
    if solid is not None:  # what was built is wrong
        return again or built._replace(answer=built.answer.with_doubts(range(len(mapper.job.views)), HOLLOW))
    is_as_good = again is not None and again.answer.trusted.sum() >= built.answer.trusted.sum()
    return again if again is not None and is_as_good else built


def solid_of_hollow(mapper: Mapper, model: pycolmap.Reconstruction) -> pycolmap.Reconstruction | None:
    """The model inside out, if the measurements fit that clearly better."""
    solid = turned_inside_out(model)
    side = max(max(camera.width, camera.height) for camera in model.cameras.values())
    if np.median(errors_px(solid)) > REVERSIBLE * side:
        return None
    median_px = float(np.median(errors_px(model)))
    hopeless = HOPELESS * _doubt(model, median_px)
    for error_px in WIDELY_PX:
        adjust_robustly(mapper, solid, error_px)
        if _doubt(solid, median_px) > hopeless:
            return None
    as_it_is = pycolmap.Reconstruction(model)
    for error_px in WIDELY_PX:
        adjust_robustly(mapper, as_it_is, error_px)
    for each in (as_it_is, solid):
        for _ in range(TIMES):
            adjust_robustly(mapper, each, median_px)
    return solid if _doubt(solid, median_px) < _doubt(as_it_is, median_px) - CLEARLY else None


def adjusted(mapper: Mapper, model: pycolmap.Reconstruction) -> pycolmap.Reconstruction:
    """A copy of the model with robust cameras, and pinholes if its lenses need not distort."""
    model = pycolmap.Reconstruction(model)
    median_px = 0.0
    for _ in range(TIMES):
        median_px = float(np.median(errors_px(model)))
        adjust_robustly(mapper, model, median_px)
    return _straightened(mapper, model, median_px) or model


def _straightened(mapper: Mapper, model: pycolmap.Reconstruction, median_px: float) -> pycolmap.Reconstruction | None:
    """The model with pinholes, adjusted as it was; None if the measurements tell clearly that lenses distort, or if
    that is not for them to tell."""
    used = {image.camera_id: mapper.group_of(image) for image in model.images.values() if image.has_pose}
    if not all(group.lens_assumed for group in used.values()):
        return None
    straight = pycolmap.Reconstruction(model)
    for camera_id in used:
        camera = straight.cameras[camera_id]
        params = [camera.mean_focal_length(), camera.principal_point_x, camera.principal_point_y]
        camera.model, camera.params = STRAIGHT, params
    adjust_robustly(mapper, straight, median_px)
    evidence = 2 * (_doubt(straight, median_px) - _doubt(model, median_px))
    return straight if evidence < DISTORTS * len(used) else None


def errors_px(model: pycolmap.Reconstruction) -> np.ndarray:
    """The error of every measurement of a model, in pixels; infinite behind a camera."""
    found = [np.zeros(0)]
    for image in model.images.values():
        if image.has_pose and (seen := image.get_observation_points2D()):
            xyz = np.array([model.points3D[point.point3D_id].xyz for point in seen])
            xy = np.asarray(model.cameras[image.camera_id].img_from_cam(image.cam_from_world() * xyz))
            found.append(np.hypot(*(xy - np.array([point.xy for point in seen])).T))
    return np.nan_to_num(np.concatenate(found), nan=np.inf)


def _doubt(model: pycolmap.Reconstruction, median_px: float) -> float:
    """The negative logarithm of the likelihood of a model's errors, but for a constant, if they have Cauchy's
    distribution in the plane, whose median is sqrt(3) times its scale."""
    relative = np.minimum(errors_px(model) / max(median_px, LEAST_PX), 1e6)
    return float(1.5 * np.log1p(3 * relative**2).sum())


def adjust_robustly(
    mapper: Mapper, model: pycolmap.Reconstruction, median_px: float, keep_focals: bool = False
) -> None:
    """Adjust a model whose measurements usually err by so much, with its focal lengths held if wanted."""
    options = mapper.adjustment(model)
    options.refine_focal_length &= not keep_focals
    options.ceres.loss_function_scale = ROBUST * max(median_px, LEAST_PX)
    config = pycolmap.BundleAdjustmentConfig()
    for image_id in model.reg_image_ids():
        config.add_image(image_id)
    for camera_id in mapper.known(model):
        config.set_constant_cam_intrinsics(camera_id)
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    pycolmap.create_default_bundle_adjuster(options, config, model).solve()
