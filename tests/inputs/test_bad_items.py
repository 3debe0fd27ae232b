"""One bad item costs only itself: videos, archives and links that cannot be used are named, and the rest goes on."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reading import Read, load_views

from lean3r.errors import InputError, UsageError
from lean3r.inputs import decoding, video
from lean3r.inputs.listing import MAX_NAME_BYTES
from lean3r.inputs.pictures import Pictures
from lean3r.inputs.views import network_size


def picture_bytes(colour: str = "green") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 48), colour).save(file, "PNG")
    return file.getvalue()


def clip(path: Path, frames: int = 6, aspect: Fraction | None = None) -> Path:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((120, 160, 3), 30 * i, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def beside_a_picture(path: Path) -> Read:
    (path.parent / "sound.png").write_bytes(picture_bytes())
    loaded = load_views([path, path.parent / "sound.png"], resolution=240, patch=16)
    assert "sound.png" in [source.name for source in loaded.views.sources]
    return loaded


def test_video_of_an_unknown_codec(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.mkv")
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO", b"V_ZZZZ4/ISO"))
    loaded = beside_a_picture(path)
    assert [(name, "its codec is unknown" in why) for name, why in loaded.skipped] == [("clip.mkv", True)]


@pytest.mark.parametrize("aspect", [(2**30, 1), (1, 2**30), (100_000, 1), (1, 0)])
def test_video_of_absurd_pixels(aspect: tuple[int, int], tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.mp4", aspect=Fraction(3, 2))
    content = path.read_bytes()
    at = content.index(b"pasp") + 4
    path.write_bytes(content[:at] + struct.pack(">II", *aspect) + content[at + 8 :])
    loaded = beside_a_picture(path)
    if aspect[1]:
        assert len(loaded.views.sources) == 1 and {name[:4] for name, _ in loaded.skipped} == {"clip"}


def test_a_frame_is_measured_before_it_is_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clip(tmp_path / "clip.mp4")
    monkeypatch.setattr(video, "MAX_FRAME_PIXELS", 160 * 120 - 1)
    loaded = beside_a_picture(path)
    assert "160x120 pixels, each 1 times as wide as high: over the limit" in loaded.skipped[0][1]


def test_damaged_archive_beside_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "photos.zip"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    assert "cannot be read as a zip archive" in dict(beside_a_picture(path).skipped)["photos.zip"]


def test_members_with_impossible_names(tmp_path: Path) -> None:
    path = tmp_path / "photos.zip"
    long = "x" * 300 + ".png"
    with zipfile.ZipFile(path, "w") as archive:
        for name in (".", "/", "./", "a.png", long, "y" * 300 + "/" + "y" * 300 + "/b.png", "é" * 200 + ".png"):
            info = zipfile.ZipInfo("placeholder")
            info.filename = name
            archive.writestr(info, picture_bytes())
        empty = zipfile.ZipInfo("q")
        archive.writestr(empty, picture_bytes())
    content = path.read_bytes()
    loaded = load_views(path, resolution=240, patch=16)
    names = [source.name for source in loaded.views.sources]
    assert len(names) == 4 and {"a.png", "b.png"} < set(names), names
    assert all(len(part.encode()) <= MAX_NAME_BYTES for name in names for part in name.split("/"))
    written = Pictures([path]).write(names, tmp_path / "out")
    assert len(written) == 4 and all(file.is_file() for file in written)
    # A member without any name at all: zipfile does not write such a one.
    path.write_bytes(content.replace(b"a.png", b"\0.png"))
    assert len(load_views(path, resolution=240, patch=16).views.sources) >= 3


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    for name, target in (("loop.png", "loop.png"), ("a.png", "b.png"), ("b.png", "a.png"), ("gone.jpg", "nowhere")):
        os.symlink(target, tmp_path / name)
    (tmp_path / "sound.png").write_bytes(picture_bytes())
    os.symlink(".", tmp_path / "again")
    loaded = load_views(tmp_path, resolution=240, patch=16)
    assert [source.name for source in loaded.views.sources] == ["sound.png"]
    assert sorted(loaded.skipped) == [(name, "a broken link") for name in ("a.png", "b.png", "gone.jpg", "loop.png")]


def test_a_file_too_large_to_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "huge.webp"
    path.write_bytes(picture_bytes())
    os.truncate(path, 4 << 40)  # takes no room
    assert "4194304 MB; the limit is" in dict(beside_a_picture(path).skipped)["huge.webp"]
    assert decoding.MAX_BYTES < 4 << 40


def test_absurd_resolution() -> None:
    with pytest.raises(UsageError, match="resolution 1000000 is too large; expected at most 4096"):
        network_size(640, 480, 1_000_000, 14)


def test_all_bad_is_an_error_that_says_why(tmp_path: Path) -> None:
    (tmp_path / "photos.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(InputError, match=r"photos\.zip: cannot be read as a zip archive"):
        load_views(tmp_path / "photos.zip", resolution=240, patch=16)
