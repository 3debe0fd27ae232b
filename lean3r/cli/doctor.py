"""`lean3r doctor`: hardware, versions, optional parts; for each that is not usable, why and what helps."""

from __future__ import annotations

import importlib
import json
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from lean3r.cli.console import format_table
from lean3r.cli.options import Json, Quiet, Verbose


@dataclass(frozen=True)
class Finding:
    """One line of the report; `fix` says what to do where `usable` is False."""

    part: str
    usable: bool
    detail: str
    fix: str = ""


@dataclass
class Doctor:
    """Report which hardware, versions and optional parts are usable, and why others are not."""

    json: Json = False
    verbose: Verbose = False
    quiet: Quiet = False

    def run(self) -> None:
        """Print the report, or JSON."""
        findings = examine()
        if self.json:
            print(json.dumps([asdict(finding) for finding in findings]))
            return
        rows = [(f.part, "yes" if f.usable else "no", f.detail + (f" -> {f.fix}" if f.fix else "")) for f in findings]
        print(format_table(rows, ("part", "usable", "detail")))


def examine() -> list[Finding]:
    """Every finding, hardware first. Takes a few seconds: it imports what it reports on."""
    return [
        *hardware(),
        *(check_required(name) for name in _REQUIRED),
        *check_optional(),
        kernels(),
        fp8(),
        weights(),
        gpl_parts(),
    ]


def hardware() -> list[Finding]:
    """This machine: processor, memory, and the GPU or the reason why there is none."""
    import torch

    from lean3r.pipeline.devices import why_no_cuda, why_no_mps
    from lean3r.processes import memory_bytes

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = memory_bytes()
    features = torch.backends.cpu.get_cpu_capability()
    found = [
        Finding(
            "lean3r", True, f"{metadata.version('lean3r')}, Python {platform.python_version()}, {platform.platform()}"
        ),
        Finding("CPU", True, f"{_cpu_name()}, {cores} cores, {features}"),
        *([Finding("memory", True, f"{memory / 1e9:.1f} GB")] if memory else []),
    ]
    if not why_no_mps():
        said = "Apple GPU (mps); untested: where a network fails there, or differs from the CPU, the CPU is used"
        return [*found, Finding("GPU", True, said)]
    if sys.platform == "darwin":
        return [*found, Finding("GPU", False, why_no_mps(), "not needed by nano; the CPU is used")]
    if not torch.cuda.is_available():
        fix = "not needed by nano; with an NVIDIA GPU: pip install torch (the CUDA build)"
        return [*found, Finding("GPU", False, why_no_cuda(), fix)]
    for index in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(index)
        bf16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
        capability = f"capability {p.major}.{p.minor}"
        found.append(Finding("GPU", True, f"{p.name}, {p.total_memory / 1e9:.0f} GB, {capability}, {bf16}"))
    return found


_REQUIRED = ("torch", "numpy", "pillow", "pillow_heif", "av", "safetensors", "huggingface_hub", "pycolmap")
_MODULES = {"pillow": "PIL"}
_FP8 = (8, 9)  # the first NVIDIA capability with products in float8
_FP8_TEXT = f"{_FP8[0]}.{_FP8[1]} or newer"
_OPTIONAL = {
    "matplotlib": ("curves and plots of training and evaluation", "pip install 'lean3r[eval]'"),
    "scipy": ("distances between point clouds in evaluation", "pip install 'lean3r[eval]'"),
    "triton": ("GPU kernels; not used by nano", "comes with the CUDA build of torch on Linux"),
}


def check_required(name: str) -> Finding:
    """Whether a package that lean3r needs can be imported."""
    broken = import_failure(_MODULES.get(name, name))
    if broken:
        return Finding(name, False, broken, f"pip install --force-reinstall {name.replace('_', '-')}")
    return Finding(name, True, metadata.version(name))


def check_optional() -> list[Finding]:
    """Packages and tools that some jobs use, with the job and what brings them."""
    found = []
    for name, (job, fix) in _OPTIONAL.items():
        broken = import_failure(name)
        found.append(Finding(name, False, f"{broken}; for {job}", fix) if broken else _package(name, job))
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler:
        found.append(Finding("C++ compiler", True, f"{compiler}; for torch.compile on a CPU"))
    else:
        fix = "apt install g++, or your system's way"
        found.append(Finding("C++ compiler", False, "none of c++, g++, clang++ found; for torch.compile on a CPU", fix))
    return found


def kernels() -> Finding:
    """Whether the Triton kernels run here, which there are, and what runs instead where they do not."""
    from lean3r import ops
    from lean3r.ops.dispatch import why_not_triton

    # Only names: importing a kernel needs triton.
    folders = [Path(folder) for folder in ops.__path__]
    having = ", ".join(sorted(path.parent.name for folder in folders for path in folder.glob("*/kernel.py")))
    reason = why_not_triton()
    if reason is None:
        return Finding("kernels", True, f"Triton kernels of {having}")
    fix = "not needed: plain PyTorch runs instead, slower on long sequences"
    return Finding("kernels", False, f"Triton kernels of {having}: {reason}", fix)


def fp8() -> Finding:
    """Whether matrix products in 8-bit floating point can run: a GPU that has them is all they need."""
    import torch

    if not torch.cuda.is_available():
        return Finding("FP8", False, "no CUDA device", f"not needed by nano; an NVIDIA GPU of capability {_FP8_TEXT}")
    capability = torch.cuda.get_device_capability()
    have = f"GPU of capability {capability[0]}.{capability[1]}"
    if capability < _FP8:
        return Finding("FP8", False, f"{have}, {_FP8_TEXT} is needed", "use --dtype bfloat16")
    return Finding("FP8", True, have)


def weights() -> Finding:
    """Whether the embedded weights are there."""
    from lean3r.models import EMBEDDED, list_models

    found = [name for name in list_models() if (EMBEDDED / f"{name}.safetensors").is_file()]
    if found:
        return Finding("weights", True, f"in the package: {', '.join(found)}; `lean3r models` lists all")
    return Finding("weights", False, "none in the package", "lean3r train nano, or give a file with --weights")


def gpl_parts() -> Finding:
    """Libraries under the GPL inside the packages that lean3r needs, as they are installed."""
    found = ["SuiteSparse in pycolmap"]
    for package in ("av", "pillow-heif"):
        files = [Path(path).name for path in metadata.files(package) or ()]
        inside = [part for part in ("x264", "x265") if any(part in name for name in files)]
        found += [f"{' and '.join(inside)} in {package}"] if inside else []
    return Finding("GPL parts", True, f"{', '.join(found)}; who passes these packages on: see NOTICE")


def import_failure(module: str) -> str:
    """Why a module cannot be imported, in one line; empty when it can."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        return "not installed" if error.name == module else f"needs {error.name}, which is not installed"
    except Exception as error:
        # A broken binary package may fail with anything; the reason is what the user needs to see.
        return f"installed, but its import fails: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return ""


def _package(name: str, job: str) -> Finding:
    return Finding(name, True, f"{metadata.version(name)}; for {job}")


def _cpu_name() -> str:
    if sys.platform == "linux":
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()
