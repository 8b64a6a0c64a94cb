"""A real S3 server (MinIO) for the whole run, and a way to it that fails as told."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from attune.eventlog.broker import free_port
from attune.lake.place import Place, lake_place
from attune.settings import LakeSettings
from tests.eventlog.waiting import eventually

USER, SECRET = "planted-user", "planted-secret-key"
_BUCKET = "attune"
_VERSION = "v0.0.0-20260212201848-7aac2a2c5b7c"
_REFUSAL = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def find_minio() -> str:
    """Skips the test where there is none; in CI that is a failure."""
    gopath = Path(os.environ.get("GOPATH", Path.home() / "go"))
    if found := shutil.which("minio") or shutil.which("minio", path=str(gopath / "bin")):
        return found
    missing = f"MinIO is missing: with Go, `go install github.com/minio/minio@{_VERSION}` makes it"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


@dataclass
class Minio:
    """A running server; tests leave it thawed."""

    address: tuple[str, int]
    process: "subprocess.Popen[bytes]"
    folder: Path

    def settings(self, address: tuple[str, int] | None = None, **changes: object) -> LakeSettings:
        """A place of its own for each call; impatient, so that tests of failures are quick."""
        host, port = address or self.address
        given = {
            "url": f"s3://{_BUCKET}/{uuid.uuid4().hex}/lake",
            "endpoint": f"http://{host}:{port}",
            "access_key_id": USER,
            "secret_access_key": SECRET,
            "request_seconds": 5,
        }
        return LakeSettings.model_validate(given | changes)

    def place(self, address: tuple[str, int] | None = None, **changes: object) -> Place:
        return lake_place(self.settings(address, **changes), Path("/nowhere"))

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def run_minio(folder: Path) -> Iterator[Minio]:
    binary = find_minio()
    (folder / _BUCKET).mkdir(parents=True)
    port = free_port()
    # A run that is killed takes it along.
    leash = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    process = subprocess.Popen(
        [*leash, binary, "server", "--quiet", "--address", f"127.0.0.1:{port}", str(folder)],
        env={**os.environ, "MINIO_ROOT_USER": USER, "MINIO_ROOT_PASSWORD": SECRET, "GOMAXPROCS": "1"},
        stdout=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: _answers(port), 60)
        yield Minio(("127.0.0.1", port), process, folder)
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/minio/health/live", timeout=2):
            return True
    except OSError:
        return False


@dataclass
class BadWay:
    """A proxy before a server: of what is asked a share is refused with 503, or done and its answer lost.

    Which, is chance with a seed.
    """

    to: tuple[str, int]
    refused: float = 0
    lost: float = 0
    seed: int = 0
    faults: int = 0
    _listener: socket.socket = field(init=False)
    _chance: random.Random = field(init=False)

    def __enter__(self) -> "BadWay":
        self._chance = random.Random(self.seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._listener.getsockname()
        return host, port

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(self.to) as server:
            threading.Thread(target=self._answer, args=(server, client), daemon=True).start()
            while asked := client.recv(1 << 16):
                if asked.startswith((b"GET", b"PUT", b"HEAD", b"POST")) and self._falls(self.refused):
                    client.sendall(_REFUSAL)
                    break
                server.sendall(asked)
            _close(client, server)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while answer := server.recv(1 << 16):
                if answer.startswith(b"HTTP") and self._falls(self.lost):
                    break
                client.sendall(answer)
            _close(client, server)

    def _falls(self, share: float) -> bool:
        fault = self._chance.random() < share
        self.faults += fault
        return fault


def _close(*ends: socket.socket) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
