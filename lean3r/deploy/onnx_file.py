"""ONNX files: from the graph of torch.export, run by onnxruntime for the check."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from lean3r.deploy.graph import OUTPUTS, Limits
from lean3r.errors import MissingExtraError, UsageError

OPSET, OPSET_FP8 = 18, 21  # operators that take weights of 8 bits are newer
KEY = "lean3r"
"""Name of the JSON among the file's own properties."""


def check_installed() -> None:
    """MissingExtraError unless what writes ONNX files is installed."""
    try:
        import onnx  # noqa: F401  # pyright: ignore[reportMissingImports]
        import onnxscript  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise MissingExtraError.of("ONNX", "onnx") from error


def write_onnx(
    program: ExportedProgram, path: Path, facts: Mapping[str, object], limits: Limits | None = None
) -> dict[str, Any]:
    """Write a traced model, with `facts` as JSON among its properties; returns opset, domains and axes.

    The file refuses pictures beyond `limits`, for which it is not the model (None: it takes whatever runs). Weights of
    more than 2 GB are in a second file, PATH.data. UsageError if ONNX lacks an operator.
    """
    check_installed()
    names = list(OUTPUTS)[: len(program.graph_signature.user_outputs)]
    has_fp8 = any(value.dtype == torch.float8_e4m3fn for value in program.state_dict.values())
    opset = OPSET_FP8 if has_fp8 else OPSET
    with _quietly():
        try:
            found = torch.onnx.export(
                program, (), opset_version=opset, input_names=["images"], output_names=names, verbose=False
            )
        except torch.onnx.OnnxExporterError as error:
            raise UsageError(_explain(error)) from error
    assert found is not None
    graph = found.model.graph
    axes: dict[str, list[int | str]] = {"images": [1, "views", 3, "height", "width"]}
    axes |= {name: [1, *OUTPUTS[name]] for name in names}
    for value in (*graph.inputs, *graph.outputs):
        value.shape = type(value.shape)(axes[str(value.name)])  # pyright: ignore[reportOptionalCall, reportCallIssue]
    if limits is not None:
        _hold_limits(graph, limits)
    found.model.metadata_props[KEY] = json.dumps(facts)
    found.save(path)
    return {
        "opset": opset,
        "domains": sorted({node.domain or "ai.onnx" for node in graph}),
        "operators": len(list(graph)),
        "axes": axes,
    }


def _hold_limits(graph: Any, limits: Limits) -> None:
    """Make the graph fail where the shape of its pictures is beyond the limits.

    ONNX has no assertion: by how much they are missed is an index into a table of one zero, which is added to the
    pictures so that no runtime leaves the look-up out.
    """
    from onnxscript import ir  # pyright: ignore[reportMissingImports]

    (images,) = graph.inputs
    uses, nodes = tuple(images.uses()), []

    def constant(name: str, value: np.ndarray) -> Any:
        tensor = ir.tensor(value, name=f"limits_{name}")
        kind, shape = ir.TensorType(tensor.dtype), ir.Shape(value.shape)
        made = ir.Value(name=tensor.name, type=kind, shape=shape, const_value=tensor)
        graph.register_initializer(made)
        return made

    def add(operator: str, *inputs: Any, name: str | None = None) -> Any:
        nodes.append(ir.node(operator, inputs, name=name or f"limits_{len(nodes)}"))
        return nodes[-1].outputs[0]

    lowest = constant("lowest", np.array([1, limits.fewest, 3, limits.least, limits.least]))
    highest = constant("highest", np.array([1, limits.views, 3, limits.most, limits.most]))
    multiple = constant("multiple", np.array([1, 1, 1, limits.patch, limits.patch]))
    shape = add("Shape", images)
    off = add("Abs", add("Sub", shape, add("Min", add("Max", shape, lowest), highest)))
    off = add("Add", off, add("Mod", shape, multiple))
    nothing = add("ReduceSum", add("Gather", constant("zero", np.zeros(1, np.float32)), off, name=str(limits)))
    checked = add("Add", images, nothing)
    checked.type, checked.shape = images.type, images.shape
    for node, at in uses:
        node.replace_input_with(at, checked)
    graph.insert_before(graph[0], nodes)


def runner(path: Path) -> Callable[[Tensor], dict[str, Tensor]] | None:
    """The file as a function of pictures, run by onnxruntime on the CPU; None where that is not installed."""
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images: Tensor) -> dict[str, Tensor]:
        values = session.run(names, {"images": images.numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}

    return run


def _explain(error: BaseException) -> str:
    """One line for the user: the operator that ONNX lacks."""
    text, cause, root = "", error, error
    while cause is not None:
        text, root, cause = f"{text}\n{cause}", cause, cause.__cause__
    found = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", text)
    what = f"ONNX has no operator for {found[1]}" if found else f"torch.onnx cannot convert it ({_first_line(root)})"
    return f"this model cannot become an ONNX file: {what}. Export it as .pt2, which keeps every operator."


def _first_line(error: BaseException) -> str:
    return next(filter(None, (line.strip() for line in str(error).splitlines())), type(error).__name__)


@contextmanager
def _quietly():
    """Without the exporter's notes on packages that no model of ours uses."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
