"""Serves the data lake to delta-rs and Polars, which cannot use the storage emulator directly.

They speak the XML API of Cloud Storage, which the emulator does not have. This server translates
it to the emulator's JSON API. As in Google Cloud, a request needs a token of the metadata server,
for which this server stands in, too. It is a process of its own, since delta-rs may block all
threads of the one that it runs in.

The XML API: https://cloud.google.com/storage/docs/xml-api/overview
"""

import argparse
import http.client
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from local_cloud.metadata_server import ACCOUNT, MetadataServer

_PARENT = os.getppid()
_BLOCK = 1 << 20  # bytes that are copied at a time
_EMULATOR_TIMEOUT = 60.0  # seconds
_IDLE_TIMEOUT = 300.0  # seconds that a connection is kept without a request
_LIST_PARAMETERS = {
    "prefix": "prefix",
    "delimiter": "delimiter",
    "continuation-token": "pageToken",
    "max-keys": "maxResults",
}
_OBJECT_HEADERS = (
    *("Content-Length", "Content-Range", "Content-Type", "ETag"),
    *("Last-Modified", "x-goog-generation"),
)


def main() -> None:
    """Serve until the process is stopped."""
    parser = argparse.ArgumentParser(description="Serve the data lake.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--emulator", required=True, help="the URL of the storage emulator")
    parser.add_argument("--uploads", type=Path, required=True, help="a folder for unfinished files")
    parser.add_argument("--token-lifetime", type=float, default=3600.0, help="in seconds")
    options = parser.parse_args()
    metadata_server = MetadataServer(options.token_lifetime)
    emulator = urlsplit(options.emulator).netloc
    handler = partial(_Handler, emulator, metadata_server, options.uploads)
    with _Server(("127.0.0.1", options.port), handler) as server:
        server.serve_forever()


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def service_actions(self) -> None:
        """End if the process that has started this one was killed."""
        if os.getppid() != _PARENT:
            os._exit(1)


