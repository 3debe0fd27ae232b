"""Models pushed to the Hub and taken from it, against a local stand-in: the same model comes back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

import lean3r
from lean3r.errors import UsageError, WeightsError
from lean3r.models.base import Backbone
from lean3r.models.nano import Nano
from lean3r.models.vggt import Vggt
from models.test_sources import Hub, hub  # noqa: F401


@pytest.fixture
def ours(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:  # noqa: F811
    """The stand-in as the Hub of this program."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + template[template.index("/{") :])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return hub


@pytest.mark.parametrize("name", ["nano", "nano-gsa-fp8"])
def test_what_is_pushed_comes_back(name: str, ours: Hub, tmp_path: Path) -> None:
    model = lean3r.load(name)
    assert model.push_to_hub("me/model", token="hf_secret", branch="main").endswith("0123456789abcdef01234567")
    assert "Bearer hf_secret" in ours.tokens
    card = ours.files["me/model", "main", "README.md"].decode()
    assert model.licence in card and f"plan: {model.plan or 'none'}" in card
    model.save_pretrained(tmp_path / "folder")
    views = lean3r.Views(torch.rand(1, 2, 3, 64, 64))
    with torch.inference_mode():
        wanted = model(views)
        for source, kind in (("me/model", Nano), (tmp_path / "folder", Backbone)):
            again = kind.from_pretrained(source, device="cpu")
            found = again(views)
            assert type(again) is type(model) and str(again.plan) == str(model.plan)
            assert torch.equal(found.depth, wanted.depth) and torch.equal(found.cam_from_world, wanted.cam_from_world)
    ours.asked.clear()
    Nano.from_pretrained("me/model", offline=True)
    assert not ours.asked
    with pytest.raises(UsageError, match="holds a Nano; expected a Vggt"):
        Vggt.from_pretrained("me/model")
    with pytest.raises(WeightsError, match="no such repository"):
        Nano.from_pretrained("me/nothing")


def test_the_hub_is_imported_when_it_is_used() -> None:
    code = f"import sys; sys.path[:] = {sys.path!r}; import lean3r; lean3r.load('nano'); "
    code += "sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
