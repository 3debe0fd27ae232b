"""The refining process: reads a job from the folder named on the command line, and writes its answer there.

It is a separate process because the libraries' calls cannot be interrupted: it is ended when time is up, and the best
answer until then is used. It ends by itself when its standard input closes: nobody waits for it any more.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lean3r.colmap_library import pycolmap
from lean3r.processes import end_with_input
from lean3r.refine import features, fisheye
from lean3r.refine.attempts import CALIBRATING, FOLLOWS, Attempt, attempts
from lean3r.refine.compare import MOST, WELL, is_as_good, is_better_alone, is_sharper, is_strong, share, value
from lean3r.refine.film_lenses import Film, has_another_lens
from lean3r.refine.job import OUT_OF_TIME, Job
from lean3r.refine.separate import ELSEWHERE, are_off_centre, own_focals

MANY = 6  # views that determine a camera each
CROPPED = (
    "the pictures fit clearly better with a middle of the lens each that is not theirs, as if they were cropped, "
    "squeezed or framed: focal lengths, angles and distances may be far off. Take them as the camera made them, or "
    "state their intrinsics"
)


def solve(job: Job, folder: Path) -> None:
    """Keep the best answer so far in the folder. Coarse features come first, fine ones if these are not enough, and a
    camera for every view, if shared ones leave many matches or hide different focal lengths."""
    best: Attempt | None = None
    octave = features.COARSE
    for octave in features.octaves(job):
        for attempt in attempts(job, folder, octave):
            if best is None or value(attempt.answer) > value(best.answer):
                best = attempt
                best.answer.write(folder)
        if best is not None and is_strong(best.answer):
            break
    if best is None:
        return
    can_tell, name = best.answer.has.sum() >= CALIBRATING, "shared"
    if can_tell and (wide := fisheye.as_fisheye(job, best.answer)) is not None:
        models = attempts(wide, folder, octave, "fisheye")
        models = (each for each in models if is_as_good(each.answer, best.answer) and fisheye.is_fisheye(each.answer))
        found = [each for each in models if is_sharper(each.answer, best.answer, fisheye.SHARPER)]
        if found:
            job, name = wide, "fisheye"
            best = max(found, key=lambda each: value(each.answer)).with_note("fisheye", fisheye.FISHEYE)
            best.answer.write(folder)
    if job.sequences:
        if can_tell and not has_another_lens(Film(job, folder, name, octave, best.answer)):
            best.sharpened().write(folder)
        return
    if can_tell and FOLLOWS not in best.answer.report["doubts"] and job.each_alone() is not None:
        best = apart(job, folder, octave, best)
    with ThreadPoolExecutor(1) as aside:  # both keep one processor busy
        could_be = can_tell and not (job.held.any() or job.knows_focals)
        is_cropped = aside.submit(are_off_centre, job, best.answer) if could_be else None
        last = best.sharpened()
    if is_cropped is not None and is_cropped.result():
        last = last.with_note("cropped", CROPPED)
    last.write(folder)


def apart(job: Job, folder: Path, octave: int, shared: Attempt) -> Attempt:
    """Keep a model of pictures with a camera each, if shared ones leave many matches or cannot be true.

    Where they cannot, the focal lengths with which the shared model fits best are a second start: a part of the matches
    does not survive the network's, where half of the pictures are zoomed twofold. If its cameras lie elsewhere with
    them, it is not trusted; if they then only turn, no other is looked for: a lens that zooms looks like parallax.
    """
    own = own_focals(job, shared.answer)
    if own is None and (shared.answer.has.sum() < MANY or share(shared.answer) >= WELL):
        return shared
    first, least, starts = shared.answer, 1.0, [("alone", None)]
    if own is not None:
        starts = [] if own.only_turns else [*starts, ("again", own.focals_px)]
        if own.contradicts:
            shared, least = shared.doubted(ELSEWHERE), MOST
            shared.answer.write(folder)
    best = shared
    for name, start in starts:
        if best is not shared or (alone := job.each_alone(start)) is None:
            break
        for attempt in attempts(alone, folder, octave, name):
            before = first if best is shared else best.answer
            if is_better_alone(attempt.answer, before, own is not None and best is shared, least):
                best = attempt
                best.answer.write(folder)
    if own is not None and best is shared:
        best = best.with_note("zoom", own.note)
        best.answer.write(folder)
    return best


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
