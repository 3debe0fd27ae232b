"""Which files are films, and what of them is shown: animations, thumbnails and covers beside the film."""

from __future__ import annotations

import contextlib
import struct
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image
from reading import choose, load_views, video

from lean3r.errors import InputError
from lean3r.inputs.listing import find_pictures
from lean3r.inputs.video import Clip, Film, scan
from lean3r.stream.frames import Source


def greys(count: int) -> list[Image.Image]:
    return [Image.fromarray(np.full((48, 64, 3), 8 * number, np.uint8)) for number in range(count)]


def animation(path: Path, count: int = 5) -> Path:
    """The k-th picture is 8 k grey, and shown for 0.2 s."""
    first, *others = greys(count)
    form = {".gif": "GIF", ".webp": "WEBP"}.get(path.suffix, "PNG")
    first.save(path, form, save_all=True, append_images=others, duration=200)
    return path


@pytest.mark.parametrize("name", ["walk.gif", "walk.png", "walk.apng"])
def test_an_animation_is_a_film(name: str, tmp_path: Path) -> None:
    """And not its first picture."""
    path = animation(tmp_path / name)
    (clip,) = choose([path]).items
    assert isinstance(clip, Clip)
    assert list(clip.frames.values()) == [f"walk_{number:06d}.png" for number in range(5)]
    assert np.allclose(list(clip.times_s.values()), 0.2 * np.arange(5))
    loaded = load_views([path], resolution=64, patch=16)
    assert np.allclose(loaded.views.images.mean((0, 2, 3, 4)), 8 * np.arange(5) / 255, atol=0.02)
    assert not loaded.skipped


