"""Runs a refinement in a separate process: hands over pictures and cameras, and reads the answer."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from lean3r.geometry.lens import LENSES, network_intrinsics, scale_lens
from lean3r.inputs.masks import Masks
from lean3r.inputs.pictures import Pictures
from lean3r.processes import python_command, wait, with_threads_of_its_own
from lean3r.refine import accept
from lean3r.refine.depth import follow
from lean3r.refine.focal_error import focal_error
from lean3r.refine.hanging import firm_views, rescale_hanging
from lean3r.refine.job import OUT_OF_TIME, Answer, Job
from lean3r.refine.judge import FEW_CONFIRM
from lean3r.refine.options import INTERRUPTED, KnownCameras, RefineOptions
from lean3r.refine.prepare import prepare
from lean3r.refine.progress import Tell, tell_of
from lean3r.refine.slip import SLIPPED, slipped
from lean3r.refine.steady import steadied
from lean3r.refine.unconfirmed import BADLY, fitting_badly, hanging_loosely, why_unlikely, with_cautions
from lean3r.refine.world import depth_ratios, depth_scale, into_known, into_predicted, origin_view
from lean3r.scratch import temporary_folder
from lean3r.types import Lens, Reconstruction, Registration, SparsePoints, with_warning

FITTING = 0.75  # least share of verified matches that true poses fit
MISFIT = (
    "the known poses fit only {:.0%} of the matches between the pictures; correct poses fit nearly all. Check their "
    "direction (camera to world or world to camera), axes and times; `lean3r reconstruct --known-poses start` refines "
    "rough poses"
)
ZOOMS = "the lens zooms during the video: each of its frames has a focal length of its own"
MISPLACED = (
    "{} of {} known poses contradict nearly all of their matches, while most others agree: they are wrong, or those of "
    "pictures beside them are. They stay as given, and depth and points are wrong there; without a known pose, a "
    "picture gets one by refinement"
)
UNCONFIRMED = "nothing in the pictures confirms the known poses: no points could be triangulated with them"
PATIENCE = 10  # seconds on the clock per second of work, if no limit is stated: a hanging process is ended
EVERY = 1.0  # seconds between two looks at how far it is
TIME_UP = "it ran out of time (give it more with --refine-seconds N)"
UNFINISHED = "the refinement did not end: {}; what was done by then is used"


def run(
    reconstruction: Reconstruction,
    pictures: Pictures | None,
    options: RefineOptions,
    known: KnownCameras,
    masks: Masks | None,
    follow_depth: bool = True,
    tell: Tell | None = None,
) -> Reconstruction:
    """See lean3r.refine.refine."""
    start = time.perf_counter()
    limit = options.limit(len(reconstruction.sources))
    is_stated = options.seconds is not None
    report = {
        "limit_s": limit,
        "limit_counts": "wall" if is_stated else "processor",
        "share_lens": options.share_lens,
        "lens": options.lens,
    }
    if len(reconstruction.sources) < 2:
        return keep_predicted(reconstruction, report, "a single view gives no parallax", start)
    with temporary_folder("refine") as folder:
        job = prepare(reconstruction, pictures, options, known, masks, folder)
        if pictures is not None:
            pictures.searched()
        limit = report["limit_s"] = options.limit(len(job.views))  # those of the past take their time, too
        try:
            if is_stated:
                ended = work(folder, limit - (time.perf_counter() - start), tell=tell)
            else:
                ended = work(folder, PATIENCE * limit, limit, tell)
        except KeyboardInterrupt:  # whoever has waited for minutes gets the best that was found by then
            ended = report["reason"] = INTERRUPTED
        answer = Answer.read(folder)
    if answer is None:
        reason = ended or "too few matches between the pictures, or no parallax"
        if job.held.any():
            reconstruction = with_warning(reconstruction, "known-poses", UNCONFIRMED)
        return keep_predicted(reconstruction, report, reason, start)
    answer, firm = steadied(answer, job.sequences, [view.timestamp_s for view in job.views]), job.held
    whole, past = answer, job.past
    if past:  # what follows is of the other views
        firm = np.isin(np.arange(past, len(job.views)), firm_views(answer))
        answer, job = answer.behind(past), job.behind_past()
    before, after = (accept.Fit(**answer.report[key]) for key in ("before", "after"))
    scales = np.array([view.scale for view in job.views])
    report |= {
        "matches": before.matches,
        "inliers": {"before": before.inliers, "after": after.inliers},
        "error_px": {
            k: round(f.error_px / float(np.median(scales)), 4) for k, f in (("before", before), ("after", after))
        },
        "views": [
            {"error_px": {"before": _in_original_px(b, s), "after": _in_original_px(a, s) if has else None}}
            for b, a, s, has in zip(before.view_error_px, after.view_error_px, scales, answer.has, strict=True)
        ],
    }
    if zooms := answer.report.get("zooms", False):
        report["zooms"] = True
    reconstruction = warn_misfit(reconstruction, job.held, after, answer.report["misplaced"])
    notes = answer.report["notes"]
    reason = accept.why_not_better(before, after, known.cam_from_world is not None)
    if reason is None and answer.trusted.sum() < 2:
        doubts = Counter(doubt for doubt in answer.report["doubts"] if doubt is not None)
        reason = f"its views are doubted: {doubts.most_common(1)[0][0]}"
    if reason is None and not (job.sequences or job.held.any()):
        reason = why_unlikely(answer)
    if reason is not None:  # what was seen in the pictures may be why
        return keep_predicted(with_notes(reconstruction, notes), report, reason, start)
    notes = [*notes, *([("unfinished", UNFINISHED.format(ended))] if ended else [])]
    report["notes"] = [text for _, text in notes]
    answer, moved = rescale_hanging(answer, reconstruction, scales, firm)
    answer = answer.with_doubts(
        moved, "too few shared points constrain its scale; it was taken from the network's depth"
    )
    if not job.held.any():
        ratios = depth_ratios(reconstruction, answer, answer.xy / scales[answer.view][:, None])
        answer = answer.with_doubts(slipped(ratios, answer.view, job.sequences, answer.trusted), SLIPPED)
        if not job.sequences:
            answer = answer.with_doubts(fitting_badly(answer), BADLY)
            answer = answer.with_doubts(hanging_loosely(answer), FEW_CONFIRM)  # by one that is doubted now
    refined = place(reconstruction, job, answer.of_trusted(), known)
    if past:
        report["past"] = {"past": _poses(whole)[:past], "views": _poses(answer)}  # in one world
    refined = follow(refined) if follow_depth else refined
    label = "refined" if answer.report["start"] else "fallback"
    for said, part, doubt in zip(report["views"], answer.report["parts"], answer.report["doubts"], strict=True):
        said |= {"part": part, "uncertain": doubt}
    report |= {"status": label, "registered": int(answer.has.sum()), "trusted": int(answer.trusted.sum())}
    refined = with_notes(refined, [("zoom", ZOOMS)] * zooms + notes)
    error = focal_error(job, answer)
    report["focal_error"] = error if error is None else round(error, 3)
    return with_report(with_cautions(warn_uncertain(refined, answer), answer, error), report, start)


def _poses(answer: Answer) -> list[list[list[float]] | None]:
    """Those of the trusted cameras; None for others."""
    trusted = answer.has & answer.trusted
    return [pose if sure else None for pose, sure in zip(answer.cam_from_world.tolist(), trusted, strict=True)]


def with_notes(reconstruction: Reconstruction, notes: Iterable[tuple[str, str]]) -> Reconstruction:
    """The reconstruction with a warning for each note, a code and a text."""
    for code, text in notes:
        reconstruction = with_warning(reconstruction, code, text)
    return reconstruction


def warn_uncertain(reconstruction: Reconstruction, answer: Answer) -> Reconstruction:
    """The reconstruction with a warning that names the views with untrusted cameras."""
    doubted = np.flatnonzero(~answer.trusted)
    if not len(doubted):
        return reconstruction
    parts = {part for part in answer.report["parts"] if part > 0}
    groups = "1 group of them holds" if len(parts) == 1 else f"{len(parts)} groups of them hold"
    apart = f"; {groups} together by themselves" if parts else ""
    text = (
        f"{len(doubted)} of {len(answer.has)} views are uncertain: their cameras may be far off{apart}. They "
        "are left out of the cloud, COLMAP and other scenes; cameras.json marks them"
    )
    return with_warning(reconstruction, "uncertain-views", text, doubted.tolist())


def warn_misfit(
    reconstruction: Reconstruction, held: np.ndarray, after: accept.Fit, misplaced: Sequence[int]
) -> Reconstruction:
    """The reconstruction with a warning if its `held` [S] poses do not fit the matches: all of them, or those
    `misplaced` among others that do."""
    if misplaced:
        return with_warning(reconstruction, "known-poses", MISPLACED.format(len(misplaced), held.sum()), misplaced)
    matches, inliers = (np.array(each)[held].sum() for each in (after.view_matches, after.view_inliers))
    if not held.any() or inliers >= FITTING * matches:
        return reconstruction
    return with_warning(reconstruction, "known-poses", MISFIT.format(inliers / matches))


def keep_predicted(reconstruction: Reconstruction, report: dict, reason: str, start: float) -> Reconstruction:
    """The network's result, and why it is kept."""
    return with_report(reconstruction, {"status": "kept", "reason": reason, "registered": 0, **report}, start)


