"""onnxruntime-web comes from a stand-in for npm's registry: once, whole, and in one version, or not at all."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from lean3r.cli.main import main
from lean3r.errors import LeanError, UsageError
from lean3r.web import runtime
from web.conftest import served

CONTENTS = {runtime.SCRIPT: b"script", runtime.WASM: b"program"}


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a registry with a package that is the one to be had."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in {**CONTENTS, "more.js": b"unused"}.items():
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    package = gzip.compress(file.getvalue())
    monkeypatch.setattr(runtime, "INTEGRITY", runtime.integrity(package, "sha512"))
    monkeypatch.setattr(runtime, "FILES", {name: runtime.integrity(content) for name, content in CONTENTS.items()})
    path = tmp_path / "registry" / runtime.PACKAGE / "-" / f"{runtime.PACKAGE}-{runtime.VERSION}.tgz"
    path.parent.mkdir(parents=True)
    path.write_bytes(package)
    return tmp_path / "registry"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a text", "is no network of `lean3r export-model`"),
        (b'\x08\x0a{"model": "nano", "limits": {"fewest_views": 50}}', "it is nano for 50 views and more"),
        (b'{"model": "vggt", "licence": "x", "limits": {"fewest_views": 1}}', "it is vggt for 1 views and more"),
    ],
)
def test_a_page_is_of_nano_alone(content: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "other.onnx", tmp_path / "site"
    file.write_bytes(content)
    assert main(["export-page", str(file), "-o", str(out), "--offline"]) == 3
    assert said in capsys.readouterr().err and not out.exists()


def test_it_is_downloaded_once_and_checked(registry: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(LeanError, match=r"offline mode forbids a download\. Run `npm install onnxruntime-web@"):
        runtime.runtime_files(offline=True, cache=cache)
    with served(registry) as address:
        assert runtime.runtime_files(cache=cache, registry=address.rstrip("/")) == CONTENTS
    assert runtime.runtime_files(offline=True, cache=cache) == CONTENTS
    assert runtime.runtime_files(cache) == CONTENTS, "--runtime takes a folder of it, too"
    (cache / runtime.WASM).write_bytes(b"another")
    with pytest.raises(UsageError, match="does not hold"):
        runtime.runtime_files(cache)
    with pytest.raises(LeanError, match="could not be downloaded"):
        runtime.runtime_files(cache=cache, registry="http://127.0.0.1:9")


def test_another_package_is_refused(registry: Path, tmp_path: Path) -> None:
    package = next(registry.rglob("*.tgz"))
    package.write_bytes(package.read_bytes() + b"\0")
    with served(registry) as address, pytest.raises(LeanError, match="its hash is another"):
        runtime.runtime_files(cache=tmp_path / "cache", registry=address.rstrip("/"))
    assert not (tmp_path / "cache").exists()
