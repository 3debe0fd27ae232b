"""Films that were stored in another width than they were taken in, and do not say so."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lean3r.geometry.pose import camera_centers
from lean3r.refine.job import PICTURES, Answer, Job
from lean3r.refine.world import into_known

sys.path.insert(0, str(Path(__file__).parent))
import scenes
import test_video

# The camera turns about its axis, too: otherwise square pixels explain nearly all, with another path.
AT = 0.22 * (np.arange(11) - 5)
POSES = np.stack(
    [scenes.look((-5 * x, 4.0 + x, 30 * np.sin(2 * x)), (x, 0.15 * x**2 - 0.3, 0.1 * x)) for x in AT.tolist()]
)


def stored(job: Job, folder: Path, times: float) -> Job:
    """The job of a film that was stored so many times as wide."""
    for path in (folder / PICTURES).rglob("*.bmp"):
        with Image.open(path) as image:
            wide = image.resize((round(times * image.width), image.height), Image.Resampling.BICUBIC)
        wide.save(path)
    (group,) = job.groups
    focal, x, *more = group.params
    groups = (replace(group, width=round(times * group.width), params=(focal, times * x, *more)),)
    return replace(job, groups=groups, pinholes=job.pinholes * (1, 1, times, 1))


@pytest.mark.parametrize(("times", "is_told"), [(1.0, False), (4 / 3, True)])
def test_a_film_whose_pixels_are_not_square_gets_two_focal_lengths(
    times: float, is_told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_video, "POSES", POSES)
    found = test_video.solved(stored(test_video.window(0, 11, tmp_path), tmp_path, times), tmp_path)
    assert [code for code, _ in found.report["notes"]] == ["stretched"] * is_told
    assert "zooms" not in found.report
    across, down, *_ = found.params[0] if is_told else found.params[0][:1] * 2
    assert across / down == pytest.approx(times, rel=0.02) and down == pytest.approx(scenes.FOCAL, rel=0.06)
    assert off(found) < 0.2


def off(found: Answer) -> float:
    """The largest error of a position, in steps between frames."""
    fit = into_known(found.cam_from_world, POSES)
    assert fit is not None
    placed, true = (camera_centers(torch.as_tensor(poses)) for poses in (found.cam_from_world, POSES))
    return float((fit.apply(placed) - true).norm(dim=-1).max() / (true[1] - true[0]).norm())
