"""Adapters change nothing at first, learn alone, and merge into a plain network with the same outputs."""

from __future__ import annotations

import builtins
import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("peft", reason="adapters come with the extra 'train'")

import lean3r
from lean3r.compress import compress, prepare
from lean3r.errors import MissingExtraError, UsageError, WeightsError
from lean3r.models.nano import Nano, NanoConfig
from lean3r.models.nano_looped import LoopedConfig, NanoLooped
from lean3r.train import RECIPES
from lean3r.train.adapting import AdapterChoice, adapt, with_adapters
from lean3r.train.checkpoints.state import save_weights
from lean3r.train.distributed import World
from lean3r.train.freeze import trainable_names
from lean3r.train.lora import add_lora, load_adapters, merge_lora, save_adapters
from lean3r.types import Views


def nano(looped: bool = False) -> Nano:
    torch.manual_seed(0)
    if looped:
        return NanoLooped(LoopedConfig(width=32, heads=2, loops=3)).eval()
    return Nano(NanoConfig(width=32, heads=2, pairs=2)).eval()


def outputs(model: nn.Module) -> dict[str, Tensor]:
    images = torch.rand(1, 3, 3, 48, 80, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = model(Views(images))
    return {"poses": found.cam_from_world, "intrinsics": found.intrinsics, "depth": found.depth}


def trained(model: nn.Module) -> None:
    """Adapters with values, as training would leave them."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data.normal_(0, 0.05, generator=generator)


@pytest.mark.parametrize("looped", [False, True])
def test_adapters_start_without_effect_and_merge_into_the_same_outputs(looped: bool) -> None:
    model = nano(looped)
    plain, keys = outputs(model), set(model.state_dict())
    names = add_lora(model, ["global blocks", "named trunk.blocks.1.mlp.*"], rank=4, alpha=8, mlp_rank=8)
    assert {"trunk.blocks.2.attn.qkv", "trunk.blocks.2.mlp.fc2", "trunk.blocks.1.mlp.fc1"} <= set(names)
    assert not any("blocks.0." in name or "blocks.1.attn" in name for name in names)
    for key, value in outputs(model).items():
        assert torch.equal(value, plain[key])
    assert model.get_parameter("trunk.blocks.2.attn.qkv.lora_A.default.weight").shape[0] == 4
    assert model.get_parameter("trunk.blocks.2.mlp.fc1.lora_A.default.weight").shape[0] == 8
    trained(model)
    adapted = outputs(model)
    assert not torch.allclose(adapted["depth"], plain["depth"], rtol=1e-3)
    merge_lora(model)
    for key, value in outputs(model).items():
        torch.testing.assert_close(value, adapted[key], rtol=1e-5, atol=1e-5)
    assert set(model.state_dict()) == keys and not any("peft" in type(m).__module__ for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    add_lora(model, ["global blocks"], rank=2)


def test_adapters_alone_train() -> None:
    model = nano()
    names = add_lora(model, ["all blocks"], rank=4)
    training = {name for name, p in model.named_parameters() if p.requires_grad}
    assert training == trainable_names(model, ("adapters",)) and len(training) == 2 * len(names)
    assert not trainable_names(model, ("all blocks",)) & training
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.iterate(torch.rand(1, 2, 3, 32, 32)).tokens.square().mean().backward()
    optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed and all(".lora_B." in name for name in changed), "A moves once B is not zero"


def test_merging_leaves_networks_that_share_weights_unchanged() -> None:
    dense = nano()
    sparse = compress(dense, "gsa")
    before = outputs(dense)
    add_lora(sparse, ["global blocks"], rank=2)
    trained(sparse)
    merge_lora(sparse)
    assert torch.equal(outputs(dense)["depth"], before["depth"])


def test_adapters_are_saved_and_loaded_alone(tmp_path: Path) -> None:
    model = nano()
    add_lora(model, ["frame blocks 1-"], rank=3, alpha=5, mlp_rank=6)
    trained(model)
    path = tmp_path / "adapters.safetensors"
    save_adapters(model, path)
    assert path.stat().st_size < 0.3 * sum(p.nbytes for p in nano().parameters())
    other = nano()
    load_adapters(other, path)
    for key, value in outputs(other).items():
        assert torch.equal(value, outputs(model)[key])
    again = copy.deepcopy(other)
    merge_lora(again)
    torch.testing.assert_close(outputs(again)["depth"], outputs(model)["depth"], rtol=1e-5, atol=1e-5)
    wide = Nano(NanoConfig(width=64, heads=2, pairs=2))
    with pytest.raises(WeightsError, match=r"the adapter of trunk\.blocks\.1\.attn\.qkv has shapes .* expected"):
        load_adapters(wide, path)
    with pytest.raises(WeightsError, match="layers that this network lacks"):
        load_adapters(NanoLooped(LoopedConfig(width=32, heads=2)), path)
    path.write_bytes(b"not a file of tensors")
    with pytest.raises(WeightsError, match="cannot be read as adapters"):
        load_adapters(nano(), path)


@pytest.mark.parametrize(
    "header", ["[1]", "{}", '{"ranks": {"a": "4"}, "alpha": 2}', '{"ranks": {"a": 4}, "alpha": null}']
)
def test_headers_of_other_programs_are_refused(header: str, tmp_path: Path) -> None:
    save_weights(tmp_path / "a.safetensors", {"x": torch.ones(1)}, {"adapters": header})
    with pytest.raises(WeightsError, match="holds no adapters that save_adapters wrote"):
        load_adapters(nano(), tmp_path / "a.safetensors")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "adapter_config.json").write_text(header)
    with pytest.raises(WeightsError, match="expected plain LoRA"):
        load_adapters(nano(), tmp_path / "folder")


def test_all_processes_train_the_layers_that_the_first_has_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients on GPUs differ in their last digits from process to process, and so may the strongest layers."""

    class Second(World):
        def gather(self, value: Any) -> list[Any]:
            return [value | {"targets": ["global blocks 1"]}, value]

    monkeypatch.setattr("lean3r.train.adapting.current_world", lambda: Second(1, 2))
    (config,) = with_adapters(RECIPES.get("nano")().phases[-1:], [None], AdapterChoice("all", rank=2))
    adapt(model := nano(), config, tmp_path, None, None, "cpu", resume=False)  # type: ignore[arg-type]
    layers = {name.split(".attn.")[0].split(".mlp.")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    assert len(layers) == 1


def test_a_damaged_adapter_leaves_the_network_as_it_was() -> None:
    model = nano()
    names = add_lora(model, ["global blocks"], rank=2)
    trained(model)
    before, keys = outputs(model), model.state_dict().keys()
    damaged = model.get_parameter(f"{names[-1]}.lora_A.default.weight")
    kept = damaged.data.clone()
    damaged.data.fill_(torch.nan)
    with pytest.raises(UsageError, match=f"the adapter of {names[-1]} holds NaN"):
        merge_lora(model)
    damaged.data.copy_(kept)
    assert model.state_dict().keys() == keys
    assert all(torch.equal(value, before[key]) for key, value in outputs(model).items())
    merge_lora(model)


def test_refusals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = nano()
    for call, said in (
        (lambda: add_lora(model, ["global blocks"], rank=0), "rank of adapters is 0"),
        (lambda: add_lora(model, ["global blocks"], alpha=-1), "alpha of adapters is -1"),
        (lambda: add_lora(model, ["global blocks"], alpha=float("inf")), "alpha of adapters is inf"),
        (lambda: add_lora(model, "global blocks"), "expected a list"),
        (lambda: add_lora(model, ["global blocks 7"]), "names block 7"),
        (lambda: add_lora(model, ["all of it"]), "cannot be read"),
        (lambda: merge_lora(model), "has no adapters"),
        (lambda: save_adapters(model, "x"), "has no adapters"),
        (lambda: add_lora(prepare(model, "fp8"), ["global blocks"]), "are quantised, such as"),
        (lambda: add_lora(compress(model, "fp8-weight"), ["global blocks"]), "are quantised, such as"),
    ):
        with pytest.raises(UsageError, match=said):
            call()
    add_lora(model, ["global blocks"], rank=2)
    with pytest.raises(UsageError, match="already has adapters"):
        add_lora(model, ["frame blocks"], rank=2)
    for rounding in (compress, prepare):
        with pytest.raises(UsageError, match="would be rounded too: merge them first"):
            rounding(model, "fp8")
    with pytest.raises(UsageError, match="merge them first"):
        lean3r.save(model, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())
    merge_lora(model)
    compress(model, "fp8")
    real = builtins.__import__

    def without(name: str, *args, **kwargs):
        if name == "peft":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'lean3r\[train\]'"):
        add_lora(nano(), ["global blocks"])
