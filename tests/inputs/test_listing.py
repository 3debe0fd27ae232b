"""Finding pictures in folders, globs, archives and videos; names, order and limits. Needs no shared data."""

from __future__ import annotations

import io
import logging
import zipfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from reading import choose, load_views, video

from lean3r.errors import InputError, UsageError
from lean3r.inputs import listing
from lean3r.inputs.frames import FrameChoice, evenly
from lean3r.inputs.listing import natural_key, printable
from lean3r.inputs.video import Clip, read_frames

SIZE: dict[str, Any] = {"resolution": 96, "patch": 16}


def picture(path: Path, colour: str = "red", size: tuple[int, int] = (48, 32)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def picture_bytes(colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (48, 32), colour).save(file, "PNG")
    return file.getvalue()


def names(*inputs: str | Path, **options: Any) -> list[str]:
    found = choose(inputs, **options)
    return [n for i in found.items for n in (i.frames.values() if isinstance(i, Clip) else [i.name])]


def test_natural_order() -> None:
    mixed = ["img_10.jpg", "IMG_9.jpg", "img_2.jpg", "a", "img_2b.jpg", "10", "9", "img_02.jpg", ""]
    assert sorted(mixed, key=natural_key) == [
        "", "9", "10", "a", "img_02.jpg", "img_2.jpg", "img_2b.jpg", "IMG_9.jpg", "img_10.jpg",
    ]  # fmt: skip


def test_printable_names() -> None:
    assert printable("фото 写真 🍌.jpg") == "фото 写真 🍌.jpg"
    assert printable("new\nline\t.jpg") == "new\\nline\\t.jpg"
    assert printable(b"latin1_\xe9.jpg".decode("utf-8", "surrogateescape")) == "latin1_\\xe9.jpg"


def test_folder_ignores_other_files_and_goes_no_deeper(tmp_path: Path) -> None:
    for name in ("img_10.png", "img_2.PNG", ".hidden.png", "deeper/x.png"):
        picture(tmp_path / name)
    for name in (".DS_Store", "Thumbs.db", "notes.txt"):
        (tmp_path / name).write_text("x")
    assert names(tmp_path) == ["img_2.PNG", "img_10.png"]
    assert choose([tmp_path]).skipped == ()


def test_folder_of_images_folder(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "cameras.txt").write_text("x")
    assert names(tmp_path) == ["a.png"]


def test_empty_folder_and_missing_paths_are_named(tmp_path: Path) -> None:
    picture(tmp_path / "deep" / "er" / "x.png")
    with pytest.raises(InputError, match=r"no images found in .*deep: looked for \.jpg .* subfolders \(er\)"):
        choose([tmp_path / "deep"])
    with pytest.raises(InputError, match=r"no such file or folder: .*absent\.jpg"):
        choose([tmp_path / "absent.jpg"])
    with pytest.raises(InputError, match=r"nothing matches .*\*\.webp"):
        choose([f"{tmp_path}/*.webp"])
    with pytest.raises(InputError, match="an empty list"):
        choose([])


def test_glob_files_and_repeats(tmp_path: Path) -> None:
    for i in (10, 9, 1):
        picture(tmp_path / f"p[{i}].png")
    assert names(f"{tmp_path}/p*.png") == ["p[1].png", "p[9].png", "p[10].png"]
    one = tmp_path / "p[9].png"
    assert names(one, str(one), f"{tmp_path}/*9*") == ["p[9].png"]
    assert names(tmp_path, f"{tmp_path}/p*.png") == ["p[1].png", "p[9].png", "p[10].png"], "files and their folder"
    assert names(f"{tmp_path.parent}/{tmp_path.name}/**") == ["p[1].png", "p[9].png", "p[10].png"]


def test_equal_names_get_their_folders(tmp_path: Path) -> None:
    for folder in ("left", "right", "deep/left"):
        picture(tmp_path / folder / "0.png")
        picture(tmp_path / folder / f"{folder[0]}.png")
    found = names(tmp_path / "left", tmp_path / "right", tmp_path / "deep/left")
    top = tmp_path.name
    assert found == [f"{top}/left/0.png", "l.png", "right/0.png", "r.png", "deep/left/0.png", "d.png"]


def test_named_file_that_is_not_an_image_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "raw.dng").write_text("hello")
    picture(tmp_path / "without_suffix.png").rename(tmp_path / "without_suffix")
    with caplog.at_level(logging.WARNING, "lean3r"):
        loaded = load_views([tmp_path / "notes.txt", tmp_path / "without_suffix"], **SIZE)
    assert loaded.skipped == (("notes.txt", "not an image but text"),)
    assert loaded.views.sources[0].name == "without_suffix"
    assert "skipped notes.txt: not an image but text" in caplog.text
    with pytest.raises(InputError, match=r"raw\.dng: \.dng files are not supported"):
        choose([tmp_path])


