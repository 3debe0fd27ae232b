"""`lean3r evaluate`: what a run that goes on must share with that of before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lean3r.cli.evaluated import LoadedModel
from lean3r.errors import UsageError
from lean3r.eval.runs import folder


def test_a_run_is_of_one_plan_with_its_settings_and_of_one_number_type(tmp_path: Path) -> None:
    """Both plans below are called gsa: what the first predicted was taken for the second's."""
    given: dict[str, Any] = dict.fromkeys(("weights", "resolution")) | {"offline": True, "device": "cpu"}
    model = LoadedModel(model="nano", plan="gsa:top_k=16", dtype="float32", refine="off", **given)

    def begin(program: LoadedModel) -> None:
        config = {"format": folder.FORMAT, **program.start(0, 1)[1], "settings": {}, "benchmarks": {}}
        folder.begin(tmp_path, config, overwrite=False)

    begin(model)
    begin(model)
    for other, said in (
        (replace(model, plan="gsa:top_k=8"), "plan_steps: .*16.* -> .*8"),
        (replace(model, dtype="bfloat16"), "dtype: float32 -> bfloat16"),
    ):
        with pytest.raises(UsageError, match=f"a run of another configuration .{said}"):
            begin(other)
