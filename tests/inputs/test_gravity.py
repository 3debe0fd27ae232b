"""Up as cameras measured it: Apple's maker note and DJI's XMP, made by hand, damaged, and of real pictures."""

from __future__ import annotations

import io
import random
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from contracts.tiny import tiny
from export.scene import make_scene
from PIL import Image
from reading import load_views

import lean3r
from lean3r.data.sets.colmap import read_cameras
from lean3r.geometry.up import measured_up, with_up
from lean3r.inputs import gravity
from lean3r.inputs.pictures import Pictures

TRUE_UP = np.array([0.0, -1.0, 0.0])  # of make_scene
PORTRAIT, LANDSCAPE = (0.0, -1.0, 0.0), (-1.0, 0.0, 0.0)  # a phone held upright, and with its left side down


def angle_deg(first, second) -> float:
    return float(np.degrees(2 * np.arcsin(min(1.0, np.linalg.norm(np.subtract(first, second)) / 2))))


def apple_note(vector, order: str = ">") -> bytes:
    """Apple's maker note with an entry before the acceleration."""
    head = b"Apple iOS\0\0\1" + (b"MM" if order == ">" else b"II")
    entries = [struct.pack(order + "HHIi", 1, 9, 1, 13), struct.pack(order + "HHII", 8, 10, 3, 14 + 2 + 24 + 4)]
    values = [part for value in vector for part in (round(value * 65536), 65536)]
    return head + struct.pack(order + "H", 2) + b"".join(entries) + bytes(4) + struct.pack(order + "6i", *values)


def xmp(pitch: str, roll: str | None = "+0.00", *, element: bool = False) -> bytes:
    """DJI's XMP, with attributes or elements."""
    angles = {"GimbalPitchDegree": pitch} | ({} if roll is None else {"GimbalRollDegree": roll})
    inside = "".join(f"<drone-dji:{k}>{v}</drone-dji:{k}>" for k, v in angles.items()) if element else ""
    attributes = "" if element else "".join(f'\n   drone-dji:{k}="{v}"' for k, v in angles.items())
    about = 'xmlns:drone-dji="http://www.dji.com/drone-dji/1.0/"'
    return f"<x:xmpmeta><rdf:RDF><rdf:Description {about}{attributes}>{inside}</rdf:Description></rdf:RDF>".encode()


def photo(size, note: bytes | None = None, orientation: int | None = None, kind: str = "JPEG", **more) -> bytes:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    if note is not None:
        exif.get_ifd(0x8769)[0x927C] = note
    file = io.BytesIO()
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize(size)
    pixels.save(file, kind, exif=exif.tobytes(), **more)
    return file.getvalue()


def up_of(content: bytes):
    with Image.open(io.BytesIO(content)) as image:
        return gravity.measured_up(image)


@pytest.mark.parametrize(
    ("size", "orientation", "held", "shown"),
    [
        ((64, 48), 6, PORTRAIT, (0, -1, 0)),
        ((64, 48), 1, LANDSCAPE, (0, -1, 0)),
        ((64, 48), 3, (1, 0, 0), (0, -1, 0)),
        ((64, 48), 8, (0, 1, 0), (0, -1, 0)),
        ((64, 48), 6, (0, -0.8, 0.6), (0, -0.8, 0.6)),  # leaning back: it looks up
        ((64, 48), 6, (0.6, -0.8, 0), (-0.6, -0.8, 0)),  # its right side down: up is left in the picture
        ((64, 48), 1, (-0.8, 0.6, 0), (0.6, -0.8, 0)),  # its top down: up is right in the picture
        ((64, 48), 6, (0, 0, -1), (0, 0, -1)),  # lying on its back: it looks down
        ((48, 64), None, (0, -0.8, -0.6), (0, -0.8, -0.6)),  # turned since, by a program that dropped the orientation
        ((64, 48), 1, (1, 0, 0), (0, -1, 0)),  # turned by half since
        ((48, 48), 1, PORTRAIT, (0, -1, 0)),  # cut square and turned since
        ((48, 64), 1, (0, 0, -1), None),  # turned since, and nothing says how
        ((64, 48), 2, PORTRAIT, None),  # mirrored
        ((64, 48), 6, (0, -0.2, 0), None),  # falling
    ],
)
def test_a_phones_note_tells_up_in_the_picture_that_is_shown(size, orientation, held, shown) -> None:
    found = up_of(photo(size, apple_note(held), orientation))
    assert (found is None) == (shown is None)
    if shown is not None:
        np.testing.assert_allclose(np.array(found), shown, atol=1e-4)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "HEIF"])
