"""Bars at the edges of a video are cut off; dark, plain or empty parts of the picture are not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from inputs.reading import video
from PIL import Image

import lean3r
from lean3r.errors import InputError
from lean3r.inputs.bars import BLURRED, NO_BARS, Bars, Found, find_bars
from lean3r.inputs.cameras import GivenCamera, GivenCameras, read_given
from lean3r.inputs.frames import FrameChoice
from lean3r.inputs.pictures import Pictures
from lean3r.inputs.upright import turned
from lean3r.pipeline.known import with_cameras
from lean3r.pipeline.options import CameraOptions
from lean3r.stream.frames import Source
from lean3r.types import Lens

SIZE = 120, 80  # of the picture between the bars


def walk(frames: int = 12, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Frames [N, H, W, 3] of a camera that moves along a painted wall, every part of which is lit."""
    width, height = size
    rng = np.random.default_rng(0)
    wall = rng.integers(60, 255, (height // 8 + 3, width // 8 + 12, 3), dtype=np.uint8)
    painted = np.asarray(Image.fromarray(wall).resize((width + 8 * frames, height), Image.Resampling.BICUBIC))
    return np.stack([painted[:, 5 * i : 5 * i + width] for i in range(frames)])


def barred(frames: np.ndarray, left: int, top: int, right: int, lower: int, colour: int = 0) -> np.ndarray:
    edges = ((0, 0), (top, lower), (left, right), (0, 0))
    return np.pad(frames, edges, constant_values=colour)


def grey(frames: np.ndarray) -> list[np.ndarray]:
    """With the noise of a codec."""
    rng = np.random.default_rng(1)
    return [np.clip(f.mean(-1) + rng.normal(0, 1.5, f.shape[:2]), 0, 255).astype(np.uint8) for f in frames]


@pytest.mark.parametrize("colour", [0, 16, 255])
@pytest.mark.parametrize(
    "edges",
    [(0, 20, 0, 20), (0, 11, 0, 12), (30, 0, 30, 0), (90, 0, 91, 0), (14, 9, 14, 9)],
    ids=["letterbox", "odd", "pillars", "portrait", "window"],
)
def test_bars_are_found_to_the_pixel(edges: tuple[int, int, int, int], colour: int) -> None:
    frames = barred(walk(), *edges, colour)
    expected = [edge + BLURRED if edge else 0 for edge in edges]
    assert find_bars(grey(frames)) == Found(Bars(*expected, size=(frames.shape[2], frames.shape[1])))


def test_bars_are_found_that_carry_the_time_or_follow_darkness() -> None:
    frames = barred(walk(), 0, 24, 0, 24)
    for index in range(len(frames)):
        frames[index, 90:98, 4 + index : 30 + index] = 255
    for dark in (3, 12):
        faded_in = np.concatenate([np.zeros_like(frames[:dark]), frames])
        assert find_bars(grey(faded_in)).bars.edges == (0, 26, 0, 26)


def test_nothing_of_the_picture_is_taken_for_a_bar() -> None:
    whole = walk()
    ceiling = whole.copy()
    ceiling[:, :25] //= 30
    ceiling[:, -25:] //= 30
    slope = whole.copy()  # a dark edge that is not straight
    rows, cols = np.mgrid[: SIZE[1], : SIZE[0]]
    slope[:, (rows < 10 + cols / 4) | (rows > 70 - cols / 4)] = 0
    thing = np.full_like(whole, 255)  # on a white table
    thing[:, 20:60, 40:80] = whole[:, 20:60, 40:80]
    one_side, uneven = barred(whole, 0, 20, 0, 0), barred(whole, 0, 20, 0, 30)
    halves = whole.copy()
    halves[:, 38:42] = 0
    night = whole // 20
    still_black, nothing = np.zeros_like(whole), whole[:0]
    for frames in (whole, slope, thing, one_side, uneven, halves, night, still_black, nothing):
        assert find_bars(grey(frames)).bars == NO_BARS
    moving = [np.roll(frame, 2 * index, axis=0) for index, frame in enumerate(ceiling)]
    assert find_bars(grey(np.stack(moving))) == Found()


@pytest.mark.parametrize("edges", [(0, 0, 0, 30), (0, 24, 0, 6), (20, 0, 0, 0)], ids=["lower", "unequal", "left"])
def test_unequal_bars_stay_with_a_message(
    edges: tuple[int, int, int, int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They may be a part of the picture, whose middle would move; or be none, and have moved it."""
    frames = barred(walk(), *edges)
    expected = [edge + BLURRED if edge else 0 for edge in edges]
    assert find_bars(grey(frames)) == Found(unequal=Bars(*expected, size=(frames.shape[2], frames.shape[1])))
    path = video(tmp_path / "band.mp4", frames, crf="12")
    source = Source(path)
    assert next(iter(source)).image.shape == frames.shape[1:]
    assert "band.mp4 has a bar at one edge" in caplog.text and "crop it first" in caplog.text
    assert Pictures(path, FrameChoice(every=3)).cautions == source.cautions and len(source.cautions) == 1


def test_results_say_that_bars_stayed(tmp_path: Path) -> None:
    path = video(tmp_path / "band.mp4", barred(walk(4), 0, 0, 0, 30), crf="12")
    scene = lean3r.reconstruct(lean3r.load("nano"), path, frames=FrameChoice(every=2), resolution=112, refine="off")
    lean3r.export(scene, tmp_path / "scene")
    for _ in lean3r.stream(lean3r.load("nano"), path, tmp_path / "stream", refine="off", resolution=112):
        pass
    for out in ("scene", "stream"):
        found = json.loads((tmp_path / out / "manifest.json").read_text())["warnings"]
        assert ["has a bar at one edge" in each["text"] for each in found if each["code"] == "bars"] == [True]


def test_a_resumed_stream_says_that_bars_stayed_in_films_behind_it(tmp_path: Path) -> None:
    paths = [video(tmp_path / "a.mp4", barred(walk(), 0, 0, 0, 30), crf="12"), video(tmp_path / "b.mp4", walk())]
    source = Source(paths)
    last = [frame.index for frame in source][-1]
    again = Source(paths, source.behind(last - 1))
    assert len(list(again)) == 1 and len(source.cautions) == 1
    assert again.cautions == source.cautions


def test_frames_are_looked_at_only_until_one_has_no_bars() -> None:
    frames = iter(grey(walk()))
    assert find_bars(frames) == Found()
    assert len(list(frames)) == len(walk()) - 1


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_turned_bars_are_those_of_the_turned_picture(orientation: int) -> None:
    stored = Image.fromarray(walk(1)[0])
    bars = Bars(3, 7, 11, 2, stored.size)
    upright, cut = (turned(picture, orientation) for picture in (stored, stored.crop(bars.content)))
    assert np.array_equal(np.asarray(upright.crop(bars.turned(orientation).content)), np.asarray(cut))


@pytest.fixture(scope="module")
def letterbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return video(tmp_path_factory.mktemp("film") / "film.mp4", barred(walk(), 0, 20, 0, 20), crf="12")


@pytest.mark.parametrize("choice", [FrameChoice(every=3), FrameChoice()], ids=["stated", "by motion"])
def test_a_video_is_read_without_its_bars(
    letterbox: Path, choice: FrameChoice, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = Pictures(letterbox, choice)
    views = pictures.views(resolution=112, patch=14)
    assert {(s.width, s.height, s.bars) for s in views.sources} == {(120, 76, (0, 22, 0, 22))}
    assert float(views.images.amin((0, 2, 3)).min()) > 0.1
    assert caplog.text.count("film.mp4 has bars at its edges: they are cut off, 120x76 pixels of 120x120 remain") == 1
    names = pictures.names[:2]
    assert [image.size for _, image in pictures.read(names, 1000)] == [(120, 76)] * 2
    assert [picture.pixels.shape for picture in pictures.whole(names)] == [(76, 120, 3)] * 2


def test_a_stream_reads_a_video_without_its_bars(letterbox: Path) -> None:
    frames = list(Source(letterbox))
    assert {(frame.image.shape, frame.bars) for frame in frames} == {((76, 120, 3), (0, 22, 0, 22))}
    with_photo = list(Source([letterbox, _photo(letterbox.parent)]))
    assert with_photo[-1].bars is None and with_photo[-1].image.shape == (80, 120, 3)


def test_cameras_of_the_whole_frame_or_of_what_remains_mean_the_same(letterbox: Path, tmp_path: Path) -> None:
    pictures = Pictures(letterbox, FrameChoice(every=4))
    views = pictures.views(resolution=112, patch=14)
    sizes = {"width": 120, "height": 120}, {"width": 240, "height": 240}, {"width": 120, "height": 76}
    values = (100, 101, 61, 62), (200, 202, 122, 124), (100, 101, 61, 40)
    found = []
    for size, (fx, fy, cx, cy) in zip(sizes, values, strict=True):
        file = tmp_path / "camera.json"
        file.write_text(json.dumps({"fx": fx, "fy": fy, "cx": cx, "cy": cy} | size))
        found.append(with_cameras(views, views.sources, CameraOptions(intrinsics=file))[1].intrinsics.numpy())
    for numbers in ("100,101,61,62", "100,101,61,40"):  # without a size: the one whose middle is nearer
        found.append(with_cameras(views, views.sources, CameraOptions(intrinsics=numbers))[1].intrinsics.numpy())
    original = views.sources[0].original_intrinsics(found[0][0])
    np.testing.assert_allclose(original, [[100, 0, 61], [0, 101, 40], [0, 0, 1]], atol=1e-9)
    for matrix in found[1:]:
        np.testing.assert_allclose(matrix, found[0], atol=1e-9)


def test_a_lens_moves_along(letterbox: Path) -> None:
    views = Pictures(letterbox, FrameChoice(every=4)).views(resolution=112, patch=14)
    lens = Lens("OPENCV", (100.0, 101.0, 61.0, 62.0, -0.1, 0.01, 0.0, 0.0))
    given = GivenCameras(tuple(GivenCamera(s.name, 120, 120, lens=lens) for s in views.sources))
    found = with_cameras(views, views.sources, CameraOptions(cameras=given))[1].lenses
    assert {each.params for each in found if each} == {(100.0, 101.0, 61.0, 40.0, -0.1, 0.01, 0.0, 0.0)}


def test_a_result_of_such_a_video_gives_its_cameras_to_another_run(letterbox: Path, tmp_path: Path) -> None:
    scene = lean3r.reconstruct(lean3r.load("nano"), letterbox, frames=FrameChoice(frames=3), refine="off", dense="off")
    lean3r.export(scene, tmp_path)
    again = read_given(tmp_path)
    views = Pictures(letterbox, FrameChoice(frames=3)).views(resolution=112, patch=14)
    given = with_cameras(views, views.sources, CameraOptions(cameras=again))[1]
    for view, source in enumerate(views.sources):
        own = scene.sources[view].original_intrinsics(scene.intrinsics[view])
        np.testing.assert_allclose(source.original_intrinsics(given.intrinsics[view].numpy()), own, rtol=1e-6)


def test_cameras_of_other_shapes_are_refused(letterbox: Path) -> None:
    views = Pictures(letterbox, FrameChoice(every=4)).views(resolution=112, patch=14)
    wide = GivenCameras(shared=GivenCamera("all", 160, 90, np.array([[100.0, 0, 80], [0, 100, 45], [0, 0, 1]])))
    with pytest.raises(InputError, match="is for 160x90 pixels, the picture has 120x76"):
        with_cameras(views, views.sources, CameraOptions(cameras=wide))


def _photo(folder: Path) -> Path:
    path = folder / "photo.png"
    Image.fromarray(walk(1)[0]).save(path)
    return path
