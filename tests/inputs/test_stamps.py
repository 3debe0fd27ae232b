"""Films whose time stamps start anew, contradict the order of the frames or lack; interlaced and mirrored ones."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from inputs.reading import video
from inputs.test_bars import walk

from lean3r.inputs.frames import FrameChoice
from lean3r.inputs.interlaced import is_combed, without_combs
from lean3r.inputs.stamps import Stamp, cut_short, timeline
from lean3r.inputs.upright import turned
from lean3r.inputs.video import Film, read_all, read_frames, scan

FRAMES = walk(24, (160, 96))


def film(path: Path) -> Film:
    return scan(path.name, path.stem, lambda: path.open("rb"))


def shown(path: Path, choice: FrameChoice) -> list[int]:
    """Which of FRAMES the chosen frames of a film show, by their pixels; their names must say the same."""
    found, named = [], []
    for frame in read_frames(film(path).clip(choice)):
        away = np.abs(FRAMES[:, ::2, ::2].astype(float) - np.asarray(frame.image, float)[::2, ::2]).mean(axis=(1, 2, 3))
        found.append(int(away.argmin()))
        named.append(int(frame.name[-10:-4]))
    assert found == named
    return found


def stamps(pts: list[int | None], dts: list[int | None] | None = None) -> list[Stamp]:
    return [Stamp(*each) for each in zip(pts, dts or pts, strict=True)]


def test_stamps_are_kept_where_they_can_be_trusted() -> None:
    found = timeline(stamps([10, 40, 20, 30], [0, 10, 20, 30]), "mov,mp4", 25, 0.01)
    assert (list(found.keys), found.timed, found.parts) == ([10, 20, 30, 40], True, 1)
    assert found.times_s == pytest.approx([0, 0.1, 0.2, 0.3])
    gap = timeline(stamps([0, 10, 500, 510]), "matroska,webm", 25, 0.01)
    assert gap.timed and gap.times_s == pytest.approx([0, 0.1, 5.0, 5.1])


@pytest.mark.parametrize(
    ("of_packets", "container", "times_s", "parts"),
    [
        (stamps([0, 10, 20, 0, 10, 20]), "mpegts", [0, 0.1, 0.2, 0.3, 0.4, 0.5], 2),
        (stamps([50, 60, 70, 5, 25, 15], [50, 60, 70, 5, 10, 15]), "mpegts", [0, 0.1, 0.2, 0.3, 0.4, 0.5], 2),
        (stamps([1, 2, 3, 4]), "avi", [0, 0.01, 0.02, 0.03], 1),
        (stamps([0, 10, 10, 40, 90, 90]), "mov,mp4", [0, 0.1, 0.25, 0.4, 0.9, 1.15], 1),
        (stamps([0, 10, 10, 10]), "mov,mp4", [0, 0.04, 0.08, 0.12], 1),
        (stamps([None, None, 5]), "mpegts", [0, 0.04, 0.08], 1),
    ],
    ids=["again", "lower", "made up", "twice", "all alike", "none"],
)
def test_frames_are_numbered_where_stamps_cannot_be_trusted(
    of_packets: list[Stamp], container: str, times_s: list[float], parts: int
) -> None:
    found = timeline(of_packets, container, 25, 0.01)
    assert list(found.keys) == list(range(len(of_packets))) and not found.timed
    assert found.times_s == pytest.approx(times_s) and found.parts == parts


def test_films_put_one_behind_the_other_keep_all_frames(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, part in (("a.mpg", FRAMES[:12]), ("b.mpg", FRAMES[12:])):
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream("mpeg2video", rate=25)
            stream.width, stream.height, stream.bit_rate = 160, 96, 4_000_000
            for pixels in part:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
            container.mux(stream.encode())
    both = tmp_path / "both.mpg"
    both.write_bytes((tmp_path / "a.mpg").read_bytes() + (tmp_path / "b.mpg").read_bytes())
    assert shown(both, FrameChoice(every=1)) == list(range(24))
    assert "its time stamps start 2 times" in caplog.text
    times_s = [time_s for time_s, _ in read_all(film(both))]
    assert np.diff(times_s) == pytest.approx(np.full(23, 0.04))


def test_a_matroska_film_that_was_cut_off_says_so(tmp_path: Path) -> None:
    path = video(tmp_path / "clip.mkv", np.repeat(FRAMES, 2, axis=0), g="6")
    assert film(path).damage is None
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (film_s, *_), damage = film(path).times_s[-1:], film(path).damage
    assert 0.5 < film_s < 4 and damage and f"ends after {film_s:.1f} of 4.8 seconds" in damage
    assert not cut_short([0.0, 0.1, 2.0], "00:00:04.500000000"), "a slide may be shown for long"
    assert not cut_short([0.0, 0.1], "unknown") and not cut_short([0.0, 0.1], None)


def test_frames_of_an_avi_are_those_of_their_numbers(tmp_path: Path) -> None:
    """Its stamps are made up in the order of the packets, which is not that of the frames."""
    path = video(tmp_path / "clip.avi", FRAMES, bf="3", g="12", **{"x264-params": "b-adapt=0"})
    assert shown(path, FrameChoice(every=1)) == list(range(24))
    assert shown(path, FrameChoice(every=5)) == [0, 5, 10, 15, 20]


def test_an_interlaced_film_is_read_without_combs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torn = FRAMES[:-1].copy()
    torn[:, 1::2] = FRAMES[1:, 1::2]
    assert is_combed(torn[0].mean(-1).astype(np.uint8)) and not is_combed(FRAMES[0].mean(-1).astype(np.uint8))
    assert not is_combed(np.where(np.indices((48, 64)).sum(0) % 2, 140, 100).astype(np.uint8))  # as GIFs mix colours
    smooth = without_combs(torn[3])
    np.testing.assert_array_equal(smooth[::2], FRAMES[3, ::2])
    assert np.abs(smooth.astype(int) - FRAMES[3]).mean() < np.abs(torn[3].astype(int) - FRAMES[3]).mean() / 3
    path = video(tmp_path / "torn.mp4", torn, g="4")
    assert shown(path, FrameChoice(every=1)) == list(range(23))
    assert caplog.text.count("torn.mp4 is interlaced") == 1 and "bwdif" in caplog.text
    by_motion = film(path).clip(FrameChoice(max_views=12)).frames
    assert 8 <= len(by_motion) <= 12
    assert not film(video(tmp_path / "whole.mp4", FRAMES, g="4")).is_interlaced


@pytest.mark.parametrize(
    ("matrix", "orientation"),
    [
        ((1, 0, 0, 1), 1),
        ((-1, 0, 0, 1), 2),
        ((-1, 0, 0, -1), 3),
        ((1, 0, 0, -1), 4),
        ((0, 1, 1, 0), 5),
        ((0, 1, -1, 0), 6),
        ((0, -1, -1, 0), 7),
        ((0, -1, 1, 0), 8),
    ],
)
def test_a_display_matrix_turns_and_mirrors(
    matrix: tuple[int, int, int, int], orientation: int, tmp_path: Path
) -> None:
    path = video(tmp_path / "clip.mp4", FRAMES[:2])
    content = bytearray(path.read_bytes())
    track = content.index(b"tkhd")
    at = content.index(np.array([0x10000, 0, 0, 0, 0x10000], ">i4").tobytes(), track)
    a, b, c, d = (0x10000 * each for each in matrix)
    content[at : at + 20] = np.array([a, b, 0, c, d], ">i4").tobytes()
    path.write_bytes(content)
    frame = next(read_frames(film(path).clip(FrameChoice(every=1))))
    assert frame.orientation == orientation
    # The matrix says where the pixel at x, y is shown, around the picture's middle.
    stored, upright = np.asarray(frame.image.convert("L")), np.asarray(turned(frame.image, orientation).convert("L"))
    height, width = stored.shape
    x, y = 150, 20
    moved = np.array([x + 0.5 - width / 2, y + 0.5 - height / 2]) @ np.array(matrix).reshape(2, 2)
    column, row = (moved + np.array(upright.shape[::-1]) / 2 - 0.5).round().astype(int)
    assert upright[row, column] == stored[y, x]
    assert Fraction(upright.shape[1], upright.shape[0]) == Fraction(
        *((width, height) if orientation < 5 else (height, width))
    )