def test_other_formats_carry_the_note_too(kind: str, tmp_path: Path) -> None:
    from pillow_heif import register_heif_opener

    register_heif_opener()
    (tmp_path / "a.jpg").write_bytes(photo((96, 64), apple_note(PORTRAIT, "<"), 6, kind))
    (source,) = load_views(tmp_path, resolution=96, patch=16).views.sources
    assert (source.width, source.height) == (64, 96) and "up measured" in repr(source)
    np.testing.assert_allclose(np.array(source.up_in_camera), (0, -1, 0), atol=1e-4)


def test_the_front_camera_is_left_out() -> None:
    assert gravity.apple_up(apple_note(PORTRAIT), "iPhone 7 back camera 3.99mm f/1.8") == (-1.0, 0.0, 0.0)
    assert gravity.apple_up(apple_note(PORTRAIT), "iPhone 7 front camera 2.87mm f/2.2") is None


@pytest.mark.parametrize("element", [False, True])
@pytest.mark.parametrize(
    ("pitch", "roll", "shown"),
    [
        ("-90.00", "+0.00", (0, 0, -1)),
        ("-90.00", "+180.00", (0, 0, -1)),  # as some drones say it of pictures straight down
        ("-30", "+0.00", (0, -np.sqrt(0.75), -0.5)),
        ("+10.5", None, (0, -0.98325, 0.18224)),
        ("+0.00", "+10.00", (-0.17365, -0.98481, 0)),  # rolled clockwise: the horizon falls to the left
        ("-30.00", "+90.00", None),
        ("-130.00", "+0.00", None),
        ("none", "+0.00", None),
    ],
)
def test_a_drones_gimbal_tells_up(pitch, roll, shown, element: bool) -> None:
    found = up_of(photo((64, 48), orientation=1, xmp=xmp(pitch, roll, element=element)))
    assert (found is None) == (shown is None)
    if shown is not None:
        np.testing.assert_allclose(np.array(found), shown, atol=1e-4)


def test_torn_and_hostile_notes_are_none_and_stop_nothing(tmp_path: Path) -> None:
    sound, rng = apple_note((0.1, -0.95, 0.2)), random.Random(0)
    for cut in range(len(sound)):
        assert gravity.apple_up(sound[:cut]) is None
    for _ in range(2000):
        note = bytearray(sound)
        for _ in range(rng.randint(1, 4)):
            note[rng.randrange(10, len(note))] = rng.randrange(256)
        up = gravity.apple_up(bytes(note))
        assert up is None or abs(np.linalg.norm(up) - 1) < 1e-6
    no_denominator = sound[:-4] + bytes(4)
    overfull = sound[:14] + b"\xff" * 60
    for wrong in (no_denominator, overfull, b"", b"Apple iOS\0", "text", None, (1, 2), b"Nikon\0" + sound):
        assert gravity.apple_up(wrong) is None
    for wrong in (b"", b"drone-dji:GimbalPitchDegree=", b'drone-dji:GimbalPitchDegree="' + b"9" * 70_000):
        assert gravity.dji_up(wrong) is None
    tag = b"drone-dji:GimbalPitchDegree"
    lol = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">]><x>&a;<' + tag + b">&a;</" + tag + b"></x>"
    assert gravity.dji_up(lol) is None
    (tmp_path / "a.jpg").write_bytes(photo((96, 64), no_denominator, 6, xmp=lol))
    (tmp_path / "b.jpg").write_bytes(photo((96, 64), b"Apple iOS\0\0\1MM\xff\xff", 6, xmp=b"\xff\0" * 99))
    assert [s.up_in_camera for s in load_views(tmp_path, resolution=96, patch=16).views.sources] == [None, None]


