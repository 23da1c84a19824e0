"""Google Cloud Storage as far as TensorFlow's client sees it, for tests, with all requests told.

The store is gcp-storage-emulator's. TensorFlow asks www.googleapis.com and storage.googleapis.com
over TLS, through the proxy that `https_proxy` names: which is here, has a certificate for these
names by an authority of its own, and answers itself.
"""

import collections
import contextlib
import dataclasses
import http.server
import re
import ssl
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import trustme
from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.handlers.buckets import create_bucket
from gcp_storage_emulator.storage import Storage

HOSTS = ("www.googleapis.com", "storage.googleapis.com")
# What a request is for, by its method and path.
_KINDS = {
    "stat": r"GET /storage/v1/b/[^/]+/o/(?P<name>[^?]+).*",
    "list": r"GET /storage/v1/b/[^/]+/o\?.*",
    "look at the bucket": r"GET /storage/v1/b/[^/]+",
    "read": r"GET /[^/]+/(?P<name>[^?]+)",
    "mark a folder": r"POST /upload/.*uploadType=media&name=(?P<name>[^&]+).*",
    "begin a write": r"POST /upload/.*[?&]name=(?P<name>[^&]+).*",
    "write": r"PUT /upload/.*[?&]name=(?P<name>[^&]+).*",
    "rename": r"POST /storage/v1/b/[^/]+/o/(?P<name>[^/]+)/rewriteTo/.*",
    "remove": r"DELETE /storage/v1/b/[^/]+/o/(?P<name>[^?]+)",
}


@dataclasses.dataclass(frozen=True)
class Request:
    """What TensorFlow asked for: the kind, the object, and the bytes that went to and fro."""

    kind: str
    name: str
    bytes: int


@dataclasses.dataclass
class Store:
    """One that is being served.

    Args:
        environment: The variables that have TensorFlow ask it.
        requests: All that it was asked for, in order.
    """

    environment: dict[str, str]
    requests: list[Request] = dataclasses.field(default_factory=list)

    def counts(self) -> dict[str, tuple[int, int]]:
        """How many requests there were of each kind, and of how many bytes."""
        counts: dict[str, tuple[int, int]] = collections.defaultdict(lambda: (0, 0))
        for request in self.requests:
            number, size = counts[request.kind]
            counts[request.kind] = number + 1, size + request.bytes
        return dict(counts)

    def bytes_read(self) -> collections.Counter[str]:
        """How many bytes were read of each object."""
        sizes: collections.Counter[str] = collections.Counter()
        for request in self.requests:
            if request.kind == "read":
                sizes[request.name] += request.bytes
        return sizes


@contextlib.contextmanager
def serve(folder: Path, bucket: str) -> Iterator[Store]:
    """Serves a store with an empty bucket, whose certificate is put into a folder."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*HOSTS).configure_cert(context)
    certificate = folder / "authority.pem"
    authority.cert_pem.write_to_path(str(certificate))
    storage = Storage(use_memory_fs=True)
    create_bucket(bucket, storage)
    store = Store({})

    with _as_tensorflow_writes(), _proxy(context, storage, store) as server:
        store.environment = {
            "https_proxy": f"http://localhost:{server.server_port}",
            "CURL_CA_BUNDLE": str(certificate),
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
            "NO_GCE_CHECK": "true",
        }
        yield store


@contextlib.contextmanager
def _proxy(
    context: ssl.SSLContext, storage: Storage, store: Store
) -> Iterator[http.server.ThreadingHTTPServer]:
    lock = threading.Lock()

    class Answers(emulator.RequestHandler):
        """The emulator's, one after the other, told of and without an end of the connection."""

        protocol_version = "HTTP/1.1"

        def parse_request(self) -> bool:
            if not super().parse_request():
                return False
            if "Transfer-Encoding" in self.headers:
                # TensorFlow gives both; what is sent is in chunks.
                del self.headers["Content-Length"]
            return True

        def _answer(self, method: str) -> None:
            written = re.match(r"bytes (\d+)-(\d+)/", self.headers.get("Content-Range", ""))
            self._size = int(written[2]) - int(written[1]) + 1 if written else 0
            with lock:
                emulator.Router(self).handle(method)
                store.requests.append(_told(f"{method} {self.path}", self._size))

        do_GET, do_POST, do_PUT, do_DELETE = (  # noqa: N815
            lambda self, method=method: self._answer(method)
            for method in ("GET", "POST", "PUT", "DELETE")
        )

        def send_header(self, key: str, value: str) -> None:
            if key == "Location":  # of an upload, which is to go on as it was begun
                value = value.replace("http://", "https://")
            if key == "Content-Length" and self.command == "GET":
                self._size = int(value)
            super().send_header(key, value)

        def log_message(self, *_: object) -> None:
            pass

    class Proxy(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_CONNECT(self) -> None:  # noqa: N802
            self.send_response(200)
            self.end_headers()
            # A client that is killed goes without a word.
            with (
                contextlib.suppress(OSError),
                context.wrap_socket(self.connection, server_side=True) as connection,
            ):
                Answers(storage, connection, self.client_address, self.server)
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("localhost", 0), Proxy)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _told(request: str, size: int) -> Request:
    for kind, pattern in _KINDS.items():
        if found := re.fullmatch(pattern, request):
            name = urllib.parse.unquote(found.groupdict().get("name", ""))
            return Request(kind, name, size)
    return Request(request, "", size)


@contextlib.contextmanager
def _as_tensorflow_writes() -> Iterator[None]:
    """Has the emulator take an object without content, as the marker of a folder is one."""
    read_data = emulator._read_data

    def read(handler: object, query: dict[str, list[str]]) -> object:
        data = read_data(handler, query)
        return b"" if data is None and "media" in query.get("uploadType", ()) else data

    emulator._read_data = read
    try:
        yield
    finally:
        emulator._read_data = read_data
