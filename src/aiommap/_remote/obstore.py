"""The engine for S3, GCS, Azure, HTTP and folders: obstore, by its blocking calls.

Its coroutines work with asyncio alone, and each costs a hop of its own (docs/decisions). This
module translates the errors of obstore. obstore does not check the ETag and the length of a
response: the cache checks both, for every source.
"""

from __future__ import annotations

import base64
import functools
import importlib
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import SplitResult, unquote, urljoin, urlsplit, urlunsplit

from .._arguments import check_kind
from .._errors import RemoteError, StaleSnapshotError, UnsupportedError
from .._typing import Buffer
from .naming import address_in_store, address_of_url, roots_of_store
from .source import RemoteState, without_secrets

#: How long a connection may bring nothing, and how long a whole request of some MiB may take.
READ_TIMEOUT = "10 seconds"
REQUEST_TIMEOUT = "120 seconds"
#: How often, and for how long, the engine itself retries.
MAX_RETRIES = 5
RETRY_SECONDS = 60

_STATUS = re.compile(
    r"(?:status(?: code)?|HTTP error)[: ]+(?:client error |server error )?\(?(\d{3})\b",
    re.IGNORECASE,
)
_RETRIES = re.compile(r"after (\d+) retries")


class ObstoreSource:
    """An object that obstore reaches: S3, GCS, Azure, HTTP, a folder, memory.

    Args:
        store: a store of ``obstore.store``, with the credentials, retries and timeouts that it was
            made with.
        key: the object, as the store names it; "" if the store was made from the whole URL.
        version: the version to read, in a bucket that keeps versions; None for the newest.
        url: the object's address; by default it comes from the configuration of the store. User,
            password, query and fragment are taken out of it.
    Raises:
        ValueError: if obstore would ask for another key: it drops slashes at the ends.
        UnsupportedError: if the configuration of the store gives no address.
    Source: obstore's ``get`` with ``range``, ``if_match``, ``version`` and ``head``.
    """

    __slots__ = ("_key", "_last", "_obstore", "_store", "_url", "_version")

    def __init__(
        self, store: object, key: str, *, version: str | None = None, url: str | None = None
    ) -> None:
        self._key = _check_key(
            check_kind(key, str, "key", 'give a str, such as "models/large.bin"')
        )
        self._store = store
        self._version = version
        self._url = without_secrets(url or address_in_store(store, key))
        self._obstore: Any = None
        #: What the engine told with the last response, and the state that it is.
        self._last: tuple[Any, RemoteState] | None = None

    @staticmethod
    def from_url(url: str) -> ObstoreSource:
        """Make the source of an object from its URL, as ``RemoteCache.open`` does with a str.

        obstore finds the credentials, in the environment or in the cloud. Call this in a worker
        thread, because it reads files.

        Raises:
            ValueError: if the text is not the URL of an object.
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

    def __eq__(self, other: object) -> bool:
        """Tell whether another source asks the same store for the same object."""
        return isinstance(other, ObstoreSource) and self._asks == other._asks

    def __hash__(self) -> int:
        return hash(self._asks)

    @property
    def _asks(self) -> tuple[object, ...]:
        return (id(self._store), self._key, self._version, self._url)

    def at_version(self, version: str) -> ObstoreSource:
        """Return a source of this version of the object."""
        return ObstoreSource(self._store, self._key, version=version, url=self._url)

    def beside(self, name: str) -> ObstoreSource:
        """Return a source of another object of the store.

        Args:
            name: its URL, or its key relative to this one's.
        Raises:
            ValueError: if the store has no object of that name.
        """
        if "://" in name:
            return self._at(name)
        if not self._key:  # the store was made from a whole URL
            return self._at(urljoin(str(self._http.url), name))
        folder = self._key.rpartition("/")[0]
        key = name.lstrip("/") if name.startswith("/") or not folder else f"{folder}/{name}"
        return ObstoreSource(self._store, key)

    def _at(self, url: str) -> ObstoreSource:
        """Return a source of another object of the store, by its URL."""
        if type(self._store).__name__ == "HTTPStore":
            if _origin(url) == _origin(str(self._http.url)) is not None:
                return self._at_url(url)
        elif _PLAIN_URL.fullmatch(url) and "?" not in url and "#" not in url:
            for root in roots_of_store(self._store):
                if url.startswith(root):
                    return ObstoreSource(self._store, unquote(url[len(root) :]))
        raise ValueError(f"{without_secrets(url)} is not of the store of {self._url}")

    @property
    def _http(self) -> Any:
        return self._store

    def _at_url(self, url: str) -> ObstoreSource:
        """Return a source of a whole URL, with the options of this store."""
        store = self._http
        options = {"client_options": store.client_options, "retry_config": store.retry_config}
        return ObstoreSource(type(store)(url, **options), "", url=address_of_url(url))

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
        return self._body(result, start, end - start, state), found

    def begin(self, length: int) -> tuple[RemoteState, Callable[[], Buffer]] | None:
        """Ask what the object is together with its first bytes; as ``OpeningSource.begin``."""
        try:
            result, state = self._get({"range": (0, length)})
        except UnsupportedError:
            return None
        except RemoteError as error:
            if _is_about_ranges(error):
                return None
            raise
        return state, partial(self._body, result, 0, min(length, state.size), state)

    def _body(self, result: Any, start: int, length: int, state: RemoteState) -> Buffer:
        """Wait for the bytes of a response, which have to be those that were asked for."""
        if tuple(result.range) != (start, start + length):
            raise RemoteError(
                self._url,
                f"the response is about bytes {list(result.range)}, and not those",
                start,
                length,
            )
        try:
            body: Buffer = result.bytes()
        except Exception as error:
            failure = self._translated(error, start, length, state)
        else:
            return body
        raise failure  # here, because a context would have the signed URL (R13)

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
            failure = self._translated(error, start, length, state)
        else:
            return result, self._state_of(result.meta)
        raise failure  # here, because a context would have the signed URL (R13)

    def _state_of(self, meta: Any) -> RemoteState:
        last = self._last
        if last is not None and last[0] == meta:  # nearly always: making it again takes longer
            return last[1]
        modified = meta.get("last_modified")
        state = RemoteState(
            size=meta["size"],
            etag=meta.get("e_tag"),
            version=self._version or meta.get("version"),
            modified=None if modified is None else _moment(modified),
        )
        self._last = meta, state
        return state

    def _translated(
        self, error: Exception, start: int, length: int, state: RemoteState | None
    ) -> Exception:
        """Turn an error of the engine into one of ours or of Python's, without its secrets."""
        kind = type(error).__name__
        text = without_secrets(str(error).partition("\n")[0])
        if kind == "NotModifiedError":
            return _NotModifiedError()
        if kind == "PreconditionError" and state is not None:
            return StaleSnapshotError(self._url, state.size, 0, "was changed")
        found, retries = _STATUS.search(text), _RETRIES.search(text)
        status = None if found is None else int(found[1])
        attempts = 1 if retries is None else 1 + int(retries[1])
        if isinstance(error, FileNotFoundError) or kind == "NotFoundError":
            text = text[max(0, text.find("Error performing")) :]  # what precedes it names a key
            if status == 405:  # the object may be there: the engine takes this for a 404
                return RemoteError(self._url, text, start, length, status, attempts)
            return FileNotFoundError(2, f"there is no such object: {text}", self._url)
        if isinstance(error, PermissionError) or kind in _REFUSED:
            return PermissionError(13, f"the store refuses it: {text}", self._url)
        if kind == "NotSupportedError":
            return UnsupportedError(f"read a range of {self._url}", f"{text}: use another server")
        return RemoteError(self._url, text, start, length, status, attempts)

    def __repr__(self) -> str:
        version = "" if self._version is None else f" version {self._version}"
        return f"<ObstoreSource {self._url}{version}>"


