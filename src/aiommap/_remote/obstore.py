"""The engine for S3, GCS, Azure, HTTP and folders: obstore, by its blocking calls.

Its coroutines know asyncio alone, and cost a hop of their own (docs/decisions). What it raises is
translated here; what it does not check (the ETag of a response, its range and its length) the
cache checks of every source.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import re
import secrets
import weakref
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urljoin, urlsplit

from .._arguments import check_kind
from .._errors import RemoteError, StaleSnapshotError, UnsupportedError
from .._runtime.threads import Mutex
from .._typing import Buffer
from .source import RemoteState, without_secrets

#: A stalled connection ends after this; a whole request, of up to some MiB, after that.
READ_TIMEOUT = "10 seconds"
REQUEST_TIMEOUT = "120 seconds"
#: The engine's own retries, of what can be retried.
MAX_RETRIES = 5
RETRY_SECONDS = 60

_STATUS = re.compile(
    r"(?:status(?: code)?|HTTP error)[: ]+(?:client error |server error )?\(?(\d{3})\b",
    re.IGNORECASE,
)

#: Of a store in memory: it has no address, and another one may have the same objects.
_tokens: dict[int, tuple[weakref.ref[object], str]] = {}
_tokens_mutex = Mutex()


def _memory_token(store: object) -> str:
    """Name a store in memory, for as long as it lives."""
    with _tokens_mutex:
        known = _tokens.get(id(store))
        if known is None or known[0]() is not store:
            known = (weakref.ref(store), secrets.token_hex(8))
            _tokens[id(store)] = known
        return known[1]


def _join(base: str, *parts: str | None) -> str:
    return "/".join([base.rstrip("/"), *(part.strip("/") for part in parts if part)])


def _address(store: Any, key: str) -> str:
    """Say where an object is, by what the store says of itself."""
    kind, path = type(store).__name__, quote(key, safe="/!$&'()*+,;=:@~-._")
    config: Mapping[str, str] = getattr(store, "config", None) or {}
    prefix = str(getattr(store, "prefix", None) or "")
    if kind == "HTTPStore":
        return _join(str(store.url).partition("?")[0], path)
    if kind == "LocalStore":
        return _join("file://", prefix or "/", path)
    if kind == "MemoryStore":
        return f"memory://{_memory_token(store)}/{path}"
    if kind == "AzureStore":
        account = config.get("account_name", "")
        home = config.get("endpoint") or f"az://{account}"
        return _join(home, config.get("container_name"), prefix, path)
    scheme = {"S3Store": "s3", "GCSStore": "gs"}.get(kind)
    bucket = config.get("bucket", "")
    if scheme is None or not bucket:
        raise UnsupportedError(
            f"cache an object of {kind}", "its address cannot be told: pass url= to ObstoreSource"
        )
    endpoint = config.get("endpoint") or config.get("endpoint_url") or config.get("base_url")
    return _join(endpoint or f"{scheme}:/", bucket, prefix, path)


class ObstoreSource:
    """An object that obstore reaches: S3, GCS, Azure, HTTP, a folder, memory.

    Args:
        store: a store of ``obstore.store``, with the credentials, retries and timeouts that it was
            made with.
        key: the object, as the store names it; "" for a store that is made of a whole URL.
        version: the version to read, in a bucket that keeps versions; None for the newest.
        url: the object's address, where the store cannot tell it; by default it does. Everything
            that could be secret is taken out of it.
    Raises:
        UnsupportedError: if the store has no address that could be told.
    Source: obstore's ``get`` with ``range``, ``if_match``, ``version`` and ``head``.
    """

    __slots__ = ("_key", "_obstore", "_store", "_url", "_version")

    def __init__(
        self, store: object, key: str, *, version: str | None = None, url: str | None = None
    ) -> None:
        self._key = check_kind(key, str, "key", 'give a str, such as "models/large.bin"')
        self._store = store
        self._version = version
        self._url = without_secrets(url or _address(store, key))
        self._obstore: Any = None

    @staticmethod
    def from_url(url: str) -> ObstoreSource:
        """Make the source of an object that a URL names, as ``RemoteCache.open`` does with a str.

        Credentials come from where obstore finds them: the environment and the cloud. Reads files,
        so call it in a worker thread.

        Raises:
            ValueError: if it is no URL of an object.
            ImportError: if obstore is not installed.
        """
        return source_of_url(url)

    @property
    def url(self) -> str:
        """The object's address, without secrets."""
        return self._url

    @property
    def version(self) -> str | None:
        """The version that is read; None for the newest."""
        return self._version

    def at_version(self, version: str) -> ObstoreSource:
        """Return a source of this version of the object."""
        return ObstoreSource(self._store, self._key, version=version, url=self._url)

    def beside(self, name: str) -> ObstoreSource:
        """Return a source of another object of the store; its name is relative to this one's."""
        if self._key:
            folder = self._key.rpartition("/")[0]
            key = name.lstrip("/") if name.startswith("/") or not folder else f"{folder}/{name}"
            return ObstoreSource(self._store, key)
        store: Any = self._store  # made of a whole URL
        url = urljoin(str(store.url), name)
        options = {"client_options": store.client_options, "retry_config": store.retry_config}
        return ObstoreSource(type(store)(url, **options), "", url=_named_by_query(url))

    def stat(self, known: RemoteState | None) -> RemoteState | None:
        """Ask what the object is now; as ``RemoteSource.stat``."""
        options: dict[str, object] = {"head": True}
        if known is not None and known.etag is not None:
            options["if_none_match"] = known.etag
        try:
            state = self._get(options)[1]
        except _NotModifiedError:
            return None
        return None if state == known else state

    def fetch(self, start: int, end: int, state: RemoteState) -> tuple[Buffer, RemoteState]:
        """Fetch bytes in one request; as ``RemoteSource.fetch``."""
        options: dict[str, object] = {"range": (start, end)}
        if state.etag is not None:
            options["if_match"] = state.etag
        if state.version is not None:
            options["version"] = state.version
        result, found = self._get(options, start, end - start, state)
        if tuple(result.range) != (start, end):
            raise RemoteError(
                self._url,
                f"the response is about bytes {list(result.range)}, and not those",
                start,
                end - start,
            )
        try:
            return result.bytes(), found
        except Exception as error:
            raise self._translated(error, start, end - start, state) from None

    def _get(
        self,
        options: dict[str, object],
        start: int = 0,
        length: int = 0,
        state: RemoteState | None = None,
    ) -> tuple[Any, RemoteState]:
        if self._version is not None:
            options["version"] = self._version
        if self._obstore is None:
            self._obstore = load_obstore()
        try:
            result = self._obstore.get(self._store, self._key, options=options)
        except Exception as error:
            raise self._translated(error, start, length, state) from None
        meta = result.meta
        modified = meta.get("last_modified")
        return result, RemoteState(
            size=meta["size"],
            etag=meta.get("e_tag"),
            version=self._version or meta.get("version"),
            modified=None if modified is None else _moment(modified),
        )

    def _translated(
        self, error: Exception, start: int, length: int, state: RemoteState | None
    ) -> Exception:
        """Make one of our errors, or of Python's, of what the engine raised; none keeps secrets."""
        kind = type(error).__name__
        text = without_secrets(str(error).partition("\n")[0])
        if kind == "NotModifiedError":
            return _NotModifiedError()
        if kind == "PreconditionError" and state is not None:
            return StaleSnapshotError(self._url, state.size, 0, "was changed")
        if isinstance(error, FileNotFoundError) or kind == "NotFoundError":
            return FileNotFoundError(2, f"there is no such object: {text}", self._url)
        if isinstance(error, PermissionError) or kind in _REFUSED:
            return PermissionError(13, f"the store refuses it: {text}", self._url)
        if kind == "NotSupportedError":
            return UnsupportedError(f"read a range of {self._url}", f"{text}: use another server")
        status = _STATUS.search(text)
        return RemoteError(
            self._url, text, start, length, None if status is None else int(status[1])
        )

    def __repr__(self) -> str:
        version = "" if self._version is None else f" version {self._version}"
        return f"<ObstoreSource {self._url}{version}>"


