"""Evidence against known intrinsics: what an adjustment that may change them finds instead."""

from __future__ import annotations

import numpy as np

from lean3r.colmap_library import pycolmap
from lean3r.geometry.lens import LENSES
from lean3r.refine.adjust import CONVERGED, SOLVERS, error_px
from lean3r.refine.features import files_to_view
from lean3r.refine.focal_error import deviation, expected_variances
from lean3r.refine.job import Answer, Group, Job

# Known focal lengths are doubted if others differ so much, and fit so much better (less is enough with held poses: of
# one 15 % too long 0.81 of the error is left, of a true one 1.00) or differ by so many deviations. Sets of 3 to 12
# photographs of six scenes: 50 that were a fifth too short or long differed by 2.0 to 10 deviations, true ones in 52
# sets by 0.05 and 2.3 at most, but for a third and 3.1 where the cameras were wrong. A level flight tells none.
DIFFERS, BETTER, BETTER_HELD, SURE = 0.06, 0.8, 0.9, 2.0
# Known principal points, if they differ by so many focal lengths and deviations. Stated ones of real cameras are off by
# a hundredth or two; those found in the same sets were 2.1 deviations off at most, but where the cameras were wrong.
OFF_CENTRE, SURELY_OFF = 0.03, 2.2
DECENTRING = {"OPENCV": 6, "FULL_OPENCV": 6}  # where the two parameters begin that stand in for a moved principal point


def doubt_of_known(job: Job, model: pycolmap.Reconstruction, answer: Answer) -> tuple[str, str] | None:
    """Code and text of the evidence against known intrinsics, None without any, by a model with its answer, of which
    three views or more are trusted. Poses that are held stay."""
    view_of = files_to_view(job)
    model = pycolmap.Reconstruction(model)
    for image_id in list(model.reg_image_ids()):
        if not answer.trusted[view_of[model.images[image_id].name]]:
            model.deregister_frame(model.images[image_id].frame_id)
    groups = {i.camera_id: job.groups[job.views[view_of[i.name]].group] for i in model.images.values() if i.has_pose}
    known = {camera: group for camera, group in groups.items() if group.fixed or group.focal_fixed}
    if not known or model.num_reg_images() < 3 or not model.points3D:
        return None
    text = _doubt_of_focals(job, model, known, deviation(answer))
    if text is not None:
        return "known-focal-length", text
    text = None if job.held.any() else _doubt_of_centres(job, model, known, answer)
    return None if text is None else ("known-principal-point", text)


def _doubt_of_focals(job: Job, model: pycolmap.Reconstruction, known: dict[int, Group], deviation: float) -> str | None:
    """Where the focal lengths that are found speak against those `known` of cameras; the pictures tell them with this
    relative deviation."""
    given = {camera: model.cameras[camera].mean_focal_length() for camera in known}
    model.update_point_3d_errors()
    before = error_px(model)
    _adjust_lenses(job, model)
    after = error_px(model)
    ratio = max((model.cameras[c].mean_focal_length() / given[c] for c in known), key=lambda r: abs(np.log(r)))
    off = float(abs(np.log(ratio)))
    fits_better = after < (BETTER_HELD if job.held.any() else BETTER) * before
    is_told = after < before and off > SURE * deviation
    if off < DIFFERS or not (fits_better or is_told):
        return None
    return (
        f"the known focal length does not fit the pictures: {ratio:.2f} times that brings the reprojection error "
        f"from {before:.2f} to {after:.2f} px; check --cameras, or leave the intrinsics out"
    )


def _doubt_of_centres(job: Job, model: pycolmap.Reconstruction, known: dict[int, Group], answer: Answer) -> str | None:
    """Where the principal points that are found speak against those `known` of cameras. A wrong one leaves nearly the
    same error, and turns and moves the cameras, so that only its own deviation can tell."""
    for camera_id, group in known.items():
        camera = model.cameras[camera_id]
        first = DECENTRING.get(camera.model.name)
        if group.focal_fixed and first is not None:
            camera.params = [*camera.params[:first], 0.0, 0.0, *camera.params[first + 2 :]]
    _adjust_lenses(job, model, frees_centres=True)
    deviations = np.sqrt(expected_variances(answer, frees_centres=True)[1:]).max(axis=1)
    found = None
    for camera_id, group in known.items():
        first = LENSES[group.model][0]
        given = np.array(group.params[first : first + 2])
        camera = model.cameras[camera_id]
        centre = np.array([camera.principal_point_x, camera.principal_point_y])
        off = np.abs(centre - given) / group.params[0]
        if ((off > OFF_CENTRE) & (off > SURELY_OFF * deviations)).any():
            found = given / (group.width, group.height), centre / (group.width, group.height)
    if found is None:
        return None
    (x, y), (better_x, better_y) = found
    return (
        f"the known principal point does not fit the pictures: it was given at {x:.0%} of the width and {y:.0%} of the "
        f"height, and by the pictures is near {better_x:.0%} and {better_y:.0%}; angles and positions may be off. "
        "Check --intrinsics or --cameras (they are for whole pictures of this size), or leave the intrinsics out"
    )


def _adjust_lenses(job: Job, model: pycolmap.Reconstruction, frees_centres: bool = False) -> None:
    """Adjust a model with its focal lengths free, and distortion unless that is known; or with its principal points,
    which distortion imitates."""
    view_of = files_to_view(job)
    options = pycolmap.BundleAdjustmentOptions()
    options.print_summary, options.refine_principal_point = False, frees_centres
    # Distortion that was fitted to wrong focal lengths would hold these.
    options.refine_extra_params = not frees_centres and any(group.focal_fixed for group in job.groups)
    options.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
    options.ceres.solver_options.num_threads = SOLVERS
    options.ceres.solver_options.function_tolerance = CONVERGED  # by default all steps are taken, thirty times as many
    config = pycolmap.BundleAdjustmentConfig()
    for image_id in model.reg_image_ids():
        config.add_image(image_id)
        if job.held[view_of[model.images[image_id].name]]:
            config.set_constant_rig_from_world_pose(model.images[image_id].frame_id)
    if not job.held.any():
        config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    pycolmap.create_default_bundle_adjuster(options, config, model).solve()
    model.update_point_3d_errors()
