"""Pictures: one object for what the user names, on disk or in memory; listed once, a video decoded once."""

from __future__ import annotations

import copy
import logging
import os
from collections import Counter
from pathlib import Path, PurePath

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from reading import video as write_video

from lean3r.cli.main import main
from lean3r.errors import InputError, UsageError
from lean3r.inputs import listing, video
from lean3r.inputs import pictures as module
from lean3r.inputs.frames import FrameChoice
from lean3r.inputs.pictures import Pictures

SIZE = {"resolution": 96, "patch": 16}
ORIENTATION = 0x0112
IMAGE = Image.new("RGB", (120, 90))


def noise(seed: int = 0, height: int = 90, width: int = 120) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height)))


def test_pictures_in_memory_are_read_as_files_are(tmp_path: Path) -> None:
    arrays = [noise(seed) for seed in range(3)]
    for index, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / f"{index}.png")
    wanted = Pictures(tmp_path).views(**SIZE)
    stack = np.stack(arrays)
    floats = torch.from_numpy(stack).movedim(-1, 1).float() / 255
    forms = {
        "paths": [str(tmp_path / f"{i}.png") for i in range(3)],
        "images": [Image.fromarray(a) for a in arrays],
        "an iterator": (Image.fromarray(a) for a in arrays),
        "arrays": arrays,
        "a stack": stack,
        "floats": stack / 255.0,
        "16 bits": stack.astype(np.uint16) * 257,
        "a tensor": floats,
        "tensors": list(floats.half()),
        "of two kinds": [tmp_path / "0.png", arrays[1], floats[2]],
    }
    for form, given in forms.items():
        pictures = Pictures(given)
        assert len(pictures) == len(set(pictures.names)) == 3, form
        off = (pictures.views(**SIZE).images - wanted.images).abs().max()
        assert off <= (1 / 255 if form == "tensors" else 1e-6), form


