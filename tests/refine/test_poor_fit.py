"""Photographs that fit their cameras badly, as edited ones do, are uncertain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refine.scenes import arc, scene, write
from refine.test_unconfirmed import around, codes

import lean3r
from lean3r.refine import refine
from lean3r.refine.job import Answer
from lean3r.refine.unconfirmed import BADLY, fitting_badly, why_unlikely, with_cautions


def corrected(image: Image.Image) -> Image.Image:
    """As if its lines that lean were made upright."""
    (width, height), inset = image.size, 0.08 * image.width
    corners = (inset, 0, 0, height, width, height, width - inset, 0)
    return image.transform(image.size, Image.Transform.QUAD, corners, Image.Resampling.BICUBIC)


def test_a_photo_with_corrected_perspective_is_uncertain(tmp_path: Path) -> None:
    """It was 4.7 degrees off, certain, and nothing said so."""
    write(arc(5), tmp_path)
    corrected(Image.open(tmp_path / "002.png")).save(tmp_path / "002.png")
    found = refine(scene(arc(5)), lean3r.Pictures(tmp_path))
    (warning,) = found.info["warnings"]
    assert (warning["code"], warning["views"]) == ("uncertain-views", [found.names[2]])
    assert found.info["refinement"]["views"][2]["uncertain"] == BADLY


def fitted(error_px: list[float | None], inliers: int, pair_px: list[float | None] | None = None) -> Answer:
    """Views with these errors, and those of their usual pairs, each with so many of a hundred matches that fit."""
    answer = around(len(error_px))
    after = {"view_inliers": [inliers] * len(error_px), "view_matches": [100] * len(error_px)}
    after |= {"view_error_px": error_px, "view_pair_px": pair_px or error_px}
    return replace(answer, report={**answer.report, "after": after})


@pytest.mark.parametrize(
    ("error_px", "inliers", "named"),
    [
        ([0.2, 0.2, 0.4, 0.2], 95, None),
        ([0.2, 0.2, 0.7, 0.2], 95, [2]),
        ([0.02, 0.02, 0.2, 0.02], 100, None),  # a perfect picture among others that are more perfect
        ([0.6, 0.7, 0.6, 0.6], 80, [0, 1, 2, 3]),
        ([0.3, 0.3, 0.3, 0.3], 80, None),  # as soft pictures do
    ],
)
def test_views_that_fit_badly_are_named(error_px: list[float | None], inliers: int, named: list[int] | None) -> None:
    network = scene(arc(len(error_px)))
    found = with_cautions(network, fitted(error_px, inliers), focal_error=0.01)
    assert fitting_badly(fitted(error_px, inliers)) == (named if named == [2] else [])
    assert codes(found) == (["poor-fit"] if named == [0, 1, 2, 3] else [])
    assert not codes(with_cautions(network, fitted(error_px, inliers), focal_error=None))  # frames of a video


def test_a_doubted_view_is_not_named_again() -> None:
    answer = fitted([0.2, None, 0.9, 0.2, 0.2], 95).with_doubts([1, 2], "it fits nothing")
    assert not fitting_badly(replace(answer, has=np.arange(5) != 1))


def test_a_view_is_not_named_for_what_another_one_spoils() -> None:
    answer = fitted([0.2, 0.7, 0.2, 0.2], 95, [0.2, 0.2, 0.2, 0.2])
    assert not fitting_badly(answer)


@pytest.mark.parametrize(
    ("trusted", "inliers", "is_unlikely"), [(3, 80, True), (4, 80, False), (3, 95, False), (0, 80, False)]
)
def test_a_few_views_that_fit_badly_are_no_model(trusted: int, inliers: int, is_unlikely: bool) -> None:
    """Three of eight photos of windows that repeat were certain, and wrong altogether."""
    answer = fitted([0.6] * 8, inliers).with_doubts(range(trusted, 8), "it has too few matches with other views")
    assert bool(why_unlikely(answer)) == is_unlikely
