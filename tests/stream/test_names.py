"""Names of a stream's keyframes: those of their pictures, as `lean3r reconstruct` knows them, in every output."""

from __future__ import annotations

import itertools
import json
import os
import tomllib
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

import lean3r
from lean3r.cli.main import main
from lean3r.colmap_library import pycolmap
from lean3r.inputs.cameras import read_given
from lean3r.stream import frames
from lean3r.stream import run as running
from lean3r.stream.frames import Source
from lean3r.stream.publish import warnings_of
from lean3r.view.folder import read_content
from stream.test_sources import Steps
from stream.test_stream import SMALL, film, run, written
from stream.walk import Knows, frame, walk


def folder(path: Path, images: list[np.ndarray], name: str = "frame_{:06d}.png") -> Path:
    """Pictures as FFmpeg writes them: counted from 1. The fourth one is damaged."""
    path.mkdir()
    for number, image in enumerate(images, start=1):
        Image.fromarray(image).save(path / name.format(number))
    (path / name.format(4)).write_bytes(b"damaged")
    return path


def taken(source: Any, out: Path, most: int | None = None, **more: Any) -> int:
    """The number of the last frame of a stream that is stopped early."""
    stream = lean3r.stream(Steps(), source, out, options=SMALL, refine="off", **more)
    return list(itertools.islice(stream, most))[-1].index


def grey(image: Image.Image) -> np.ndarray:
    """The middle of a picture, small and in grey: its borders may be cut off."""
    return np.asarray(image.convert("L").resize((40, 28), Image.Resampling.BOX), float)[4:-4, 4:-4]


def names_of(out: Path) -> list[str]:
    """The names of the keyframes, which are the same everywhere."""
    names = [view["name"] for view in json.loads((out / "cameras.json").read_text())["views"]]
    assert np.load(out / "predictions.npz")["names"].tolist() == names
    manifest = json.loads((out / "manifest.json").read_text())
    assert [view["name"] for view in manifest["views"]] == names and "names.txt" in manifest["files"]
    assert {image.name for image in pycolmap.Reconstruction(out / "sparse" / "0").images.values()} <= set(names)
    return names


