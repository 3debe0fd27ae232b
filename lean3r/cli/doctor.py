"""`lean3r doctor`: report hardware, versions and optional parts, with the reason and the fix for each unusable one."""

from __future__ import annotations

import importlib
import json
import os
import platform
import shutil
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from lean3r.cli.console import format_table
from lean3r.cli.options import Json, Quiet, Verbose


@dataclass(frozen=True)
class Finding:
    """One line of the report; `fix` says what to do if `usable` is False."""

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
    """All findings, hardware first. This takes a few seconds, because it imports the packages."""
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
    """This machine: processor, memory, and the GPU or the reason why none is usable."""
    import torch

    from lean3r.ops.dispatch import OLDEST_BF16
    from lean3r.pipeline.devices import why_no_cuda, why_no_mps
    from lean3r.processes import memory_bytes

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = memory_bytes()
    features = torch.backends.cpu.get_cpu_capability()
    findings = [
        Finding(
            "lean3r", True, f"{metadata.version('lean3r')}, Python {platform.python_version()}, {platform.platform()}"
        ),
        Finding("CPU", True, f"{_cpu_name()}, {cores} cores, {features}"),
        *([Finding("memory", True, f"{memory / 1e9:.1f} GB")] if memory else []),
    ]
    if not why_no_mps():
        detail = "Apple GPU (mps); untested: if a network fails there or differs from the CPU, the CPU is used"
        return [*findings, Finding("GPU", True, detail)]
    if sys.platform == "darwin":
        return [*findings, Finding("GPU", False, why_no_mps(), "not needed by nano; the CPU is used")]
    if not torch.cuda.is_available():
        fix = "not needed by nano; with an NVIDIA GPU: pip install torch (the CUDA build)"
        return [*findings, Finding("GPU", False, why_no_cuda(), fix)]
    for index in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(index)
        bf16 = "bfloat16" if (p.major, p.minor) >= OLDEST_BF16 else "no bfloat16"
        capability = f"capability {p.major}.{p.minor}"
        findings.append(Finding("GPU", True, f"{p.name}, {p.total_memory / 1e9:.0f} GB, {capability}, {bf16}"))
    return findings


_REQUIRED = ("torch", "numpy", "pillow", "pillow_heif", "av", "safetensors", "huggingface_hub", "pycolmap")
_MODULES = {"pillow": "PIL"}
_FP8 = (8, 9)  # the first NVIDIA capability with products in float8
_FP8_TEXT = f"{_FP8[0]}.{_FP8[1]} or newer"
_OPTIONAL = {
    "matplotlib": ("curves and plots of training and evaluation", "pip install 'lean3r[eval]'"),
    "scipy": ("distances between point clouds in evaluation", "pip install 'lean3r[eval]'"),
    "OpenEXR": ("depth in EXR files", "pip install 'lean3r[eval]'"),
    "trimesh": ("ground-truth clouds and meshes of data sets", "pip install 'lean3r[eval]'"),
    "xatlas": ("meshes with a texture", "pip install 'lean3r[mesh]'"),
    "fastapi": ("lean3r serve", "pip install 'lean3r[serve]'"),
    "onnxscript": ("lean3r export-model to .onnx", "pip install 'lean3r[onnx]'"),
    "laspy": ("clouds in las and laz", "pip install 'lean3r[geo]'"),
    "rasterio": ("maps in GeoTIFF", "pip install 'lean3r[geo]'"),
    "triton": ("GPU kernels; not used by nano", "comes with the CUDA build of torch on Linux"),
}


def check_required(name: str) -> Finding:
    """Whether a package that lean3r needs can be imported."""
    broken = import_failure(_MODULES.get(name, name))
    if broken:
        return Finding(name, False, broken, f"pip install --force-reinstall {name.replace('_', '-')}")
    return Finding(name, True, version_of(name))


def check_optional() -> list[Finding]:
    """Optional packages and tools, each with the job that uses it and the command that installs it."""
    findings = []
    for name, (job, fix) in _OPTIONAL.items():
        broken = import_failure(name)
        findings.append(Finding(name, False, f"{broken}; for {job}", fix) if broken else _package(name, job))
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler:
        findings.append(Finding("C++ compiler", True, f"{compiler}; for torch.compile on a CPU"))
    else:
        fix = "apt install g++, or the package of your system"
        findings.append(
            Finding("C++ compiler", False, "none of c++, g++, clang++ is installed; for torch.compile on a CPU", fix)
        )
    return findings


def kernels() -> Finding:
    """The Triton kernels, and whether they run here."""
    from lean3r import ops
    from lean3r.ops.dispatch import why_not_triton

    # Names only: importing a kernel needs triton.
    folders = [Path(folder) for folder in ops.__path__]
    names = ", ".join(sorted(path.parent.name for folder in folders for path in folder.glob("*/kernel.py")))
    reason = why_not_triton()
    if reason is None:
        return Finding("kernels", True, f"Triton kernels of {names}")
    fix = "not needed: plain PyTorch runs instead, slower on long sequences"
    return Finding("kernels", False, f"Triton kernels of {names}: {reason}", fix)


def fp8() -> Finding:
    """Whether matrix products in 8-bit floating point can run, which depends only on the GPU."""
    import torch

    if not torch.cuda.is_available():
        return Finding("FP8", False, "no CUDA device", f"not needed by nano; an NVIDIA GPU of capability {_FP8_TEXT}")
    capability = torch.cuda.get_device_capability()
    gpu = f"GPU of capability {capability[0]}.{capability[1]}"
    if capability < _FP8:
        return Finding("FP8", False, f"{gpu}, {_FP8_TEXT} is needed", "use --dtype bfloat16")
    return Finding("FP8", True, gpu)


def weights() -> Finding:
    """The weights inside the package."""
    from lean3r.models import EMBEDDED, list_models

    names = [name for name in list_models() if (EMBEDDED / f"{name}.safetensors").is_file()]
    if names:
        return Finding("weights", True, f"in the package: {', '.join(names)}; `lean3r models` lists all")
    return Finding("weights", False, "none in the package", "lean3r train nano, or give a file with --weights")


def gpl_parts() -> Finding:
    """Libraries under the GPL inside the installed packages that lean3r needs."""
    parts = ["SuiteSparse in pycolmap"]
    for package in ("av", "pillow-heif"):
        try:
            files = [Path(path).name for path in metadata.files(package) or ()]
        except metadata.PackageNotFoundError:  # it comes under another name
            files = []
        inside = [part for part in ("x264", "x265") if any(part in name for name in files)]
        parts += [f"{' and '.join(inside)} in {package}"] if inside else []
    return Finding("GPL parts", True, f"{', '.join(parts)}; to redistribute these packages, see NOTICE")


def import_failure(module: str) -> str:
    """The reason why a module cannot be imported, in one line; empty if it can."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        return "not installed" if error.name == module else f"needs {error.name}, which is not installed"
    except Exception as error:
        # A broken binary package may raise anything, and the user needs the reason.
        return f"installed, but its import fails: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return ""


def _package(name: str, job: str) -> Finding:
    return Finding(name, True, f"{version_of(name)}; for {job}")


def version_of(name: str) -> str:
    """The version of an installed package, which may come under another name: triton as triton-windows."""
    module = _MODULES.get(name, name)
    for package in (name, *metadata.packages_distributions().get(module, ())):
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(package)
    return str(getattr(sys.modules.get(module), "__version__", "of unknown version"))


def _cpu_name() -> str:
    if sys.platform == "linux":
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()