def _is_about_ranges(error: RemoteError) -> bool:
    """Tell whether a store refused only the range, so that it can be asked for the state.

    An error of a store in memory or in folders has no status; neither has an error of the network,
    but that one says "Error performing".
    """
    if error.status is None:
        return "Error performing" not in error.reason
    return 400 <= error.status < 500 and error.status not in (408, 429)


_REFUSED = ("PermissionDeniedError", "UnauthenticatedError")


class _NotModifiedError(Exception):
    """The store says that the object is still in the state that we know."""


def _moment(modified: object) -> str:
    if isinstance(modified, datetime):
        return modified.astimezone(UTC).isoformat()
    return str(modified)


def load_obstore() -> Any:
    """Import the engine; for worker threads, because an import reads files."""
    try:
        return importlib.import_module("obstore")
    except ImportError as error:
        raise ImportError(
            'aiommap.remote reads URLs by obstore: pip install "aiommap[remote]", or pass a source '
            "of your own"
        ) from error


def source_of_url(url: str) -> ObstoreSource:
    """Make the source of an object from its URL. Worker threads only.

    obstore finds the credentials, in the environment or in the cloud. An ``http://`` URL is read
    without encryption, as it says. The user and password of an HTTP URL are sent as Basic
    credentials (RFC 7617).
    """
    url, authorization = _without_user(url)
    parts = urlsplit(url)
    if not parts.scheme or parts.scheme == "memory":
        raise ValueError(
            f"{without_secrets(url)} is no URL of an object: write it as s3://bucket/key, gs://…, "
            "az://…, https://… or file:///…"
        )
    if parts.scheme not in ("http", "https"):
        if parts.path.endswith("/") or not parts.path:
            raise ValueError(f"{without_secrets(url)} names no object: give it a key")
        if parts.scheme != "file" and (parts.query or parts.fragment):
            raise ValueError(
                f"{without_secrets(url)} goes on behind its key: write ? as %3F and # as %23"
            )
    try:
        return _source_of_parts(url, parts, authorization)
    except (ValueError, OSError, ImportError):
        raise
    except Exception as error:
        text = without_secrets(str(error).partition("\n")[0])
    raise ValueError(f"{without_secrets(url)} cannot be read: {text}")


