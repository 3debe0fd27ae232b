"""The refining process: reads a job from the folder named on the command line, and writes its answer there.

It is a separate process because the libraries' calls cannot be interrupted: it is ended when time is up, and the best
answer until then is used. It ends by itself when its standard input closes: nobody waits for it any more.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from lean3r.colmap_library import pycolmap
from lean3r.processes import end_with_input
from lean3r.refine import accept, adjust, features, focal, judge, matching
from lean3r.refine.job import OUT_OF_TIME, Answer, Job
from lean3r.refine.rivals import ELSEWHERE, differing
from lean3r.refine.separate import are_apart

ENOUGH = 0.8  # if a model fits this share of the verified matches, no other method is tried
CALIBRATING = 4  # registered views that determine a camera reliably
WELL, GAIN = 0.9, 0.05  # share of matches that truly shared cameras fit; gain that separate cameras must bring
MORE = 1.08  # ratio of fitting matches: wrong shared cameras verify a tenth fewer, true ones as many
MANY = 6  # views that determine a camera each
NEARLY = 0.9  # of the trusted views of one model, that make another its rival
LONG = 96  # frames of a video up to which they are also added one by one: the seconds grow faster than their number
TWICE = 64  # frames of a video up to which they always are: a window of a stream has 48
FEW = 6  # with so few views, a wrong model may fit nearly as well: a second method is tried
DIFFERENT = (
    "the pictures fit clearly better with a focal length each, as if zoomed or cropped differently, but no such model "
    "was found: the cameras may be far off"
)
NO_LENS = "no lens distorts like the camera found for it"
SMALL = 1000  # longer side in pixels up to which a frame is small
TRUSTED = 5  # trusted views needed to locate doubted ones
SETTLING = 3  # times at most that they are located again
BADLY = 1.5  # times the usual error of a view's matches; within one model, that of right cameras hardly differs
CLEARLY = 1.002  # ratio of how well matches fit, that makes a model better
STRONG = 150  # measurements of the weaker views of a model above which finer features are not needed


def solve(job: Job, folder: Path) -> None:
    """Keep the best answer so far in the folder. Coarse features come first, fine ones if these are not enough, and a
    camera for every view, except for video, if shared ones leave many matches or hide different focal lengths."""
    best: Answer | None = None
    octave = features.COARSE
    for octave in octaves(job):
        for answer in attempts(job, folder, octave):
            if best is None or value(answer) > value(best):
                best = answer
                answer.write(folder)
        if best is not None and is_strong(best):
            break
    alone = None if job.sequences else job.each_alone()
    if best is None or alone is None or best.has.sum() < CALIBRATING:
        return
    apart = are_apart(job, best)
    if not apart and (best.has.sum() < MANY or share(best) >= WELL):
        return
    shared = best
    for answer in attempts(alone, folder, octave, "alone"):
        if is_better_alone(answer, best, apart and best is shared):
            best = answer
            answer.write(folder)
    if apart and best is shared:
        best.with_note(DIFFERENT).write(folder)


def is_better_alone(alone: Answer, shared: Answer, are_apart: bool) -> bool:
    """Whether a camera for every view fits so much better than shared ones that these cannot be true."""
    if are_apart:
        fits_more = fitting(alone) > MORE * fitting(shared) or not shared.trusted.any()
        return fits_more and alone.trusted.sum() >= shared.trusted.sum()
    return value(alone)[:2] >= value(shared)[:2] and share(alone) > max(WELL, share(shared) + GAIN)


def octaves(job: Job) -> tuple[int, ...]:
    """First octaves of the features, in turn. Small video frames need the finest features at once."""
    small = max(max(group.width, group.height) for group in job.groups) <= SMALL
    return (features.FINE,) if job.sequences and small else (features.COARSE, features.FINE)


def value(answer: Answer) -> tuple[int, int, int]:
    """Key to compare answers: trusted views, then registered ones, then measurements."""
    return int(answer.trusted.sum()), int(answer.has.sum()), len(answer.point)


def is_strong(answer: Answer) -> bool:
    """Whether all views are registered and trusted, and nearly all see many points."""
    seen = np.bincount(answer.view, minlength=len(answer.has))
    return bool(answer.trusted.all()) and float(np.quantile(seen, 0.1)) >= STRONG


def attempts(job: Job, folder: Path, octave: int, name: str = "shared") -> Iterator[Answer]:
    """Features, matches, and their best model; if it lacks views, also one from matches verified with its cameras."""
    here = folder / f"{name}{octave}"
    here.mkdir()
    database = here / "database.db"
    features.detect(job, folder, database, octave)
    matching.match(job, here, database, verify=not job.sequences)
    if job.sequences:
        job = focal.with_focals(job, database)
        matches = matching.verify_again(job, database)
    else:
        matches = matching.read_matches(job, database)
    if not len(matches.pairs):
        return
    mapper = adjust.Mapper(job, database)
    if job.held.any():
        answer = answer_of(job, matches, mapper.from_poses(job.start, np.flatnonzero(job.held).tolist()), True)
        if answer is not None:
            yield answer
        return
    answers: list[Answer] = []
    views = adjust.consistent_views(matches, job.start)
    matched = len(np.unique(matches.pairs))
    if len(views) >= max(2, matched / 2):
        model = mapper.from_poses(job.start, views)
        answers += filter(None, [answer_of(job, matches, model, True)])
    found: list[Answer] = []
    if not answers or len(job.views) <= FEW or not is_enough(answers[0], matched):
        for make in (adjust.global_model, adjust.incremental_model):
            model = make(job, here, database)
            if model is not None:
                adjust.restore_known(job, model)
                found += filter(None, [settle(job, matches, mapper, mapper.polish(model))])
            if found and is_whole(job, found[-1]):
                break
        answers += soundest(found) if job.sequences else found
    best = max(answers, key=lambda answer: fitness(job, answer), default=None)
    if best is None:
        return
    yield doubted(job, best, found)
    if CALIBRATING <= best.trusted.sum() < len(features.files_to_view(job)):
        again = recalibrate(job, here, database, best)
        if again is not None and again.trusted.sum() > best.trusted.sum():
            yield doubted(job, again, found)


def is_whole(job: Job, answer: Answer) -> bool:
    """Whether a model makes other methods needless. The global mapper cannot do two views; of a short video, either may
    lose frames that the other has, or slip, which only the other tells."""
    if job.sequences and FEW < len(job.views) <= LONG:
        return len(job.views) > TWICE and bool(answer.trusted.all())
    return int(answer.has.sum()) > 2


def soundest(answers: Sequence[Answer]) -> list[Answer]:
    """Of the models of a video's frames, the one that fits most matches, among those with nearly as many trusted views
    as any; none of none.

    Methods that slip (see `settle`) or lose frames seldom do so at the same ones.
    """
    most = max((answer.trusted.sum() for answer in answers), default=0)
    rivals = [answer for answer in answers if answer.trusted.sum() >= NEARLY * most]
    return sorted(rivals, key=lambda answer: answer.report["after"]["score"])[-1:]


def doubted(job: Job, answer: Answer, found: Sequence[Answer]) -> Answer:
    """An answer; of a video's frames, those are not trusted that another model of the same matches has elsewhere."""
    rivals = [rival for rival in found if rival is not answer] if job.sequences else []
    return answer.with_doubts({view for rival in rivals for view in differing(answer, rival)}, ELSEWHERE)


