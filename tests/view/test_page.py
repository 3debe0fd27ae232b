"""The page in a real browser: it draws what is in the result, reacts, asks for nothing, and shows names as text."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from lean3r.export import export
from lean3r.export.ply_reader import read_ply
from lean3r.view.compare import packages_of
from lean3r.view.folder import read_content
from lean3r.view.frame import frame_of
from lean3r.view.html import page as page_of
from lean3r.view.html import write_page
from view.conftest import Opened, small_scene

HOSTILE = [
    "<img src=x onerror=alert(1)>.jpg", "</script><script>alert(1)</script>", "<!--<script>", 'a"b\'c&amp;.png',
    "two\nlines\t\x07.png", "x" * 300, "\udcff.jpg", "日本 ä.heic",
]  # fmt: skip
PLAIN = {"shade": "0", "grid": False, "cameras": False, "cull": False}


def set_inputs(opened: Opened, **values: object) -> None:
    """Set sliders, boxes and choices by their ids, as a person would."""
    for name, value in values.items():
        place = opened.page.locator(f"#{name}")
        if isinstance(value, bool):
            place.set_checked(value)
        elif place.evaluate("e => e.tagName") == "SELECT":
            place.select_option(str(value))
        else:
            place.fill(str(value))
    opened.settle()


def differs(first: np.ndarray, second: np.ndarray) -> float:
    """The share of pixels that are not alike."""
    return float((np.abs(first - second).max(axis=-1) > 12).mean())


def test_it_draws_reacts_and_asks_for_nothing(result: Path, opened: Callable[..., Opened]) -> None:
    page = opened(result / "view.html")
    first = page.shot()
    assert first.std() > 30 and len(np.unique(first.reshape(-1, 3), axis=0)) > 500
    changes = ({"size": "-2"}, {"least": "80"}, {"colour": "view"}, {"trim": True, "trim-top": "0"})
    for change in changes:
        set_inputs(page, **change)
        now = page.shot()
        assert differs(first, now) > 0.01, change
        first = now
    set_inputs(page, least="0", trim=False)
    page.page.evaluate("lean3r.viewer.eye.orbit(2.6, 0), lean3r.viewer.moved()")
    first = page.shot()
    set_inputs(page, cull=False)
    assert differs(first, page.shot()) > 0.1, "from behind"
    page.page.locator("#camera-lists button").nth(1).click()
    assert differs(first, page.shot()) > 0.1
    assert page.page.locator("#camera-name").text_content() == "IMG_001.jpg"
    over = page.shot()
    set_inputs(page, opacity="1")
    assert differs(over, page.shot()) > 0.05
    page.page.locator("#camera-shown input[value=depth]").check(force=True)
    assert differs(over, page.shot()) > 0.1
    page.page.keyboard.press("Escape")
    assert page.page.locator("#camera-bar").is_hidden()
    assert page.problems == [] and page.asked == [(result / "view.html").as_uri()]


def test_a_click_on_a_camera_goes_there_and_two_clicks_measure(result: Path, opened: Callable[..., Opened]) -> None:
    page = opened(result / "view.html")
    place = page.page.evaluate(
        "(() => { const v = lean3r.viewer, p = v.renderer.panes[0], c = v.scenes[0].cameras[2];"
        "const r = v.around.reach(v.scenes[0], c, v.look);"
        "return v.placeOf(c.centre.map((x, i) => x + c.axes[2][i] * r), p); })()"
    )
    box = page.page.locator("#view").bounding_box()
    page.page.mouse.click(box["x"] + place[0], box["y"] + place[1])
    page.settle()
    assert page.page.locator("#camera-name").text_content() == "IMG_002.jpg"
    at_once = "lean3r.viewer.redraw(); document.documentElement.dataset.state"
    assert page.page.evaluate(at_once) == "drawing", "nobody takes the picture before for the one that is asked for"
    page.settle()
    page.page.keyboard.press("m")
    for x, y in ((0.4, 0.5), (0.6, 0.5)):
        page.page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
    page.settle()
    said = page.page.locator("#measures span").text_content()
    ends = np.array(page.page.evaluate("lean3r.viewer.look.measured[0].ends"))
    frame = frame_of(read_content(result))
    world = ends @ frame.rotation * frame.unit + frame.centre
    assert float(said.removesuffix(" units")) == pytest.approx(np.linalg.norm(world[0] - world[1]), rel=1e-3)
    xyz = read_ply(result / "points.ply").columns("x", "y", "z")
    assert [np.linalg.norm(xyz - end, axis=1).min() < 0.1 for end in world] == [True, True], "on the surface"
    told = page.page.evaluate(
        "(([s]) => [12345.6, 0.0123456].map((v) => s.measure(v / s.header.unit)))(lean3r.viewer.scenes)"
    )
    assert told == ["12350 units", "0.01235 units"]
    # A stream that grows has another centre and another unit.
    again = "v.set([{ ...s.header, unit: 2 * s.header.unit }], () => s.parts); lean3r.tools.measures();"
    page.page.evaluate("{ const v = lean3r.viewer, [s] = v.scenes; " + again + " }")
    assert page.page.locator("#measures span").count() == 0, "no length that is none"
    assert page.problems == []


def test_the_mean_colour_is_that_of_the_points_from_the_same_view(result: Path, opened: Callable[..., Opened]) -> None:
    page = opened(result / "view.html")
    set_inputs(page, **PLAIN)
    page.page.locator("#camera-lists button").nth(1).click()
    set_inputs(page, opacity="0", size="-2")
    page.page.evaluate("document.getElementById('camera-bar').hidden = true")
    seen = page.shot()
    eye = page.page.evaluate(
        "(() => { const e = lean3r.viewer.eye; return [e.fov, lean3r.viewer.canvas.clientHeight]; })()"
    )
    ply = read_ply(result / "points.ply")
    camera = read_content(result).cameras[1]
    xyz, rgb = ply.columns("x", "y", "z"), ply.columns("red", "green", "blue")
    cam = xyz @ camera.pose[:3, :3].T + camera.pose[:3, 3]
    height, width = eye[1], page.page.evaluate("lean3r.viewer.canvas.clientWidth")
    focal = height / 2 / np.tan(eye[0] / 2)
    x, y = np.floor(focal * cam[:, 0] / cam[:, 2] + width / 2), np.floor(focal * cam[:, 1] / cam[:, 2] + height / 2)
    inside = (cam[:, 2] > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    # Who is nearest in squares larger than the page's points is seen at its own place there.
    owner = np.full((height, width), -1)
    order = np.flatnonzero(inside)[np.argsort(-cam[inside, 2])]
    reach = 3
    rows, cols = y.astype(int), x.astype(int)
    for point in order:
        at = rows[point], cols[point]
        owner[max(0, at[0] - reach) : at[0] + reach + 1, max(0, at[1] - reach) : at[1] + reach + 1] = point
    on_top = order[owner[rows[order], cols[order]] == order]
    assert len(on_top) > 500
    drawn = seen[rows[on_top], cols[on_top]]
    assert np.abs(drawn.mean(axis=0) - rgb[on_top].mean(axis=0)).max() < 2
    assert np.median(np.abs(drawn - rgb[on_top])) <= 3


def test_hostile_names_are_text(tmp_path: Path, opened: Callable[..., Opened]) -> None:
    scene = small_scene(len(HOSTILE), height=24, width=32, names=HOSTILE)
    scene.info["warnings"] = [{"code": "x", "text": "<b>bold</b> & </script>", "views": []}]
    scene.info["config"]["inputs"] = ["/photos/<i>title</i>"]
    page = opened(export(scene, tmp_path / "out", "html") / "view.html")
    shown = page.page.locator("#camera-lists .unseen").all_text_contents()
    shown = [text.replace(": uncertain:", ":").rpartition(": ")[0] for text in shown]
    assert shown == HOSTILE
    assert page.page.locator("#title").text_content() == "<i>title</i>"
    assert "<b>bold</b> & </script>" in page.page.locator("#about").text_content()
    assert page.page.locator("#stage img, #panel img, #panel i:not(.chip i), #panel b").count() == 0
    for view in range(len(HOSTILE)):
        page.page.locator("#camera-lists button").nth(view).click()
        assert page.page.locator("#camera-name").text_content() == shown[view]
    assert page.problems == []


def test_two_results_side_by_side_and_over_one_another(
    result: Path, tmp_path: Path, opened: Callable[..., Opened]
) -> None:
    """The second is in another world: moved, turned, four times as large."""
    scene = small_scene()
    turn = np.array([[0.0, 0, 1, 5], [0, 1, 0, -3], [-1, 0, 0, 9], [0, 0, 0, 1]])
    poses = scene.cam_from_world @ np.linalg.inv(turn)
    poses[:, :3, 3] *= 4
    moved = small_scene(cam_from_world=poses, depth=scene.depth * 4)
    other = export(moved, tmp_path / "other", "cameras,npz,ply")
    packages, text = packages_of([read_content(result), read_content(other)], in_one_file=True)
    assert "3 cameras in common; these then differ by 0.0%" in text
    write_page(tmp_path / "both.html", packages, text)
    page = opened(tmp_path / "both.html")
    side = page.shot()
    left, right = (side[:, part] for part in (slice(40, 270), slice(340, 560)))
    assert left.std() > 25 and right.std() > 25
    set_inputs(page, layout="over", colour="result")
    over = page.shot()
    assert differs(side, over) > 0.1
    for layout, warm in (("first", 1), ("second", -1)):
        set_inputs(page, layout=layout)
        seen = page.shot()
        assert (warm * (seen[..., 0] - seen[..., 2]) > 40).mean() > 0.05
    # A second that reaches farther than the first is seen as a whole where it is shown.
    page.page.evaluate(
        "{ const { home } = lean3r.viewer.scenes[1].header; home.sample = home.sample.map((v) => 4 * v); }"
    )
    away = {}
    for layout in ("first", "second", "over"):
        set_inputs(page, layout=layout)
        away[layout] = page.page.evaluate("lean3r.viewer.overview().distance")
    assert away["second"] > 2 * away["first"] and away["over"] >= away["second"]
    assert page.problems == []


def test_results_with_nothing_in_common_tell_lengths_each_in_its_own_unit(
    result: Path, tmp_path: Path, opened: Callable[..., Opened]
) -> None:
    scene = small_scene(names=[f"other_{view}.jpg" for view in range(4)])
    poses = scene.cam_from_world.copy()
    poses[:, :3, 3] *= 400
    metric = small_scene(names=list(scene.names), cam_from_world=poses, depth=scene.depth * 400, conf=9 * scene.conf)
    other = export(replace(metric, scale="metric"), tmp_path / "other", "cameras,npz,ply")
    contents = [read_content(result), read_content(other)]
    packages, text = packages_of(contents, in_one_file=True)
    write_page(tmp_path / "both.html", packages, text)
    page = opened(tmp_path / "both.html")
    box, said, shown = page.page.locator("#view").bounding_box(), page.page.locator("#status"), []
    page.page.keyboard.press("m")

    def click(x: float) -> None:
        page.page.mouse.click(box["x"] + x * box["width"], box["y"] + 0.55 * box["height"])

    for left, right in ((0.2, 0.3), (0.7, 0.8)):
        click(left)
        click(right)
        shown.append((said.text_content() or "").split())
    assert [unit for _, unit in shown] == ["units", "m"]
    page.settle()
    lengths = page.page.evaluate(
        "lean3r.viewer.look.measured.map(({ends: [a, b]}) => Math.hypot(...a.map((v, i) => v - b[i])))"
    )
    for (told, _), length, content in zip(shown, lengths, contents, strict=True):
        assert float(told) == pytest.approx(length * frame_of(content).unit, rel=1e-3)
    assert page.page.locator("#labels .length").all_text_contents() == [" ".join(each) for each in shown], "each once"
    assert page.page.locator("#grid-step").text_content() == "(1 units | 500 m)"
    click(0.2)
    click(0.8)
    assert "in another result" in (said.text_content() or "")
    label, status = page.page.locator("#labels .pane").first.bounding_box(), said.bounding_box()
    assert label["y"] >= status["y"] + status["height"], "what is said hides no title"
    set_inputs(page, layout="over", colour="confidence")
    click(0.5)
    assert "no size in common" in (said.text_content() or "")
    ends = page.page.locator("#legend .ends span:last-child").all_text_contents()
    assert float(ends[1]) == pytest.approx(9 * float(ends[0]), rel=0.02)
    assert page.problems == []


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_nothing_serious_is_wrong_for_those_who_see_or_point_badly(
    result: Path, opened: Callable[..., Opened], axe: str, scheme: str
) -> None:
    page = opened(result / "view.html", color_scheme=scheme)
    page.page.locator("#camera-lists button").first.click()
    page.page.keyboard.press("c")
    page.settle()
    page.page.evaluate(axe)
    found = page.page.evaluate("axe.run(document).then(done => done.violations)")
    serious = [(each["id"], [node["html"][:90] for node in each["nodes"]][:3]) for each in found
               if each["impact"] in ("serious", "critical")]  # fmt: skip
    assert serious == []


def test_a_frame_of_a_notebook_may_hold_it(tmp_path: Path, opened: Callable[..., Opened]) -> None:
    """In a sandbox without an origin of its own, as notebooks frame what they do not trust."""
    frame = (
        f'<iframe sandbox="allow-scripts" width=600 height=400 srcdoc="{html.escape(page_of(small_scene()))}"></iframe>'
    )
    (tmp_path / "notebook.html").write_text(f'<html data-state="still">{frame}', encoding="utf-8")
    page = opened(tmp_path / "notebook.html")
    page.page.frame_locator("iframe").locator("html[data-state=still]").wait_for(state="attached", timeout=30_000)
    with Image.open(io.BytesIO(page.page.locator("iframe").screenshot())) as shot:
        assert len(shot.convert("RGB").getcolors(1 << 20) or ()) > 500
    assert page.problems == []


def test_it_can_be_used_with_keys_alone(result: Path, opened: Callable[..., Opened]) -> None:
    page = opened(result / "view.html")
    before = page.shot()
    page.page.locator("#view").focus()
    for key in ("ArrowLeft", "ArrowUp", "+"):
        page.page.keyboard.press(key)
    now = page.shot()
    assert differs(before, now) > 0.05
    page.page.keyboard.press("n")
    page.settle()
    assert page.page.locator("#camera-name").text_content() == "IMG_000.jpg"
    page.page.keyboard.press("?")
    assert page.page.locator("#help").is_visible()
    page.page.keyboard.press("Escape")
    assert page.page.locator("#help").is_hidden() and page.page.locator("#camera-bar").is_visible()
    with page.page.expect_download() as saved:
        page.page.keyboard.press("f")
    with Image.open(saved.value.path()) as picture:
        assert picture.format == "PNG" and list(picture.size) == page.page.evaluate(
            "[lean3r.viewer.canvas.width, lean3r.viewer.canvas.height]"
        )
        assert np.asarray(picture.convert("L")).std() > 10
    page.page.keyboard.press("Home")
    assert differs(before, page.shot()) < 0.03 and page.problems == []


def test_the_button_records_a_turn_that_other_programs_play(result: Path, opened: Callable[..., Opened]) -> None:
    page = opened(result / "view.html", viewport={"width": 420, "height": 320})
    button = page.page.locator("#video")
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    page.page.get_by_text(re.compile("Recording: [1-9][0-9] %")).wait_for(state="attached")
    with page.page.expect_download() as saved:
        button.click()
    assert saved.value.suggested_filename == "lean3r.webm" and button.get_attribute("aria-pressed") == "false"
    with av.open(str(saved.value.path())) as film:
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in film.decode(video=0)]
        assert "webm" in film.format.name
    size = page.page.evaluate("[lean3r.viewer.canvas.height, lean3r.viewer.canvas.width]")
    assert all(np.abs(np.subtract(frame.shape[:2], size)).max() <= 1 for frame in frames), "whole, up to even sides"
    assert frames[-1].std() > 20 and differs(frames[0], frames[-1]) > 0.1, "it turns"
    assert len({frame.tobytes() for frame in frames}) > 2
    assert page.page.evaluate("lean3r.viewer.isFlying") is False and page.problems == [], "then it rests"