def with_report(reconstruction: Reconstruction, report: dict, start: float) -> Reconstruction:
    """A result with the report of its refinement in `info`."""
    report = {**report, "seconds": round(time.perf_counter() - start, 3)}
    return replace(reconstruction, info={**reconstruction.info, "refinement": report})


def work(folder: Path, seconds: float, processor_seconds: float = math.inf, tell: Tell | None = None) -> str | None:
    """Run the refining process for at most so many seconds on the clock, or of processor time, and `tell` how far it
    is. Returns why it did not end by itself, None if it did. Delays on a busy machine do not count as work."""
    if getattr(sys, "frozen", False) or not sys.executable:
        return "the refining process cannot be started: this program has no Python interpreter"
    command = python_command("lean3r.refine.worker", str(folder), str(processor_seconds))
    with (folder / "log.txt").open("wb") as log:
        # Only this process handles Ctrl-C.
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=with_threads_of_its_own(),
        )
        try:
            code = wait(process, seconds) if tell is None else _told(process, seconds, folder, tell)
        except subprocess.TimeoutExpired:
            return TIME_UP
        finally:
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
    if code in (0, OUT_OF_TIME):
        return None if code == 0 else TIME_UP
    last = (folder / "log.txt").read_text(errors="replace").strip().splitlines()[-1:]
    return f"the refining process failed ({' '.join(last) or f'exit code {code}'})"


