"""Cameras and points from verified matches: by bundle adjustment from given poses, or from the matches alone."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from lean3r.colmap_library import pycolmap
from lean3r.geometry.lens import LENSES
from lean3r.refine.equations import tracks_of
from lean3r.refine.features import files_to_view
from lean3r.refine.job import Group, Job
from lean3r.refine.judge import places
from lean3r.refine.matching import LEAST_INLIERS, Matches

ROTATION_DEG, DIRECTION_DEG = 15.0, 40.0  # largest difference between start poses and the relative pose of a pair
ROUNDS = ((16.0, 6.0), (8.0, 4.0), (4.0, 2.0))  # largest errors: of measurements in pixels, of new points in degrees
SOLVERS = 1  # threads: several would sum in varying order, and small differences grow
CONVERGED, ROUGHLY = 1e-6, 1e-5  # relative change of an adjustment's cost at which it ends; of one that others follow
MANY = 30  # from so many views on, a new one is adjusted with its neighbours only
TRACKS = 100  # of a view, that place the cameras all at once; adjusting them takes all
LEAST_SEEN = 12  # points that a registered view must see
MOST_ERROR_PX = 10.0  # of a point (in the midst of an adjustment one had 1e150)
MOST_PINCUSHION = 0.15  # share by which a real lens may move a corner outwards; inwards, fisheyes do much more
VIDEO_BEGIN_DEG, VIDEO_ANGLE_DEG = 6.0, 0.5  # parallax of the first pair of a video, and of points
VIDEO_GROWTH = 1.3  # of a video's model between two adjustments of all of it; 1.1 takes twice as long, and is no better
MOST_UNLIKE = 4.0  # times the network's focal length: right ones were 0.8 to 1.7, of degenerate models 4 to 22
LEAST_ANGLE_DEG = 1.0  # median parallax of the points below which cameras and points are not determined


def consistent_views(matches: Matches, start: np.ndarray) -> list[int]:
    """The largest set of views whose poses in `start` [S, 4, 4] agree with their verified matches, pair by pair."""
    views = len(start)
    edges = np.zeros((views, views), bool)
    for (i, j), shown in zip(matches.pairs, matches.relative, strict=True):
        if shown is None:
            continue
        posed = start[j] @ np.linalg.inv(start[i])
        rotation = angle_deg(posed[:3, :3] @ shown[:3, :3].T)
        lengths = np.linalg.norm(posed[:3, 3]) * np.linalg.norm(shown[:3, 3])
        cosine = posed[:3, 3] @ shown[:3, 3] / lengths if lengths > 0 else 1.0
        direction = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
        edges[i, j] = edges[j, i] = rotation < ROTATION_DEG and direction < DIRECTION_DEG
    parts = components(edges)
    return max(parts, key=len) if parts else []


def components(edges: np.ndarray) -> list[list[int]]:
    """Connected parts of a graph [S, S] bool, single nodes left out."""
    left, parts = set(range(len(edges))), []
    while left:
        part, waiting = set(), [left.pop()]
        while waiting:
            node = waiting.pop()
            part.add(node)
            waiting += [n for n in np.flatnonzero(edges[node]).tolist() if n in left]
            left -= set(waiting)
        if len(part) > 1:
            parts.append(sorted(part))
    return parts


def angle_deg(rotation: np.ndarray) -> float:
    """The angle of a rotation [3, 3] in degrees."""
    return float(np.degrees(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))))


class Mapper:
    """pycolmap's incremental mapper on a job's database, with this job's known cameras kept as they are."""

    def __init__(self, job: Job, database: Path):
        self.job, self.view_of = job, files_to_view(job)
        with pycolmap.Database.open(database) as opened:
            options = pycolmap.DatabaseCacheOptions()
            options.min_num_matches = LEAST_INLIERS
            self.cache = pycolmap.DatabaseCache.create(opened, options)

    def from_poses(self, cam_from_world: np.ndarray, views: Collection[int]) -> pycolmap.Reconstruction:
        """Triangulate from the poses of some `views`, adjust with shrinking tolerances, then add the others. If the
        job holds poses fixed, `views` are those."""
        model = pycolmap.Reconstruction()
        model.load(self.cache)
        for image in list(model.images.values()):
            view = self.view_of[image.name]
            if view in views:
                frame = model.frames[image.frame_id]
                frame.set_cam_from_world(image.camera_id, pycolmap.Rigid3d(cam_from_world[view][:3]))
                model.register_frame(image.frame_id)
        mapper = pycolmap.IncrementalMapper(self.cache)
        mapper.begin_reconstruction(model)
        for pixels, degrees in ROUNDS:
            self._round(mapper, model, pixels, degrees)
        self._register(mapper, model)
        self._finish(mapper, model)
        return model

    def polish(self, model: pycolmap.Reconstruction) -> pycolmap.Reconstruction:
        """Add the views that a model lacks, complete its tracks, adjust it."""
        mapper = pycolmap.IncrementalMapper(self.cache)
        mapper.begin_reconstruction(model)
        self._round(mapper, model, *ROUNDS[-1])
        self._register(mapper, model)
        self._finish(mapper, model)
        return model

    def reattach(self, model: pycolmap.Reconstruction, views: Collection[int]) -> pycolmap.Reconstruction:
        """Remove `views` and register them again from the points of the others, one by one, nearest first."""
        for image_id in list(model.reg_image_ids()):
            if self.view_of[model.images[image_id].name] in views:
                model.deregister_frame(model.images[image_id].frame_id)
        return self.polish(model)

    def _round(self, mapper, model: pycolmap.Reconstruction, pixels: float, degrees: float) -> None:
        options, triangulation = self.options(model, pixels), triangulation_options(degrees, pixels)
        for image_id in model.reg_image_ids():
            mapper.triangulate_image(triangulation, image_id)
        mapper.complete_and_merge_tracks(triangulation)
        mapper.retriangulate(triangulation)
        if model.num_points3D() == 0:
            return
        mapper.adjust_global_bundle(options, self.adjustment(model, ROUGHLY))
        mapper.filter_points(options)

    def _register(self, mapper, model: pycolmap.Reconstruction) -> None:
        options, triangulation = self.options(model, ROUNDS[-1][0]), triangulation_options(ROUNDS[-1][1], 4.0)
        waiting = True
        while waiting and model.num_points3D():
            waiting = False
            for image_id in mapper.find_next_images(options, False):
                if mapper.register_next_image(options, image_id):
                    mapper.triangulate_image(triangulation, image_id)
                    adjustment = self.adjustment(model)
                    if model.num_reg_images() > MANY:
                        mapper.iterative_local_refinement(2, 1e-3, options, adjustment, triangulation, image_id)
                    else:
                        mapper.adjust_global_bundle(options, adjustment)
                        mapper.filter_points(options)
                    waiting = True
                    break

    def _finish(self, mapper, model: pycolmap.Reconstruction) -> None:
        if model.num_points3D():
            mapper.iterative_global_refinement(
                3, 5e-4, self.options(model), self.adjustment(model), triangulation_options(), False
            )
        mapper.end_reconstruction(False)

    def options(self, model: pycolmap.Reconstruction, pixels: float = 4.0) -> pycolmap.IncrementalMapperOptions:
        """Options of the mapper, with the job's known cameras constant."""
        options = pycolmap.IncrementalMapperOptions()
        options.filter_max_reproj_error = pixels
        options.num_threads = SOLVERS
        options.random_seed = 0
        options.constant_cameras = self.known(model)
        options.fix_existing_frames = bool(self.job.held.any())
        if self.job.sequences:  # consecutive frames need less evidence than unordered pictures
            options.abs_pose_min_num_inliers = LEAST_INLIERS
        return options

    def known(self, model: pycolmap.Reconstruction) -> set[int]:
        """Ids of the cameras that are known."""
        return {image.camera_id for image in model.images.values() if self.group_of(image).fixed}

    def group_of(self, image: pycolmap.Image) -> Group:
        """The group of the job whose camera an image has."""
        return self.job.groups[self.job.views[self.view_of[image.name]].group]

    def adjustment(
        self, model: pycolmap.Reconstruction, tolerance: float = CONVERGED
    ) -> pycolmap.BundleAdjustmentOptions:
        """Bundle adjustment, robust to a few outliers. The focal length is held fixed with views from two places, which
        do not determine it."""
        options = pycolmap.BundleAdjustmentOptions()
        options.print_summary = False
        options.refine_extra_params = places_of(model) > 2
        options.refine_focal_length = options.refine_extra_params and not self.job.knows_focals
        options.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
        options.ceres.solver_options.num_threads = SOLVERS
        options.ceres.solver_options.max_num_iterations = 50
        options.ceres.solver_options.function_tolerance = tolerance
        return options