class _XmlError(Exception):
    """An error response of the XML API."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class _Handler(BaseHTTPRequestHandler):
    """Handles the requests of one connection, with one connection to the emulator."""

    protocol_version = "HTTP/1.1"
    # It would delay a body that follows its headers.
    disable_nagle_algorithm = True
    timeout = _IDLE_TIMEOUT

    def __init__(
        self, emulator: str, metadata_server: MetadataServer, uploads: Path, *args: Any
    ) -> None:
        self._emulator = http.client.HTTPConnection(emulator, timeout=_EMULATOR_TIMEOUT)
        self._metadata_server = metadata_server
        self._uploads = uploads  # a folder for each multipart upload, with a file for each part
        self._unread = 0  # bytes of the request's body
        super().__init__(*args)

    def finish(self) -> None:
        self._emulator.close()
        super().finish()

    def handle_request(self) -> None:
        url = urlsplit(self.path)
        try:
            self._check_length()
            if url.path == "/" or url.path.startswith("/computeMetadata/"):
                status, content_type, text = self._metadata_server.response(url.path, self.headers)
                headers = {"Content-Type": content_type, "Metadata-Flavor": "Google"}
                self._respond(status, text.encode(), headers)
            else:
                self._check_token()
                bucket, _, key = url.path[1:].partition("/")
                query = dict(parse_qsl(url.query, keep_blank_values=True))
                self._handle_storage(unquote(bucket), unquote(key), query)
        except _XmlError as error:
            root = Element("Error")
            _add_texts(root, Code=error.code, Message=str(error))
            self._respond_with_xml(root, error.status)
        except (OSError, http.client.HTTPException) as error:
            self.close_connection = True
            self._emulator.close()
            self.log_error("%s %s was not finished: %r", self.command, url.path, error)

    # The base class wants these names.
    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_request  # noqa: N815

    def _check_length(self) -> None:
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not length.isdecimal():
            self.close_connection = True
            raise _XmlError(411, "MissingContentLength", "The request has no Content-Length.")
        self._unread = int(length)

    def _check_token(self) -> None:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or not self._metadata_server.is_valid(token):
            raise _XmlError(
                401,
                "AuthenticationRequired",
                f"The request has no valid token of the account {ACCOUNT}.",
            )

    def _handle_storage(self, bucket: str, key: str, query: Mapping[str, str]) -> None:
        match self.command, query:
            case "GET", _ if not key:
                self._list(bucket, query)
            case "GET" | "HEAD", _:
                self._read_object(bucket, key)
            case "PUT", {"uploadId": upload, "partNumber": number} if number.isdecimal():
                self._store_part(self._parts(upload) / number)
            case "PUT", {} if not query and "x-goog-copy-source" not in self.headers:
                size = self._unread
                stored = self._store_object(bucket, key, self._body(), size)
                self._respond(200, headers=_version(stored))
            case "POST", {"uploads": _}:
                self._start_upload(bucket, key)
            case "POST", {"uploadId": upload}:
                self._complete_upload(bucket, key, self._parts(upload))
            case "DELETE", {"uploadId": upload}:
                shutil.rmtree(self._parts(upload))
                self._respond(204)
            case "DELETE", _:
                self._ask("DELETE", _object_path(bucket, key), "NoSuchKey").read()
                self._respond(204)
            case _:
                raise _XmlError(501, "NotImplemented", "The local cloud does not implement this.")

    # Objects

    def _list(self, bucket: str, query: Mapping[str, str]) -> None:
        parameters = {new: query[old] for old, new in _LIST_PARAMETERS.items() if old in query}
        if "start-after" in query:  # `startOffset` would include the object of that name
            parameters["startOffset"] = f"{query['start-after']}\0"
        path = f"/storage/v1/b/{quote(bucket)}/o?{urlencode(parameters)}"
        page = json.load(self._ask("GET", path, "NoSuchBucket"))

        root = Element("ListBucketResult")
        for item in page.get("items", []):
            _add_texts(
                ElementTree.SubElement(root, "Contents"),
                Key=item["name"],
                LastModified=item["updated"],
                ETag=f'"{item["etag"]}"',
                Size=item["size"],
            )
        for prefix in page.get("prefixes", []):
            _add_texts(ElementTree.SubElement(root, "CommonPrefixes"), Prefix=prefix)
        if "nextPageToken" in page:
            _add_texts(root, NextContinuationToken=page["nextPageToken"])
        self._respond_with_xml(root)

    def _read_object(self, bucket: str, key: str) -> None:
        headers = {"Range": self.headers["Range"]} if "Range" in self.headers else {}
        path = f"/download{_object_path(bucket, key)}?alt=media"
        response = self._ask(self.command, path, "NoSuchKey", headers=headers)
        self.send_response(response.status)
        for name in _OBJECT_HEADERS:
            if value := response.headers[name]:
                self.send_header(name, value)
        self.end_headers()
        shutil.copyfileobj(response, self.wfile, _BLOCK)
        if response.length:
            raise ConnectionError("The emulator closed the connection.")

    def _store_object(
        self, bucket: str, key: str, body: Iterable[bytes], size: int
    ) -> Mapping[str, str]:
        """Store an object, and return its resource.

        In the JSON API, a multipart upload is one request with the resource and the body. It is the
        only upload with preconditions in the emulator.
        """
        boundary = secrets.token_hex()
        parts = ("application/json", json.dumps({"name": key})), ("application/octet-stream", "")
        start = "\r\n".join(f"--{boundary}\r\nContent-Type: {t}\r\n\r\n{text}" for t, text in parts)
        end = f"\r\n--{boundary}--\r\n"
        parameters = {"uploadType": "multipart"}
        if generation := self.headers["x-goog-if-generation-match"]:
            parameters["ifGenerationMatch"] = generation
        response = self._ask(
            "POST",
            f"/upload/storage/v1/b/{quote(bucket)}/o?{urlencode(parameters)}",
            "NoSuchBucket",
            body=(block for blocks in ([start.encode()], body, [end.encode()]) for block in blocks),
            headers={
                "Content-Type": f"multipart/related; boundary={boundary}",
                "Content-Length": str(len(start) + size + len(end)),
            },
        )
        stored: Mapping[str, str] = json.load(response)
        return stored

    # Multipart uploads of the XML API: large objects, in several requests

    def _parts(self, upload: str) -> Path:
        """The folder with the parts of an upload."""
        folder = self._uploads / upload
        if not (upload.isalnum() and folder.is_dir()):
            raise _XmlError(404, "NoSuchUpload", "The upload does not exist.")
        return folder

    def _start_upload(self, bucket: str, key: str) -> None:
        upload = secrets.token_hex()
        (self._uploads / upload).mkdir()
        root = Element("InitiateMultipartUploadResult")
        _add_texts(root, Bucket=bucket, Key=key, UploadId=upload)
        self._respond_with_xml(root)

    def _store_part(self, path: Path) -> None:
        with path.open("wb") as file:
            file.writelines(self._body())
        self._respond(200, headers={"ETag": f'"{path.name}"'})

    def _complete_upload(self, bucket: str, key: str, parts: Path) -> None:
        numbers = re.findall(rb"<PartNumber>(\d+)</PartNumber>", b"".join(self._body()))
        paths = [parts / number.decode() for number in numbers]
        if not all(path.exists() for path in paths):
            raise _XmlError(400, "InvalidPart", "A part was not uploaded.")
        size = sum(path.stat().st_size for path in paths)
        stored = self._store_object(bucket, key, _blocks(paths), size)
        shutil.rmtree(parts)
        root = Element("CompleteMultipartUploadResult")
        _add_texts(root, Bucket=bucket, Key=key, ETag=_version(stored)["ETag"])
        self._respond_with_xml(root, headers=_version(stored))

    # Requests and responses

    def _body(self) -> Iterator[bytes]:
        """What is left of the request's body."""
        while self._unread:
            block = self.rfile.read(min(_BLOCK, self._unread))
            if not block:
                raise ConnectionError("The client closed the connection.")
            self._unread -= len(block)
            yield block

    def _ask(
        self,
        method: str,
        path: str,
        code_for_404: str,
        *,
        body: Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> http.client.HTTPResponse:
        """The emulator's response; an error response is raised as one of the XML API."""
        self._emulator.request(method, path, body, dict(headers or {}))
        response = self._emulator.getresponse()
        if response.status < 300:
            return response
        response.read()
        codes = {404: code_for_404, 412: "PreconditionFailed", 416: "InvalidRange"}
        raise _XmlError(response.status, codes.get(response.status, "Error"), response.reason)

    def _respond(
        self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        for _ in self._body():  # the next request of the connection follows it
            pass
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _respond_with_xml(
        self, root: Element, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        body = ElementTree.tostring(root, "utf-8", xml_declaration=True)
        self._respond(status, body, {"Content-Type": "application/xml", **(headers or {})})

    def log_request(self, *_: object) -> None:
        """Log no requests, only errors."""


def _object_path(bucket: str, key: str) -> str:
    return f"/storage/v1/b/{quote(bucket)}/o/{quote(key, safe='')}"


def _version(stored: Mapping[str, str]) -> dict[str, str]:
    return {"ETag": f'"{stored["etag"]}"', "x-goog-generation": stored["generation"]}


def _add_texts(parent: Element, **texts: str) -> None:
    """Add an element for each text."""
    for name, text in texts.items():
        ElementTree.SubElement(parent, name).text = text


def _blocks(paths: Iterable[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                yield block


if __name__ == "__main__":
    main()
