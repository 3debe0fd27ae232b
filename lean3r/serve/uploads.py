"""Uploads, written to disk while they arrive: multipart/form-data, with limits on everything."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from lean3r.inputs.listing import printable
from lean3r.json_text import parse_json
from lean3r.scratch import DISK_FULL
from lean3r.serve.content import (
    ARCHIVE_SUFFIX,
    HEAD,
    check_archive,
    is_transport_stream,
    kind_of,
    stored_name,
    suffix_of,
)
from lean3r.serve.given import LEFT_OUT, ROLES, Given
from lean3r.serve.options import GIGABYTE, ServeOptions
from lean3r.serve.places import NoRoomError, Room

FILES = "files"  # the field of the form
LONGEST_NAME = 200  # characters of a file's name
FIELD_BYTES = 65_536
MOST_FIELDS = 100
STEP = 1 << 20  # bytes for which room is asked at a time, and that are written at a time
IDLE_SECONDS = 60.0  # without a byte
PATIENCE, LEAST_RATE = 60.0, 4096.0  # after so many seconds, at least so many bytes a second
UNPACKED = 4  # times the limit of an upload: what an archive may hold
PART = 1 << 16  # bytes that the parser is given at a time


class RefusedError(Exception):
    """An upload is not taken; `status` is the answer's."""

    def __init__(self, status: int, text: str, skipped: list[dict[str, str]] | None = None) -> None:
        super().__init__(text)
        self.status, self.skipped = status, skipped or []


@dataclass
class Upload:
    """What has arrived: the fields, the files that are kept and those that are not, with reasons."""

    fields: dict[str, Any] = field(default_factory=dict)
    files: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    size: int = 0

    @property
    def all_files(self) -> list[dict[str, Any]]:
        """What a job remembers: the files that are kept, and those that are not."""
        return self.files + [{**file, "kind": LEFT_OUT} for file in self.skipped]

    @property
    def inputs(self) -> list[dict[str, Any]]:
        """The files that are pictures, videos or archives of them."""
        return inputs_of(self.files)

    def options(self) -> dict[str, Any]:
        """The options of the job: the JSON object in the field `options`, and all other fields."""
        given = dict(self.fields)
        if (text := given.pop("options", "").strip()) == "":
            return given
        try:
            found = parse_json(text)
        except ValueError as error:
            raise RefusedError(422, f"the field options is not JSON: {error}") from error
        try:
            json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
        except ValueError as error:  # numbers and texts that JSON has no form for could never be shown again
            raise RefusedError(422, "the field options holds a number or a text that JSON does not have.") from error
        if not isinstance(found, dict):
            raise RefusedError(422, 'the field options is not a JSON object, such as {"max_views": 8}.')
        if both := ", ".join(found.keys() & given.keys()):
            raise RefusedError(422, f"{both} stands in the field options and in a field of its own; send it once.")
        return found | given