def triangulation_options(degrees: float = 2.0, pixels: float = 4.0) -> pycolmap.IncrementalTriangulatorOptions:
    """Error bounds: `degrees` for new points, `pixels` for completed tracks; points of two views are kept."""
    options = pycolmap.IncrementalTriangulatorOptions()
    options.create_max_angle_error = options.continue_max_angle_error = degrees
    options.merge_max_reproj_error = options.complete_max_reproj_error = pixels
    options.ignore_two_view_tracks = False
    options.random_seed = 0
    return options


def global_model(job: Job, folder: Path, database: Path) -> pycolmap.Reconstruction | None:
    """Global structure from motion: all rotations, then all positions at once; the largest model."""
    options = pycolmap.GlobalPipelineOptions()
    options.num_threads, options.random_seed = SOLVERS, 0
    options.mapper.num_threads, options.mapper.random_seed = SOLVERS, 0
    options.mapper.track_required_tracks_per_view = TRACKS
    adjustment = options.mapper.bundle_adjustment
    adjustment.refine_focal_length = not job.knows_focals
    adjustment.refine_extra_params = not all(group.fixed for group in job.groups)
    (folder / "global").mkdir(exist_ok=True)
    return _largest(pycolmap.global_mapping(database, folder, folder / "global", options))


def incremental_model(job: Job, folder: Path, database: Path) -> pycolmap.Reconstruction | None:
    """Incremental structure from motion; the largest model."""
    options = pycolmap.IncrementalPipelineOptions()
    options.num_threads, options.random_seed = SOLVERS, 0
    in_video = bool(job.sequences)
    options.min_model_size, options.multiple_models, options.extract_colors = 2, in_video, False
    options.triangulation.ignore_two_view_tracks = False
    options.ba_global_max_refinements = 2
    knows_focals, is_free = job.knows_focals, not all(group.fixed for group in job.groups)
    if in_video:  # frames lie close together: less evidence is enough, and a free lens runs away (1116 for 490 px)
        knows_focals, is_free = True, False
        options.mapper.abs_pose_min_num_inliers = LEAST_INLIERS
        options.ba_global_frames_ratio = options.ba_global_points_ratio = VIDEO_GROWTH
        options.ba_global_max_refinements = options.ba_local_max_refinements = 1  # `Mapper.polish` refines it
        options.ba_local_function_tolerance = options.ba_global_function_tolerance = ROUGHLY
        options.mapper.init_min_tri_angle = VIDEO_BEGIN_DEG
        options.mapper.filter_min_tri_angle = options.triangulation.min_angle = VIDEO_ANGLE_DEG
    options.ba_refine_focal_length = options.mapper.abs_pose_refine_focal_length = not knows_focals
    options.ba_refine_extra_params = options.mapper.abs_pose_refine_extra_params = is_free
    (folder / "incremental").mkdir(exist_ok=True)
    return _largest(pycolmap.incremental_mapping(database, folder, folder / "incremental", options))


