"""Frames of a video by the motion of its picture: more where it turns, none where it rests, sharp ones."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import reading
from PIL import Image, ImageFilter

from lean3r.inputs.frames import FrameChoice
from lean3r.inputs.listing import find_pictures
from lean3r.inputs.motion import Motion, choose, measure, small_size
from lean3r.inputs.video import Film, read_frames

WIDTH, HEIGHT = 192, 128


def panorama(seed: int = 0) -> np.ndarray:
    """[HEIGHT, 1200] uint8 of smooth noise."""
    noise = np.random.default_rng(seed).integers(0, 255, (HEIGHT + 40, 1200)).astype(np.uint8)
    return np.array(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1.5)).point(lambda v: (v - 128) * 4 + 128))


def film(places: list[float]) -> list[np.ndarray]:
    """Frames of a camera that turns: cut from the panorama at so many pixels."""
    wall = panorama()
    return [wall[10 : 10 + HEIGHT, round(x) : round(x) + WIDTH] for x in places]


def test_shifts_are_measured() -> None:
    motion = measure(film([0, 7, 7, 20, 19]))
    along = motion.shift[:, :, 1].mean(axis=1) * WIDTH
    assert np.allclose(along, [0, -7, 0, -13, 1], atol=0.5)
    assert np.abs(motion.shift[:, :, 0]).max() * WIDTH < 0.5


def test_more_frames_during_rotation_and_none_at_rest() -> None:
    rest, slow, fast = [0.0] * 30, [2.0 * i for i in range(30)], [60 + 14.0 * i for i in range(30)]
    places = rest + slow + fast + [fast[-1]] * 30
    chosen = np.array(choose(measure(film(places)), least=8, most=120, step=0.1))
    counts = np.histogram(chosen, bins=[0, 30, 60, 90, 120])[0]
    assert counts[0] <= 2 and counts[3] <= 2 and counts[2] >= 20 and 2 <= counts[1] <= 6
    steps = np.diff(np.array(places)[chosen]) / WIDTH
    assert steps.max() < 0.16, "neighbours overlap"


def test_motion_by_parts_of_a_pixel_adds_up() -> None:
    """As in slow motion, and where somebody scans with care: from frame to frame no whole pixel is seen to move."""
    wall = panorama().astype(np.float32)
    places = 0.3 * np.arange(400)
    frames = []
    for place in places:
        left, part = int(place), place % 1
        cut = (1 - part) * wall[10 : 10 + HEIGHT, left : left + WIDTH]
        frames.append(cut + part * wall[10 : 10 + HEIGHT, left + 1 : left + 1 + WIDTH])
    motion = measure([frame.astype(np.uint8) for frame in frames])
    assert -motion.shift[:, :, 1].sum(axis=0).mean() * WIDTH == pytest.approx(places[-1], rel=0.2)
    steps = np.diff(places[choose(motion, least=4, most=64, step=0.12)]) / WIDTH
    assert steps.min() > 0.07 and steps.max() < 0.17
    still = measure([frames[0].astype(np.uint8)] * 50)
    assert not still.shift.any()


def turntable(places: np.ndarray) -> list[np.ndarray]:
    """A wall of which a sixth is a drum that has turned by so many pixels, with the noise of a sensor."""
    wall, drum, rng = panorama().astype(np.float32), panorama(1).astype(np.float32), np.random.default_rng(2)
    frames = []
    for place in places:
        left, part = int(place), place % 1
        frame = wall[10 : 10 + HEIGHT, :WIDTH] + rng.normal(0, 3, (HEIGHT, WIDTH))
        cut = drum[30:110, left : left + 61]
        frame[24:104, 66:126] = (1 - part) * cut[:, :-1] + part * cut[:, 1:]
        frames.append(frame.clip(0, 255).astype(np.uint8))
    return frames


@pytest.mark.parametrize("speed", [0.3, 3.0])
def test_a_thing_that_turns_before_a_background_at_rest_is_what_moves(speed: float) -> None:
    """As on a turntable: one picture for half a turn was left, since most of the picture rests."""
    places = speed * np.arange(int(150 / speed))
    chosen = choose(measure(turntable(np.r_[places, [places[-1]] * 40])), least=2, most=120, step=0.12)
    assert 20 <= len(chosen) <= 50 and max(chosen) < len(places), "none where it rests"
    assert np.diff(places[chosen]).max() <= 10


@pytest.mark.parametrize("most", [5, 20, 37])
def test_a_limit_makes_larger_steps(most: int) -> None:
    motion = measure(film([9.0 * i for i in range(100)]))
    chosen = choose(motion, least=min(8, most), most=most, step=0.05)
    assert 0.8 * most <= len(chosen) <= most and chosen[0] == 0 and chosen[-1] >= 90
    assert np.diff(chosen).max() <= 2 * np.diff(chosen).min() + 1


def test_a_camera_at_rest_gives_the_minimum(tmp_path: Path) -> None:
    still = measure([frame + 0 for frame in film([50.0] * 40)])
    assert choose(still, least=8, most=64, step=0.1) == [0, 6, 11, 17, 22, 28, 33, 39]


@pytest.mark.parametrize("moves", [[50, 100, 150, 200, 250], [220, 240, 260], [20, 30]])
@pytest.mark.parametrize("most", [8, 10, 14])
def test_few_moves_and_a_limit_leave_no_part_of_the_film_out(moves: list[int], most: int) -> None:
    shift = np.zeros((300, 4, 2))
    shift[moves] = 0.3
    chosen = choose(Motion(shift, np.ones(300), np.zeros(300, bool)), least=8, most=most, step=0.12)
    assert len(chosen) <= most and chosen == sorted(set(chosen)) and (chosen[0], chosen[-1]) == (0, 299)
    assert np.diff(chosen).max() < 90


def test_sharp_frames_are_preferred() -> None:
    frames = film([6.0 * i for i in range(60)])
    blurred = set(range(2, 60, 3))
    frames = [
        np.array(Image.fromarray(f).filter(ImageFilter.GaussianBlur(2))) if i in blurred else f
        for i, f in enumerate(frames)
    ]
    chosen = choose(measure(frames), least=8, most=64, step=0.12)
    assert len(chosen) > 10 and len(blurred & set(chosen[1:-1])) <= 1


def test_small_frames_hold_a_block_whatever_their_shape() -> None:
    assert small_size(1920, 1080) == (192, 108) and small_size(1080, 1920) == (108, 192)
    assert small_size(4000, 120) == (192, 64) and small_size(10, 10) == (192, 192)


def test_a_video_is_sampled_by_its_motion_with_times(tmp_path: Path) -> None:
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = WIDTH, HEIGHT, "yuv420p", Fraction(1, 10)
        stream.bit_rate = 4_000_000
        for place in [0.0] * 25 + [8.0 * i for i in range(40)]:
            picture = film([place])[0]
            frame = av.VideoFrame.from_ndarray(np.repeat(picture[:, :, None], 3, axis=2), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    path = tmp_path / "walk.mp4"
    path.write_bytes(file.getvalue())
    found = reading.choose([path])
    (clip,) = found.items
    numbers = [int(name[-10:-4]) for name in clip.frames.values()]
    assert numbers[0] == 0 and sum(0 < n < 24 for n in numbers) <= 1 and len(numbers) >= 10
    assert [name for name, *_ in read_frames(clip)] == list(clip.frames.values())
    assert np.allclose([clip.times_s[name] for name in clip.frames.values()], np.array(numbers) / 10)
    assert len(reading.choose([path], max_views=9).names) in (8, 9)
    assert len(reading.choose([path], every=5).names) == 13, "what is asked for is what comes"


def test_a_short_film_gives_the_minimum_though_every_other_frame_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lean3r.inputs.video.WATCHED_FPS", 5)
    frames = [np.repeat(picture[:, :, None], 3, axis=2) for picture in film([8.0 * i for i in range(12)])]
    clip = reading.video(tmp_path / "short.mp4", frames)
    assert len(reading.choose([clip]).names) == 8


def test_all_frames_are_watched_where_the_picture_moves_fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a time lapse, and only there: the camera turns slowly first."""
    monkeypatch.setattr("lean3r.inputs.video.WATCHED_FPS", 5)
    places = [*range(0, 20), *range(20, 700, 24)]
    frames = [np.repeat(picture[:, :, None], 3, axis=2) for picture in film([float(x) for x in places])]
    (clip,) = find_pictures([reading.video(tmp_path / "lapse.mp4", frames)]).items
    assert isinstance(clip, Film)
    numbers = sorted(int(name[-10:-4]) for name in clip.clip(FrameChoice()).frames.values())
    assert np.diff([n for n in numbers if n > 20]).max() == 1 and sum(n <= 20 for n in numbers) <= 3
    watched = (clip._watched[0] or ([],))[0]
    assert 9 <= sum(key <= clip.keys[20] for key in watched) <= 12


