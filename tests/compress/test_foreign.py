"""Networks that we did not write: converted with dense attention they say what they said, to 1e-5."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from lean3r.attention.base import recording
from lean3r.attention.dense import Dense
from lean3r.compress import compress, prepare
from lean3r.compress.foreign import ForeignAttention, FusedQkv, MultiHead
from lean3r.errors import UsageError
from lean3r.testing import assert_rms
from lean3r.types import TokenLayout

ALL = 1 << 20  # more windows than there are


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def grid(*inputs: Tensor, **_: object) -> TokenLayout:
    return TokenLayout(1, 1, 5, 6)


def encoder(batch_first: bool, norm_first: bool) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=batch_first, norm_first=norm_first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first and not norm_first).eval()


def same_where_kept(model: nn.Module, adapter: ForeignAttention, *inputs: Tensor, **named: Tensor) -> nn.Module:
    """Convert with dense, compare outputs; what everything-kept sparse attention says comes near, too."""
    converted = compress(model, "dense", adapter=adapter)
    assert list(converted.state_dict()) == list(model.state_dict())
    with torch.inference_mode():
        assert_rms(converted(*inputs, **named), model(*inputs, **named), 1e-5)
        moved = copy.deepcopy(converted)
        assert_rms(moved(*inputs, **named), model(*inputs, **named), 1e-5)
    return converted


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_transformer_encoder(batch_first: bool, norm_first: bool) -> None:
    model = encoder(batch_first, norm_first)
    x = torch.randn(2, 62, 32)
    padding = torch.zeros(2, 62, dtype=torch.bool)
    padding[1, 40:] = True
    x = x if batch_first else x.transpose(0, 1)
    converted = same_where_kept(model, MultiHead(grid), x)
    kept = ~padding if batch_first else ~padding.T
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            found, expected = (m(x, src_key_padding_mask=padding) for m in (converted, model))
        assert_rms(found[kept], expected[kept], 1e-5)


@pytest.mark.parametrize("scheme", ["fp8", "fp8-weight", "int8-dynamic"])
def test_rounded_layers_of_an_encoder_get_padding_not_nested_tensors(scheme: str) -> None:
    model, x, padding = encoder(True, False), torch.randn(2, 62, 32), torch.zeros(2, 62, dtype=torch.bool)
    padding[1, 40:] = True
    plan = {"steps": [{"quantize": scheme, "target": "every linear"}]}
    for rounded in (compress(model, plan), prepare(model, plan)):
        with torch.inference_mode():
            found, expected = (m(x, src_key_padding_mask=padding)[~padding] for m in (rounded, model))
        assert_rms(found, expected, 0.1)
    assert model.use_nested_tensor


def test_a_sparse_encoder_can_be_rounded_too() -> None:
    sparse = compress(encoder(True, False), {"steps": [everything(top_k=1)]}, adapter=MultiHead(grid))
    x = torch.randn(2, 31, 32)
    with torch.inference_mode():
        found = [prepare(sparse, "fp8-weight", adapter=adapter)(x) for adapter in (None, MultiHead(grid))]
    assert torch.equal(*found)


def test_fused_paths_do_not_pass_the_mechanism_by() -> None:
    model, x = encoder(True, False), torch.randn(2, 31, 32)
    sparse = compress(model, {"steps": [everything(top_k=1)]}, adapter=MultiHead(grid))
    with torch.inference_mode(), recording() as log:
        found = sparse(x)
        assert len(log) == 2 and not torch.allclose(found, model(x))
        assert_rms(model(x), model(x), 0)


def test_everything_kept_is_dense() -> None:
    """Two views of 1 + 5 x 6 tokens: windows of 4 x 4 patches, some cut by the edge."""
    model, x = encoder(True, True), torch.randn(2, 62, 32)
    sparse = compress(model, {"steps": [everything()]}, adapter=MultiHead(grid))
    with torch.inference_mode():
        assert_rms(sparse(x), model(x), 1e-5)


def everything(top_k: int = ALL) -> dict:
    return {"target": "global blocks", "mechanism": "gsa", "settings": {"top_k": top_k, "gate": "none"}}


def test_plain_multihead_and_gradients() -> None:
    model, x = nn.MultiheadAttention(32, 4, batch_first=True), torch.randn(1, 31, 32)
    converted = compress(model, "dense", adapter=MultiHead(lambda q, k, v, **_: grid()))
    found, none = converted(x, x, x)
    expected, _ = model(x, x, x)
    assert_rms(found, expected, 1e-5)
    assert none is None
    weights = list(model.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(found.square().sum(), weights),
        torch.autograd.grad(expected.square().sum(), weights),
        strict=True,
    ):
        assert_rms(ours, theirs, 1e-5)
    with pytest.raises(UsageError, match="query, key and value differ"):
        converted(x, x + 1, x)
    with pytest.raises(UsageError, match="attn_mask"):
        converted(x, x, x, attn_mask=torch.zeros(31, 31))


def test_wrong_layouts_and_other_kinds_are_refused() -> None:
    model = encoder(True, True)
    converted = compress(model, "dense", adapter=MultiHead(grid))
    with pytest.raises(UsageError, match="got 40 tokens; expected a multiple of 31"):
        converted(torch.randn(1, 40, 32))
    fresh = compress(model, "dense", adapter=MultiHead(grid))
    with pytest.raises(UsageError, match="call the network through the module"):
        fresh.layers[0](torch.randn(1, 31, 32))
    with pytest.raises(UsageError, match="write your own adapter"):
        compress(nn.ModuleDict({"attn": nn.Linear(4, 4)}), "dense", adapter=FusedQkv(grid))


class Rotary(nn.Module):
    """Turns the first half of the channels by rows and the second by columns, as pos [B, N, 2] has them."""

    def forward(self, x: Tensor, pos: Tensor) -> Tensor:
        turned = []
        for part, place in zip(x.chunk(2, -1), pos.unbind(-1), strict=True):
            speed = 100.0 ** -torch.linspace(0, 1, part.shape[-1] // 2)
            angle = (place[:, None, :, None] * speed).repeat(1, 1, 1, 2)
            low, high = part.chunk(2, -1)
            turned.append(part * angle.cos() + torch.cat([-high, low], -1) * angle.sin())
        return torch.cat(turned, -1)


class FusedAttention(nn.Module):
    """As the official networks write it: one Linear for q, k and v, norms, rotation, an attention of its own."""

    def __init__(self, dim: int, heads: int, rope: nn.Module | None):
        super().__init__()
        self.num_heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.q_norm, self.k_norm = nn.LayerNorm(dim // heads), nn.LayerNorm(dim // heads)
        self.proj_drop, self.rope = nn.Dropout(0.0), rope

    def forward(self, x: Tensor, pos: Tensor | None = None, attn_mask: Tensor | None = None) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, dim // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(qkv[0]), self.k_norm(qkv[1])
        if self.rope is not None and pos is not None:
            q, k = self.rope(q, pos), self.rope(k, pos)
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        return self.proj_drop(self.proj((weights @ qkv[2]).transpose(1, 2).reshape(batch, tokens, dim)))


class FusedBlock(nn.Module):
    def __init__(self, dim: int, heads: int, rope: nn.Module | None):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = FusedAttention(dim, heads, rope)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor, pos: Tensor | None) -> Tensor:
        x = x + self.attn(self.norm1(x), pos=pos)
        return x + self.mlp(self.norm2(x))


class ManyViews(nn.Module):
    """Depth Anything 3's way of looking at several views: the blocks of a ViT, from the third on every other global."""

    def __init__(self, rotated: bool):
        super().__init__()
        dim = 32
        rope = Rotary() if rotated else None
        self.patch_embed = nn.Conv2d(3, dim, 14, 14)
        self.cls_token, self.camera_token = (nn.Parameter(torch.randn(1, 1, dim)) for _ in range(2))
        self.blocks = nn.ModuleList(FusedBlock(dim, 2, rope if index >= 2 else None) for index in range(6))

    def forward(self, images: Tensor) -> Tensor:
        batch, views = images.shape[:2]
        grid = self.patch_embed(images.flatten(0, 1))
        rows, cols = (torch.arange(1, n + 1) for n in grid.shape[-2:])
        own = torch.cat([torch.zeros(1, 2, dtype=torch.int64), torch.cartesian_prod(rows, cols)])
        x = grid.flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        for index, block in enumerate(self.blocks):
            if index == 2:
                x = torch.cat([self.camera_token.expand(len(x), -1, -1), x[:, 1:]], 1)
            together = index >= 2 and index % 2
            x = x.unflatten(0, (batch, views)).flatten(1, 2) if together else x
            pos = (own > 0).long().repeat(views, 1) if together else own
            x = block(x, pos.expand(len(x), -1, -1))
            x = x.unflatten(1, (views, -1)).flatten(0, 1) if together else x
        return x.unflatten(0, (batch, views))