def test_one_grey_or_transparent_picture_and_its_exif_are_read(tmp_path: Path) -> None:
    one = Pictures(noise())
    assert one.names == ("picture_0000.png",) and one.views(**SIZE).images.shape[1] == 1
    for given in (noise()[..., 0], noise()[..., :1], torch.rand(1, 90, 120), Image.fromarray(noise()).convert("CMYK")):
        assert Pictures(given).views(**SIZE).images.shape == one.views(**SIZE).images.shape
    clear = np.dstack([noise(), np.zeros((90, 120), np.uint8)])
    assert float(Pictures(clear).views(**SIZE).images.min()) > 0.99, "transparency shows white"
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(noise()).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    with Image.open(tmp_path / "turned.jpg") as image:
        pictures = Pictures(image)
        (source,) = pictures.views(**SIZE).sources
        assert (source.name, source.width, source.height, source.orientation) == ("turned.png", 90, 120, 6)
        (path,) = pictures.write(pictures.names, tmp_path / "out")
    with Image.open(path) as written:
        assert written.size == (90, 120), "upright"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (7, "got int as the pictures"),
        ([noise(), None], "got NoneType as a picture"),
        ([IMAGE, IMAGE], "one PIL image is given twice"),
        (torch.rand(3, 90, 120, device="meta"), "cannot be read"),
        (torch.rand(3, 90, 120).to_sparse(), "cannot be read"),
        (np.zeros((3, 90, 120), np.uint8), r"shape \(3, 90, 120\) is not a picture; expected"),
        (torch.zeros(90, 120, 3), r"a tensor of shape \(90, 120, 3\) is not a picture"),
        (torch.zeros(1, 2, 3, 90, 120), "is not a picture"),
        (np.zeros((0, 90, 120, 3), np.uint8), "is not a picture"),
        (noise().astype(np.float32), "run from 0 to 255; expected 0 to 1"),
        (np.full((90, 120, 3), np.nan), "run from nan to nan"),
        (noise().astype(np.int64), "type int64; expected uint8"),
        (np.zeros((4, 120, 3), np.uint8), "too small: 120x4"),
        (Image.fromarray(noise()[..., 0].astype(np.float32)), "floating-point pixels"),
        ([], "an empty list"),
    ],
)
def test_what_is_not_a_picture_is_refused(given: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Pictures(given).views(**SIZE)  # type: ignore[arg-type]


def test_nothing_is_listed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(6):
        Image.fromarray(noise(index)).save(tmp_path / f"{index}.png")
    calls = Counter[str]()
    listed = listing._from_folder
    monkeypatch.setattr(listing, "_from_folder", lambda *a: (calls.update(["listed"]), listed(*a))[1])
    pictures = Pictures(tmp_path)
    (tmp_path / "late.png").write_bytes((tmp_path / "0.png").read_bytes())
    fewer = pictures.at_most(3)
    assert fewer.names == ("0.png", "2.png", "5.png") and len(pictures) == 6 and len(fewer.skipped) == 3
    fewer.views(**SIZE)
    fewer.write(["2.png"], tmp_path / "out")
    dict(fewer.read(fewer.names, 64))
    assert calls["listed"] == 1 and pictures.timestamps_s == (None,) * 6
    assert "6 views, 0 skipped" in repr(pictures)


def test_unusable_pictures_take_nobodys_place(tmp_path: Path) -> None:
    for index in range(6):
        Image.fromarray(noise(index)).save(tmp_path / f"{index}.png")
    for bad in ("0.png", "3.png"):
        (tmp_path / bad).write_bytes(b"no picture")
    pictures = Pictures(tmp_path)
    assert pictures.views(**SIZE).images.shape[1] == 4
    assert pictures.at_most(4).names == ("1.png", "2.png", "4.png", "5.png"), "a memory budget asks for as many"
    fewer = pictures.at_most(2)
    assert fewer.views(**SIZE).images.shape[1] == 2 and fewer.names == ("1.png", "5.png")
    assert dict(fewer.skipped)["3.png"] == dict(pictures.skipped)["3.png"] and len(fewer.skipped) == 4


def test_a_video_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = write_video(tmp_path / "clip.mp4", [noise(index, 96, 128) for index in range(12)])
    calls = Counter[str]()
    decoded = video._decode
    monkeypatch.setattr(
        video, "_decode", lambda *a, **k: (calls.update([] if "NONKEY" in a else ["decoded"]), decoded(*a, **k))[1]
    )
    pictures = Pictures(clip, FrameChoice(every=3))
    views = pictures.views(**SIZE)
    again = dict(pictures.read(pictures.names, 10**6))
    pictures.write(pictures.names, tmp_path / "out")
    assert torch.equal(pictures.views(**SIZE).images, views.images)
    assert calls["decoded"] == 1
    assert pictures.timestamps_s == tuple(source.timestamp_s for source in views.sources)
    plain = Pictures(clip, FrameChoice(every=3), keep_frames=False)
    plain.views(**SIZE)
    assert pictures.are_at_hand and not plain.are_at_hand
    for name, image in plain.read(plain.names, 10**6):
        assert np.array_equal(image, again[name]), "kept frames are the decoded ones, to the last bit"
        with Image.open(tmp_path / "out" / name) as written:
            assert np.array_equal(image, written)
    assert calls["decoded"] == 3
    for kept in (pictures, plain):
        whole = {picture.source.name: picture for picture in kept.whole(kept.names)}
        assert whole.keys() == again.keys(), "frames can be read at any size, kept or not"
        for name, picture in whole.items():
            assert np.array_equal(picture.pixels, again[name])
            assert picture.source.original_from_network == (1.0, 1.0, 0.0, 0.0)
            assert picture.source.timestamp_s is not None


def test_frames_that_are_chosen_by_motion_are_kept_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = noise(0, 96, 900)
    steps = np.random.default_rng(0).integers(0, 14, 60).cumsum()
    clip = write_video(tmp_path / "clip.mp4", [wide[:, at : at + 256] for at in steps])
    calls = Counter[str]()
    decoded = video._decode
    monkeypatch.setattr(
        video, "_decode", lambda *a, **k: (calls.update([] if "NONKEY" in a else ["decoded"]), decoded(*a, **k))[1]
    )
    pictures = Pictures(clip)
    assert 8 < len(pictures) < 60
    views = pictures.views(**SIZE)
    read = dict(pictures.read(pictures.names, 10**6))
    assert calls["decoded"] == 1, "neither for the network nor for anything else again"
    plain = Pictures(clip, keep_frames=False)
    assert plain.names == pictures.names and torch.equal(plain.views(**SIZE).images, views.images)
    assert all(np.array_equal(image, read[name]) for name, image in plain.read(plain.names, 10**6))
    assert calls["decoded"] == 4
    fewer = pictures.at_most(8)
    assert len(fewer) == 8 and fewer.views(**SIZE).images.shape[1] == 8 and calls["decoded"] == 5


def test_kept_frames_go_with_the_object_and_a_full_disk_keeps_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    clip = write_video(tmp_path / "clip.mp4", [noise(index, 96, 128) for index in range(8)])
    pictures = Pictures(clip, FrameChoice(every=2))
    pictures.views(**SIZE)
    assert len(list((tmp_path / "temporary").glob("*/*.png"))) == 4
    del pictures
    assert list((tmp_path / "temporary").iterdir()) == []

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    pictures = Pictures(clip, FrameChoice(every=2))
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        assert pictures.views(**SIZE).images.shape[1] == 4
    assert len(dict(pictures.read(pictures.names, 10))) == 4, "decoded again"


def test_masks_belong_to_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.zeros((90, 120), np.uint8)).save(tmp_path / "masks" / "picture_0001.png")
    pictures = Pictures([noise(0), noise(1)], masks=tmp_path / "masks")
    assert pictures.masks is not None and set(pictures.masks.files) == {"picture_0001.png"}
    with pytest.raises(UsageError, match="no folder of masks"):
        Pictures(noise(), masks=tmp_path / "absent")
    with caplog.at_level(logging.WARNING, "lean3r"):
        assert Pictures(noise(), FrameChoice(fps=2)).names == ("picture_0000.png",)
    assert "no input is a video" in caplog.text and module.DECODERS >= 1


