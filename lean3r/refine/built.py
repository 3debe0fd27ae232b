"""A model of a job's matches, and its answer: cameras, points, and what speaks for and against them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np

from lean3r.colmap_library import pycolmap
from lean3r.refine import accept, adjust, features, judge, matching
from lean3r.refine.again import Model, seen_again
from lean3r.refine.intrinsics import doubt_of_known
from lean3r.refine.job import Answer, Group, Job
from lean3r.refine.kinks import FRAYED, KINKED, SIDE, behind_kinks, behind_sidesteps, frayed
from lean3r.refine.misplaced import misplaced
from lean3r.refine.rivals import ELSEWHERE, contested
from lean3r.refine.shared_thing import with_places
from lean3r.refine.ties import LOOSE, loosely_tied

NO_LENS = "no lens distorts like the camera found for it"
NO_FOCAL = "its focal length would be many times, or a small part of, the one that the network sees"


class Built(NamedTuple):
    """A model, which nothing changes any more, its answer, and the shares [S, S] of each pair's matches that fit it."""

    answer: Answer
    model: pycolmap.Reconstruction
    shares: np.ndarray

    @classmethod
    def of(cls, job: Job, matches: matching.Matches, model: pycolmap.Reconstruction, from_start: bool) -> Built | None:
        """None with fewer than two views or without parallax."""
        found = answer_of(job, matches, model, from_start)
        return None if found is None else cls(found[0], model, found[1])

    def judged(self, job: Job, found: Sequence[Built], as_found: Built | None = None) -> Answer:
        """The answer, with what other models, and its own with other focal lengths, say against it. Models of one kind
        are compared: the others with what this one was before its last adjustment."""
        answer = doubted(job, self, as_found or self, found)
        is_stated = not job.calibrated and any(group.fixed or group.focal_fixed for group in job.groups)
        note = doubt_of_known(job, self.model, answer) if is_stated and answer.trusted.sum() > 2 else None
        return answer if note is None else answer.with_note(*note)


def doubted(job: Job, built: Built, as_found: Built, found: Sequence[Built]) -> Answer:
    """The answer of a model; of a video's frames, those are not trusted that another model of the same matches has
    elsewhere, those behind a kink, last ones that fit badly, and those that few points tie to the others; of photos,
    those of another place."""
    answer = built.answer
    rivals = [rival for rival in found if rival.answer is not as_found.answer] if job.sequences else []
    elsewhere = {v for r in rivals for v in contested(as_found.answer, r.answer, as_found.shares, r.shares)}
    answer = answer.with_doubts(elsewhere, ELSEWHERE).with_doubts(behind_kinks(answer, job.sequences), KINKED)
    answer = answer.with_doubts(frayed(answer, job.sequences), FRAYED)
    if job.past:
        answer = answer.with_doubts(behind_sidesteps(answer, job.sequences), SIDE)
    if job.held.any():
        return answer
    if not job.sequences:
        return with_places(job, answer)
    return answer.with_doubts(loosely_tied(answer, job.sequences, job.joined), LOOSE)


