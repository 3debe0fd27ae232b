"""Speed3R: one attention layer (gsa), the decoder (speed3r_pi3_block) and the whole model (speed3r_pi3_model)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from thin import same_places
from torch import Tensor, nn

from lean3r.attention.base import Projected, Record, recording
from lean3r.attention.coarse_fine import Gsa
from lean3r.layers.embed import IMAGENET_MEAN, IMAGENET_STD
from lean3r.layers.rope import position_table, rotate
from lean3r.layers.trunk import Trunk
from lean3r.models.speed3r import Speed3rConfig, Speed3rPi3, key_map
from lean3r.testing import assert_rms
from lean3r.types import TokenLayout, Tokens, Views

LIMIT = 1e-5


def layer(path: Path, implementation: str) -> None:
    """q, k, v, norms and projection stand here; positions are the file's, the order is window by window."""
    arrays = {name: torch.from_numpy(value) for name, value in np.load(path).items()}
    names = [name.removeprefix("grad_") for name in arrays if name.startswith("grad_")]
    leaves = {name: arrays[name].clone().requires_grad_() for name in names}
    x, (batch, tokens, dim) = leaves["x"], leaves["x"].shape
    heads = arrays["gate"].shape[1]
    gsa = Gsa(dim, heads, fill="repeat_last", implementation=implementation)  # type: ignore[arg-type]
    gsa.load_state_dict({name: arrays[name] for name in ("gate.weight", "gate.bias")})
    assert gsa.gate is not None
    leaves["gate.weight"], leaves["gate.bias"] = gsa.gate.weight, gsa.gate.bias
    assert bool((arrays["xpos"] == arrays["xpos"][:1]).all())
    own = arrays["xpos"][0].float()
    pooled: list[Tensor] = []

    def norm(t: Tensor, which: str) -> Tensor:
        return F.layer_norm(t, t.shape[-1:], leaves[f"{which}_norm.weight"], leaves[f"{which}_norm.bias"], 1e-5)

    def finish(q: Tensor, k: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        table = position_table(own if positions is None else positions, q.shape[-1], q.dtype)
        q, k = rotate(norm(q, "q"), table), rotate(norm(k, "k"), table)
        if positions is not None:
            pooled.extend((q, k))
        return q, k

    qkv = F.linear(x, leaves["qkv.weight"], leaves["qkv.bias"]).view(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
    layout = TokenLayout(1, 0, 4, tokens // 4, window=4)
    with recording() as log:
        mixed = gsa(Projected(x, qkv[0], qkv[1], qkv[2], finish, positions=own), layout)
    out = F.linear(mixed.transpose(1, 2).flatten(2), leaves["proj.weight"], leaves["proj.bias"])

    assert torch.equal(reported(log, "blocks")[0], arrays["selected"])
    assert_rms(reported(log, "gate")[0], arrays["gate"], LIMIT)
    for found, name in zip(pooled, ("q_compress", "k_compress"), strict=True):
        assert_rms(found, arrays[name], LIMIT)
    assert_rms(out, arrays["out"], LIMIT)
    gradients = torch.autograd.grad(out, [leaves[name] for name in names], arrays["cotangent"])
    for name, gradient in zip(names, gradients, strict=True):
        assert_rms(gradient, arrays[f"grad_{name}"], LIMIT)


Pairs = dict[str, tuple[Tensor, Tensor]]
"""Name -> what was found, and the official numbers: "out." of results, "tok." of what lies inside."""


def decoder(path: Path, implementation: str) -> None:
    """The trunk of Speed3R-Pi3 at reduced width, forward, selections and gradients."""
    for found, expected in decoder_pairs(path, implementation).values():
        assert_rms(found, expected, LIMIT)


def model(path: Path, implementation: str) -> None:
    """All 959 million parameters, 8 views of 56 x 112 pixels."""
    for found, expected in model_pairs(path).values():
        assert_rms(found, expected, LIMIT)


def decoder_pairs(path: Path, implementation: str = "auto") -> Pairs:
    """Of the reduced trunk; the chosen windows are equal."""
    arrays = {name: torch.from_numpy(value) for name, value in np.load(path).items()}
    batch, frames, dim, heads, pairs = (int(arrays[n]) for n in ("batch", "frames", "dim", "heads", "pairs"))
    rows, cols = arrays["grid_hw"].tolist()
    trunk = Trunk(("frame", "global") * pairs, dim, heads, layer_scale=0.01)
    for block in list(trunk.blocks)[1::2]:
        block.attn.mechanism = Gsa(dim, heads, fill="repeat_last", implementation=implementation)  # type: ignore
    synthetic, seed = weights_of(path), int(arrays["seed"])
    fill(trunk, synthetic, seed, "trunk.", pairs)
    hidden = torch.from_numpy(synthetic.noise("hidden", batch * frames * rows * cols * dim, seed))
    assert torch.equal(hidden[:16], arrays["hidden_first16"])
    hidden = hidden.view(batch, frames, rows * cols, dim).requires_grad_()
    middle = pairs // 2 - 1
    with recording() as log:
        _, kept = trunk(hidden, TokenLayout(frames, 0, rows, cols), keep=range(2 * pairs))

    def pair(index: int) -> Tensor:
        return torch.cat([kept[2 * index], kept[2 * index + 1]], dim=-1).flatten(0, 1)

    final = pair(pairs - 1)
    pairs_found: Pairs = {"out.decoder": same_places(final, arrays, "final")}
    if "mid" in arrays:
        pairs_found["tok.middle"] = same_places(pair(middle)[None], arrays, "mid")
    same_windows(torch.stack(reported(log, "blocks")), arrays["selected"])
    cotangent = torch.from_numpy(synthetic.noise("cotangent", final.numel(), seed)).view_as(final)
    sparse = [block.attn for block in list(trunk.blocks)[1::2]]
    wanted = {
        "gate_weight": [attention.mechanism.gate.weight for attention in sparse],  # type: ignore[union-attr]
        "gate_bias": [attention.mechanism.gate.bias for attention in sparse],  # type: ignore[union-attr]
        "q_norm_weight": [attention.q_norm.weight for attention in sparse],  # type: ignore[union-attr]
    }
    final.backward(cotangent)
    assert hidden.grad is not None
    pairs_found["out.gradient of its input"] = same_places(hidden.grad.flatten(0, 1), arrays, "grad_hidden")
    for name, parameters in wanted.items():
        gradients = torch.stack([p.grad for p in parameters if p.grad is not None])
        pairs_found[f"out.gradient of {name}"] = same_places(gradients, arrays, f"grad_{name}")
    return pairs_found


def model_pairs(path: Path) -> Pairs:
    """Of the whole model; the chosen windows are equal."""
    arrays = {name: torch.from_numpy(value) for name, value in np.load(path).items()}
    with torch.device("meta"):
        network = Speed3rPi3()
    fill(network, weights_of(path), int(arrays["seed"]), "", network.config.depth // 2)
    views = Views(arrays["images_u8"][None].float() / 255)
    layout = TokenLayout(8, 0, 4, 8)
    with torch.inference_mode(), recording() as log:
        seen = network.eval().embed(views)
        _, kept = network.trunk(seen, layout, keep=(16, 17, 34, 35))
        found = network.outputs(Tokens({"frame": kept[34], "global": kept[35]}, layout, views))
    found = {name: value[0] for name, value in found.items()}
    pairs: Pairs = {
        "tok.encoder": (seen[0, ..., ::128], arrays["encoder_tokens"]),
        "tok.middle": (torch.cat([kept[16], kept[17]], -1)[0, ..., ::128], arrays["mid_tokens"]),
        "tok.final": (torch.cat([kept[34], kept[35]], -1)[0, ..., ::128], arrays["final_tokens"]),
        "out.camera_poses": (found["camera_poses"], arrays["camera_poses"]),
    }
    for name, step in (("local_points", 4), ("conf", 4), ("points", 8)):
        pairs[f"out.{name}"] = (found[name][:, ::step, ::step], arrays[name])
    chosen = reported(log, "blocks")
    same_windows(torch.cat([chosen[layer] for layer in (0, 8, 17)]), arrays["selected_layers_0_8_17"])
    return pairs


def reported(log: list[Record], name: str) -> list[Tensor]:
    """Values of that name, call by call."""
    return [record.values[name] for record in log if name in record.values]


def same_windows(found: Tensor, expected: Tensor) -> None:
    """Lists hold the same windows the same number of times."""
    assert torch.equal(found.int().sort(-1).values, expected.int().sort(-1).values)


def weights_of(path: Path) -> ModuleType:
    """The module that fills parameters from their official names."""
    file = path.parents[1] / "synthetic_weights.py"
    spec = importlib.util.spec_from_file_location("synthetic_weights", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fill(module: nn.Module, synthetic: ModuleType, seed: int, inside: str, pairs: int) -> None:
    """Give every parameter of a module that stands at `inside` of the model its synthetic value."""
    keys = key_map(Speed3rConfig(depth=2 * pairs))
    constants = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
    values = {}
    for name, tensor in module.state_dict().items():
        key = keys.official(inside + name)
        assert key is not None
        if key in constants:
            values[name] = torch.tensor(constants[key]).reshape(tensor.shape)
        else:
            values[name] = torch.from_numpy(synthetic.synthetic_tensor(key, tensor.shape, seed))
    module.load_state_dict(values, assign=True)


CASES = {"gsa": layer, "speed3r_pi3_block": decoder, "speed3r_pi3_model": model}
IMPLEMENTATIONS = dict.fromkeys(("gsa", "speed3r_pi3_block"), ("reference", "auto"))
SLOW = ("speed3r_pi3_model",)