def settle(job: Job, matches: matching.Matches, mapper: adjust.Mapper, model: pycolmap.Reconstruction) -> Answer | None:
    """A model's answer; in a video, frames that are doubted or fit badly are registered again from the others, as long
    as that makes it better.

    A walk may slip: from some frame on, all is smaller by a fifth or more. Adjustment does not undo it, because the
    points that say so are gone by then; but the frames there fit their matches worse than the others, or are doubted.
    """
    answer = answer_of(job, matches, model, False)
    if answer is None:
        return None
    for _ in range(SETTLING):
        for loose in loose_frames(job, answer):
            moved = mapper.reattach(pycolmap.Reconstruction(model), loose)
            again = answer_of(job, matches, moved, False)
            if again is not None and is_better(again, answer):
                answer, model = again, moved
                break
        else:
            return answer
    return answer


def loose_frames(job: Job, answer: Answer) -> Iterator[set[int]]:
    """Frames to register again from the others, which are a third at least: those that are doubted or fit badly; then
    also all from a doubted one, or the worst, to the nearer end of its video, in case the scale slips there."""
    after = answer.report["after"]
    error = np.array([np.nan if px is None else px for px in after["view_error_px"]])
    usual = float(np.nanmedian(error)) if np.isfinite(error).any() else np.inf
    in_video = np.isin(np.arange(len(job.views)), [view for run in job.sequences for view in run])
    doubted, bad = in_video & ~answer.trusted, in_video & (error > BADLY * usual)
    candidates = [doubted | bad]
    for run in map(np.asarray, job.sequences):
        at = np.flatnonzero(doubted[run])
        if not len(at) and bad[run].any():
            at = np.array([np.nanargmax(error[run])])
        for group in np.split(at, np.flatnonzero(np.diff(at) > 1) + 1) if len(at) else ():
            first, last = int(group[0]), int(group[-1])
            side = doubted.copy()
            side[run[: last + 1] if last < len(run) - first else run[first:]] = True
            candidates.append(side)
    for loose in candidates:
        stay = answer.trusted & ~loose
        if (loose & answer.has).any() and stay.sum() >= max(TRUSTED, len(loose) / 3):
            yield set(np.flatnonzero(loose).tolist())


def is_better(again: Answer, answer: Answer) -> bool:
    """Whether frames that were registered again made a model better: more are trusted, or clearly more matches fit."""
    more = int(again.trusted.sum()) - int(answer.trusted.sum())
    return more > 0 or (more == 0 and again.report["after"]["score"] > CLEARLY * answer.report["after"]["score"])


