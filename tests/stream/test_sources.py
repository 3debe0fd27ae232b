"""Sources of a stream: pictures upright, times of every kind, cuts, and where a source goes on after it was stopped."""

from __future__ import annotations

import itertools
import json
import struct
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import av
import numpy as np
import pytest
from PIL import Image

import lean3r
from lean3r.errors import InputError, UsageError
from lean3r.inputs.cameras import read_given
from lean3r.inputs.trajectory import OF_VIEWS
from lean3r.stream import frames
from lean3r.stream import run as running
from lean3r.stream.frames import Mark, Source
from lean3r.stream.pace import Live
from stream.test_stream import SMALL, film, run, written
from stream.walk import Knows, frame, walk


class Steps(Knows):
    """Knows where pictures without times are."""

    def place(self, timestamp_s: float | None) -> float:
        """See Knows."""
        return 0.12 * (timestamp_s or 0.0)


def test_pictures_are_turned_upright_once(tmp_path: Path) -> None:
    stored = np.zeros((64, 96, 3), np.uint8)
    stored[:32, :48] = 255  # a light corner, top left; upright it is top right
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in ("jpg", "png", "webp", "tif"):
        Image.fromarray(stored).save(tmp_path / f"a.{suffix}", exif=exif.tobytes())
    with ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(tmp_path / "a.jpg", "a.jpg")
    files: list[Any] = [tmp_path / f"a.{suffix}" for suffix in ("jpg", "png", "webp", "tif")]
    opened = [Image.open(path) for path in files]
    for source in (tmp_path, files, tmp_path / "all.zip", opened):
        for each in Source(source):
            assert each.image.shape == (96, 64, 3)
            assert each.image[5, -5].min() > 200 and each.image[5, 5].max() < 50 and each.image[-5, -5].max() < 50


def test_a_located_picture_is_turned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, asked = lean3r.stream(Knows(), walk(20), options=SMALL, refine="off"), []
    list(stream)
    monkeypatch.setattr(stream.engine, "locate", asked.append)
    picture = Image.fromarray(frame(1.0)).transpose(Image.Transpose.ROTATE_90)
    picture.getexif()[0x0112] = 6
    stream.locate(picture)
    assert np.array_equal(asked[0].image, frame(1.0))


def test_a_source_goes_on_behind_any_frame(tmp_path: Path) -> None:
    """Also where some of its frames and pictures were damaged."""
    for name in ("a.mp4", "b.mp4"):
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream("mpeg4", rate=10, width=160, height=112, pix_fmt="yuv420p")
            stream.gop_size = 6
            for _, image in walk(30):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image))))
            container.mux(stream.encode(None))
    with av.open(str(tmp_path / "a.mp4")) as container:
        packets = [(packet.pos or 0, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    for pos, size in packets[14:16]:
        content[pos : pos + size] = bytes(size)
    (tmp_path / "a.mp4").write_bytes(content)
    for number in range(4):
        Image.fromarray(frame(number)).save(tmp_path / f"p{number}.png")
    (tmp_path / "p1.png").write_bytes(b"damaged")
    paths = [str(tmp_path / name) for name in ("a.mp4", "b.mp4", "p0.png", "p1.png", "p2.png", "p3.png")]
    pictures: list[Any] = [image for _, image in walk(6)]
    pictures[2] = np.zeros((4, 4, 3), np.uint8)
    for given, least in ((paths, 50), (pictures, 5)):
        source = Source(given)
        whole = [(each, source.behind(each.index)) for each in source]
        assert source.counts and least <= len(whole) < 63
        for number, (_, mark) in enumerate(whole):
            rest = list(Source(given, Mark(*json.loads(json.dumps(mark)))))
            for each, (other, _) in zip(rest, whole[number + 1 :], strict=True):
                assert each[:2] == other[:2] and each[3:] == other[3:] and np.array_equal(each.image, other.image)


def test_a_folder_with_a_damaged_picture_is_resumed_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "SAVING", 1e9)  # a checkpoint for every window
    (tmp_path / "in").mkdir()
    for number, (_, image) in enumerate(walk(40)):
        Image.fromarray(image).save(tmp_path / "in" / f"{number:02d}.png")
    (tmp_path / "in" / "03.png").write_bytes(b"damaged")

    def taken(name: str, most: int | None = None, *, resume: bool = False) -> int:
        source, out = tmp_path / "in", tmp_path / name
        stream = lean3r.stream(Steps(), source, out, options=SMALL, refine="off", resume=resume)
        return list(itertools.islice(stream, most))[-1].index

    assert (taken("whole"), taken("cut", 20), taken("cut", resume=True)) == (38, 19, 38)
    assert written(tmp_path / "cut") == written(tmp_path / "whole")


def test_another_film_of_the_same_name_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "SAVING", 1e9)  # a checkpoint for every window
    film(tmp_path / "film.mkv", 40)

    def taken(most: int | None = None, *, resume: bool = False) -> int:
        stream = lean3r.stream(
            Steps(), tmp_path / "film.mkv", tmp_path / "out", options=SMALL, refine="off", resume=resume
        )
        return list(itertools.islice(stream, most))[-1].index

    assert taken(20) == 19
    before = written(tmp_path / "out")
    (tmp_path / "film.mkv").rename(tmp_path / "own.mkv")
    film(tmp_path / "film.mkv", 40, start=20)
    with pytest.raises(UsageError, match="another film or folder"):
        taken(resume=True)
    assert written(tmp_path / "out") == before
    (tmp_path / "own.mkv").rename(tmp_path / "film.mkv")
    assert taken(resume=True) == 39