_REFUSED = ("PermissionDeniedError", "UnauthenticatedError")


class _NotModifiedError(Exception):
    """The object is as it was."""


def _moment(modified: object) -> str:
    if isinstance(modified, datetime):
        return modified.astimezone(UTC).isoformat()
    return str(modified)


def load_obstore() -> Any:
    """Import the engine, which reads files: for worker threads."""
    try:
        return importlib.import_module("obstore")
    except ImportError as error:
        raise ImportError(
            'aiommap.remote reads URLs by obstore: pip install "aiommap[remote]", or pass a source '
            "of your own"
        ) from error


def source_of_url(url: str) -> ObstoreSource:
    """Make the source of an object that is named by its URL. Worker threads only.

    Credentials come from where obstore finds them: the environment and the cloud. An ``http://``
    URL is taken at its word.
    """
    parts = urlsplit(url)
    if not parts.scheme or parts.scheme == "memory":
        raise ValueError(
            f"{without_secrets(url)} is no URL of an object: write it as s3://bucket/key, gs://…, "
            "az://…, https://… or file:///…"
        )
    folder, _, name = parts.path.rpartition("/")
    if not name and parts.scheme not in ("http", "https"):
        raise ValueError(f"{without_secrets(url)} names no object: give it a key")
    home = f"{parts.scheme}://{parts.netloc}"
    try:
        if parts.scheme == "file":
            store = _store_at("LocalStore", unquote(folder) or "/")
            return ObstoreSource(store, unquote(name), url=url)
        if parts.scheme not in ("http", "https") or _is_of_a_cloud(parts.hostname or ""):
            return ObstoreSource(_store_at("", home), unquote(parts.path.lstrip("/")))
        if _PLAIN_PATH.fullmatch(parts.path) and not parts.query:
            return ObstoreSource(_store_at("HTTPStore", home), parts.path[1:])
        # Spelled as it was given.
        return ObstoreSource(_make_store("HTTPStore", url), "", url=_named_by_query(url))
    except (ValueError, OSError, ImportError):
        raise
    except Exception as error:
        text = without_secrets(str(error).partition("\n")[0])
        raise ValueError(f"{without_secrets(url)} cannot be read: {text}") from None


