"""A damaged COLMAP model is refused at once: no count, number or name in it is believed."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from lean3r.colmap_library import pycolmap
from lean3r.data.sets.colmap import read_cameras
from lean3r.errors import InputError
from lean3r.inputs.cameras import open_colmap, read_given
from lean3r.inputs.colmap_files import MODELS, check_model

READ = (
    "import resource, sys\n"
    "resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))\n"
    "from lean3r.inputs.cameras import open_colmap\n"
    "from lean3r.errors import InputError\n"
    "for folder in sys.argv[1:]:\n"
    "    try:\n"
    "        open_colmap(folder)\n"
    "    except InputError as error:\n"
    "        print(error)\n"
)
FILES = ("cameras", "images", "points3D", "rigs", "frames")


@pytest.fixture(scope="module")
def model() -> pycolmap.Reconstruction:
    """Two rigs of two cameras with two frames each, five points."""
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs = options.num_cameras_per_rig = options.num_frames_per_rig = 2
    options.num_points3D = 5
    return pycolmap.synthesize_dataset(options)


@pytest.fixture
def folder(model: pycolmap.Reconstruction, tmp_path: Path) -> Path:
    model.write_binary(tmp_path)
    return tmp_path


def test_whole_models_pass(model: pycolmap.Reconstruction, folder: Path, tmp_path: Path) -> None:
    assert open_colmap(folder).num_images() == 8
    (tmp_path / "text").mkdir()
    model.write_text(tmp_path / "text")
    assert open_colmap(tmp_path / "text").num_images() == 8


def test_real_models_pass(data_dir: Path) -> None:
    for found in (data_dir / "scenes").glob("*/gt"):
        check_model(found)


def test_parameters_are_the_librarys(tmp_path: Path) -> None:
    for number, (name, (count, focals)) in enumerate(MODELS.items()):
        camera = pycolmap.Camera.create_from_model_id(1, pycolmap.CameraModelId(number), 100.0, 100, 100)
        assert (camera.model.name, len(camera.params)) == (name, count)
        assert name == "EQUIRECTANGULAR" or len(camera.focal_length_idxs()) == focals


def test_damaged_models_end_at_once(model: pycolmap.Reconstruction, tmp_path: Path) -> None:
    """In a process of its own with a bound on its time: what is not seen here would never return."""
    folders = []
    for name in FILES:
        for kind, change in {
            "empty": lambda data: b"",
            "half": lambda data: data[: len(data) // 2],
            "more": lambda data: struct.pack("<Q", 2**40) + data[8:],
            "fewer": lambda data: struct.pack("<Q", 1) + data[8:],
            "longer": lambda data: data + b"x",
        }.items():
            damaged = tmp_path / f"{name}-{kind}"
            damaged.mkdir()
            model.write_binary(damaged)
            file = damaged / f"{name}.bin"
            file.write_bytes(change(file.read_bytes()))
            folders.append(damaged)
    done = subprocess.run([sys.executable, "-c", READ, *folders], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(folders)
    assert all(
        f"{folder.name.split('-')[0]}.bin is damaged" in line for folder, line in zip(folders, lines, strict=True)
    )


def test_lying_counts_within_records(folder: Path) -> None:
    data = bytearray((folder / "frames.bin").read_bytes())
    data[8 + 64 : 8 + 68] = b"\xff\xff\xff\xff"  # how many pictures the first frame has
    (folder / "frames.bin").write_bytes(data)
    with pytest.raises(InputError, match=r"frames\.bin is damaged \(it ends within record 1 of 4\)"):
        open_colmap(folder)


@pytest.mark.parametrize("width", [0, 2**50])
def test_absurd_cameras(folder: Path, width: int) -> None:
    data = bytearray((folder / "cameras.bin").read_bytes())
    data[16:24] = struct.pack("<Q", width)
    (folder / "cameras.bin").write_bytes(data)
    with pytest.raises(InputError, match=f"a camera of {width} x 768 pixels"):
        open_colmap(folder)


def test_absurd_cameras_in_text(model: pycolmap.Reconstruction, tmp_path: Path) -> None:
    model.write_text(tmp_path)
    text = (tmp_path / "cameras.txt").read_text()
    (tmp_path / "cameras.txt").write_text(text.replace(" 1024 ", f" {2**50} "))
    with pytest.raises(InputError, match="a camera of 1125899906842624 x 768 pixels"):
        open_colmap(tmp_path)


IMAGES = """# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME
1 1 0 0 0 0 0 5 1 a b\u2028c.png
10.5 20 -1 30 40 1
# of another day
2 1 0 0 0 1 0 5 1 b.png

