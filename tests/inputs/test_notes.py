"""What photos say besides their pixels (date, place, lens, colours) stays true in copies."""

import io
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export.scene import make_scene
from PIL import Image, ImageCms

from lean3r.export import ExportOptions, export
from lean3r.grow.memory import look_at
from lean3r.inputs import decoding
from lean3r.inputs.decoding import EXIF, EXIF_HEIGHT, EXIF_WIDTH, FOCAL_35MM, ORIENTATION
from lean3r.inputs.notes import GPS, restated
from lean3r.inputs.pictures import Pictures
from lean3r.types import Lens

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
DATE, PLACE = "2026:05:01 12:00:00", {1: "N", 2: (47.0, 22.0, 30.0), 3: "E", 4: (8.0, 33.0, 0.0)}
NOTE = b"Maker\0" + bytes(range(64))
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6" drone-dji:GimbalPitchDegree="-90.0"/></x:xmpmeta>'


def photo(size: tuple[int, int], orientation: int = 1, stated: tuple[int, int] | None = None) -> bytes:
    """A JPEG as a phone writes it, with a thumbnail, perhaps cropped since from another size."""
    y, x = np.mgrid[: size[1], : size[0]]
    image = Image.fromarray(np.stack([x * 255 // size[0], y * 255 // size[1], 0 * x], axis=-1).astype(np.uint8))
    exif = Image.Exif()
    exif[ORIENTATION], exif[0x0110] = orientation, "Phone 9"
    exif[EXIF] = {
        0x9003: DATE,
        EXIF_WIDTH: (stated or size)[0],
        EXIF_HEIGHT: (stated or size)[1],
        FOCAL_35MM: 26,
        0x920A: 4.2,
        0x927C: NOTE,
    }
    exif[GPS] = PLACE
    block = bytearray(exif.tobytes())
    (entries,) = struct.unpack_from(f"{'<' if block[6:8] == b'II' else '>'}H", block, 14)
    assert not any(block[16 + 12 * entries : 20 + 12 * entries])
    struct.pack_into("<I" if block[6:8] == b"II" else ">I", block, 16 + 12 * entries, len(block) - 6)
    thumbnail = struct.pack("<HHHIIHHIII" if block[6:8] == b"II" else ">HHHIIHHIII",
                            2, 0x0201, 4, 1, 0, 0x0202, 4, 1, 0, 0)  # fmt: skip
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, exif=bytes(block) + thumbnail, icc_profile=PROFILE, xmp=XMP)
    return file.getvalue()


def said(path: Path) -> dict[str, Any]:
    """What a written picture says."""
    with Image.open(path) as image:
        image.load()
        fields = image.getexif()
        more = fields.get_ifd(EXIF)
        return {
            "turn": fields.get(ORIENTATION, 1), "camera": fields.get(0x0110), "date": more.get(0x9003),
            "place": {k: tuple(map(float, v)) if isinstance(v, tuple) else v for k, v in fields.get_ifd(GPS).items()},
            "size": (more.get(EXIF_WIDTH), more.get(EXIF_HEIGHT)), "own size": image.size,
            "focal": (more.get(FOCAL_35MM), float(more.get(0x920A, 0))), "note": more.get(0x927C),
            "profile": image.info.get("icc_profile"), "xmp": image.info.get("xmp"),
            "thumbnail": bool(fields.get_ifd(1)),
        }  # fmt: skip


def display_p3() -> bytes:
    """The profile of phones: that of sRGB with other primaries."""
    profile = bytearray(PROFILE)
    primaries = {b"rXYZ": (0.51512, 0.2412, -0.00105), b"gXYZ": (0.29198, 0.69225, 0.04189),
                 b"bXYZ": (0.1571, 0.06657, 0.78407)}  # fmt: skip
    for entry in range(132, 132 + 12 * struct.unpack_from(">I", profile, 128)[0], 12):
        tag, offset, _ = struct.unpack_from(">4sII", profile, entry)
        if tag in primaries:
            struct.pack_into(">3i", profile, offset + 8, *(round(65536 * value) for value in primaries[tag]))
    return bytes(profile)


@pytest.mark.parametrize("large", [decoding.LARGE_PIXELS, 1000])
def test_views_are_in_srgb_whatever_the_photos_are_in(
    large: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else clouds and scenes of most phones look pale. The files keep their own colours."""
    monkeypatch.setattr(decoding, "LARGE_PIXELS", large)
    own, shown = (200, 80, 60), (216, 69, 50)  # by the definitions of both, to within a rounding
    for name, profile in (("a.png", display_p3()), ("b.png", PROFILE), ("c.png", None), ("d.png", b"damaged" * 30)):
        Image.new("RGB", (64, 48), own).save(tmp_path / name, icc_profile=profile)
    pictures = Pictures(tmp_path)
    seen = [picture.pixels[20, 20] for picture in pictures.whole(pictures.names)]
    assert np.abs(seen[0].astype(int) - shown).max() <= 1
    assert all(tuple(pixel) == own for pixel in seen[1:])
    assert {image.getpixel((20, 20)) for _, image in pictures.read(pictures.names, 10**9)} == {own}
    views = pictures.views(resolution=240, patch=16)
    mask = np.ones((4, *views.images.shape[-2:]), bool)
    remembered = look_at(views.sources, mask, pictures.stills(tmp_path))  # by `lean3r add`, for the larger cloud
    assert np.abs(remembered[:, 20, 20].astype(int) - seen).max() <= 1


def test_a_turned_copy_says_what_the_photo_said(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(photo((64, 48), orientation=6))
    pictures = Pictures(tmp_path)
    (written,) = pictures.write(pictures.names, tmp_path / "images")
    found = said(written)
    assert found.pop("xmp") == XMP.replace(b'"6"', b'"1"')
    assert found == {
        "turn": 1, "camera": "Phone 9", "date": DATE, "place": PLACE, "size": (48, 64), "own size": (48, 64),
        "focal": (26, pytest.approx(4.2)), "note": NOTE, "profile": PROFILE, "thumbnail": False,
    }  # fmt: skip


def test_a_copy_does_not_hide_that_the_photo_was_cropped(tmp_path: Path) -> None:
    """Its focal length was refused because EXIF states another shape; the copy states its own."""
    (tmp_path / "a.jpg").write_bytes(photo((64, 48), 6, stated=(48, 48)))
    pictures = Pictures(tmp_path)
    copies = Pictures(pictures.write(pictures.names, tmp_path / "images"))
    for each in (pictures, copies):
        assert each.views(resolution=240, patch=16).sources[0].focal_px is None


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "MPO"])
def test_every_format_keeps_date_and_place(kind: str, tmp_path: Path) -> None:
    with Image.open(io.BytesIO(photo((64, 48)))) as image:
        exif = image.getexif()
        exif[ORIENTATION] = 8
        image.save(tmp_path / "a", kind, exif=exif)
    pictures = Pictures([tmp_path / "a"])
    found = said(pictures.write(pictures.names, tmp_path / "images")[0])
    assert (found["turn"], found["own size"], found["date"], found["place"]) == (1, (48, 64), DATE, PLACE)


def test_undistorted_pictures_keep_what_still_holds(tmp_path: Path) -> None:
    """Not the focal length, which is another one, nor the size of the original."""
    scene = make_scene()
    size = (scene.sources[0].width, scene.sources[0].height)
    lens = Lens("SIMPLE_RADIAL", (1.1 * size[0], size[0] / 2, size[1] / 2, 0.1))
    sources = tuple(replace(source, name=f"{i}.jpg") for i, source in enumerate(scene.sources))
    scene = replace(scene, sources=sources, lenses=(lens,) * len(sources))
    (tmp_path / "photos").mkdir()
    for source in sources:
        (tmp_path / "photos" / source.name).write_bytes(photo(size))
    options = ExportOptions(pictures=Pictures(tmp_path / "photos"), undistort=True, image_factors=(2,))
    out = export(scene, tmp_path / "out", "colmap", options=options)
    for name in ("images", "images_2"):
        found = said(out / name / "0.jpg")
        assert found["size"] == found["own size"] != size, name
        assert (found["date"], found["place"], found["note"], found["profile"]) == (DATE, PLACE, NOTE, PROFILE), name
        assert found["focal"] == (0, pytest.approx(4.2)) and found["xmp"] and not found["thumbnail"]


def test_notes_that_do_not_fit_stop_nothing(tmp_path: Path) -> None:
    """A damaged EXIF block, and one that is larger than a JPEG holds, as PNG may have."""
    image = Image.new("RGB", (64, 48))
    exif = Image.Exif()
    exif[ORIENTATION], exif[EXIF] = 6, {0x9286: b"\0" * 70_000}
    image.save(tmp_path / "a.png", exif=exif)
    (tmp_path / "b.jpg").write_bytes(photo((64, 48), 6).replace(b"\x87\x69", b"\x87\x6a", 1))
    pictures = Pictures(tmp_path)
    for path in pictures.write(pictures.names, tmp_path / "images"):
        assert said(path)["own size"] == (48, 64)


def test_damaged_exif_ends() -> None:
    """Blocks that name themselves, lie elsewhere or are torn; what can be read stays as long as it was."""
    whole = Image.open(io.BytesIO(photo((64, 48), 6))).info["exif"]
    (pointer,) = (at for at in range(16, 200, 12) if whole[at : at + 2] in (b"\x87\x69", b"\x69\x87"))
    looped = whole[: pointer + 8] + whole[10:14] + whole[pointer + 12 :]
    torn = [whole[:length] for length in range(0, len(whole), 3)]
    noise = [np.random.default_rng(seed).bytes(200) for seed in range(50)]
    for exif in (looped, *torn, *(whole[:14] + block for block in noise), *noise):
        assert len(restated({"exif": exif}, (48, 64)).get("exif", exif)) == len(exif)