def _told(process: subprocess.Popen[bytes], seconds: float, folder: Path, tell: Tell) -> int:
    """As `wait`; and `tell` again and again how far it is."""
    end = time.monotonic() + seconds
    while True:
        try:
            return wait(process, min(EVERY, max(0.0, end - time.monotonic())))
        except subprocess.TimeoutExpired:
            if time.monotonic() >= end:
                raise
        tell_of(folder, tell)


def place(reconstruction: Reconstruction, job: Job, answer: Answer, given: KnownCameras) -> Reconstruction:
    """The reconstruction with an answer's cameras and points, in its original frame and scale."""
    scales = np.array([view.scale for view in job.views])
    xy = answer.xy / scales[answer.view][:, None]
    has, trusted = answer.has, answer.has & answer.trusted
    known = given.has_pose(len(has))
    both = trusted & known
    fit = into_known(answer.cam_from_world[both], job.start[both])
    in_known_world = fit is not None
    if fit is None:
        scale = depth_scale(reconstruction, answer, xy)
        fit = into_predicted(answer.cam_from_world[trusted], reconstruction.cam_from_world[trusted], scale or 1.0)
    poses = reconstruction.cam_from_world.copy()
    poses[has] = fit.apply_to_poses(torch.from_numpy(answer.cam_from_world[has])).numpy()
    xyz = fit.apply(torch.from_numpy(answer.xyz)).numpy()
    # The first camera stays the world frame; if it is doubted, the first trusted one.
    origin = origin_view(reconstruction.cam_from_world)
    if origin is not None and not trusted[origin]:
        origin = int(trusted.argmax())
    anchor = next(iter(np.flatnonzero(both)), origin)
    if anchor is not None and not in_known_world:  # its pose is known, or the world frame
        goal = reconstruction.cam_from_world[anchor] if both[anchor] else np.eye(4)
        move = np.linalg.inv(goal) @ poses[anchor]
        xyz = xyz @ move[:3, :3].T + move[:3, 3]
        poses = poses @ np.linalg.inv(move)
        poses[anchor] = goal
    labels: list[Registration] = ["uncertain"] * len(has)
    for view in np.flatnonzero(trusted):
        labels[view] = "refined" if answer.report["start"] else "fallback"
    if given.are_fixed:
        for view in np.flatnonzero(known):
            poses[view], labels[view] = job.start[view], "given"
    with_lens = {camera for camera, registered in zip(answer.camera, has, strict=True) if registered}
    lenses, intrinsics = [], reconstruction.intrinsics.copy()
    for index, (view, source) in enumerate(zip(job.views, reconstruction.sources, strict=True)):
        camera = answer.camera[index]
        if camera not in with_lens:
            lenses.append(_lens_before(reconstruction, index))
            continue
        if given.lenses and (lens := given.lenses[index]) is not None:
            lenses.append(lens)  # exactly as given
            continue
        lenses.append(scale_lens(Lens(answer.models[camera], answer.params[camera]), 1 / view.scale, 1 / view.scale))
        if given.intrinsics is not None and job.groups[view.group].focal_fixed:
            lenses[-1] = _with_known(lenses[-1], given.intrinsics[index])
        intrinsics[index] = network_intrinsics(lenses[-1], source)
    sparse = SparsePoints(
        xyz,
        _colours(reconstruction, answer, xy),
        answer.error_px / float(np.median(scales)),
        answer.point,
        answer.view,
        xy,
    )
    return replace(
        reconstruction,
        cam_from_world=poses,
        intrinsics=intrinsics,
        lenses=tuple(lenses),
        sparse=sparse,
        registration=tuple(labels),
    )


