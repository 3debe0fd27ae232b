"""Depth Anything 3, nested: the giant any-view model, brought to metres by the metric single-view one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lean3r.geometry.pose import make_pose
from lean3r.group import Share
from lean3r.heads.sky import fill_sky, is_sky, metric_scale, sky_depth
from lean3r.models import da3, da3_mono
from lean3r.models.base import Backbone
from lean3r.models.da3 import Da3, Da3Config
from lean3r.models.da3_mono import Da3Mono, Da3MonoConfig, metres_per_unit
from lean3r.types import Prediction, Tokens, Views

METRIC = "metric."
MAX_SKY_METRES = 200.0


@dataclass(frozen=True)
class Da3NestedConfig:
    """Sizes of the two models."""

    main: Da3Config = Da3.SIZES["da3-giant"]
    metric: Da3MonoConfig = Da3Mono.SIZES["da3metric-large"]


class Da3Nested(Backbone):
    """Cameras, depth and Gaussians of any number of views, in metres: da3-giant with the metric model."""

    name = "da3nested-giant-large"
    licence = "CC-BY-NC-4.0"
    patch = 14
    resolution = 504
    ACCEPTS: ClassVar = Da3.ACCEPTS
    ACCEPTS_WHOLE: ClassVar = Da3.ACCEPTS_WHOLE
    REFERENCE: ClassVar = Da3.REFERENCE
    TELLTALE: ClassVar = ("model.da3.head.norm.bias", (3072,))

    SIZES: ClassVar = {"da3nested-giant-large": Da3NestedConfig()}
    SMALLEST: ClassVar = Da3NestedConfig(Da3.SMALLEST, Da3Mono.SMALLEST)

    def __init__(self, config: Da3NestedConfig | None = None):
        super().__init__()
        config = config or self.SIZES["da3nested-giant-large"]
        self.config = config
        self.main = Da3(config.main)
        self.metric = Da3Mono(config.metric)
        self.KEY_MAP = da3.key_map(config.main).under("model.da3.", "main.") + da3_mono.key_map().under(
            "model.da3_metric.", "metric."
        )

    def encode(self, views: Views, *, reference: str = "saddle_balanced", normalise: bool = True) -> Tokens:
        """See Da3.encode. Layers of the metric model carry the prefix "metric."."""
        main = self.main.encode(views, reference=reference, normalise=normalise)
        metric = self.metric.encode(views)
        layers = main.layers | {METRIC + name: value for name, value in metric.layers.items()}
        return Tokens(layers, main.layout, views)

    def split(self, tokens: Tokens) -> tuple[Tokens, Tokens]:
        """Tokens of the main model and of the metric one."""
        main = {name: value for name, value in tokens.layers.items() if not name.startswith(METRIC)}
        metric = {name.removeprefix(METRIC): tokens.layers[name] for name in tokens.layers if name.startswith(METRIC)}
        return Tokens(main, tokens.layout, tokens.views), Tokens(metric, tokens.layout, tokens.views)

    def decode(self, tokens: Tokens, *, dense: bool = True) -> Prediction:
        """See Backbone.decode. In metres if dense and enough of the scene is not sky; else the scale is unknown."""
        main, metric = self.split(tokens)
        relative = self.main.decode(main, dense=dense)
        return (
            relative
            if relative.depth is None
            else self._scale(relative, *self.metric.raw_maps(metric), tokens.views.share)[0]
        )

    def outputs(self, tokens: Tokens) -> dict[str, Tensor]:
        """All outputs of the official network, under their official names."""
        main, metric = self.split(tokens)
        outputs = self.main.outputs(main)
        raw = Prediction(*self.main.cameras(outputs["pose_enc"], main), outputs["depth"], outputs["depth_conf"])
        scaled, scale = self._scale(raw, *self.metric.raw_maps(metric))
        assert scaled.depth is not None and scaled.conf is not None
        return outputs | {
            "depth": scaled.depth,
            "depth_conf": scaled.conf,
            "extrinsics": scaled.cam_from_world[..., :3, :],
            "scale_factor": scale,
        }

    def _scale(
        self, raw: Prediction, metric_depth: Tensor, sky_score: Tensor, share: Share | None = None
    ) -> tuple[Prediction, Tensor]:
        """The prediction in metres with the sky filled, and the factor [B] (1 for scenes without an estimate)."""
        assert raw.depth is not None and raw.conf is not None
        sky = is_sky(sky_score)
        metres = fill_sky(metric_depth, sky, share) * metres_per_unit(raw.intrinsics)
        scales = [metric_scale(*scene, share) for scene in zip(raw.depth, raw.conf, metres, sky, strict=True)]
        scale = torch.stack([raw.depth.new_ones(()) if s is None else s for s in scales])
        depth = raw.depth * scale[:, None, None, None]
        limit = torch.stack([sky_depth(*scene, MAX_SKY_METRES, share) for scene in zip(depth, sky, strict=True)])
        depth = torch.where(sky, limit[:, None, None, None], depth)
        conf = raw.conf.masked_fill(sky, 1.0)
        pose = make_pose(raw.cam_from_world[..., :3, :3], raw.cam_from_world[..., :3, 3] * scale[:, None, None])
        return Prediction(pose, raw.intrinsics, depth, conf, is_metric=None not in scales), scale
