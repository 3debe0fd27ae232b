"""onnxruntime-web, which runs the network in a browser: two files of one version of its npm package."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import urllib.request
from pathlib import Path

from lean3r.errors import LeanError, UsageError
from lean3r.scratch import atomic_file

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
REGISTRY = "https://registry.npmjs.org"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
SCRIPT, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
FILES = {
    SCRIPT: "sha256-EeZL2P/hG9GiovDWJ1/fu7pyYvC3a5m1PSKKiiLvPZA=",
    WASM: "sha256-M5jBDQfSKb2Rs2RUjhMODlGo5XBLiMfAg+u+t4hC3uI=",
}
"""File of the package's dist/ -> its hash, in the form that browsers check too."""
CACHE = Path.home() / ".cache" / "lean3r" / f"{PACKAGE}-{VERSION}"
LARGEST = 1 << 26  # bytes of the package
PATIENCE_S = 60
BY_HAND = f"Run `npm install {PACKAGE}@{VERSION}`, and give --runtime node_modules/{PACKAGE}/dist"


def runtime_files(
    folder: Path | None = None, *, offline: bool = False, cache: Path = CACHE, registry: str = REGISTRY
) -> dict[str, bytes]:
    """FILES by name: from `folder`, else from the cache, else downloaded into the cache.

    UsageError if `folder` does not hold them in this version. LeanError, with what to do, if they would have to be
    downloaded and cannot be.
    """
    if folder is not None:
        found = _read(folder.expanduser())
        if found is None:
            raise UsageError(f"{folder} does not hold {' and '.join(FILES)} of {PACKAGE} {VERSION}. {BY_HAND}.")
        return found
    found = _read(cache)
    if found is not None:
        return found
    if offline:
        raise LeanError(f"{PACKAGE} {VERSION} is not in {cache}, and offline mode forbids a download. {BY_HAND}.")
    found = _unpacked(_download(f"{registry}/{PACKAGE}/-/{PACKAGE}-{VERSION}.tgz"))
    cache.mkdir(parents=True, exist_ok=True)
    for name, content in found.items():
        with atomic_file(cache / name) as part:
            part.write_bytes(content)
    return found


def integrity(content: bytes, kind: str = "sha256") -> str:
    """A hash in the form that browsers and npm use."""
    return f"{kind}-{base64.b64encode(hashlib.new(kind, content).digest()).decode()}"


def _read(folder: Path) -> dict[str, bytes] | None:
    """The files, if they are there and are those of this version."""
    try:
        found = {name: (folder / name).read_bytes() for name in FILES}
    except OSError:
        return None
    return found if all(integrity(content) == FILES[name] for name, content in found.items()) else None


def _download(address: str) -> bytes:
    try:
        with urllib.request.urlopen(address, timeout=PATIENCE_S) as answer:
            content = answer.read(LARGEST + 1)
    except OSError as error:
        raise LeanError(
            f"{address} could not be downloaded ({error}). Try again, or without a network: {BY_HAND}."
        ) from error
    if integrity(content, "sha512") != INTEGRITY:
        raise LeanError(f"{address} is not what it should be (its hash is another): nothing was written. {BY_HAND}.")
    return content


def _unpacked(package: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(package), mode="r:gz") as archive:
        files = {name: archive.extractfile(f"package/dist/{name}") for name in FILES}
        return {name: file.read() for name, file in files.items() if file is not None}
