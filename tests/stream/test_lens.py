"""A lens that bends lines, in a stream: found once or stated, held, and in every output."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import lean3r
from lean3r.colmap_library import pycolmap
from lean3r.inputs.given import GivenCameras
from lean3r.stream.cloud import Cloud
from lean3r.stream.engine import Estimate
from lean3r.stream.loops import Landmark, _thin
from lean3r.stream.options import given_camera, known_camera
from lean3r.stream.pictures import Keyframe, Recent
from lean3r.stream.result import Result
from lean3r.stream.solver import Solver, common_camera
from lean3r.types import Lens, Prediction, Source, Views
from stream.walk import FOCAL, HEIGHT, WIDTH, Knows, walk

BENT = Lens("SIMPLE_RADIAL", (150.0, 80.0, 56.0, -0.2))


def test_a_lens_that_is_known_or_found_is_kept_in_every_output(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By frames between keyframes, cameras.json, the COLMAP model, predictions.npz, and a stream that is resumed."""
    given: list[Any] = []
    run = Solver._run

    def bent(self: Solver, pictures: Recent) -> tuple[lean3r.Reconstruction, bool]:
        given.append(self._camera(pictures.keyframes))
        scene, is_known = run(self, pictures)
        report = {"status": "refined", "trusted": len(scene.sources)}
        lens = given[-1][1] if is_known else BENT
        return replace(scene, lenses=(lens,) * len(scene.sources), info={**scene.info, "refinement": report}), is_known

    monkeypatch.setattr(Solver, "_run", bent)
    stream = lean3r.stream(Knows(), walk(60), tmp_path, options=lean3r.StreamOptions(window=8, overlap=3), refine="off")
    found = list(stream)
    assert given[0] is None and given[1] is not None and given[1][1] == BENT, "found once, then known"
    assert all(each.lens == BENT for each in found)
    views = json.loads((tmp_path / "cameras.json").read_text())["views"]
    assert all(view["lens"] == {"model": BENT.model, "params": list(BENT.params)} for view in views)
    model = pycolmap.Reconstruction(tmp_path / "sparse" / "0")
    assert {(c.model.name, *c.params) for c in model.cameras.values()} == {(BENT.model, *BENT.params)}
    with np.load(tmp_path / "predictions.npz") as arrays:
        assert set(arrays["lens_model"]) == {BENT.model} and np.array_equal(arrays["lens_params"][0, :4], BENT.params)
    engine = type(stream.engine)(stream.model, stream.settings)  # type: ignore[misc]
    engine.restore(stream.engine.state())  # type: ignore[union-attr]
    assert engine._solver.cameras == stream.engine._solver.cameras  # type: ignore[union-attr]


def test_points_lie_on_the_rays_of_the_lens() -> None:
    """Those of joins and of the cloud: a corner is where the lens has it, not its pinhole part."""
    source = Source("a.png", 160, 112, (2.0, 2.0, 0.0, 0.0))
    keyframe = Keyframe(0, 0.0, (160, 112), np.zeros((112, 160, 3), np.uint8), 1)
    matrix, flat = np.array([[75.0, 0, 40], [0, 75, 28], [0, 0, 1]]), np.ones((56, 80), np.float32)
    image = np.zeros((56, 80, 3), np.uint8)
    result = Result(keyframe, source, np.eye(4), matrix, flat, flat, image, True, True)
    pinhole, bent = result.slopes, replace(result, lens=BENT).slopes
    radius, straight = (np.linalg.norm(slopes[0, 0]) for slopes in (bent, pinhole))
    assert radius * (1 - 0.2 * radius**2) == pytest.approx(straight, rel=1e-4) and radius > 1.1 * straight
    estimate = Estimate(
        *(0, 0.0, np.eye(4), result.original_intrinsics, 160, 112, frozenset({"keyframe"})),
        image=image,
        depth=flat,
        conf=flat,
        source=source,
        lens=BENT,
    )
    cloud = Cloud(10_000, 0.0)
    cloud.add([estimate])
    assert np.abs(cloud.xyz[:, 0]).max() == pytest.approx(np.abs(bent[..., 0]).max(), rel=1e-5)
    restored = Landmark.restored(Landmark.of(0, 0, replace(result, lens=BENT), np.zeros(3)).state())
    assert restored.lens == BENT and np.array_equal(_thin(restored)[0], bent[::2, ::2])


@pytest.mark.parametrize(("strength", "is_held"), [(-0.18, True), (0.1, True), (-0.01, False)])
def test_a_lens_that_hardly_bends_lines_is_found_anew(strength: float, is_held: bool) -> None:
    lens = Lens("SIMPLE_RADIAL", (500.0, 270.0, 180.0, strength))
    results: Any = [
        SimpleNamespace(original_intrinsics=np.eye(3), lens=lens, keyframe=SimpleNamespace(size=(540, 360)))
    ]
    assert common_camera(results)[1] == (lens if is_held else None)


def test_a_stated_distortion_is_held(tmp_path: Path) -> None:
    file = tmp_path / "camera.json"
    file.write_text(json.dumps({"fx": 150, "fy": 150, "cx": 80, "cy": 56, "k1": -0.2}))
    known = known_camera(str(file))
    assert known["lens"] is not None and known["lens"].params[4:6] == (-0.2, 0)
    scene = given_camera(known["intrinsics"], known["lens"])
    assert isinstance(scene.cameras, GivenCameras) and scene.cameras.shared is not None
    assert scene.cameras.shared.lens == known["lens"]


class OfOneCamera(Knows):
    """Knows the focal length of pictures that were made larger, too."""

    def forward(self, views: Views, reference: int | None = None) -> Prediction:
        """See Knows."""
        found = super().forward(views, reference)
        factors = torch.tensor([source.width / WIDTH for source in views.sources])
        found.intrinsics[0, :, [0, 1], [0, 1]] *= factors[:, None]
        return found


@pytest.mark.parametrize("larger", [range(20, 40), range(1, 40, 2), range(12, 13)])
@pytest.mark.parametrize("step", [0.12, 0.5])
def test_frames_of_a_source_that_changes_its_size_have_cameras_in_their_own_pixels(larger: range, step: float) -> None:
    def source() -> Iterator[tuple[float, np.ndarray]]:
        for index, (time_s, image) in enumerate(walk(40, 0.05)):
            size = (2 * WIDTH, 2 * HEIGHT) if index in larger else (WIDTH, HEIGHT)
            yield time_s, np.asarray(Image.fromarray(image).resize(size))

    options = lean3r.StreamOptions(window=6, overlap=2, keyframe_step=step)
    found = list(lean3r.stream(OfOneCamera(), source(), options=options, refine="off"))
    assert {each.width for each in found} == {WIDTH, 2 * WIDTH}
    for each in found:
        factor = each.width / WIDTH
        expected = FOCAL * factor, FOCAL * factor, WIDTH / 2 * factor, HEIGHT / 2 * factor
        assert np.allclose(each.intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]], expected), each.index