def _named_by_query(url: str) -> str:
    """Put what a query says of the object into the path, as a hash: the query itself is secret.

    What only signs a request is left out, so that two signed URLs of an object are of one object.
    """
    base, _, query = url.partition("#")[0].partition("?")
    fields = parse_qsl(query, keep_blank_values=True)
    signed_by_azure = any(name.lower() == "sig" for name, _ in fields)
    names = [
        (name, value)
        for name, value in fields
        if not _SIGNATURE.match(name) and not (signed_by_azure and _AZURE.fullmatch(name))
    ]
    if not names:
        return base
    return f"{base};query={hashlib.sha256(urlencode(names).encode()).hexdigest()[:16]}"


#: Fields of a query that say who may read, and not what.
_SIGNATURE = re.compile(
    r"(?i)x-(?:amz|goog|ms)-|(?:signature|expires|awsaccesskeyid|googleaccessid|key-pair-id|policy"
    r"|token|access_token|api_?key)$"
)
#: Likewise, but only beside ``sig``.
_AZURE = re.compile(r"(?i)s[a-z]{1,4}|rsc[a-z]")
#: Paths that an engine spells as they are given.
_PLAIN_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+)+")


@functools.lru_cache(maxsize=64)
def _store_at(kind: str, place: str) -> Any:
    """Make a store, or return the one that was made: its connections serve all of its objects."""
    return _make_store(kind, place)


def _make_store(kind: str, place: str) -> Any:
    load_obstore()
    stores = importlib.import_module("obstore.store")
    if kind == "LocalStore":
        return stores.LocalStore(place)
    options: dict[str, Any] = {
        "client_options": {
            "read_timeout": READ_TIMEOUT,
            "timeout": REQUEST_TIMEOUT,
            "allow_http": place.startswith("http:"),
        },
        "retry_config": {
            "max_retries": MAX_RETRIES,
            "retry_timeout": timedelta(seconds=RETRY_SECONDS),
        },
    }
    return stores.HTTPStore(place, **options) if kind else stores.from_url(place, **options)


def _is_of_a_cloud(host: str) -> bool:
    """Tell whether an https address is one that a cloud's own protocol is spoken at."""
    return host.endswith((".blob.core.windows.net", ".dfs.core.windows.net", ".amazonaws.com"))