def test_pictures_of_folders_keep_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two with the same file names, also when the stream is stopped and goes on."""
    monkeypatch.setattr(running, "SAVING", 1e9)  # a checkpoint for every window
    images = [image for _, image in walk(40)]
    source = [folder(tmp_path / "left", images[:20]), folder(tmp_path / "right", images[20:])]
    assert taken(source, tmp_path / "whole") == 37
    names, manifest = names_of(tmp_path / "whole"), tmp_path / "whole" / "manifest.json"
    pictures = lean3r.Pictures(source)
    assert len(names) > 30 and set(names) <= set(pictures.names) and names[0] == "left/frame_000001.png"
    album = read_content(tmp_path / "whole").album
    small = {name: grey(Image.open(tmp_path / name)) for name in names}
    for view, name in enumerate(names):
        shown = album.photo(view, 400)
        assert shown is not None
        near = [np.abs(grey(shown) - small[other]).mean() for other in names]
        assert names[int(np.argmin(near))] == name
    skipped = {each["name"]: each["reason"] for each in json.loads(manifest.read_text())["skipped"]}
    assert sorted(skipped) == ["left/frame_000004.png", "right/frame_000004.png"] and "not an image" in min(
        skipped.values()
    )
    matched = read_given(tmp_path / "whole").match(pictures.names)
    assert [name for name, camera in zip(pictures.names, matched, strict=True) if camera is not None] == names
    assert taken(source, tmp_path / "cut", 20) == 19
    assert taken(source, tmp_path / "cut", resume=True) == 37
    assert written(tmp_path / "cut") == written(tmp_path / "whole")
    skips = [json.loads((tmp_path / name / "manifest.json").read_text())["skipped"] for name in ("cut", "whole")]
    assert skips[0] == skips[1]


def test_frames_of_a_damaged_film_are_called_as_in_a_reconstruction(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10, width=160, height=112, pix_fmt="yuv420p")
        stream.gop_size = 6
        for _, image in walk(60):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image))))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        places = [(packet.pos or 0, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    for pos, size in places[14:16]:
        content[pos : pos + size] = bytes(size)
    path.write_bytes(content)
    found = run(path, tmp_path / "out")
    assert len(found) < 60
    chosen = lean3r.Pictures(path, lean3r.FrameChoice(every=1))
    times_s = dict(zip(chosen.names, chosen.timestamps_s, strict=True))
    for view in json.loads((tmp_path / "out" / "cameras.json").read_text())["views"]:
        assert view["timestamp_s"] == times_s[view["name"]]
    assert any(each.source.name != f"clip_{each.index:06d}.png" for each in found if each.source is not None)
    skipped = json.loads((tmp_path / "out" / "manifest.json").read_text())["skipped"]
    assert [each["name"] for each in skipped] == ["clip.mp4"] and "frames can be decoded" in skipped[0]["reason"]
    assert {each.source.name for each in found if each.source is not None} == set(names_of(tmp_path / "out"))


def test_what_is_skipped_is_listed_up_to_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "LISTED", 2)
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(b"damaged")
    Image.fromarray(next(walk(1))[1]).save(tmp_path / "4.png")
    source = Source(tmp_path)
    assert len(list(source)) == 1 and [name for name, _ in source.skipped] == ["0.png", "1.png"]
    assert source.counts == {"files that cannot be used": 4}


def test_pictures_without_names_are_counted(tmp_path: Path) -> None:
    found = run(walk(30), tmp_path / "out")
    assert names_of(tmp_path / "out") == [f"frame_{e.index:06d}.png" for e in found if "keyframe" in e.flags]


def test_a_film_goes_on_with_the_same_film(tmp_path: Path) -> None:
    """Whose frames have the names of those that are remembered."""
    film(tmp_path / "clip.mkv", 40)
    first = lean3r.stream(Knows(), tmp_path / "clip.mkv", options=SMALL, refine="off")
    list(first)
    found = run(tmp_path / "clip.mkv", tmp_path / "out", state=first.state())
    keyframes = [each for each in found if "keyframe" in each.flags]
    assert names_of(tmp_path / "out") == [f"clip_{each.index - 40:06d}.png" for each in keyframes]


def test_warnings_name_some_of_the_views_that_they_are_about() -> None:
    states = ["refined"] * 300 + ["uncertain"] * 200
    views = [{"name": f"{number}.png", "registration": state} for number, state in enumerate(states)]
    numbers = [3 * number for number in range(500)]
    windows = [{"first": 30, "last": 45, "zooms": True}, {"first": 40, "last": 2000, "join": {"bad": "why"}}, {}]
    doubted, zoom, apart = warnings_of(windows, {"frames": 1500, "uncertain": 600}, views, numbers, {0})
    assert doubted["views"] == [f"{number}.png" for number in range(300, 400)] and "200 of them" in doubted["text"]
    assert zoom["views"] == [f"{number}.png" for number in range(10, 16)] and "1 of 3" in zoom["text"]
    assert apart["views"] == [f"{number}.png" for number in range(14, 114)]
    (between,) = warnings_of([], {"frames": 1500, "uncertain": 2}, views[:300], numbers[:300], {6})
    assert between["views"] == ["2.png"] and "0 of them" in between["text"]


def test_the_warning_of_windows_that_are_not_refined_says_why() -> None:
    """One keyframe, of a film that rests, has nothing to be refined by, and is not uncertain."""
    kept = {"first": 0, "last": 9, "refinement": "kept"}
    windows = [
        {**kept, "keyframes": 1, "reason": "one picture"},
        *[{**kept, "keyframes": 9, "reason": reason} for reason in ("no parallax", "no parallax", "dark")],
    ]
    windows[3]["zooms"] = True  # no focal lengths were found for it
    (told,) = warnings_of(windows, {"frames": 30, "uncertain": 0}, [], [], set())
    assert told["code"] == "not-refined" and "3 of 4" in told["text"] and told["text"].endswith("(no parallax)")
    assert not warnings_of(windows[:1], {"frames": 30, "uncertain": 0}, [], [], set())


def test_a_stream_of_a_fisheye_lens_says_so() -> None:
    (told,) = warnings_of([{"first": 0, "last": 9, "fisheye": True}], {"frames": 9, "uncertain": 0}, [], [], set())
    assert told["code"] == "fisheye" and "FOV" in told["text"]


def test_what_contradicts_stated_intrinsics_is_said_by_the_stream_too() -> None:
    text = "the known focal length does not fit the pictures: 0.77 times that brings ..."
    windows = [{"first": 0, "last": 9}, *({"first": at, "last": at + 9, "known-focal-length": text} for at in (5, 10))]
    (told,) = warnings_of(windows, {"frames": 20, "uncertain": 0}, [], [], set())
    assert told["code"] == "known-focal-length" and told["text"] == f"in 2 of 3 windows {text}"


def test_a_stream_that_rests_says_that_its_depth_is_a_guess(tmp_path: Path) -> None:
    image = frame(0.3)
    run([(i / 10, image) for i in range(30)], tmp_path)
    (told,) = json.loads((tmp_path / "manifest.json").read_text())["warnings"]
    assert told["code"] == "identical-pictures" and "one keyframe in 30 frames" in told["text"]


def test_the_command_prints_what_the_manifest_warns_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = folder(tmp_path / "rests", [frame(0.3)] * 6)
    assert main(["stream", str(given), "-o", str(tmp_path / "out"), "--json"]) == 0
    printed = capsys.readouterr()
    told = json.loads((tmp_path / "out" / "manifest.json").read_text())["warnings"]
    assert json.loads(printed.out)["warnings"] == told and told[0]["code"] == "identical-pictures"
    assert f"[identical-pictures] {told[0]['text']}" in " ".join(printed.err.split())


def test_a_folder_whose_name_is_not_utf8(tmp_path: Path) -> None:
    source = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9"))
    try:
        source.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    for number, (_, image) in enumerate(walk(12)):
        Image.fromarray(image).save(source / f"{number:02d}.png")
    taken(source, tmp_path / "out")
    assert len(names_of(tmp_path / "out")) > 5
    assert tomllib.loads((tmp_path / "out" / "config.toml").read_text("utf-8"))["source"].endswith("caf?")


def test_a_stream_that_goes_on_from_another_over_the_same_pictures_has_each_name_once(tmp_path: Path) -> None:
    source = folder(tmp_path / "film", [image for _, image in walk(24)])
    first = lean3r.stream(Steps(), source, options=SMALL, refine="off")
    next(iter(first))
    second = lean3r.stream(Steps(), source, tmp_path / "out", options=SMALL, refine="off", state=first.state())
    list(second)
    names = names_of(tmp_path / "out")
    assert len(set(names)) == len(names) and any(name.endswith("_2.png") for name in names)
    album = read_content(tmp_path / "out").album
    assert all(album.photo(view, 400) is not None for view in range(len(names)))