def test_what_is_refused_changes_nothing_of_a_finished_stream(tmp_path: Path) -> None:
    """Its last checkpoint is older than its last frames, which a stream that goes on makes again."""

    def taken(*, resume: bool) -> list[Any]:
        source, out = tmp_path / "film.mkv", tmp_path / "out"
        return list(lean3r.stream(Steps(), source, out, options=SMALL, refine="off", resume=resume))

    film(tmp_path / "film.mkv", 60)
    taken(resume=False)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    (tmp_path / "film.mkv").rename(tmp_path / "own.mkv")
    film(tmp_path / "film.mkv", 60, start=20)
    with pytest.raises(UsageError, match="another film or folder"):
        taken(resume=True)
    (tmp_path / "film.mkv").unlink()
    with pytest.raises(InputError, match="no such file"):
        taken(resume=True)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    (tmp_path / "own.mkv").rename(tmp_path / "film.mkv")
    assert 0 < len(taken(resume=True)) < 60
    after = {path: path.read_bytes() for path in before if path.name not in ("manifest.json", "checkpoint.npz")}
    assert after == {path: before[path] for path in after}


def test_a_source_that_goes_on_is_listed_once_and_members_of_archives_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ZipFile(tmp_path / "all.zip", "w") as archive:
        for number, (_, image) in enumerate(walk(6)):
            Image.fromarray(image).save(tmp_path / "a.png")
            archive.write(tmp_path / "a.png", f"{number}.png")
    source = Source(tmp_path / "all.zip")
    mark = [source.behind(each.index) for each in source][2]
    done: list[str] = []
    listed, read = frames.find_pictures, ZipFile.read
    monkeypatch.setattr(frames, "find_pictures", lambda paths: done.append("listed") or listed(paths))
    monkeypatch.setattr(ZipFile, "read", lambda zip, member: done.append(member.filename) or read(zip, member))
    assert [each.index for each in Source(tmp_path / "all.zip", mark)] == [3, 4, 5]
    assert [each for each in done if each != "0.png"] == ["listed", "3.png", "4.png", "5.png"]