def answer_of(
    job: Job, matches: matching.Matches, model: pycolmap.Reconstruction, from_start: bool
) -> tuple[Answer, np.ndarray] | None:
    """A model's answer, and the shares [S, S] of each pair's matches that fit it; None with fewer than two views or
    without parallax."""
    adjust.drop_weak_views(model)
    if model.num_reg_images() < 2:
        return None
    model.update_point_3d_errors()
    view_of = features.files_to_view(job)
    views = len(job.views)
    poses, has = np.tile(np.eye(4), (views, 1, 1)), np.zeros(views, bool)
    cameras = [features.camera_of(group) for group in job.groups]
    for image_id in model.reg_image_ids():
        image = model.images[image_id]
        view = view_of[image.name]
        poses[view][:3], has[view] = image.cam_from_world().matrix(), True
        cameras[job.views[view].group] = model.cameras[image.camera_id]
    ids = sorted(model.points3D)
    point, view, feature, xy = [], [], [], []
    for index, point_id in enumerate(ids):
        for element in model.points3D[point_id].track.elements:
            image = model.images[element.image_id]
            point.append(index)
            view.append(view_of[image.name])
            feature.append(element.point2D_idx)
            xy.append(image.points2D[element.point2D_idx].xy)
    xyz = np.array([model.points3D[i].xyz for i in ids]).reshape(-1, 3)
    point, view = np.array(point, np.int32), np.array(view, np.int32)
    if adjust.parallax_deg(judge.centres_of(poses), xyz, point, view) < adjust.LEAST_ANGLE_DEG:
        return None
    if accept.turn_only(matches, [cameras[view.group] for view in job.views]):
        return None
    seen_before = (has | job.held) & np.isfinite(job.cam_from_world).all((1, 2))  # the past is not the network's
    before = accept.fit(matches, _errors_before(job, matches), seen_before)
    placed = np.where(has[:, None, None], poses, np.nan)  # a match with an unregistered view counts as a miss
    placed[job.held] = job.start[job.held]
    used = [cameras[v.group] for v in job.views]
    error = accept.errors_px(matches, used, placed)
    after = accept.fit(matches, error, has | job.held)
    shares = accept.pair_shares(matches, error, has | job.held, judge.LEAST_MATCHES)
    seen = np.zeros((len(ids), views), bool)
    seen[point, view] = True
    times_s = np.array([np.nan if v.timestamp_s is None else v.timestamp_s for v in job.views])
    runs = [(run, times_s[list(run)]) for run in job.sequences]

    def judged(seen: np.ndarray) -> judge.Verdict:
        return judge.judge(poses, has, seen, shares, runs, job.held)

    if matches.images is None or runs or job.held.any():
        again, verdict = np.zeros((0, 2), np.int64), judged(seen)
    else:
        tracks = point, view, np.array(feature, np.int64)
        placed_points = Model(used, poses, xyz, *tracks, matches.keypoints, cache(matches.descriptors))
        again, verdict = seen_again(placed_points, seen, judged)
    of_videos = {job.views[view].group for run in job.sequences for view in run}
    made_up = [
        why_made_up(
            group,
            camera,
            float(np.median(job.pinholes[[v.group == number for v in job.views], :2])),
            number in of_videos,
        )
        for number, (group, camera) in enumerate(zip(job.groups, cameras, strict=True))
    ]
    doubts = [
        doubt if held else doubt or made_up[view.group]
        for view, held, doubt in zip(job.views, job.held, verdict.doubt, strict=True)
    ]
    answer = Answer(
        poses,
        has,
        tuple(camera.model.name for camera in cameras),
        tuple(tuple(map(float, camera.params)) for camera in cameras),
        tuple(view.group for view in job.views),
        xyz,
        np.array([model.points3D[i].error for i in ids]),
        point,
        view,
        np.array(xy, np.float64).reshape(-1, 2),
        {
            "start": from_start,
            "matches": before.matches,
            "pairs": len(matches.pairs),
            "before": asdict(before),
            "after": asdict(after),
            "parts": verdict.part,
            "doubts": doubts,
            "misplaced": misplaced(shares, job.held),
            "notes": [],
            "again": again.tolist(),
        },
    )
    return answer, shares


def why_made_up(group: Group, camera: pycolmap.Camera, focal_px: float, of_video: bool = False) -> str | None:
    """Why the camera found for a group, for which the network sees `focal_px`, cannot be a real one; None if it can.
    Nobody states the focal length of a video: where it is trusted but not held, it was measured in the matches."""
    if group.fixed:
        return None
    if adjust.pincushion(camera) > adjust.MOST_PINCUSHION:
        return NO_LENS
    is_stated = group.focal_fixed or (group.trusted and not of_video)
    return None if is_stated or not adjust.is_unlike(camera, focal_px) else NO_FOCAL


@lru_cache(maxsize=1)
def _errors_before(job: Job, matches: matching.Matches) -> np.ndarray:
    """Of the network's cameras, which every model of a job is compared with."""
    groups = [job.groups[view.group] for view in job.views]
    cameras = [
        features.camera_of(group) if group.fixed else features.pinhole(params, group.width, group.height)
        for params, group in zip(job.pinholes, groups, strict=True)
    ]
    return accept.errors_px(matches, cameras, job.cam_from_world)