def _largest(models: dict[int, pycolmap.Reconstruction]) -> pycolmap.Reconstruction | None:
    return max(models.values(), key=lambda model: (model.num_reg_images(), model.num_points3D()), default=None)


def restore_known(job: Job, model: pycolmap.Reconstruction) -> None:
    """Reset known cameras to their given parameters, in case an adjustment changed them."""
    view_of = files_to_view(job)
    for image in model.images.values():
        group = job.groups[job.views[view_of[image.name]].group]
        camera = model.cameras[image.camera_id]
        if group.fixed:
            camera.params = list(group.params)
        elif group.focal_fixed:
            stays = LENSES[group.model][0] + 2
            camera.params = [*group.params[:stays], *camera.params[stays:]]


def pincushion(camera: pycolmap.Camera) -> float:
    """How far the distortion of a camera moves the corner of a picture outwards, as a share of its distance from the
    centre."""
    focal, centre = camera.mean_focal_length(), np.array([camera.principal_point_x, camera.principal_point_y])
    corner = np.array([camera.width, camera.height]) / 2 / focal
    moved = np.linalg.norm(camera.img_from_cam(np.append(corner, 1.0)) - centre) / focal
    return float(moved / np.linalg.norm(corner) - 1)


def is_unlike(camera: pycolmap.Camera, focal_px: float) -> bool:
    """Whether a focal length cannot be that of a lens for which the network sees `focal_px`. Straight flights over flat
    ground, and few matches, fit any focal length."""
    return abs(np.log(camera.mean_focal_length() / focal_px)) > np.log(MOST_UNLIKE)


def places_of(model: pycolmap.Reconstruction) -> int:
    """How many places the views of a model are from."""
    centres = [model.images[image_id].projection_center() for image_id in model.reg_image_ids()]
    return places(np.array(centres).reshape(-1, 3))


def error_px(model: pycolmap.Reconstruction) -> float:
    """The mean error of a model's points in pixels, in which one that runs away counts no more than another bad one."""
    return float(np.mean([min(point.error, MOST_ERROR_PX) for point in model.points3D.values()]))


def drop_weak_views(model: pycolmap.Reconstruction) -> None:
    """Remove views that see too few points to be trusted, one by one."""
    while weak := [i for i in model.reg_image_ids() if model.images[i].num_points3D < LEAST_SEEN]:
        worst = min(weak, key=lambda i: model.images[i].num_points3D)
        model.deregister_frame(model.images[worst].frame_id)


def parallax_deg(centres: np.ndarray, xyz: np.ndarray, point: np.ndarray, view: np.ndarray) -> float:
    """Median over points [P, 3] of the largest angle between two rays to centres [S, 3] that see them, in degrees; 0
    without points. Measurements are `point`, `view` [O]."""
    rays = centres[view] - xyz[point]
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    angles = [np.zeros(0)]
    for measured in tracks_of(point):
        of_point = rays[measured]
        cosine = (of_point @ of_point.transpose(0, 2, 1)).min(axis=(1, 2))
        angles.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    every = np.concatenate(angles)
    return float(np.median(every)) if len(every) else 0.0