def test_a_folder_that_changed_where_it_was_read_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pictures would be taken twice, or be missing, without a word. More at its end are welcome."""
    monkeypatch.setattr(running, "SAVING", 1e9)  # a checkpoint for every window
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number, (_, image) in enumerate(walk(40)):
        Image.fromarray(image).save(folder / f"{number:02d}.png")

    def taken(most: int | None = None, *, resume: bool = False) -> int:
        stream = lean3r.stream(Steps(), folder, out, options=SMALL, refine="off", resume=resume)
        return list(itertools.islice(stream, most))[-1].index

    assert taken(20) == 19
    (folder / "05.png").rename(tmp_path / "05.png")
    with pytest.raises(UsageError, match="added, removed or renamed"):
        taken(resume=True)
    (tmp_path / "05.png").rename(folder / "05.png")
    Image.fromarray(frame(0.7)).save(folder / "05b.png")
    with pytest.raises(UsageError, match="added, removed or renamed"):
        taken(resume=True)
    (folder / "05b.png").rename(folder / "40.png")
    assert taken(resume=True) == 40


def test_a_cut_is_kept_when_its_frame_is_dropped(tmp_path: Path) -> None:
    for first in (29, 30):  # the first frame of the second film is dropped, or it is not
        film(tmp_path / "a.mkv", first)
        film(tmp_path / "b.mkv", 60 - first)
        live = Live(Source([str(tmp_path / "a.mkv"), str(tmp_path / "b.mkv")]), most=40)
        live._thread.join(30)
        found = [each for _, each in live]
        assert live.dropped and [each.index for each in found if each.is_cut] == [30]
        assert found[-1].index == 59


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64])
def test_times_of_every_kind(kind: type) -> None:
    found = list(Source([(kind(2 * i), image) for i, (_, image) in enumerate(walk(4))]))
    assert [each.timestamp_s for each in found] == [0, 2, 4, 6]


@pytest.mark.parametrize("bad", [float("nan"), np.float32("inf")])
def test_a_frame_whose_time_is_no_number_follows_at_once(bad: float) -> None:
    frames = list(walk(60))
    frames[20] = (bad, frames[20][1])
    source = Source(frames)
    times = [each.timestamp_s for each in source]
    assert times[19] < times[20] < times[21] == 2.1 and source.counts == {"frames whose time is no number": 1}
    found = run(frames)
    assert len(found) == 60 and all(np.isfinite(each.cam_from_world).all() for each in found)
    assert [each.timestamp_s for each in Source([image for _, image in frames])] == list(range(60))


@pytest.mark.parametrize("stop", [None, 24, 26])
def test_a_clock_that_begins_anew_goes_on(stop: int | None) -> None:
    """Also where a source goes on behind the first or second frame of the new clock. One frame is far ahead."""
    times_s = [*(20 + i / 10 for i in range(25)), *(i / 10 for i in range(10)), 90.0, *(1 + i / 10 for i in range(5))]
    source = Source(list(zip(times_s, [frame(0)] * 41, strict=True)))
    found = [each.timestamp_s for each in itertools.islice(source, stop)]
    if stop is not None:
        marked = source.behind(stop - 1)
        found += [each.timestamp_s for each in Source(list(zip(times_s, [frame(0)] * 41, strict=True)), marked)]
    steps = np.diff(found)
    assert len(found) == 41 and (steps > 0).all()
    assert np.allclose(np.delete(steps, [24, 34, 35]), 0.1) and steps[34] > 60


@pytest.mark.parametrize(
    ("names", "times_s"),
    [
        (["1305031102.175304", "1305031102.211214", "1305031102.243211"], [0.175304, 0.211214, 0.243211]),
        (["1305031102175304000", "1305031102211214000", "1305031102243211000"], [0.175304, 0.211214, 0.243211]),
        (["1305031102.175304", "1305031102.175305", "a"], None),
        (["frame_000001", "frame_000002", "frame_000003"], None),
        (["1305031102.2", "1305031102.10", "1305031102.20"], None),  # in natural order, in which times do not ascend
        (["a", "b", "c"], None),
    ],
)
def test_pictures_have_the_times_in_their_names(names: list[str], times_s: list[float] | None, tmp_path: Path) -> None:
    for x, name in enumerate(names):
        Image.fromarray(frame(0.12 * x)).save(tmp_path / f"{name}.png")
    found = [each.timestamp_s for each in Source(tmp_path)]
    expected = [0, 1, 2] if times_s is None else [1305031102 + time_s for time_s in times_s]
    assert found == pytest.approx(expected, rel=0, abs=1e-6)


@pytest.mark.parametrize("kind", ["files", "arrays"])
def test_a_trajectory_says_if_its_times_are_numbers(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that its poses are matched to the pictures in their order, although one of them is damaged."""
    monkeypatch.setattr(running, "SAVING", 1e9)  # a checkpoint for every window
    (tmp_path / "in").mkdir()
    source: Any = [image for _, image in walk(30)]
    for number, image in enumerate(source, start=1):
        Image.fromarray(image).save(tmp_path / "in" / f"frame_{number:06d}.png")
    source[3] = np.zeros((4, 4, 3), np.uint8)
    (tmp_path / "in" / "frame_000004.png").write_bytes(b"damaged")
    source = tmp_path / "in" if kind == "files" else source
    whole = run(source, tmp_path / "out")
    assert [each.timestamp_s for each in whole] == list(range(29))
    list(itertools.islice(lean3r.stream(Knows(), source, tmp_path / "cut", options=SMALL, refine="off"), 15))
    run(source, tmp_path / "cut", resume=True)
    assert written(tmp_path / "cut") == written(tmp_path / "out")
    names = [f"frame_{number:06d}.png" for number in range(1, 31) if number != 4]
    for each, found in zip(whole, read_given(tmp_path / "out" / "trajectory_tum.txt").match(names), strict=True):
        assert found is not None and found.cam_from_world is not None
        assert np.allclose(found.cam_from_world, each.cam_from_world, atol=1e-6)