def _source_of_parts(url: str, parts: SplitResult, authorization: str) -> ObstoreSource:
    home, path = f"{parts.scheme}://{parts.netloc}", parts.path
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not path.startswith("/"):
            raise ValueError(f"{without_secrets(url)} names no file: write it as file:///path")
        folder, _, name = path.rpartition("/")
        return ObstoreSource(_store_at("LocalStore", unquote(folder) or "/"), unquote(name))
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or (_is_of_a_cloud(host) and not parts.query):
        if parts.scheme == "https" and not _BUCKET_IN_HOST.search(host):
            bucket, _, path = path[1:].partition("/")
            home, path = f"{home}/{bucket}", f"/{path}"
        return ObstoreSource(_store_at("", home, _variables()), unquote(path[1:]))
    if _PLAIN_PATH.fullmatch(path) and not parts.query:
        return ObstoreSource(_store_at("HTTPStore", home, authorization=authorization), path[1:])
    # An engine would spell this URL in another way: one store for it, and an empty key.
    return ObstoreSource(_make_store("HTTPStore", url, authorization), "", url=address_of_url(url))


def _without_user(url: str) -> tuple[str, str]:
    """Take user and password out of a URL; return it, and the header that they make, or "".

    Raises:
        ValueError: if the store of the URL takes credentials in another way.
    """
    parts = urlsplit(url)
    user, _, place = parts.netloc.rpartition("@")
    if not user or parts.scheme in _CONTAINER_BEFORE_HOST:
        return url, ""
    if parts.scheme not in ("http", "https") or _is_of_a_cloud(parts.hostname or ""):
        raise ValueError(
            f"{without_secrets(url)} was given with a user, which this store does not take in a "
            "URL: set its keys in the environment, or pass an ObstoreSource of a store with keys"
        )
    name, _, word = user.partition(":")
    pair = f"{unquote(name)}:{unquote(word)}".encode()
    return urlunsplit(parts._replace(netloc=place)), f"Basic {base64.b64encode(pair).decode()}"


#: Schemes of Azure, in which the container may stand where other URLs have the user.
_CONTAINER_BEFORE_HOST = ("az", "adl", "azure", "abfs", "abfss")


def _check_key(key: str) -> str:
    """Raise for a key that obstore cannot ask for, or takes for another one."""
    if key and not {"", ".", ".."}.isdisjoint(key.split("/")):
        raise ValueError(
            f"{key!r} is no key that obstore can ask for: it drops slashes at the ends, and knows "
            "no empty part, '.' or '..'; name an object of an HTTP server by its whole URL"
        )
    return key


def _origin(url: str) -> tuple[str, str] | None:
    """Return scheme and host of an http URL; None of one that engines may read differently."""
    found = _PLAIN_URL.fullmatch(url)
    if found is None or found[1].lower() not in _PORTS:
        return None
    scheme, host = found[1].lower(), found[2].lower()
    return scheme, host.removesuffix(_PORTS[scheme])


def _variables() -> frozenset[tuple[str, str]]:
    """Return the variables of the environment by which obstore makes a store."""
    return frozenset(item for item in os.environ.items() if _VARIABLE.match(item[0]))


_BUCKET_IN_HOST = re.compile(r".\.s3[.-].*\.amazonaws\.com$")
_VARIABLE = re.compile("AWS_|AZURE_|AZURITE_|GOOGLE_|SERVICE_ACCOUNT|IDENTITY_ENDPOINT|MSI_")
_PORTS = {"http": ":80", "https": ":443"}
#: A URL without user and password that nobody can read in two ways.
_PLAIN_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([A-Za-z0-9._~:\[\]-]*)(?:/[!-\[\]-~]*)?")
#: Paths that an engine sends as they are written.
_PLAIN_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+)+")


@functools.lru_cache(maxsize=64)
def _store_at(
    kind: str,
    place: str,
    variables: frozenset[tuple[str, str]] = frozenset(),
    *,
    authorization: str = "",
) -> Any:
    """Make a store, or return the one that was made before: all its objects share connections.

    Args:
        variables: those of the environment; with others it is another store.
        authorization: the header that is sent with each request; "" to send none.
    """
    del variables
    return _make_store(kind, place, authorization)


def _make_store(kind: str, place: str, authorization: str = "") -> Any:
    load_obstore()
    stores = importlib.import_module("obstore.store")
    if kind == "LocalStore":
        return stores.LocalStore(place)
    options: dict[str, Any] = {
        "client_options": {
            "read_timeout": READ_TIMEOUT,
            "timeout": REQUEST_TIMEOUT,
            "allow_http": place.startswith("http:"),
            **({"default_headers": {"Authorization": authorization}} if authorization else {}),
        },
        "retry_config": {
            "max_retries": MAX_RETRIES,
            "retry_timeout": timedelta(seconds=RETRY_SECONDS),
        },
    }
    return stores.HTTPStore(place, **options) if kind else stores.from_url(place, **options)


def _is_of_a_cloud(host: str) -> bool:
    """Tell whether the host of an https URL speaks the protocol of Azure or of S3."""
    return host.endswith((".blob.core.windows.net", ".dfs.core.windows.net", ".amazonaws.com"))