def inputs_of(files: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Of the files of a job, those that are reconstructed."""
    return [file for file in files if file.get("kind") not in (*ROLES, LEFT_OUT)]


class Receiver:
    """Takes one upload into a new folder. RefusedError says why one is not taken; nothing of it is left then, nor if
    its sender goes away."""

    def __init__(self, folder: Path, room: Room, options: ServeOptions) -> None:
        self.folder, self.room, self.options = folder, room, options
        self.most = int(options.upload_gb * GIGABYTE)
        self.upload, self.taken = Upload(), 0
        self._arrived: list[tuple[Path, str, str, bytes, int]] = []
        self._used: set[str] = set()
        self._is_whole, self._count = False, 0
        self._header, self._headers = [b"", b""], {}
        self._name = ""
        self._path: Path | None = None
        self._waiting: list[tuple[Path, bytes]] = []
        self._waiting_bytes = 0
        self._shown, self._head, self._length = "", b"", 0
        self._text: bytearray | None = None

    async def receive(self, kind: str, length: int | None, chunks: AsyncIterator[bytes]) -> Upload:
        """Take the body of a request with this Content-Type and Content-Length."""
        content, parameters = parse_options_header(kind)
        if content != b"multipart/form-data" or b"boundary" not in parameters:
            raise RefusedError(415, "expected multipart/form-data with files, as forms and curl -F send them.")
        if length is not None:
            self._check_whole(length)
        try:
            parser = MultipartParser(parameters[b"boundary"], self._callbacks())
            self.folder.mkdir(mode=0o700)
            await self._feed(parser, chunks)
            parser.finalize()
            if not self._is_whole:
                raise RefusedError(400, "the upload ended early.")
            await asyncio.to_thread(self._sort_out)
        except FormParserError as error:
            raise RefusedError(400, "the upload is damaged: its parts cannot be told apart.") from error
        except ClientDisconnect as error:
            raise RefusedError(400, "the upload ended early.") from error
        except NoRoomError as error:
            raise RefusedError(507, str(error)) from error
        except OSError as error:
            if error.errno in DISK_FULL:
                raise RefusedError(507, "the disk of the service is full; try again later.") from error
            raise
        if not self.upload.inputs:
            why = "none of the files is a picture, a video or a zip" if self.upload.skipped else "there are no files"
            raise RefusedError(422, f"nothing to reconstruct: {why}.", self.upload.skipped)
        return self.upload

    def give_up(self) -> None:
        """Remove what has arrived."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.settle()

    def settle(self) -> None:
        """What arrived does not arrive any more."""
        self.room.give(self.taken)
        self.taken = 0

    async def _feed(self, parser: MultipartParser, chunks: AsyncIterator[bytes]) -> None:
        begun, received = time.monotonic(), 0
        while True:
            try:
                chunk = await asyncio.wait_for(anext(chunks), IDLE_SECONDS)
            except StopAsyncIteration:
                await asyncio.to_thread(self._write)
                return
            except TimeoutError as error:
                raise RefusedError(408, f"nothing arrived for {IDLE_SECONDS:.0f} seconds.") from error
            received += len(chunk)
            self._check_whole(received)
            seconds = time.monotonic() - begun
            if seconds > PATIENCE and received / seconds < LEAST_RATE:
                raise RefusedError(408, f"the upload is too slow: less than {LEAST_RATE:,.0f} bytes a second.")
            # Taking it apart takes less time than a change of threads; a slow disk must not hold up other requests.
            for at in range(0, len(chunk), PART):
                parser.write(chunk[at : at + PART])
            if self._waiting_bytes >= STEP:
                await asyncio.to_thread(self._write)

    def _callbacks(self) -> Any:
        return {
            "on_part_begin": self._part_begins,
            "on_header_field": lambda data, start, end: self._header_part(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._header_part(1, data[start:end]),
            "on_header_end": self._header_ends,
            "on_headers_finished": self._headers_end,
            "on_part_data": lambda data, start, end: self._data(data[start:end]),
            "on_part_end": self._part_ends,
            "on_end": self._ends,
        }

    def _part_begins(self) -> None:
        self._headers, self._header, self._text = {}, [b"", b""], None
        self._shown, self._head, self._length = "", b"", 0

    def _header_part(self, which: int, data: bytes) -> None:
        self._header[which] += data

    def _header_ends(self) -> None:
        self._headers[self._header[0].lower()] = self._header[1]
        self._header = [b"", b""]

    def _headers_end(self) -> None:
        _, about = parse_options_header(self._headers.get(b"content-disposition"))
        self._name = about.get(b"name", b"").decode("utf-8", "replace")
        if b"filename" not in about:
            if self._name in self.upload.fields:
                raise RefusedError(422, f"the field {printable(self._name)} came twice; send it once.")
            if self._name == FILES:
                raise RefusedError(
                    422, "the field files came without a filename; expected files, as of curl -F files=@IMG.jpg."
                )
            if len(self.upload.fields) >= MOST_FIELDS or len(self._name) > LONGEST_NAME:
                raise RefusedError(413, f"more than {MOST_FIELDS} fields, or one with a very long name.")
            self._text = bytearray()
            return
        if self._name not in (FILES, *ROLES):
            field = printable(self._name[:60])
            raise RefusedError(422, f"a file came in the field '{field}'; expected {FILES}, {' or '.join(ROLES)}.")
        name = about[b"filename"].decode("utf-8", "replace")
        self._count += 1
        if self._count > self.options.upload_files:
            raise RefusedError(413, self._too_many())
        if len(name) > LONGEST_NAME:
            raise RefusedError(
                422, f"the name of file {self._count} has {len(name)} characters; at most {LONGEST_NAME} are allowed."
            )
        self._shown = printable(name)
        self._path = self.folder / f".{self._count}"
        self._waiting.append((self._path, b""))

    def _data(self, data: bytes) -> None:
        if self._text is not None:
            self._text += data
            if len(self._text) > FIELD_BYTES:
                raise RefusedError(413, f"the field {printable(self._name)} has more than {FIELD_BYTES:,} bytes.")
            return
        self.upload.size += len(data)
        self._length += len(data)
        if self.upload.size > self.most:
            raise RefusedError(413, self._too_large())
        self._head += data[: HEAD - len(self._head)]
        if self._path is not None:
            self._waiting.append((self._path, data))
            self._waiting_bytes += len(data)

    def _write(self) -> None:
        """Write what has arrived since the last time, if there is room for it."""
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        while self.upload.size > self.taken:
            self.room.take(STEP)
            self.taken += STEP
        for path, pieces in groupby(waiting, key=lambda piece: piece[0]):
            with path.open("ab") as file:
                file.writelines(data for _, data in pieces)

    def _part_ends(self) -> None:
        if self._text is not None:
            self.upload.fields[self._name] = self._text.decode("utf-8", "replace")
        elif self._path is not None:
            if self._shown or self._length:  # a form without a choice sends a file without a name
                self._arrived.append((self._path, self._name, self._shown, self._head, self._length))
            self._path = None

    def _sort_out(self) -> None:
        """Give complete files their names, or leave them out with a reason. Cameras and masks are wanted, or the upload
        is refused."""
        given = Given(self.folder, self.options.upload_files, self.most, self._unpacked)
        for path, role, shown, head, length in self._arrived:
            if role in ROLES:
                if reason := given.take(role, path, shown, head) if length else "the file is empty":
                    raise RefusedError(422, f"{shown}, in the field {role}: {reason}.")
                self.upload.files.append({"name": shown, "stored": "", "kind": role, "bytes": length})
                continue
            suffix = suffix_of(head)
            if suffix is None and is_transport_stream(path):
                suffix = ".ts"
            reason = ""
            if length == 0:
                reason = "the file is empty"
            elif suffix is None:
                reason = "it is not a picture, a video or a zip by its content"
            elif suffix == ARCHIVE_SUFFIX:
                reason = check_archive(path, self.options.upload_files, UNPACKED * self.most)
            if reason or suffix is None:
                self.upload.skipped.append({"name": shown, "reason": reason})
                self.upload.size -= length
                path.unlink()
                continue
            stored = stored_name(shown, suffix, self._used)
            path.rename(self.folder / stored)
            self.upload.files.append({"name": shown, "stored": stored, "kind": kind_of(suffix), "bytes": length})

    def _unpacked(self, size: int) -> None:
        self.room.take(size)
        self.taken += size
        self.upload.size += size

    def _ends(self) -> None:
        self._is_whole = True

    def _check_whole(self, length: int) -> None:
        """RefusedError for a body, with all that is no file, that is longer than any that is taken."""
        if length > self.most + MOST_FIELDS * FIELD_BYTES:
            raise RefusedError(413, self._too_large())

    def _too_many(self) -> str:
        most = f"{self.options.upload_files:,} files"
        return f"the upload has more than {most}, the most that this service takes (--upload-files); send fewer."

    def _too_large(self) -> str:
        most = f"{self.most / 1e6:,.0f} MB"
        return (
            f"the upload has more than {most}, the most that this service takes (--upload-gb); send fewer or smaller "
            "pictures."
        )
