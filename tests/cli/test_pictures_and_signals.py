"""Pictures beside the COLMAP model that other programs open as they are, and an orderly end on SIGTERM."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import av
import numpy as np
import pycolmap
import pytest
from PIL import Image

from lean3r.cli.main import main
from lean3r.errors import InputError
from lean3r.inputs.pictures import Pictures

SLOW = """
import sys, time
from lean3r.cli.main import main
from lean3r.pipeline import predicted

def predict(*_):
    from lean3r.colmap_library import pycolmap  # it answers SIGTERM itself unless kept from it
    pycolmap.Reconstruction()
    print("begun", flush=True)
    time.sleep(600)

predicted.predict = predict
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve frames of 128 x 96 pixels, each of one grey."""
    path = tmp_path_factory.mktemp("film") / "clip.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=6)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for number in range(12):
            picture = np.full((96, 128, 3), 20 * number, dtype=np.uint8)
            picture[::8, ::8] = 255
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    return path


def reconstruct(weights: Path, out: Path, *arguments: str) -> int:
    quick = ["--resolution", "96", "--weights", str(weights), "-q", "-o", str(out)]
    return main(["reconstruct", *arguments, *quick])


def assert_opens_as_it_is(out: Path) -> list[Path]:
    """Every image of the model is a file under images/ that has the size of its camera."""
    model = pycolmap.Reconstruction(out / "sparse" / "0")
    files = sorted(path for path in (out / "images").rglob("*") if path.is_file())
    assert {image.name for image in model.images.values()} == {f.relative_to(out / "images").as_posix() for f in files}
    for image in model.images.values():
        camera = model.cameras[image.camera_id]
        with Image.open(out / "images" / image.name) as picture:
            assert picture.size == (camera.width, camera.height)
            assert picture.getexif().get(0x0112, 1) == 1, "nothing is left to turn"
    listed = json.loads((out / "manifest.json").read_text())["files"]
    assert {f.relative_to(out).as_posix() for f in files} <= set(listed)
    return files


def test_frames_of_a_video_lie_beside_the_model(weights: Path, clip: Path, tmp_path: Path) -> None:
    assert reconstruct(weights, tmp_path / "out", str(clip), "--frames", "3", "-f", "colmap") == 0
    files = assert_opens_as_it_is(tmp_path / "out")
    assert [f.name for f in files] == ["clip_000000.png", "clip_000006.png", "clip_000011.png"]
    greys = [float(np.median(np.asarray(Image.open(f)))) for f in files]
    assert np.abs(np.subtract(greys, [0, 120, 220])).max() < 8
    # A model of the frames gives their cameras to the same frames.
    again = ("-f", "cameras", "--cameras", str(tmp_path / "out"))
    assert reconstruct(weights, tmp_path / "again", str(tmp_path / "out" / "images"), *again) == 0
    for name, options in (("none", ["-f", "colmap", "--images", "never"]), ("npz", ["-f", "npz"])):
        assert reconstruct(weights, tmp_path / name, str(clip), "--frames", "2", *options) == 0
        assert not (tmp_path / name / "images").exists()


def test_archives_and_turned_pictures(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(folder / "a.jpg")
    Image.fromarray(pixels).save(folder / "deep" / "a.jpg", exif=exif)
    Image.fromarray(pixels).save(folder / "b.png")
    (folder / "notes.jpg").write_text("no picture")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in sorted(folder.rglob("*.*")):
            archive.write(path, path.relative_to(folder))
    assert reconstruct(weights, tmp_path / "out", str(tmp_path / "photos.zip"), "-f", "colmap") == 0
    files = assert_opens_as_it_is(tmp_path / "out")
    assert len(files) == 3 and (folder / "b.png").read_bytes() in [f.read_bytes() for f in files]
    # COLMAP ignores the orientation in EXIF: the turned picture beside the model would not fit its camera.
    (tmp_path / "turned").mkdir()
    shutil.copy(folder / "deep" / "a.jpg", tmp_path / "turned")
    rows = (("auto", "photos", 0), ("always", "photos", 2), ("auto", "turned", 1), ("never", "turned", 0))
    for images, home, count in rows:  # what was not used is not there
        out = tmp_path / f"{images}_{home}"
        assert reconstruct(weights, out, str(tmp_path / home), "-f", "colmap", "--images", images) == 0
        assert (out / "images").is_dir() == bool(count)
        assert not count or len(assert_opens_as_it_is(out)) == count


@pytest.mark.parametrize(("options", "shown"), [("auto", "out/images"), ("never", None)])
def test_colmap_is_pointed_at_pictures_that_fit_the_model(
    options: str, shown: str | None, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "photos").mkdir()
    Image.effect_noise((120, 90), 80).save(tmp_path / "photos" / "turned.jpg", exif=exif)
    quick = ["--resolution", "96", "--weights", str(weights), "-o", str(tmp_path / "out"), "-f", "colmap"]
    assert main(["reconstruct", str(tmp_path / "photos"), *quick, "--images", options]) == 0
    said = capsys.readouterr().err
    assert f"--image_path {tmp_path / shown}" in said if shown else "--image_path" not in said


def test_pictures_that_have_vanished(tmp_path: Path) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"1 of 2 pictures cannot be read again \(b\.png\)"):
        Pictures([tmp_path]).write(["a.png", "b.png"], tmp_path / "images")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_sigterm_leaves_nothing_behind(weights: Path, photos: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SLOW, "reconstruct", str(photos), "-o", str(tmp_path / "out")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "--weights", str(weights)], **pipes) as run:
        assert run.stdout is not None and run.stdout.readline() == "begun\n"
        assert [path.name for path in tmp_path.glob(".lean3r-*")], "the hidden folder is there"
        run.send_signal(signal.SIGTERM)
        _, said = run.communicate(timeout=60)
    assert run.returncode == 143 and said.endswith("ended by SIGTERM\n") and "Traceback" not in said
    assert not list(tmp_path.iterdir())
