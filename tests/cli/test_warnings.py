"""Warnings about a result: logged, in its record, and first in the summary."""

from __future__ import annotations

import json
import logging

import pytest
from export.scene import make_scene

from lean3r.cli.summary import describe_stereo, summary, summary_rows
from lean3r.export import export
from lean3r.types import with_warning


def test_a_warning_is_logged_recorded_and_comes_first(tmp_path, caplog) -> None:
    plain = make_scene()
    with caplog.at_level(logging.WARNING, "lean3r"):
        scene = with_warning(plain, "no-overlap", "nothing in common", [1, 3])
    scene = with_warning(scene, "other", "the whole scene")
    assert "nothing in common" in caplog.text and "warnings" not in plain.info
    told = [
        {"code": "no-overlap", "text": "nothing in common", "views": ["IMG_001.jpg", "IMG_003.jpg"]},
        {"code": "other", "text": "the whole scene", "views": []},
    ]
    done = summary(scene, tmp_path, [], {"network": 1.0})
    assert done["warnings"] == told
    assert summary_rows(scene, done)[:2] == [
        ("warning", "[no-overlap] nothing in common (IMG_001.jpg, IMG_003.jpg)"),
        ("warning", "[other] the whole scene"),
    ]
    for found, expected in ((scene, told), (plain, [])):
        manifest = export(found, tmp_path / str(len(expected)), "cameras") / "manifest.json"
        assert json.loads(manifest.read_text())["warnings"] == expected


@pytest.mark.parametrize(
    ("report", "said"),
    [
        ({}, "stereo in 3 views; they disagree by 1.2% (median), 8.0% before"),
        ({"share": 0.5, "disagreement": {"before": None, "after": 0.012}},
         "stereo in 3 views, 50% of their pixels; they disagree by 1.2% (median)"),
        ({"share": 0.5, "disagreement": {"before": None, "after": None}, "interrupted": True},
         "stereo in 3 views until it was interrupted, 50% of their pixels; no two of them show the same place"),
    ],
)  # fmt: skip
def test_the_summary_says_what_stereo_did(report, said) -> None:
    usual = {"status": "measured", "views": 3, "disagreement": {"before": 0.08, "after": 0.012}}
    assert describe_stereo(usual | report) == said
