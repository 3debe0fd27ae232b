"""Every picture, folder, archive and video of the shared bad inputs behaves as its README asks."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from reading import Read, load_views

from lean3r.errors import InputError

REFUSED = {
    "truncated.jpg": "damaged",
    "corrupt_middle.jpg": "damaged",
    "truncated_header_only.jpg": "damaged",
    "text_renamed.jpg": "not an image",
    "html_renamed.png": "not an image",
    "empty.jpg": "empty",
    "zeros.jpg": "not an image",
    "one_by_one.png": "too small",
    "sliver_24x2000.jpg": "too elongated",
    "panorama_4000x120.jpg": "too elongated",
    "bomb_header_60000x60000.png": "megapixels, over the limit",
    "bomb_valid_20000x20000_1bit.png": "megapixels, over the limit",
    "negative_size_header.png": "not a valid PNG image",
    "float_nan_inf.tiff": "unsupported",
    "float_nan_inf.exr": "not supported",
    "empty_folder": "no images found in ",
    "truncated_no_moov.mp4": "cannot open video",
    "zero_frames.mp4": "no frames in zero_frames.mp4",
    "audio_only_zero_frames.mp4": "no frames in audio_only_zero_frames.mp4",
    "empty.mp4": "no frames in empty.mp4",
    "text_renamed.mp4": "no frames in text_renamed.mp4",
}
VIEWS = {  # of inputs that are more than one picture
    "mixed_sizes": 7,
    "duplicates": 5,
    "numeric_sort": 5,
    "odd_names.zip": 14,
    "animated.gif": 6,
    "good_reference_6frames.mp4": 6,
    "rotation_metadata_90.mp4": 6,
    "truncated_moov_first.mp4": 3,
}
ELSEWHERE = ("README.md", "checkpoints", "video", "odd_names.tar")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "bad_name" in metafunc.fixturenames:
        folder = metafunc.config.rootpath / str(metafunc.config.getoption("--data")) / "bad_inputs"
        found = [*folder.glob("*"), *folder.glob("video/*")] if folder.is_dir() else []
        metafunc.parametrize("bad_name", sorted(str(p.relative_to(folder)) for p in found if p.name not in ELSEWHERE))


@pytest.fixture
def bad_inputs(data_dir: Path) -> Path:
    return data_dir / "bad_inputs"


def load(path: Path) -> Read:
    return load_views(path, resolution=240, patch=16)


def pixels(path: Path) -> np.ndarray:
    """[H, W, 3] of the first view, in grey levels."""
    return 255 * load(path).views.images[0, 0].permute(1, 2, 0).numpy()


def test_each_input_is_used_or_refused_by_name(bad_inputs: Path, bad_name: str) -> None:
    path = bad_inputs / bad_name
    if path.name in REFUSED:
        with pytest.raises(InputError) as caught:
            load(path)
        message = str(caught.value)
        assert path.name in message and REFUSED[path.name] in message and "\n" not in message
        return
    loaded = load(path)
    images = loaded.views.images
    assert images.shape[1] == len(loaded.views.sources) == VIEWS.get(path.name, 1)
    assert torch.isfinite(images).all() and images.min() >= 0 and images.max() <= 1
    assert len({s.name for s in loaded.views.sources}) == images.shape[1]


def test_one_bad_file_does_not_waste_the_others(bad_inputs: Path) -> None:
    files = [p for p in bad_inputs.glob("*.*") if p.suffix in (".jpg", ".png", ".tiff", ".heic", ".gif", ".webp")]
    loaded = load_views(files, resolution=240, patch=16)
    refused = {p.name for p in files} & set(REFUSED)
    assert {name for name, _ in loaded.skipped} == refused
    assert len(loaded.views.sources) == len(files) - len(refused) + VIEWS["animated.gif"] - 1


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_orientation_gives_the_upright_twin(bad_inputs: Path, orientation: int) -> None:
    path = bad_inputs / f"exif_orientation{orientation}.jpg"
    source = load(path).views.sources[0]
    assert (source.width, source.height) == (213, 319)
    assert np.abs(pixels(path) - pixels(bad_inputs / "exif_upright_twin.jpg")).mean() < 3


@pytest.mark.parametrize("name", ["cmyk.jpg", "palette.png", "jpeg_named.heic"])
def test_colours_are_those_of_the_reference(bad_inputs: Path, name: str) -> None:
    assert np.abs(pixels(bad_inputs / name) - pixels(bad_inputs / "good_reference.jpg")).mean() < 6


@pytest.mark.parametrize("name", ["gray16.png", "rgb16.png", "grayscale.jpg"])
def test_brightness_is_that_of_the_reference(bad_inputs: Path, name: str) -> None:
    reference = pixels(bad_inputs / "good_reference.jpg").mean()
    assert abs(pixels(bad_inputs / name).mean() - reference) < 6


def test_transparency_is_white(bad_inputs: Path) -> None:
    assert (pixels(bad_inputs / "rgba_transparent.png")[:4, :4] > 254).all()


def test_video_is_turned_as_players_do(bad_inputs: Path) -> None:
    upright, turned = (
        pixels(bad_inputs / "video" / f) for f in ("good_reference_6frames.mp4", "rotation_metadata_90.mp4")
    )
    source = load(bad_inputs / "video" / "rotation_metadata_90.mp4").views.sources[0]
    assert (source.width, source.height) == (160, 240)
    assert np.abs(np.rot90(upright, -1) - turned).mean() < 1


def test_truncated_video_says_how_many_frames(bad_inputs: Path) -> None:
    assert "3 of 6 frames" in load(bad_inputs / "video" / "truncated_moov_first.mp4").skipped[0][1]


def test_natural_order_and_original_sizes(bad_inputs: Path) -> None:
    names = [s.name for s in load(bad_inputs / "numeric_sort").views.sources]
    assert names == [f"img_{i}.jpg" for i in (1, 2, 10, 11, 100)]
    mixed = load(bad_inputs / "mixed_sizes").views
    assert mixed.mask is not None and len({(s.width, s.height) for s in mixed.sources}) == 5


def test_odd_names_are_usable_and_printable(bad_inputs: Path, tmp_path: Path) -> None:
    with tarfile.open(bad_inputs / "odd_names.tar", encoding="utf-8", errors="surrogateescape") as archive:
        try:
            archive.extractall(tmp_path, filter="data")
        except OSError as error:
            pytest.skip(f"this file system does not take every name: {error}")
    loaded = load(tmp_path / "odd_names")
    names = [s.name for s in loaded.views.sources]
    assert len(set(names)) == 15 and loaded.skipped == ()
    assert all(name.isprintable() and name.encode("utf-8") for name in names)
    assert "new\\nline.jpg" in names and "latin1_\\xe9\\xe8.jpg" in names


def test_archive_cannot_write_outside(bad_inputs: Path) -> None:
    loaded = load(bad_inputs / "zip_slip.zip")
    assert [s.name for s in loaded.views.sources] == ["ok.jpg"]
    assert loaded.skipped[0][0] == "../../zip_slip_marker.txt" and "refused" in loaded.skipped[0][1]
    assert not list(bad_inputs.parent.glob("zip_slip_marker.txt"))