def test_a_trajectory_of_real_times_does_not_say_that_they_are_numbers(tmp_path: Path) -> None:
    film(tmp_path / "film.mkv", 30)
    first = lean3r.stream(Knows(), tmp_path / "film.mkv", options=SMALL, refine="off")
    list(first)
    pictures = [image for _, image in walk(30)]
    sources: list[tuple[Any, Any]] = [(tmp_path / "film.mkv", None), (walk(30), None), (pictures, first.state())]
    for number, (source, state) in enumerate(sources):
        run(source, tmp_path / str(number), state=state)
        assert OF_VIEWS not in (tmp_path / str(number) / "trajectory_tum.txt").read_text()


@pytest.mark.parametrize("one", [np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8)), b"jpeg", {"a": 1}, {"a.png"}])
def test_one_picture_is_no_source(one: Any) -> None:
    """Its rows, or what else it yields, were frames: a stream of nothing."""
    with pytest.raises(InputError, match=f"the source is a {type(one).__name__}.*expected a file"):
        Source(one)
    assert Source(np.zeros((2, 8, 8, 3), np.uint8)).name == "ndarray"


@pytest.mark.parametrize(("matrix", "shown"), [((0, 1, -1, 0), (160, 112)), ((1, 0, 0, 1), (112, 160))])
def test_frames_of_pyav_are_turned_as_their_film_says(
    matrix: tuple[int, ...], shown: tuple[int, int], tmp_path: Path
) -> None:
    path = tmp_path / "phone.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, width=160, height=112, pix_fmt="yuv420p")
        for _, image in walk(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode())
    content = bytearray(path.read_bytes())
    a, b, c, d = matrix
    struct.pack_into(
        ">9i", content, content.find(b"tkhd") + 44, a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30
    )
    path.write_bytes(content)
    of_file = [image.shape[:2] for image in (frame.image for frame in Source(path))]
    with av.open(str(path)) as container:
        pictures = [frame.image for frame in Source(container.decode(video=0))]
    assert of_file == [image.shape[:2] for image in pictures] == [shown] * 8
    assert all(np.abs(a.image.astype(int) - b).mean() < 2 for a, b in zip(Source(path), pictures, strict=True))