def test_other_types_of_paths_are_read(tmp_path: Path) -> None:
    Image.fromarray(noise()).save(tmp_path / "a.png")
    with os.scandir(tmp_path) as entries:
        assert Pictures(entries).names == ("a.png",)
    assert Pictures([PurePath(tmp_path / "a.png"), noise()]).names == ("a.png", "picture_0000.png")


@pytest.mark.parametrize("is_loaded", [False, True])
def test_an_image_with_exif_is_left_as_it_was(tmp_path: Path, is_loaded: bool) -> None:
    """TIFF is turned by Pillow when its pixels are decoded, which may be in the middle of all this."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(noise()).save(tmp_path / "turned.tif", exif=exif)
    wanted = Pictures(tmp_path).views(**SIZE)
    with Image.open(tmp_path / "turned.tif") as image:
        if is_loaded:
            image.load()
        for _ in range(2):
            assert torch.equal(Pictures(image).views(**SIZE).images, wanted.images)


def test_images_whose_exif_is_damaged_are_used_and_closed_ones_explained(tmp_path: Path) -> None:
    Image.fromarray(noise()).save(tmp_path / "a.jpg")
    image = Image.fromarray(noise())
    image.getexif()[0x9000] = object()  # pyright: ignore[reportArgumentType]
    with Image.open(tmp_path / "a.jpg") as closed:
        pass
    pictures = Pictures([image, closed])
    assert pictures.views(**SIZE).images.shape[1] == 1
    assert pictures.skipped == (("a.png", "this picture in memory cannot be read (is its file closed?)"),)


def test_equal_names_keep_their_suffix() -> None:
    images = [Image.fromarray(noise(seed)) for seed in range(3)]
    for image in images:
        image.filename = "elsewhere/a.jpg"  # pyright: ignore[reportAttributeAccessIssue]
    assert Pictures(images).names == ("a.png", "a~2.png", "a~3.png")


def test_a_budget_that_takes_other_frames_of_a_video_leaves_all_of_them_readable(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", frames=30)
    pictures = Pictures(tmp_path / "clip.mp4", FrameChoice(frames=4))
    pictures.views(**SIZE)
    others = Pictures(tmp_path / "clip.mp4", FrameChoice(frames=7)).names
    assert not set(others) <= set(pictures.names)
    assert len(pictures.write(others, tmp_path / "out")) == 7
    assert [name for name, _ in pictures.read(others, 100)] == list(others)


def test_frames_that_cannot_be_kept_or_are_gone_are_decoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "clip.mp4", frames=6)
    kept = Pictures(tmp_path / "clip.mp4", FrameChoice(frames=3))
    kept.views(**SIZE)
    copied = copy.copy(kept)
    names = kept.names
    del kept  # and its folder with it
    assert [name for name, _ in copied.read(names, 100)] == list(names)

    def full(purpose: str) -> None:
        raise OSError(28, "No space left on device", purpose)

    monkeypatch.setattr(module, "temporary_folder", full)
    pictures = Pictures(tmp_path / "clip.mp4", FrameChoice(frames=3))
    assert pictures.views(**SIZE).images.shape[1] == 3
    assert len(pictures.write(names, tmp_path / "out")) == 3


def test_masks_are_those_of_pictures_that_can_be_used(tmp_path: Path) -> None:
    folder, masks = tmp_path / "photos", tmp_path / "masks"
    folder.mkdir()
    masks.mkdir()
    for name in "ab":
        Image.fromarray(noise()).save(folder / f"{name}.png")
        Image.new("L", (120, 90), 255).save(masks / f"{name}.png.png")
    (folder / "a.png").write_bytes(b"")
    pictures = Pictures(folder, masks=masks)
    pictures.views(**SIZE)
    assert pictures.masks is not None and set(pictures.masks.files) == {"b.png"}


def test_frames_are_kept_only_if_they_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "clip.mp4", 6)
    kept: list[str] = []
    monkeypatch.setattr(module.FrameKeeper, "keep", lambda self, frame: kept.append(frame.name))
    command = ["reconstruct", str(tmp_path / "clip.mp4"), "--frames", "3", "--resolution", "112", "--refine", "off"]
    for number, (options, count) in enumerate(((["--images", "never"], 0), (["-f", "glb"], 0), (["-f", "colmap"], 3))):
        kept.clear()
        main([*command, *options, "-o", str(tmp_path / str(number)), "-q"])
        assert len(kept) == count, options


def test_a_picture_that_has_vanished_is_reported(tmp_path: Path) -> None:
    for name in "ab":
        Image.fromarray(noise()).save(tmp_path / f"{name}.png")
    pictures = Pictures(tmp_path)
    clip = Pictures(write_video(tmp_path / "clip.mp4", frames=6), FrameChoice(frames=3))
    (tmp_path / "a.png").unlink()
    (tmp_path / "clip.mp4").unlink()
    with pytest.raises(InputError, match=r"clip.mp4 cannot be read \(No such file"):
        clip.views(**SIZE)
    with pytest.raises(InputError, match=r"1 of 2 pictures cannot be read again \(a.png\)"):
        pictures.write(pictures.names, tmp_path / "out")


def test_colours_keep_their_meaning_in_pictures_that_are_turned(tmp_path: Path) -> None:
    """Else those of most phones, whose colours go beyond sRGB, look pale."""
    exif, profile = Image.Exif(), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif[ORIENTATION] = 6
    for name in ("a.jpg", "b.png", "c.webp"):
        IMAGE.save(tmp_path / name, exif=exif, icc_profile=profile)
    grey = profile[:16] + b"GRAY" + profile[20:]
    IMAGE.convert("L").save(tmp_path / "d.jpg", exif=exif, icc_profile=grey)
    pictures = Pictures(tmp_path)
    for path in pictures.write(pictures.names, tmp_path / "images"):
        with Image.open(path) as image:
            assert image.info["icc_profile"] == (grey if path.name == "d.jpg" else profile), path.name
    read = {name: image.info.get("icc_profile") for name, image in pictures.read(pictures.names, 1000)}
    assert [read[name] for name in pictures.names] == [profile, profile, profile, None], "RGB has no profile for grey"


def test_pictures_say_where_they_are_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result that named them from the folder of its run was shown with other pictures from the next one."""
    image = Image.fromarray(np.full((32, 40, 3), 90, np.uint8))
    (tmp_path / "photos").mkdir()
    image.save(tmp_path / "photos" / "a.png")
    monkeypatch.chdir(tmp_path)
    assert Pictures("photos").places == Pictures(Path("photos/")).places == (str(tmp_path / "photos"),)
    assert Pictures("photos/*.png").places == (str(tmp_path / "photos" / "*.png"),)
    assert Pictures([image]).places == Pictures([image]).inputs


def test_colours_of_pictures_in_memory_keep_their_meaning(tmp_path: Path) -> None:
    """They are those of the same file: swapped primaries, so that red is green in sRGB."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    turned = profile.replace(b"rXYZ", b"tXYZ").replace(b"gXYZ", b"rXYZ").replace(b"tXYZ", b"gXYZ")
    Image.new("RGB", (120, 90), (200, 40, 40)).save(tmp_path / "a.png", icc_profile=turned)
    image = Image.open(tmp_path / "a.png")
    of_file, in_memory = (Pictures(each).views(**SIZE).images[0, 0] for each in (tmp_path / "a.png", image))
    assert of_file[1].mean() > of_file[0].mean() and torch.equal(of_file, in_memory)
