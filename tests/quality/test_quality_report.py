"""The quality report: complete for any scene, honest about what is gone, and text where users wrote text."""

from __future__ import annotations

import json
import re
import tracemalloc
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from export.scene import make_scene
from quality.reported import rich_scene

from lean3r import export, quality
from lean3r.errors import InputError
from lean3r.export import preview
from lean3r.geometry.fusion import with_cloud, without_depth
from lean3r.quality import report_of
from lean3r.quality.agreement import agreement_of, calibration, common_points
from lean3r.quality.charts import BLACK_OR_WHITE, WARM, luminance
from lean3r.types import SparsePoints

HOSTILE = [
    "<script>alert(1)</script>.jpg",
    "\" onload='x' &amp; \\u202e gpj.\u202ecba.jpg",
    "tab\tline\nbell\x07del\x7f\udcff.jpg",
    "n" * 300 + ".jpg",
    "{{ 7 * 7 }}{% raw %}.jpg",
]
LOADING = {"src", "href", "data", "action", "srcset", "poster", "formaction"}


class Reader(HTMLParser):
    """The page as a browser's parser sees it: its elements, their texts, and what is wrong with it."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open = "", []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def section(self, name: str) -> str:
        """The text of a section, up to the next heading of its level."""
        heads = [
            "Warnings",
            "Overview",
            "Pictures",
            "Cameras",
            "Overlap",
            "Coverage",
            "Depth and confidence",
            "Scale and position",
            "Run",
            "\0",
        ]
        at = self.text.index(f"\n{name}\n")
        ends = [self.text.find(f"\n{head}\n", at + 1) for head in heads]
        return self.text[at : min((end for end in ends if end > 0), default=None)]


@pytest.fixture(autouse=True)
def coarse_preview(monkeypatch) -> None:
    monkeypatch.setattr(preview, "SAMPLES", 1)


def check(page: str) -> Reader:
    """It stands alone, needs no script, and has what a reader by ear needs."""
    reader = Reader(page)
    assert not {tag for tag, _ in reader.tags} & {"script", "link", "iframe", "object", "base", "form"}
    for tag, attributes in reader.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in LOADING & attributes.keys():
            assert (attributes[name] or "").startswith("data:"), f"{tag} loads {attributes[name]!r:.60}"
        if tag in ("img", "svg"):
            assert attributes.get("alt") or (attributes.get("role") == "img" and attributes["aria-label"])
        if tag == "th":
            assert attributes.get("scope") in ("col", "row")
    assert not re.search(r"url\(|@import", page)
    levels = [int(tag[1]) for tag, _ in reader.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e]", reader.text)
    assert "nan" not in re.sub(r"[A-Za-z]+nan|nan[A-Za-z]+", "", reader.text.lower()), "numbers that are none"
    return reader


def test_everything_that_is_known_is_on_the_page_warnings_first() -> None:
    reader = check(report_of(rich_scene()))
    assert reader.text.index("1 of 5 views is uncertain") < reader.text.index("Views")
    assert "notes.txt" in reader.section("Pictures") and "not an image" in reader.section("Pictures")
    cameras = reader.section("Cameras")
    for said in ("refined", "fallback", "given", "uncertain: too few points connect it", "0.65", "2.50", "0.50"):
        assert said in cameras, said
    assert "level cameras" in cameras
    assert "+0.30" in reader.section("Scale and position") and "-0.40" in reader.section("Scale and position")
    run = reader.section("Run")
    for said in ("Apache-2.0", "cpu <&>", "lean3r reconstruct 'a b' --up=-y", "network", "1.50", "refine.when"):
        assert said in run, said
    assert "812 MB" in reader.text and "holiday" in reader.text


def test_its_figures_are_those_of_the_summary_and_say_what_they_leave_out(tmp_path: Path) -> None:
    scene = rich_scene()
    overview = check(report_of(scene)).section("Overview")
    assert "2.0 s" in overview and "without writing the files" in overview and "3.7 %" not in overview
    stereo = {"status": "measured", "views": 5, "disagreement": {"before": 0.2, "after": 0.037}}
    measured = replace(scene, info=scene.info | {"stereo": stereo})
    assert "3.7 %" in check(report_of(measured)).section("Overview")
    kept = replace(scene, info=scene.info | {"stereo": stereo | {"status": "kept", "reason": "no better agreement"}})
    assert "3.7 %" not in check(report_of(kept)).section("Overview")
    written = check(report_of(export(scene, tmp_path / "out", "cameras,npz"))).section("Overview")
    assert "cpu <&>" in written and "without writing" not in written


def test_names_are_shown_as_text() -> None:
    page = report_of(rich_scene(HOSTILE))
    reader = check(page)
    for name in HOSTILE:
        shown = name.encode("unicode_escape").decode().replace("\\\\", "\\") if not name.isprintable() else name
        assert shown in reader.text, shown[:40]


def test_colours_are_legible_in_light_dark_and_print() -> None:
    style = (Path(quality.__file__).parent / "page.html").read_text(encoding="utf-8")
    themes = [
        dict(re.findall(r"--([\w-]+): (#\w{6});", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)
    ]
    assert len(themes) == 3 and len({frozenset(theme) for theme in themes}) == 1 and themes[0] == themes[2]

    def contrast(first: str, second: str) -> float:
        a, b = (float(luminance(np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]))) for c in (first, second))
        return (max(a, b) + 0.05) / (min(a, b) + 0.05)

    for theme in themes:
        for text in ("ink", "quiet"):
            for ground in ("paper", "soft", "warn"):
                assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
        for mark in ("refined", "fallback", "given", "predicted", "uncertain", "accent", "warn-line"):
            assert contrast(theme[mark], theme["paper"]) >= 4.5, mark
    shades = np.linspace(WARM[:-1], WARM[1:], 64).reshape(-1, 3)
    grounds = luminance(shades)
    assert (np.where(grounds < BLACK_OR_WHITE, 1.05 / (grounds + 0.05), (grounds + 0.05) / 0.05) >= 4.5).all()


@pytest.mark.parametrize("views", [1, 2])
def test_few_views_and_no_depth(views: int) -> None:
    scene = make_scene(views)
    one = check(report_of(scene))
    assert ("A single view overlaps with no other" in one.text) == (views == 1)
    bare = check(report_of(with_cloud(without_depth(scene))))
    assert "There is no depth to compare" in bare.text


def test_what_the_views_say_of_confidence() -> None:
    """Exact depth agrees; where it is wrong, and confidence says so, the curve falls."""
    scene = make_scene(6)
    exact = agreement_of(scene)
    assert exact is not None and exact.shares[0] < 0.5 and np.nanmedian(exact.difference) < 0.002
    assert (np.diag(exact.overlap) == 0).all() and np.nanmax(exact.overlap) > 0.5
    rng = np.random.default_rng(0)
    error = rng.uniform(0, 0.08, scene.depth.shape)
    depth = (scene.depth * np.exp(error * rng.choice([-1, 1], error.shape))).astype(np.float32)
    noisy = agreement_of(replace(scene, depth=depth, conf=(1 + 1 / (0.01 + error)).astype(np.float32)))
    assert noisy is not None
    bins = calibration(noisy)
    assert len(bins) == 10 and bins[0].difference > 1.3 * bins[-1].difference > 0
    assert (
        agreement_of(without_depth(scene)) is None and calibration(replace(exact, conf=np.ones_like(exact.conf))) == []
    )


def test_from_a_folder_as_from_the_scene_and_as_far_as_it_is_left(tmp_path: Path) -> None:
    scene = rich_scene()
    out = export(scene, tmp_path / "out", "cameras,npz,ply,preview,report,colmap")
    assert check((out / "report.html").read_text(encoding="utf-8")).text == check(report_of(scene)).text
    stored = check(report_of(out))
    peak = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["peak_memory_mb"]
    for said in ("1 of 5 views is uncertain", "0.65", f"{peak:,.0f} MB", "+0.30", "notes.txt"):
        assert said in stored.text, said
    assert "incomplete" not in stored.section("Warnings")
    for gone, said in (
        ("points.ply", "points.ply"),
        ("predictions.npz", "depth and confidence are not known"),
        ("config.toml", "the settings are not known"),
        ("cameras.json", "Where the cameras are is not known"),
    ):
        (out / gone).unlink()
        half = check(report_of(out))
        assert said in half.text and "gone" in half.section("Warnings")
        assert "1 of 5 views is uncertain" in half.text
    with pytest.raises(InputError, match="no such folder"):
        report_of(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"has none of manifest\.json"):
        report_of(tmp_path)


@pytest.mark.parametrize("value", [None, 1, "x", [], {}, [[1]], [{"name": {}}], {"views": "x", "status": [1]}])
def test_a_manifest_of_anything_is_no_accident(tmp_path: Path, value: object) -> None:
    out = export(rich_scene(), tmp_path / "out", "cameras,npz")
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(dict.fromkeys(manifest, value)))
    check(report_of(out))
    for name in ("predictions.npz", "cameras.json", "points.ply", "preview.jpg"):
        (out / name).write_bytes(b"\x00damaged")
    check(report_of(out))


def test_a_stream_that_is_not_done(tmp_path: Path) -> None:
    """It has cameras and a cloud, and no arrays yet."""
    out = export(rich_scene(), tmp_path / "out", "cameras,ply")
    manifest = json.loads((out / "manifest.json").read_text())
    kept = {key: manifest[key] for key in ("layout_version", "views", "points", "scale")}
    (out / "manifest.json").write_text(json.dumps(kept | {"warnings": []}))
    (out / "stream.json").write_text("{}")
    shown = check(report_of(out))
    assert "depth and confidence are not known" in shown.section("Warnings")
    assert "3 of 5" in shown.section("Overview") and "nothing but the network" not in shown.text
    assert any(attributes.get("aria-label", "").startswith("Plan from above") for _, attributes in shown.tags)


def test_points_in_common_are_counted_in_little_memory():
    """Of a thousand views, a table of all points and views would have 200 MB."""
    rng, views = np.random.default_rng(0), 1000
    track = (rng.integers(0, views, 50_000)[:, None] + [0, 3, 3, 40]) % views  # twice in one view
    nothing, of_point = np.zeros((0, 3)), np.repeat(np.arange(50_000), 4)
    sparse = SparsePoints(nothing, nothing, nothing, of_point, track.ravel(), nothing)
    scene = replace(make_scene(1), sources=make_scene(1).sources * views, sparse=sparse)
    tracemalloc.start()
    common = common_points(scene)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6
    starts = np.bincount(track[:, 0], minlength=views)
    assert (common == common.T).all() and common.sum() == 9 * 50_000
    for apart in (3, 37, 40):
        np.testing.assert_array_equal(
            common[np.arange(views), (np.arange(views) + apart) % views], np.roll(starts, 3 * (apart == 37))
        )
    np.testing.assert_array_equal(common.diagonal(), starts + np.roll(starts, 3) + np.roll(starts, 40))