def recalibrate(job: Job, folder: Path, database: Path, answer: Answer) -> Answer | None:
    """A model from the matches verified again with an answer's cameras: known cameras separate inliers from outliers
    where the matches are too few to estimate the cameras as well."""
    groups = [
        group if group.fixed or model != group.model else replace(group, params=params, trusted=True)
        for group, model, params in zip(job.groups, answer.models, answer.params, strict=True)
    ]
    job = replace(job, groups=tuple(groups))
    matches = matching.verify_again(job, database)
    model = adjust.global_model(job, folder, database)
    if model is None:
        return None
    adjust.restore_known(job, model)
    mapper = adjust.Mapper(job, database)
    return settle(job, matches, mapper, mapper.polish(model))


def fitness(job: Job, answer: Answer) -> tuple[int, float]:
    """Key to compare models of the same matches: trusted views of a video, then how well matches fit."""
    return int(answer.trusted.sum()) if job.sequences else 0, answer.report["after"]["score"]


def fitting(answer: Answer) -> int:
    """The number of matches that an answer fits."""
    return answer.report["after"]["inliers"]


def share(answer: Answer) -> float:
    """The share of the verified matches that an answer fits."""
    return fitting(answer) / max(answer.report["matches"], 1)


def is_enough(answer: Answer, matched: int) -> bool:
    """Whether a model explains the matches."""
    return int(answer.has.sum()) >= matched and fitting(answer) >= ENOUGH * answer.report["matches"]


def answer_of(job: Job, matches: matching.Matches, model: pycolmap.Reconstruction, from_start: bool) -> Answer | None:
    """A model's answer; None with fewer than two views or without parallax."""
    adjust.drop_weak_views(model)
    if model.num_reg_images() < 2 or adjust.parallax_deg(model) < adjust.LEAST_ANGLE_DEG:
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
    point, view, xy = [], [], []
    for index, point_id in enumerate(ids):
        for element in model.points3D[point_id].track.elements:
            image = model.images[element.image_id]
            point.append(index)
            view.append(view_of[image.name])
            xy.append(image.points2D[element.point2D_idx].xy)
    if accept.turn_only(matches, [cameras[view.group] for view in job.views]):
        return None
    before = accept.fit(matches, _before(job), job.cam_from_world, has | job.held)
    placed = np.where(has[:, None, None], poses, np.nan)  # a match with an unregistered view counts as a miss
    placed[job.held] = job.start[job.held]
    used = [cameras[v.group] for v in job.views]
    after = accept.fit(matches, used, placed, has | job.held)
    seen = np.zeros((len(ids), views), bool)
    seen[point, view] = True
    shares = accept.pair_shares(matches, used, placed, judge.LEAST_MATCHES)
    times_s = np.array([np.nan if v.timestamp_s is None else v.timestamp_s for v in job.views])
    runs = [(run, times_s[list(run)]) for run in job.sequences]
    verdict = judge.judge(poses, has, seen, shares, runs, job.held)
    made_up = [
        not group.fixed and adjust.pincushion(camera) > adjust.MOST_PINCUSHION
        for group, camera in zip(job.groups, cameras, strict=True)
    ]
    doubts = [
        NO_LENS if made_up[view.group] and not held and doubt is None else doubt
        for view, held, doubt in zip(job.views, job.held, verdict.doubt, strict=True)
    ]
    return Answer(
        poses,
        has,
        tuple(camera.model.name for camera in cameras),
        tuple(tuple(map(float, camera.params)) for camera in cameras),
        tuple(view.group for view in job.views),
        np.array([model.points3D[i].xyz for i in ids]).reshape(-1, 3),
        np.array([model.points3D[i].error for i in ids]),
        np.array(point, np.int32),
        np.array(view, np.int32),
        np.array(xy, np.float64).reshape(-1, 2),
        {
            "start": from_start,
            "matches": before.matches,
            "pairs": len(matches.pairs),
            "before": asdict(before),
            "after": asdict(after),
            "parts": verdict.part,
            "doubts": doubts,
            "notes": [note] if (note := adjust.doubt(job, model)) else [],
        },
    )


def _before(job: Job) -> list[pycolmap.Camera]:
    groups = [job.groups[view.group] for view in job.views]
    return [
        features.camera_of(group) if group.fixed else features.pinhole(params, group.width, group.height)
        for params, group in zip(job.pinholes, groups, strict=True)
    ]


def _end_in_time(processor_seconds: float) -> None:
    while time.process_time() < processor_seconds:
        time.sleep(0.2)
    os._exit(OUT_OF_TIME)


def main() -> None:
    """Work on the folder named on the command line, for the stated seconds of processor time."""
    end_with_input()
    threading.Thread(target=_end_in_time, args=(float(sys.argv[2]),), daemon=True).start()
    pycolmap.logging.minloglevel = 3
    folder = Path(sys.argv[1])
    solve(Job.read(folder), folder)


if __name__ == "__main__":
    main()