@pytest.mark.parametrize("rotated", [True, False])
@pytest.mark.parametrize(("views", "rows", "cols"), [(4, 5, 7), (1, 7, 3), (3, 13, 14)])
def test_a_fused_vit_of_many_views(rotated: bool, views: int, rows: int, cols: int) -> None:
    def layout(images: Tensor) -> TokenLayout:
        return TokenLayout(images.shape[1], 1, images.shape[-2] // 14, images.shape[-1] // 14)

    adapter = FusedQkv(layout, role=lambda index: "global" if index >= 2 and index % 2 else "frame")
    model, images = ManyViews(rotated).eval(), torch.rand(2, views, 3, 14 * rows, 14 * cols)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    same_where_kept(model, adapter, images)
    kept = compress(model, {"steps": [everything()]}, adapter=adapter)
    sparse = compress(model, {"steps": [everything(top_k=1)]}, adapter=adapter)
    with torch.inference_mode(), recording() as log:
        expected = model(images)
        assert not log, "the original stays"
        assert_rms(kept(images), expected, 1e-5)
        found = sparse(images)
    assert [record.layout.views for record in log] == [views] * 4
    assert found.isfinite().all() and not torch.allclose(found, expected)
    assert all(torch.equal(before[name], value) for name, value in kept.state_dict().items())
    with pytest.raises(UsageError, match="does not support attn_mask"):
        kept.get_submodule("blocks.3.attn")(torch.randn(1, 4, 32), attn_mask=torch.zeros(4, 4))


def pictures(model_input: Tensor, **_: object) -> TokenLayout:
    return TokenLayout(1, 1, model_input.shape[-2] // 16, model_input.shape[-1] // 16)


def test_timm_vit() -> None:
    try:
        timm = importlib.import_module("timm")
    except (ImportError, RuntimeError) as error:  # a torchvision for another torch raises RuntimeError
        pytest.skip(f"timm needs itself and torchvision built for this torch: {error}")
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=(64, 48), num_classes=5).eval()
    model = nn.Sequential(vit)
    x = torch.rand(2, 3, 64, 48)
    same_where_kept(model, FusedQkv(pictures), x)
    sparse = compress(model, {"steps": [everything()]}, adapter=FusedQkv(pictures))
    with torch.inference_mode():
        assert_rms(sparse(x), model(x), 1e-5)


def test_official_depth_anything_3() -> None:
    vision = pytest.importorskip(
        "depth_anything_3.model.dinov2.vision_transformer",
        reason="the official network is not installed: pip install --no-deps depth-anything-3, and what it imports",
    )
    options = {"alt_start": 4, "rope_start": 4, "qknorm_start": 4, "cat_token": True, "img_size": 56}
    vit = vision.DinoVisionTransformer(
        patch_size=14, embed_dim=64, depth=8, num_heads=4, init_values=1.0, ffn_layer="mlp", **options
    ).eval()

    class Network(nn.Module):
        """The backbone as the whole network calls it: pictures [B, S, 3, H, W] in, four levels out."""

        def __init__(self) -> None:
            super().__init__()
            self.backbone = vit

        def forward(self, images: Tensor) -> Tensor:
            levels, _ = self.backbone.get_intermediate_layers(images, n=[4, 5, 6, 7])
            return torch.cat([tokens for tokens, _ in levels], dim=-1)

    def layout(images: Tensor) -> TokenLayout:
        return TokenLayout(images.shape[1], 1, images.shape[-2] // 14, images.shape[-1] // 14)

    adapter = FusedQkv(layout, role=lambda index: "global" if index >= 4 and index % 2 else "frame")
    model, images = Network().eval(), torch.rand(1, 4, 3, 70, 56)
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.1)
    same_where_kept(model, adapter, images)
    sparse = compress(model, {"steps": [everything()]}, adapter=adapter)
    kinds = [isinstance(getattr(block.attn, "mechanism", None), Dense | None) for block in vit.blocks]
    assert all(kinds), "the original stays"
    with torch.inference_mode(), recording() as log:
        assert_rms(sparse(images), model(images), 1e-5)
    assert len(log) == 2 and log[0].layout.views == 4