def test_one_bad_picture_costs_only_itself(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    picture(tmp_path / "c.png", "blue")
    loaded = load_views(tmp_path, **SIZE)
    assert [s.name for s in loaded.views.sources] == ["a.png", "c.png"]
    assert loaded.skipped == (("b.png", "the file is empty"),)


def test_max_views_are_spread_evenly_and_reported(tmp_path: Path) -> None:
    for i in range(11):
        picture(tmp_path / f"{i}.png")
    loaded = load_views(tmp_path, max_views=3, **SIZE)
    assert [s.name for s in loaded.views.sources] == ["0.png", "5.png", "10.png"]
    assert len(loaded.skipped) == 8 and loaded.skipped[0] == (
        "1.png",
        "left out: 3 views at most (--max-views, --memory)",
    )
    assert evenly(9, 1) == [4] and evenly(3, 9) == [0, 1, 2] and evenly(100, 2) == [0, 99]


def test_zip_is_read_in_memory_and_kept_inside(tmp_path: Path) -> None:
    box = tmp_path / "box"
    box.mkdir()
    with zipfile.ZipFile(box / "photos.zip", "w") as archive:
        for name in ("b/1.png", "a/1.png", "a/10.png", "a/9.png", "__MACOSX/a/._1.png", "../out.png", "/abs.png"):
            archive.writestr(name, picture_bytes())
        archive.writestr("..\\windows.png", picture_bytes())
        archive.writestr("C:\\windows.png", picture_bytes())
        archive.writestr("readme.txt", "x")
    loaded = load_views(box / "photos.zip", **SIZE)
    assert [s.name for s in loaded.views.sources] == ["a/1.png", "9.png", "10.png", "b/1.png"]
    assert len(loaded.skipped) == 4 and all("points outside photos.zip" in reason for _, reason in loaded.skipped)
    assert [p.name for p in tmp_path.rglob("*")] == ["box", "photos.zip"]


def test_an_archived_scene_gives_its_images_as_the_folder_does(tmp_path: Path) -> None:
    def found(*names: str) -> tuple[list[str], list[str]]:
        with zipfile.ZipFile(tmp_path / "scene.zip", "w") as archive:
            for name in names:
                archive.writestr(name, picture_bytes())
        chosen = choose([tmp_path / "scene.zip"])
        return list(chosen.names), [name for name, _ in chosen.skipped]

    used = ["images/1.png", "images/left/2.png"]
    for top in ("", "my scene/"):
        names = [top + name for name in (*used, "images_2/1.png", "masks/1.png.png", "depth/preview/1.png")]
        assert found(*names) == (["1.png", "2.png"], [f"{top}depth/preview", f"{top}images_2", f"{top}masks"])
    assert found("a/images/1.png", "a/masks/1.png", "b/2.png") == (["1.png", "2.png"], ["a/masks"])
    assert found("images/1.png", "3.png", "more/2.png")[1] == [], "pictures beside images/ count, too"


def test_bad_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", picture_bytes())
        archive.writestr("b.png", picture_bytes("blue"))
        archive.writestr("bomb.png", bytes(3_000_000))
    whole = path.read_bytes()
    monkeypatch.setattr(listing, "MAX_MEMBER_BYTES", 2 * 2**20)
    at = whole.index(b"\x89PNG") if b"\x89PNG" in whole else whole.index(b"a.png") + 20
    path.write_bytes(whole[:at] + b"\xff\xff\xff" + whole[at + 3 :])
    loaded = load_views(path, **SIZE)
    assert [s.name for s in loaded.views.sources] == ["b.png"]
    assert [name for name, _ in loaded.skipped] == ["bomb.png", "a.png"]
    assert "over 2 MB" in loaded.skipped[0][1] and "damaged in the archive" in loaded.skipped[1][1]

    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"x\.zip: cannot be read as a zip archive"):
        choose([path])
    flagged = bytearray(whole)
    flagged[whole.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(flagged)
    with pytest.raises(InputError, match=r"x\.zip: is encrypted"):
        choose([path])


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("avi", "mpeg4")])
def test_video_frames_are_the_chosen_ones(tmp_path: Path, suffix: str, codec: str) -> None:
    path = video(tmp_path / f"clip.{suffix}", 25, codec=codec)
    for options, wanted in (
        ({"every": 8}, [0, 8, 16, 24]),
        ({"frames": 3}, [0, 12, 24]),
        ({"fps": 2.5}, [0, 4, 8, 12, 16, 20, 24]),
        ({"fps": 1000}, list(range(25))),
        ({}, evenly(25, 8)),
        ({"max_views": 4}, evenly(25, 4)),
    ):
        loaded = load_views(path, **options, **SIZE)
        assert [s.name for s in loaded.views.sources] == [f"clip_{i:06d}.png" for i in wanted], options
        grey = loaded.views.images[0].mean((1, 2, 3)) * 255
        assert np.abs(grey.numpy() - 8 * np.array(wanted)).max() < 6, options
        times_s = [s.timestamp_s for s in loaded.views.sources if s.timestamp_s is not None]
        np.testing.assert_allclose(times_s, np.array(wanted) / 10, atol=1e-3)