@pytest.mark.parametrize("name", ["one.gif", "one.png", "one.webp"])
def test_one_picture_is_no_film(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    greys(1)[0].save(path)
    selection = choose([path])
    assert selection.names == (name,) and not selection.skipped


def test_animations_in_folders_and_archives_are_videos_beside_the_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    animation(folder / "walk.gif")
    assert choose([folder]).names[0] == "walk_000000.png"
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.write(folder / "walk.gif", "walk.gif")
    assert len(choose([tmp_path / "some.zip"]).names) == 5
    greys(1)[0].save(folder / "photo.png")
    selection = choose([folder])
    assert selection.names == ("photo.png",)
    assert selection.skipped == (("walk.gif", "a video beside pictures; to use it, give its own path"),)


@pytest.mark.parametrize(
    ("suffix", "codec", "form"),
    [
        ("m2v", "mpeg2video", "mpeg2video"),
        ("mod", "mpeg2video", "vob"),
        ("mjpeg", "mjpeg", "mjpeg"),
        ("y4m", "wrapped_avframe", "yuv4mpegpipe"),
        ("nut", "libx264", "nut"),
        ("m2t", "libx264", "mpegts"),
        ("qt", "libx264", "mov"),
    ],
)
def test_what_the_decoder_reads_is_a_film_by_its_name(suffix: str, codec: str, form: str, tmp_path: Path) -> None:
    """Raw streams, those of camcorders, others. Its frames are the ones of these numbers, also where some go back."""
    path = tmp_path / f"walk.{suffix}"
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=25, options={"bf": "2"} if "mpeg2" in codec else {})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(12):
            grey = np.full((48, 64, 3), 20 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    loaded = load_views([tmp_path], frames=4, resolution=64, patch=16)
    assert [source.name[-10:-4] for source in loaded.views.sources] == ["000000", "000004", "000007", "000011"]
    assert np.allclose(loaded.views.images.mean((0, 2, 3, 4)), 20 / 255 * np.array([0, 4, 7, 11]), atol=0.03)


def test_an_animation_that_cannot_be_read_as_a_film_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = animation(tmp_path / "walk.webp")
    assert [source.name for source in load_views([path], resolution=64, patch=16).views.sources] == ["walk.webp"]
    assert "walk.webp holds several pictures; only the first is used" in caplog.text
    source = Source(path)
    assert len(list(source)) == 1
    assert source.counts == {"animations of which only the first picture is used": 1}


def with_streams(path: Path, sides: list[int], covers: list[bool]) -> Path:
    """A file with a video stream of three frames for each side, or one of them as a cover."""
    with av.open(str(path), "w") as container:
        streams = []
        for side, is_cover in zip(sides, covers, strict=True):
            stream = container.add_stream("mjpeg" if is_cover else "mpeg4", rate=5)
            stream.width = stream.height = side
            stream.pix_fmt = "yuvj420p" if is_cover else "yuv420p"
            if is_cover:
                stream.disposition = Disposition.attached_pic
            streams.append(stream)
        for side, is_cover, stream in zip(sides, covers, streams, strict=True):
            for _ in range(1 if is_cover else 3):
                frame = av.VideoFrame.from_ndarray(np.full((side, side, 3), side, np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


def test_a_film_of_a_dvd_is_a_film(tmp_path: Path) -> None:
    """Though its file begins with nothing that a picture has; it may lie in a folder."""
    video(tmp_path / "VTS_01_1.VOB", 5, "mpeg2video")
    for path in (tmp_path, tmp_path / "VTS_01_1.VOB"):
        (film,) = find_pictures([path]).items
        assert isinstance(film, Film) and len(film.keys) == 5


def test_frames_that_cannot_be_decoded_are_told_though_none_of_them_is_chosen(tmp_path: Path) -> None:
    """In the middle of a file, whose packets state nothing of it."""
    frames = np.random.default_rng(0).integers(0, 255, (1, 80, 300, 3)).astype(np.uint8).repeat(4, 1).repeat(4, 2)
    path = video(tmp_path / "walk.mp4", [frames[0, :240, 4 * n : 4 * n + 320] for n in range(60)], g="60")
    assert not choose([path]).skipped
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2000] = bytes(2000)
    path.write_bytes(content)
    selection = choose([path])
    ((name, reason),) = selection.skipped
    assert name == "walk.mp4" and "of 60 frames can be decoded" in reason
    assert int(reason.split()[1]) < 60 and selection.names


@pytest.mark.parametrize("sides", [[32, 96], [96, 32]])
def test_of_several_video_streams_the_largest_is_the_film(sides: list[int], tmp_path: Path) -> None:
    (film,) = find_pictures([with_streams(tmp_path / "two.mkv", sides, [False, False])]).items
    assert isinstance(film, Film) and film.size == (96, 96)
    loaded = load_views([tmp_path / "two.mkv"], resolution=96, patch=16)
    assert {source.width for source in loaded.views.sources} == {96}


def test_the_cover_of_a_song_is_no_film(tmp_path: Path) -> None:
    with_streams(tmp_path / "both.mp4", [32, 96], [False, True])
    (film,) = find_pictures([tmp_path / "both.mp4"]).items
    assert isinstance(film, Film) and film.size == (32, 32) and len(film.keys) == 3
    with pytest.raises(InputError, match="no video stream but a cover picture"):
        find_pictures([song(tmp_path / "song.m4a")])


def song(path: Path) -> Path:
    with av.open(str(path), "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=44100)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
        container.mux(cover.encode(frame))
        container.mux(cover.encode())
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 44100
        container.mux(sound.encode(silence))
        container.mux(sound.encode())
    return path


@pytest.mark.parametrize("address", ["rtsp://camera/1", "https://example.com/walk.mp4"])
def test_an_address_is_no_missing_file(address: str) -> None:
    with pytest.raises(InputError, match=r"is an address.*download or record it"):
        find_pictures([address])


def test_a_film_that_was_trimmed_without_loss_is_whole(tmp_path: Path) -> None:
    """As phones trim: an edit list ends before the frames do, which its table counts all."""
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, width=128, height=96, pix_fmt="yuv420p")
        stream.options = {"preset": "ultrafast", "g": "5", "bf": "2"}
        for index in range(40):
            image = np.full((96, 128, 3), 5 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    content = bytearray(path.read_bytes())
    at = content.find(b"elst") + 12
    (duration,) = struct.unpack_from(">I", content, at)
    assert len(scan(path.name, "clip", lambda: path.open("rb")).keys) == 40
    struct.pack_into(">I", content, at, duration // 2)
    path.write_bytes(content)
    film = scan(path.name, "clip", lambda: path.open("rb"))
    assert 20 <= len(film.keys) < 30 and film.damage is None
    path.write_bytes(content[: 2 * len(content) // 3])
    with contextlib.suppress(InputError):  # without the table, which lies at the end
        assert scan(path.name, "clip", lambda: path.open("rb")).damage
