"""A stand-in for the Kubernetes API: Jobs, and the pods that they make."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

_JOB = re.compile(r"/apis/batch/v1/namespaces/(\w+)/jobs(?:/([\w-]+))?(?:/status)?")
_POD = re.compile(r"/api/v1/namespaces/(\w+)/pods(?:/([\w-]+))?")

Answer = tuple[int, dict[str, Any]]


@dataclass
class Kubernetes:
    """A cluster.

    Attributes:
        url: The URL of its API.
        jobs: The Jobs, by name, as they were created.
        pods: The name of the Job of each pod, by its name.
        requests: The method and the path of each request.
    """

    url: str = ""
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    pods: dict[str, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def end(self, name: str, result: str) -> None:
        """Let the pod of a Job end: `succeeded`, or `failed`, as when it is evicted."""
        self.jobs[name]["status"] = {result: 1}

    def kubeconfig(self, folder: Path) -> Path:
        """A file with the way to the API."""
        file = folder / "kubeconfig.yaml"
        named = {"clusters": ("cluster", {"server": self.url}), "users": ("user", {"token": "any"})}
        parts = {name: [{"name": "it", kind: value}] for name, (kind, value) in named.items()}
        contexts = [{"name": "it", "context": {"cluster": "it", "user": "it"}}]
        file.write_text(yaml.dump({**parts, "contexts": contexts, "current-context": "it"}))
        return file

    def serve(self, method: str, path: str, body: dict[str, Any]) -> Answer:
        """The response to a request."""
        url = urlsplit(path)
        self.requests.append(f"{method} {url.path}")
        if found := _JOB.fullmatch(url.path):
            assert found[1] == "dagster"
            return self._serve_job(method, found[2], body)
        if found := _POD.fullmatch(url.path):
            return self._serve_pods(method, found[2], parse_qs(url.query))
        return 404, {}

    def _serve_job(self, method: str, name: str | None, body: dict[str, Any]) -> Answer:
        if method == "POST":
            name = str(body["metadata"]["name"])
            if name in self.jobs:
                return 409, {}
            self.jobs[name] = {**body, "status": {"active": 1}}
            self.pods[f"{name}-pod"] = name
            return 201, self.jobs[name]
        if name not in self.jobs:
            return 404, {}
        return 200, self.jobs.pop(name) if method == "DELETE" else self.jobs[name]

    def _serve_pods(self, method: str, name: str | None, query: dict[str, list[str]]) -> Answer:
        if name is not None:
            if method == "DELETE" and self.pods.pop(name, ""):
                return 200, {}
            return 404, {}
        [selector] = query["labelSelector"]
        found = [pod for pod, job in self.pods.items() if selector == f"job-name={job}"]
        return 200, {"items": [{"metadata": {"name": pod}} for pod in found]}


@contextmanager
def kubernetes() -> Iterator[Kubernetes]:
    """Serve a cluster without Jobs during the block."""
    cluster = Kubernetes()

    class Handler(BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline()
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            content = self.rfile.read(int(self.headers.get("content-length") or 0))
            status, body = cluster.serve(self.command, self.path, json.loads(content or b"{}"))
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    cluster.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield cluster
    finally:
        server.shutdown()
        server.server_close()