def _with_known(lens: Lens, matrix: np.ndarray) -> Lens:
    """A lens with estimated distortion and exactly the known pinhole [3, 3]."""
    fx, fy, cx, cy = map(float, matrix[[0, 1, 0, 1], [0, 1, 2, 2]])
    focals, _ = LENSES[lens.model]
    distortion = lens.params[focals + 2 :]
    if focals == 1 and fx != fy:
        return Lens("OPENCV", (fx, fy, cx, cy, *(*distortion, 0.0)[:2], 0.0, 0.0))
    return Lens(lens.model, (*(fx, fy)[:focals], cx, cy, *distortion))


def _lens_before(reconstruction: Reconstruction, view: int) -> Lens:
    """The lens of a view before refinement."""
    if reconstruction.lenses:
        return reconstruction.lenses[view]
    matrix = reconstruction.original_intrinsics[view]
    return Lens("PINHOLE", tuple(map(float, matrix[[0, 1, 0, 1], [0, 1, 2, 2]])))


def _colours(reconstruction: Reconstruction, answer: Answer, xy: np.ndarray) -> np.ndarray:
    """Mean colour [P, 3] uint8 of each point's measurements, in the network's pictures."""
    total, count = np.zeros((len(answer.xyz), 3)), np.zeros(len(answer.xyz))
    height, width = reconstruction.images.shape[1:3]
    for view, source in enumerate(reconstruction.sources):
        mine = np.flatnonzero(answer.view == view)
        scale, offset = np.reshape(source.original_from_network, (2, 2))
        col, row = np.floor((xy[mine] - offset) / scale).astype(int).clip(0, (width - 1, height - 1)).T
        np.add.at(total, answer.point[mine], reconstruction.images[view, row, col])
        np.add.at(count, answer.point[mine], 1)
    return (total / np.maximum(count, 1)[:, None]).round().astype(np.uint8)


def _in_original_px(error_px: float | None, scale: float) -> float | None:
    return None if error_px is None else round(float(error_px / scale), 4)
