"""Depth Anything 3: any-view, mono and nested."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adapters import Family, log_less_one
from lean3r.models import MODELS
from lean3r.models.base import Backbone
from lean3r.models.da3 import Da3, Da3Config
from lean3r.models.da3_mono import Da3Mono, Da3MonoConfig
from lean3r.models.da3_nested import Da3Nested, Da3NestedConfig
from lean3r.types import Known, Tokens, Views


def family(name: str) -> Family:
    logs = ("out.depth", "tok.head.depth", "tok.metric_head.depth")
    confs = ("out.depth_conf", "tok.head.ray_conf")
    return Family(build, run, taps, arrange, compare={n: torch.log for n in logs} | {n: log_less_one for n in confs})


def build(arguments: Mapping[str, Any]) -> Backbone:
    if "preset" in arguments:
        return MODELS.get(arguments["preset"])()
    if "da3_metric" in arguments:
        return Da3Nested(Da3NestedConfig(any_view(arguments["da3"]), mono(arguments["da3_metric"])))
    return Da3Mono(mono(arguments)) if "dpt" in arguments else Da3(any_view(arguments))


def any_view(arguments: Mapping[str, Any]) -> Da3Config:
    vit, head = arguments["vit"], arguments["head"]
    return Da3Config(
        width=vit["embed_dim"],
        depth=vit["depth"],
        heads=vit["num_heads"],
        alternate=vit["alt_start"],
        keep=tuple(arguments["dino"]["out_layers"]),
        features=head["features"],
        channels=tuple(head["out_channels"]),
        mlp="gelu" if vit["ffn_layer"] == "mlp" else "swiglu",
        grid=vit["img_size"] // 14,
    )


def mono(arguments: Mapping[str, Any]) -> Da3MonoConfig:
    vit, head = arguments["vit"], arguments["dpt"]
    return Da3MonoConfig(
        width=vit["embed_dim"],
        depth=vit["depth"],
        heads=vit["num_heads"],
        keep=tuple(arguments["dino"]["out_layers"]),
        features=head["features"],
        channels=tuple(head["out_channels"]),
        grid=vit["img_size"] // 14,
    )


def run(model: Backbone, inputs: Mapping[str, Tensor], case: Mapping[str, Any]) -> dict[str, Tensor]:
    images = inputs["images"]
    views = Views(images if images.dim() == 5 else images[None])
    if isinstance(model, Da3Mono):
        tokens = model.encode(views)
        found = {f"out.{name}": value for name, value in model.outputs(tokens).items()}
        depth, sky = model.raw_maps(tokens)
        levels = [tokens.layers[f"block{block}"] for block in model.config.keep]
        return found | {
            "tok.head.depth": depth,
            "tok.head.sky": sky,
            "tok.backbone_feat0_patch": levels[0][:, :, 1:],
            "tok.backbone_feat3_patch": levels[3][:, :, 1:],
        }
    strategy = case["call"].partition("ref_view_strategy='")[2].partition("'")[0]
    if "extrinsics" in inputs:
        views = Views(views.images, known=Known(inputs["intrinsics"], inputs["extrinsics"]))
    tokens = model.encode(views, reference=strategy, normalise=False)  # type: ignore[call-arg]
    found = model.outputs(tokens)  # type: ignore[operator]
    arrays = {f"out.{name}": value for name, value in found.items()}
    arrays |= {"tok.head.ray": found["ray"], "tok.head.ray_conf": found["ray_conf"]}
    arrays["tok.cam_dec_pose_enc"] = found["pose_enc"]
    arrays["out.reference_view"] = tokens.layers["reference"].flatten(1).argmax(1)
    main = model
    if isinstance(model, Da3Nested):
        main, metric = model.main, model.split(tokens)[1]
        arrays["tok.metric_head.depth"], arrays["tok.metric_head.sky"] = model.metric.raw_maps(metric)
        tokens = model.split(tokens)[0]
    assert isinstance(main, Da3)
    return arrays | backbone_arrays(main, tokens)


def backbone_arrays(model: Da3, tokens: Tokens) -> dict[str, Tensor]:
    """What the official backbone hands to the heads."""
    pairs = [[tokens.layers[f"block{block}"] for block in pair] for pair in model.pairs]
    shape = tokens.views.images.shape[:2]
    levels = [model.level(*(t.flatten(0, 1) for t in pair)).unflatten(0, shape) for pair in pairs]
    found = {
        "tok.backbone_feat0_patch": levels[0],
        "tok.backbone_feat3_patch": levels[3],
        "tok.backbone_feat3_cls": torch.cat([t[:, :, 0] for t in pairs[3]], dim=-1),
    }
    return found


def trunk_order(reference: int, views: int) -> list[int]:
    """The official code puts the reference view first."""
    return [reference] + [view for view in range(views) if view != reference]


def arrange(name: str, value: Tensor, case: Mapping[str, Any], model: Backbone) -> Tensor:
    """Golden features are normalised patches; blocks after the choice of a reference view run in its order there."""
    assert isinstance(model, Da3 | Da3Mono)
    views = case["images"]["views"]
    kind, _, index = name.rpartition("_")
    if name == "tok.backbone_feat3_cls":
        return value[None, :, 0]
    if name.startswith(("out.aux", "tok.block")) and isinstance(model, Da3):
        order = list(range(views))
        if int(index) >= model.config.alternate - 1:
            order = trunk_order(case.get("reference_view_chosen", 0), views)
        shape = value.shape
        value = value.reshape(views, -1, shape[-1])[order].reshape(shape)
    if kind == "out.aux.feat_layer":
        rows, cols = case["images"]["height"] // model.patch, case["images"]["width"] // model.patch
        return model.encoder.norm(value.reshape(1, views, -1, value.shape[-1])[:, :, 1:]).unflatten(2, (rows, cols))
    return value


def taps(model: Backbone, case: Mapping[str, Any]) -> dict[str, nn.Module]:
    if isinstance(model, Da3Nested):
        return {}
    assert isinstance(model, Da3 | Da3Mono)
    blocks = list(model.encoder.blocks)
    found: dict[str, nn.Module] = {}
    if isinstance(model, Da3):
        found["tok.cam_enc_tokens"] = model.camera_encoder
        blocks += list(model.trunk.blocks)
    else:
        found["tok.backbone_feat3_cls"] = blocks[-1]
    found |= {f"out.aux.feat_layer_{index}": block for index, block in enumerate(blocks)}
    return found | {f"tok.block_{index:02d}": block for index, block in enumerate(blocks)}
