"""Our backbones beside the official code itself, same weights in both: `pytest -m parity tests/parity`.

Depth Anything 3 comes from its package, VGGT and Pi3 from clones named with --peer (docs/how-to/parity.md). What is
not there is skipped with the reason.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lean3r.bench.official import PEERS, PeerAbsent, build_ours, build_peer, differences, parse_clones, run_ours
from lean3r.layers.embed import imagenet
from lean3r.models import MODELS
from lean3r.models.base import Backbone
from lean3r.models.checkpoint import load_weights, save_model
from lean3r.testing import rms_ratio
from lean3r.types import Known, Views

pytestmark = pytest.mark.parity

LIMIT = 2e-5  # sky scores are rectified, so that few pixels carry all of their size
SHAPES = {"one": (1, 70, 70), "wide": (2, 56, 126), "tall": (3, 154, 42), "five": (5, 84, 70)}


def pictures(views: int, height: int, width: int) -> Tensor:
    """[1, views, 3, height, width]: smooth and different in every view."""
    noise = torch.rand(1, views * 3, 7, 7, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(noise, (height, width), mode="bicubic").clamp(0, 1).unflatten(1, (views, 3))


@pytest.fixture(scope="module", params=PEERS)
def both(request: pytest.FixtureRequest) -> Iterator[tuple[str, Backbone, nn.Module]]:
    """Name, our model, the official network; one pair in memory at a time."""
    try:
        network = build_peer(request.param, parse_clones(request.config.getoption("--peer")))
    except PeerAbsent as reason:
        pytest.skip(str(reason))
    yield request.param, build_ours(request.param), network
    del network
    gc.collect()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_outputs_agree(both: tuple[str, Backbone, nn.Module], shape: tuple[int, int, int]) -> None:
    name, ours, network = both
    images = pictures(*shape)
    with torch.inference_mode():
        found = differences(name, run_ours(ours, images), PEERS[name].call(network, images))
    print(name, shape, *(f"{output}={error:.1e}" for output, error in found.items()))
    assert len(found) >= 2
    assert not {output: error for output, error in found.items() if not error <= LIMIT}


def test_known_cameras_agree(both: tuple[str, Backbone, nn.Module]) -> None:
    name, ours, network = both
    if name not in ("da3-small", "da3-base", "da3-large"):
        pytest.skip(f"{name} takes no cameras in the same form")
    images = pictures(3, 56, 98)
    pose = torch.eye(4).repeat(1, 3, 1, 1)
    pose[0, 1, :3, :3] = torch.linalg.matrix_exp(torch.tensor([[0, -0.2, 0.1], [0.2, 0, -0.3], [-0.1, 0.3, 0]]))
    pose[0, :, :3, 3] = torch.tensor([[0.0, 0.0, 0.0], [0.4, -0.1, 0.2], [0.9, 0.3, -0.5]])
    lens = torch.tensor([[80.0, 0, 49], [0, 75, 28], [0, 0, 1]]).repeat(1, 3, 1, 1)
    with torch.inference_mode():
        theirs = network(imagenet(images), extrinsics=pose, intrinsics=lens)
        tokens = ours.encode(Views(images, known=Known(lens, pose)), normalise=False)  # type: ignore[call-arg]
        found = ours.outputs(tokens)  # type: ignore[operator]
    errors = {output: rms_ratio(found[output].log(), theirs[output].log()) for output in ("depth", "depth_conf")}
    errors["extrinsics"] = rms_ratio(found["extrinsics"], theirs["extrinsics"])
    assert max(errors.values()) <= LIMIT, errors


def test_checkpoints_load_in_both_directions(both: tuple[str, Backbone, nn.Module], tmp_path: Path) -> None:
    name, ours, network = both
    if name not in ("da3-small", "da3mono-large"):
        pytest.skip("gigabytes; the key maps of all models are checked against the official lists elsewhere")
    prefix = PEERS[name].prefix
    official = {prefix + key: value for key, value in network.state_dict().items()}
    torch.save(official, tmp_path / "official.pt")
    with torch.device("meta"):
        fresh: Backbone = MODELS.get(name)()
    load_weights(fresh, tmp_path / "official.pt")
    assert all(torch.equal(value, ours.state_dict()[key]) for key, value in fresh.state_dict().items())
    save_model(fresh, tmp_path / "ours.safetensors")
    from safetensors.torch import load_file

    written = {key.removeprefix(prefix): value for key, value in load_file(tmp_path / "ours.safetensors").items()}
    assert not network.load_state_dict(written).missing_keys
    assert all(torch.equal(value, official[prefix + key]) for key, value in written.items())
