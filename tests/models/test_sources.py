"""Weights from the Hub, against a local stand-in for it: cache first, offline, shards, revisions, refusals."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from lean3r.errors import UsageError, WeightsError
from lean3r.models import CARDS, MODELS, is_non_commercial
from lean3r.models.checkpoint import read_tensors
from lean3r.models.fingerprint import fingerprint
from lean3r.models.sources import (
    HubSource,
    find_weights,
    licence_of,
    official_source,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Files by (repository, revision, name); `asked` lists the paths of all requests, `tokens` what they carried."""

    def __init__(self, address: str):
        self.address = address
        self.files: dict[tuple[str, str, str], bytes] = {}
        self.gated: set[str] = set()
        self.asked: list[str] = []
        self.tokens: set[str | None] = set()

    def take(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """What is uploaded; every file is sent as it is, none through the Hub's store of large ones."""
        self.asked.append(path)
        if path == "/api/repos/create":
            about = json.loads(body)
            name = f"{about.get('organization') or 'me'}/{about['name']}"
            return 200, {"url": f"{self.address}/{name}", "name": name, "id": name}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        _, _, kind, owner, name, action, revision = path.split("/")
        if action == "preupload":
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            return 200, {"files": [file | {"shouldIgnore": False} for file in files]}
        assert (kind, action) == ("models", "commit")
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.files[f"{owner}/{name}", revision, line["value"]["path"]] = content
        return 200, {"commitUrl": f"{self.address}/{owner}/{name}/commit/{COMMIT}", "commitOid": COMMIT}

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        self.asked.append(path)
        if path.startswith("/api/"):
            return 404, {}, b""
        owner, name, _, revision, file = path.lstrip("/").split("/", 4)
        repository = f"{owner}/{name}"
        if repository in self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        known = [key for key in self.files if key[0] == repository]
        if not known:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if revision not in {COMMIT} | {key[1] for key in known}:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        body = next((self.files[key] for key in known if key[2] == file and revision in (key[1], COMMIT)), None)
        if body is None:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b""
        return 200, {"ETag": f'"{hash(body) & 0xFFFFFFFF:08x}"', "X-Repo-Commit": COMMIT}, body


@pytest.fixture
def hub() -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.reply(with_body=False)

        def do_GET(self) -> None:
            self.reply(with_body=True)

        def do_POST(self) -> None:
            stand_in.tokens.add(self.headers.get("Authorization"))
            status, said = stand_in.take(self.path, self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def reply(self, with_body: bool) -> None:
            stand_in.tokens.add(self.headers.get("Authorization"))
            status, headers, body = stand_in.answer(self.path)
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stand_in = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield stand_in
    server.shutdown()
    thread.join()
    server.server_close()


def weights(tmp_path: Path, **tensors: torch.Tensor) -> bytes:
    path = tmp_path / "made.safetensors"
    save_file(tensors, path)
    return path.read_bytes()


def find(hub: Hub, tmp_path: Path, source: str, **options) -> Path:
    return find_weights(source, cache_dir=tmp_path / "cache", endpoint=hub.address, **{"token": False, **options})


def test_download_once_then_never_ask_again(hub: Hub, tmp_path: Path) -> None:
    hub.files["some/model", "main", "model.safetensors"] = weights(tmp_path, a=torch.arange(3.0))
    path = find(hub, tmp_path, "hf:some/model")
    assert read_tensors(path)[0]["a"].tolist() == [0, 1, 2]
    hub.asked.clear()
    assert find(hub, tmp_path, "hf:some/model") == path
    assert find(hub, tmp_path, "hf:some/model", offline=True) == path
    assert not hub.asked and hub.tokens == {None}
    assert fingerprint(path) == f"hub:{COMMIT}/{path.resolve().name}"


def test_token_and_progress_bar(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A pipe shows no bar unless asked to.
    monkeypatch.setenv("TQDM_POSITION", "-1")
    hub.files["some/model", "main", "model.safetensors"] = weights(tmp_path, a=torch.zeros(1 << 16))
    find(hub, tmp_path, "hf:some/model", token="hf_secret")
    assert hub.tokens == {"Bearer hf_secret"}
    shown = capsys.readouterr().err
    assert "model.safetensors" in shown and "100%" in shown


def test_the_hubs_own_offline_mode(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files["some/model", "main", "model.safetensors"] = weights(tmp_path, a=torch.zeros(1))
    path = find(hub, tmp_path, "hf:some/model")
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find(hub, tmp_path, "hf:some/model") == path
    with pytest.raises(WeightsError, match="Run `hf download other/model --local-dir DIR` on a machine with a network"):
        find(hub, tmp_path, "hf:other/model")
    assert not hub.asked


def test_a_pickle_from_the_hub_is_refused(hub: Hub, tmp_path: Path) -> None:
    torch.save({"a": Path("x")}, tmp_path / "evil.pt")
    hub.files["some/evil", "main", "model.pt"] = (tmp_path / "evil.pt").read_bytes()
    with pytest.raises(WeightsError, match="never executes pickles"):
        read_tensors(find(hub, tmp_path, "hf:some/evil"))


def test_shards_and_torch_files_and_named_files(hub: Hub, tmp_path: Path) -> None:
    names = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    hub.files["some/shards", "main", "model.safetensors.index.json"] = json.dumps({"weight_map": names}).encode()
    for name, file in names.items():
        hub.files["some/shards", "main", file] = weights(tmp_path, **{name: torch.ones(2)})
    assert read_tensors(find(hub, tmp_path, "hf:some/shards"))[0].keys() == names.keys()
    assert find(hub, tmp_path, "hf:some/shards", offline=True).name == "model.safetensors.index.json"

    torch.save({"a": torch.ones(2)}, tmp_path / "made.pt")
    hub.files["some/torch", "main", "model.pt"] = (tmp_path / "made.pt").read_bytes()
    hub.files["some/torch", "main", "other/x.pt"] = (tmp_path / "made.pt").read_bytes()
    assert find(hub, tmp_path, "hf:some/torch").name == "model.pt"
    assert find(hub, tmp_path, "hf:some/torch/other/x.pt").name == "x.pt"


def test_revision(hub: Hub, tmp_path: Path) -> None:
    hub.files["some/model", "main", "model.safetensors"] = weights(tmp_path, a=torch.zeros(1))
    hub.files["some/model", "v2", "model.safetensors"] = weights(tmp_path, a=torch.ones(1))
    with pytest.raises(WeightsError, match="no revision 'v3'"):
        find(hub, tmp_path, "hf:some/model@v3")
    assert find(hub, tmp_path, "hf:some/model@v2").is_file()
    assert all("/resolve/v2/" in path or "/v3/" in path or COMMIT in path for path in hub.asked)


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ("hf:no/where", {}, "no such repository"),
        ("hf:some/gated", {}, "accept its terms at https://huggingface.co/some/gated"),
        ("hf:some/empty", {}, "has no weights file"),
        (
            "hf:some/empty",
            {"offline": True},
            "Run `hf download some/empty --local-dir DIR` on a machine with a network",
        ),
    ],
)
def test_refusals_are_one_line(hub: Hub, tmp_path: Path, source: str, options: dict, said: str) -> None:
    hub.gated.add("some/gated")
    hub.files["some/empty", "main", "README.md"] = b"nothing"
    with pytest.raises(WeightsError) as caught:
        find(hub, tmp_path, source, **options)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_the_error_without_a_network_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"cannot be reached\. Run `hf download a/b --revision v1 --local-dir DIR`"):
        find_weights("hf:a/b@v1", cache_dir=tmp_path, endpoint="http://127.0.0.1:9", token=False)


def test_other_sources(tmp_path: Path) -> None:
    assert find_weights(tmp_path / "x.pt") == tmp_path / "x.pt"
    assert HubSource.parse("hf:a/b/c/d.pt@main") == HubSource("a/b", "main", "c/d.pt")
    for wrong in ("hf:", "hf:alone", "hf:a/b@", "hf://a/b"):
        with pytest.raises(UsageError, match="expected a path or hf:OWNER/NAME"):
            find_weights(wrong)
    assert official_source("nano") is None and official_source("vggt") == "hf:facebook/VGGT-1B"


@pytest.mark.parametrize("name", [name for name, card in CARDS.items() if card.repository])
def test_licences_are_those_of_the_published_weights(name: str) -> None:
    row = CARDS[name]
    assert row.licence == licence_of(f"hf:{row.repository}@main")
    assert row.stated and row.stated.startswith("https://github.com/")
    assert is_non_commercial(row.licence) == (
        name in {"vggt", "pi3", "pi3x", "speed3r-pi3", "da3-large", "da3-giant", "da3nested-giant-large"}
    )


@pytest.mark.parametrize("name", list(MODELS))
def test_the_documents_list_every_model(name: str) -> None:
    docs = Path(__file__).parents[2] / "docs"
    page = (docs / "models.md").read_text(encoding="utf-8")
    row = CARDS[name]
    if row.repository:
        assert f"| `{name}` | `{row.repository}` | {row.licence}" in page and str(row.stated) in page
    assert f"`{name}`" in page
    for guide in ("large-backbones.md", "known-cameras.md"):
        text = (docs / "how-to" / guide).read_text(encoding="utf-8")
        assert f"`{name}`" in text or (name.startswith("da3") and "da3-" in text), f"{guide} does not name {name}"


def test_licences_of_other_weights() -> None:
    commercial = licence_of("hf:facebook/VGGT-1B-Commercial/vggt_1B_commercial.pt")
    assert commercial is not None and not is_non_commercial(commercial)
    assert licence_of("hf:some/body") is None and licence_of("model.pt") is None
