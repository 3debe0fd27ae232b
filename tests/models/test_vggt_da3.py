"""Laws of VGGT and Depth Anything 3 on small random models: views, chunks, cameras, sky, tied names, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lean3r.errors import InputError, UsageError
from lean3r.geometry.pose import invert_pose, make_pose
from lean3r.geometry.rotation import so3_exp
from lean3r.heads.view_camera import normalise_cameras
from lean3r.models.base import Backbone
from lean3r.models.da3 import Da3, Da3Config
from lean3r.models.da3_mono import Da3Metric, Da3Mono, Da3MonoConfig
from lean3r.models.da3_nested import Da3Nested, Da3NestedConfig
from lean3r.models.vggt import Vggt, VggtConfig
from lean3r.types import Known, Prediction, Source, Views

ANY_VIEW = Da3Config(64, 6, 4, 2, (2, 3, 4, 5), 16, (8, 8, 16, 16), grid=4)
SINGLE = Da3MonoConfig(32, 4, 2, (0, 1, 2, 3), 16, (8, 8, 16, 16), grid=4)


@pytest.fixture(scope="module")
def vggt() -> Vggt:
    sizes = {"features": 16, "channels": (8, 8, 16, 16), "track_features": 16, "track_levels": 2, "track_hidden": 32}
    return randomise(Vggt(VggtConfig(32, 2, 1, 4, 4, (0, 1, 2, 3), **sizes)))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def da3() -> Da3:
    return randomise(Da3(ANY_VIEW))


@pytest.fixture(scope="module")
def nested() -> Da3Nested:
    return randomise(Da3Nested(Da3NestedConfig(ANY_VIEW, SINGLE)))


def randomise(model):
    """Tokens and layer scales that make every branch show, the same in every run."""
    random = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith(("gamma", "_token", "_tokens", "_tracks")):
            torch.nn.init.uniform_(parameter, 0.1, 0.5, generator=random)
        elif parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=random)
        elif name.endswith("bias"):
            torch.nn.init.uniform_(parameter, -0.05, 0.05, generator=random)
    return model.eval()


def pictures(views: int = 4, batch: int = 1, height: int = 56, width: int = 42) -> Tensor:
    return torch.rand(batch, views, 3, height, width, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def predict(model, images: Tensor, **rest) -> Prediction:
    return model(Views(images, **rest))


def assert_same(a: Prediction, b: Prediction, tolerance: float = 2e-4) -> None:
    for name in ("cam_from_world", "intrinsics", "depth", "conf"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=tolerance, atol=tolerance, msg=name)


def part(p: Prediction, scenes: slice | list[int] = slice(None), views: slice | list[int] = slice(None)) -> Prediction:
    assert p.depth is not None and p.conf is not None
    return Prediction(*(t[scenes][:, views] for t in (p.cam_from_world, p.intrinsics, p.depth, p.conf)))


@pytest.mark.parametrize("name", ["vggt", "da3", "nested"])
def test_scenes_of_a_batch_and_chunks_are_independent(name: str, request, monkeypatch: pytest.MonkeyPatch) -> None:
    model = request.getfixturevalue(name)
    images = pictures(views=3, batch=2)
    both = predict(model, images)
    monkeypatch.setattr(Backbone, "chunk_bytes", 1)
    for scene in range(2):
        assert_same(part(both, [scene]), predict(model, images[[scene]]))


def test_mlp_in_pieces_changes_nothing(vggt: Vggt, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures()
    whole = predict(vggt, images)
    monkeypatch.setattr("lean3r.layers.block.MLP_ELEMENTS", 100)
    assert_same(whole, predict(vggt, images))


@pytest.mark.parametrize("name", ["vggt", "da3", "nested"])
def test_poses_alone_run_no_dense_head(name: str, request) -> None:
    model = request.getfixturevalue(name)
    calls: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, path=path: calls.append(path))
        for path, module in model.named_modules()
        if path.endswith("pyramid")
    ]
    with torch.no_grad():
        tokens = model.encode(Views(pictures()))
        cameras = model.decode(tokens, dense=False)
        assert not calls and cameras.depth is None and cameras.conf is None
        full = model.decode(tokens)
    for hook in hooks:
        hook.remove()
    assert calls and full.depth.shape == (1, 4, 56, 42)
    torch.testing.assert_close(cameras.intrinsics, full.intrinsics)


def test_vggt_other_views_commute(vggt: Vggt) -> None:
    images, order = pictures(), [0, 3, 1, 2]
    assert_same(part(predict(vggt, images), views=order), predict(vggt, images[:, order]))


def test_da3_order_of_views_does_not_matter(da3: Da3) -> None:
    images, order = pictures(), [2, 0, 3, 1]
    assert_same(part(predict(da3, images), views=order), predict(da3, images[:, order]))


def test_da3_reference_view_matters(da3: Da3) -> None:
    with torch.no_grad():
        found = [da3.decode(da3.encode(Views(pictures()), reference=how), dense=False) for how in ("first", "middle")]
    assert not torch.allclose(found[0].cam_from_world, found[1].cam_from_world, atol=1e-4)


def test_da3_known_cameras_come_back_in_the_users_world(da3: Da3) -> None:
    random = torch.Generator().manual_seed(3)
    turn, shift = torch.randn(2, 1, 4, 3, generator=random)[:, None].unbind(0)
    cam_from_world = make_pose(so3_exp(turn[0]), shift[0] * 7)
    intrinsics = torch.tensor([[50.0, 0, 21], [0, 50, 28], [0, 0, 1]]).expand(1, 4, 3, 3)
    usual, unit = normalise_cameras(cam_from_world)
    torch.testing.assert_close(usual[:, 0], torch.eye(4)[None], atol=1e-5, rtol=0)
    there = predict(da3, pictures(), known=Known(intrinsics, cam_from_world))
    here = predict(da3, pictures(), known=Known(intrinsics, usual))
    assert there.depth is not None and here.depth is not None
    torch.testing.assert_close(there.depth, here.depth * unit, rtol=1e-3, atol=1e-4)
    moved = there.cam_from_world @ invert_pose(cam_from_world[:, :1])
    torch.testing.assert_close(moved[..., :3, 3] / unit, here.cam_from_world[..., :3, 3], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("is_known", [False, True])
def test_da3_cameras_are_decoded_alike_in_half_precision(da3: Da3, is_known: bool) -> None:
    random = torch.Generator().manual_seed(3)
    turn, shift = torch.randn(2, 1, 4, 3, generator=random).unbind(0)
    intrinsics = torch.tensor([[50.0, 0, 21], [0, 50, 28], [0, 0, 1]]).expand(1, 4, 3, 3)
    known = Known(intrinsics, make_pose(so3_exp(turn), 7 * shift + 300)) if is_known else None
    with torch.no_grad():
        tokens = da3.encode(Views(pictures(), known=known))
        exact = da3.decode(tokens, dense=False)
        with torch.autocast("cpu", torch.bfloat16):
            half = da3.decode(tokens, dense=False)
    assert torch.equal(half.cam_from_world, exact.cam_from_world)


def test_da3_gaussians_and_their_absence(da3: Da3) -> None:
    config = Da3Config(64, 6, 4, 2, (2, 3, 4, 5), 16, (8, 8, 16, 16), grid=4, mlp="swiglu", gaussians=True)
    model = randomise(Da3(config))
    with torch.no_grad():
        tokens = model.encode(Views(pictures(views=1)))
        raw = model.gaussians(tokens)
    assert raw.shape == (1, 1, 38, 56, 42)
    assert 0 < float(raw[:, :, -1].min()) <= float(raw[:, :, -1].max()) < 1
    with pytest.raises(UsageError, match="Gaussian"):
        da3.gaussians(tokens)


@pytest.mark.parametrize("level", range(4))
def test_tied_names_may_be_any_one_of_them(da3: Da3, level: int) -> None:
    official = da3.KEY_MAP.write(da3.state_dict())
    group = {name for names in da3.KEY_MAP.tied for name in names}
    kept = {k: v for k, v in official.items() if k not in group or f"aux.{level}." in k}
    read, foreign = da3.KEY_MAP.read(kept | {"stranger": torch.zeros(1)})
    assert foreign == ["stranger"] and read.keys() == da3.state_dict().keys()


def test_metric_needs_the_focal_length() -> None:
    model = randomise(Da3Metric(SINGLE))
    images = pictures(views=1)
    source = Source("a.jpg", 84, 112, (2.0, 2.0, 0.0, 0.0), focal_px=600.0)
    known, guessed = predict(model, images, sources=(source,)), predict(model, images)
    assert known.is_metric and not guessed.is_metric
    assert float(known.intrinsics[0, 0, 0, 0]) == 300.0
    with torch.no_grad():
        raw = Da3Mono.decode(model, model.encode(Views(images)))
    torch.testing.assert_close(known.depth, raw.depth)


def test_tracks_start_at_their_queries(vggt: Vggt) -> None:
    queries = torch.tensor([[[3.0, 4.0], [40.5, 17.25]]])
    with torch.no_grad():
        tokens = vggt.encode(Views(pictures(views=2)))
        tracks = vggt.track(tokens, queries)
        alone = vggt.track(tokens, queries[:, 1:])
    assert len(tracks.positions) == 4
    torch.testing.assert_close(tracks.positions[-1][:, 0], queries)
    assert tracks.visibility.shape == (*alone.visibility.shape[:2], 2)
    vggt.tracker.levels, levels = 7, vggt.tracker.levels
    with pytest.raises(UsageError, match="128"):
        vggt.track(tokens, queries)
    vggt.tracker.levels = levels


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(1, 0, 3, 28, 28), UsageError, "0 views"),
        (torch.zeros(1, 1, 3, 30, 28), UsageError, "28x30"),
        (torch.zeros(1, 1, 3, 0, 28), UsageError, "28x0"),
        (torch.zeros(1, 3, 28, 28), UsageError, "shape"),
        (torch.full((1, 2, 3, 28, 28), torch.nan), InputError, "view 0"),
    ],
)
@pytest.mark.parametrize("name", ["vggt", "da3"])
def test_refusals(name: str, images: Tensor, error: type[Exception], message: str, request) -> None:
    with pytest.raises(error, match=message):
        predict(request.getfixturevalue(name), images)


@pytest.mark.parametrize("name", ["vggt", "da3", "nested"])
def test_half_precision_is_near(name: str, request) -> None:
    model = request.getfixturevalue(name)
    exact = predict(model, pictures())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near = predict(model, pictures())
    assert near.depth is not None and exact.depth is not None and near.depth.dtype == torch.float32
    # The median: whether a pixel is sky is a yes or no, which rounding may turn.
    error = (near.depth.log() - exact.depth.log()).abs().median()
    assert float(error) < 0.1 * float(exact.depth.log().std() + 1)