def test_a_film_that_is_turned_on_the_way_is_sampled_by_its_motion(tmp_path: Path) -> None:
    """Calls and some phones record so: the frames have another size from then on. The camera rests in between."""
    wide, places = film([8.0 * i for i in range(20)]), [0] * 20 + list(range(20)) + [19] * 20
    names = []
    for name, turn in (("a.ts", 0), ("b.ts", 1)):
        frames = [np.repeat(np.rot90(wide[at], turn)[:, :, None], 3, axis=2) for at in places[:: 1 - 2 * turn]]
        names.append(reading.video(tmp_path / name, frames))
    both = tmp_path / "both.ts"
    both.write_bytes(b"".join(path.read_bytes() for path in names))
    chosen = np.array([int(name[-10:-4]) for name in reading.choose([both]).names])
    assert 10 < len(chosen) < 40
    assert all(sum((first < chosen) & (chosen < first + 18)) <= 1 for first in (0, 42, 62, 102))


def test_black_frames_are_no_views_unless_there_are_no_others(tmp_path: Path) -> None:
    """As before a film is faded in: the first view would be one of them."""
    shown = [np.repeat(picture[:, :, None], 3, axis=2) for picture in film([8.0 * i for i in range(40)])]
    black = np.random.default_rng(0).integers(16, 18, (8, HEIGHT, WIDTH, 3)).astype(np.uint8)
    names = reading.choose([reading.video(tmp_path / "dark.mp4", [*black, *shown[:20], *black, *shown[20:]])]).names
    numbers = np.array([int(name[-10:-4]) for name in names])
    assert len(numbers) > 10 and numbers[0] == 8 and not ((numbers >= 28) & (numbers < 36)).any()
    assert len(reading.choose([reading.video(tmp_path / "black.mp4", [*black, *black])]).names) == 8
