"""Names of views, and the ground-truth clouds of data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data import tiny

from lean3r.data import DATASETS
from lean3r.data.sets.formats.ply import read_ply
from lean3r.data.sets.scenes import picture_names
from lean3r.errors import InputError
from lean3r.export.ply import ply_bytes

XYZ = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)


@pytest.mark.parametrize("name", list(tiny.WRITERS))
def test_view_names_are_unique_and_files_can_have_them(name: str, tmp_path: Path) -> None:
    tiny.write(name, tmp_path)
    found = DATASETS.get(name)(tmp_path, **tiny.WRITERS[name].options)
    names = [found.view_name(0, view) for view in range(found.scene(0).views)]
    assert len(set(names)) == len(names)
    assert all(text and not Path(text).is_absolute() and ".." not in Path(text).parts for text in names)


def test_pictures_are_named_by_what_tells_them_apart() -> None:
    assert picture_names((Path("/r/s/a.jpg"), Path("/r/s/frame-01.color.png"))) == ("a", "frame-01.color")
    assert picture_names((Path("/r/s/x/0.jpg"), Path("/r/s/y/z/0.jpg"))) == ("x/0", "y/z/0")
    assert picture_names((Path("/r/s/0.jpg"), Path("/r/s/0.png"))) == ("0.jpg", "0.png")
    assert picture_names((Path("/r/s/0.jpg"),)) == ("0",)


def ascii_ply(xyz: np.ndarray) -> bytes:
    rows = "\n".join(" ".join(repr(float(x)) for x in row) for row in xyz)
    head = "\n".join(f"property float {axis}" for axis in "xyz")
    return f"ply\nformat ascii 1.0\nelement vertex {len(xyz)}\n{head}\nend_header\n{rows}\n".encode()


@pytest.mark.parametrize(
    "content", [ascii_ply(XYZ), ply_bytes(XYZ, np.zeros((50, 3), np.uint8))], ids=["text", "bytes"]
)
def test_ply_clouds_are_read(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cloud.ply"
    path.write_bytes(content)
    vertices, faces = read_ply(path)
    assert vertices.dtype == np.float64 and faces is None
    np.testing.assert_allclose(vertices, XYZ, atol=1e-7)
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(InputError, match=r"cloud\.ply is damaged"):
        read_ply(path)


def test_ply_meshes_are_read_and_other_files_refused(tmp_path: Path) -> None:
    path = tmp_path / "mesh.ply"
    path.write_bytes(ply_bytes(XYZ, np.zeros((50, 3), np.uint8), np.array([[0, 1, 2], [3, 4, 5]])))
    faces = read_ply(path)[1]
    assert faces is not None and faces.tolist() == [[0, 1, 2], [3, 4, 5]]
    for content, why in ((b"no mesh", "damaged"), (ply_bytes(XYZ * np.nan, np.zeros((50, 3), np.uint8)), "not finite")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=why):
            read_ply(path)
    with pytest.raises(InputError, match=r"absent\.ply is missing"):
        read_ply(tmp_path / "absent.ply")


@pytest.mark.parametrize("name", ["dtu", "dtu64"])
def test_scans_of_dtu_are_in_metres(name: str, tmp_path: Path) -> None:
    tiny.write(name, tmp_path)
    found = DATASETS.get(name)(tmp_path)
    assert found.cloud(0) is None
    number = int("".join(c for c in found.scene(1).id if c.isdigit()))
    (tmp_path / "Points" / "stl").mkdir(parents=True)
    (tmp_path / "Points" / "stl" / f"stl{number:03}_total.ply").write_bytes(ascii_ply(1000 * XYZ))
    cloud = found.cloud(1)
    assert cloud is not None and found.cloud(0) is None
    np.testing.assert_allclose(cloud, XYZ, rtol=1e-6)