def measuring(scene, noise_deg: float, wrong: int = 0):
    """The scene with cameras that measured up; the last `wrong` of them saw something else."""
    rng = np.random.default_rng(0)
    sources = []
    for view, source in enumerate(scene.sources):
        up = scene.cam_from_world[view, :3, :3] @ TRUE_UP + rng.normal(size=3) * np.radians(noise_deg)
        up = rng.normal(size=3) if view >= len(scene.sources) - wrong else up
        sources.append(replace(source, up_in_camera=tuple(up / np.linalg.norm(up))))
    return replace(scene, sources=tuple(sources))


def test_what_cameras_measured_goes_before_level_cameras_and_ground_that_may_slope() -> None:
    scene = make_scene(6)
    slope = np.array([0.1, -1.0, 0.05]) / np.linalg.norm([0.1, -1.0, 0.05])
    points = replace(scene.points, normals=np.tile(slope, (len(scene.points.xyz), 1)).astype(np.float32))
    up = with_up(measuring(replace(scene, points=points), 1.0, wrong=1)).info["up"]
    assert up["source"] == "exif" and up["certain"] and up["assumes"] == "gravity as the cameras measured it"
    assert angle_deg(up["direction"], TRUE_UP) < 1.5 and up["error_deg"] <= 3
    one = with_up(measuring(make_scene(1), 1.0)).info["up"]
    assert one["source"].startswith("exif") and angle_deg(one["direction"], TRUE_UP) < 3 and one["certain"]


def test_cameras_that_measured_different_things_are_not_believed() -> None:
    scene = make_scene(6)
    assert with_up(measuring(scene, 1.0, wrong=4)).info["up"] == with_up(scene).info["up"]
    assert measured_up(np.zeros((0, 4, 4)), np.zeros((0, 3))) is None
    # Half of them are no more than the other half.
    assert measured_up(np.tile(np.eye(4), (2, 1, 1)), np.array([[0, -1.0, 0], [0, 0, -1.0]])) is None


def test_a_run_reads_it_from_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for index in range(4):
            archive.writestr(f"{index}.jpg", photo((120, 90), apple_note((-0.8, 0, -0.6)), 1))
    scene = lean3r.reconstruct(tiny("nano"), tmp_path / "photos.zip", refine="off")
    assert all(source.up_in_camera is not None for source in scene.sources)
    expected = scene.cam_from_world[0, :3, :3].T @ [0, -0.8, -0.6]
    assert scene.info["up"]["source"] == "exif" and angle_deg(scene.info["up"]["direction"], expected) < 10


def test_real_phones_agree_through_the_true_cameras(data_dir: Path) -> None:
    """Pictures of both shapes; the upright ones were turned after they were taken."""
    folder = data_dir / "scenes" / "monstree"
    pictures = Pictures(folder / "images").views(resolution=96, patch=16)
    truth = read_cameras(folder / "gt")
    poses = truth.cam_from_world[[truth.names.index(source.name) for source in pictures.sources]]
    ups = np.array([source.up_in_camera for source in pictures.sources], np.float64)
    up = measured_up(poses, ups)
    assert up is not None and len(ups) == 9
    scatter = [angle_deg(pose[:3, :3].T @ seen, up.direction) for pose, seen in zip(poses, ups, strict=True)]
    assert max(scatter) < 2.5 and np.median(scatter) < 1.2