"""
TEXTS = {
    "cameras": "# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]\n1 FULL_OPENCV 100 80 90 90 50 40 .1 0 0 0 0 0 0 0\n",
    "images": IMAGES,
    "points3D": "7 1 2 3 0 0 0 1.5\n1 1 2 3 0 0 0 1.5\n",
}


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("images", "0 5 1 a", "nan 5 1 a", "line 2: it has a number that is not finite; expected IMAGE_ID, QW"),
        ("images", "1 0 0 0 0 0 5", "0 0 0 0 0 0 5", "line 2: it has a pose whose rotation is 0 0 0 0"),
        ("images", "5 1 b.png", "5 b.png", "line 5: 'b.png' is no whole number"),
        ("images", "5 1 b.png", "5 1", "line 5: too few words"),
        ("images", "2 1 0 0 0 1", "1 1 0 0 0 1", "line 5: its number is that of line 2"),
        ("images", "10.5 20 -1 30 40 1\n# of another day\n", "", "line 3: not the points of a picture"),
        ("images", "10.5 20 -1 30 40 1", "10.5 20 -1 nan 40 1", "line 3: not the points of a picture"),
        ("images", "b.png\n\n", "b.png\n", "line 6: not the points of a picture"),
        ("images", "# IMAGE", "\ufeff# IMAGE", "it begins with a byte order mark"),
        ("cameras", "1 FULL", "1 HALF", "line 2: its camera model HALF_OPENCV is unknown"),
        ("cameras", " .1", "", "line 2: it has a camera FULL_OPENCV with 11 parameters instead of 12"),
        ("cameras", " 90 90", " 90 -90", "line 2: it has a camera without a positive focal length"),
        ("cameras", "100 80", "100 inf", "line 2: 'inf' is no whole number"),
        ("points3D", "7 1 2 3", "7 1 2 inf", "line 1: it has a number that is not finite"),
    ],
)
def test_texts_say_which_line_is_wrong(file: str, old: str, new: str, said: str, tmp_path: Path) -> None:
    """As people write them: without points, with blanks in names, comments, other ends of lines."""
    for name, text in TEXTS.items():
        (tmp_path / f"{name}.txt").write_bytes(text.replace("\n", "\r\n").encode())
    given = read_given(tmp_path).cameras
    assert [camera.name for camera in given] == [r"a b\u2028c.png", "b.png"]
    assert given[0].lens is not None and given[0].lens.model == "FULL_OPENCV"
    text = TEXTS[file].replace(old, new)
    assert text != TEXTS[file]
    (tmp_path / f"{file}.txt").write_text(text)
    with pytest.raises(InputError, match=rf"{file}\.txt is damaged \({said}"):
        open_colmap(tmp_path)


def test_names_and_links(folder: Path) -> None:
    data = (folder / "images.bin").read_bytes()
    (folder / "images.bin").write_bytes(data.replace(b"frame000000.png", b"frame\xff00000.png"))
    with pytest.raises(InputError, match="no readable COLMAP model"):
        open_colmap(folder)
    (folder / "images.bin").write_bytes(data)
    (folder / "points3D.bin").write_bytes(struct.pack("<Q", 0))  # the images still name them
    assert len(read_given(folder).cameras) == 8
    assert read_cameras(folder).mean_depth != read_cameras(folder).mean_depth  # no point is known