def test_thinned_clip_is_reported_in_one_line(tmp_path: Path) -> None:
    loaded = load_views(video(tmp_path / "clip.mp4", 20), every=1, max_views=5, **SIZE)
    assert len(loaded.views.sources) == 5
    assert loaded.skipped == (("clip.mp4", "15 of 20 frames left out: 5 views at most (--max-views, --memory)"),)


def test_video_options(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for options in ({"fps": 1, "every": 2}, {"frames": 3, "fps": 1}, {"every": 0}, {"fps": -1}, {"max_views": 0}):
        with pytest.raises(UsageError, match=r"contradict|must be positive"):
            choose([tmp_path], **options)
    picture(tmp_path / "a.png")
    with caplog.at_level(logging.WARNING, "lean3r"):
        assert names(tmp_path, fps=2) == ["a.png"]
    assert "no input is a video" in caplog.text


def test_default_number_of_frames() -> None:
    def chosen(seconds: float, **options: Any) -> int:
        return len(FrameChoice(**options).indices([i / 30 for i in range(int(seconds * 30))]))

    assert [chosen(s) for s in (0.1, 2, 10, 3600)] == [3, 8, 21, 120]
    assert chosen(3600, max_views=200) == 200
    uneven = [0.0, 0.1, 0.2, 5.0, 5.1, 9.9]
    assert FrameChoice(fps=1).indices(uneven) == [0, 3, 5] and FrameChoice(fps=6).indices(uneven) == list(range(6))
    bursts = [start + i / 60 for start in (0, 100) for i in range(60)]  # fewer than two a second on the whole
    assert [len(FrameChoice(fps=fps).indices(bursts)) for fps in (1, 2, 60)] == [3, 6, 120]
    assert FrameChoice(fps=0.2).indices(uneven) == [0, 3]


def test_videos_beside_pictures_are_left_out(tmp_path: Path) -> None:
    video(tmp_path / "live.mov", 4)
    video(tmp_path / "live.mp4", 3)
    assert names(tmp_path) == [f"live_{i:06d}.png" for i in range(4)] + [f"live~2_{i:06d}.png" for i in range(3)]
    picture(tmp_path / "live.png")
    found = choose([tmp_path])
    assert [i.name for i in found.items] == ["live.png"]
    assert [name for name, _ in found.skipped] == ["live.mov", "live.mp4"]
    assert names(tmp_path / "live.png", tmp_path / "live.mov", frames=1) == ["live_000002.png", "live.png"]


def test_video_in_a_zip_and_under_a_wrong_name(tmp_path: Path) -> None:
    clip = video(tmp_path / "clip.mp4", 4)
    with zipfile.ZipFile(tmp_path / "clip.zip", "w") as archive:
        archive.write(clip, "in/clip.mp4")
    assert len(names(tmp_path / "clip.zip")) == 4
    clip.rename(tmp_path / "clip.bin")
    assert len(names(tmp_path / "clip.bin")) == 4


def test_playlists_are_not_followed(tmp_path: Path) -> None:
    clip = video(tmp_path / "clip.ts", 4)
    playlist = tmp_path / "list.mp4"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{clip}\n#EXT-X-ENDLIST\n")
    with pytest.raises(InputError, match=r"no frames in list\.mp4: cannot open video"):
        choose([playlist])


def test_decoding_goes_on_after_damage(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 48, 64, 3), dtype=np.uint8)
    path = video(tmp_path / "clip.mp4", noise, g="10", bf="0", **{"x264-params": "scenecut=0"})
    with av.open(str(path)) as container:
        packet = [p for p in container.demux(video=0) if p.size][12]
        start, size = packet.pos, packet.size
    assert start is not None
    whole = bytearray(path.read_bytes())
    whole[start : start + size] = b"\xff" * size
    path.write_bytes(whole)
    (clip,) = choose([path], every=1).items
    assert isinstance(clip, Clip)
    numbers = [int(name[-10:-4]) for name, *_ in read_frames(clip)]
    assert set(range(12)) | set(range(20, 30)) <= set(numbers)
    assert 12 not in numbers and len(numbers) <= 22 + 2
    loaded = load_views(path, every=1, **SIZE)
    assert ("clip_000012.png", "the frame is damaged in clip.mp4") in loaded.skipped
    assert len(loaded.skipped) == 30 - len(numbers)
