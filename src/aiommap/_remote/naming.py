"""Addresses of objects: what tells one from another, in whichever store they are.

Objects of one address share their blocks, in this process and in others. So an address has what an
engine goes by: endpoint, account and bucket, from the environment as well. If that cannot be told,
the address is private to the object that reads. No address has a secret in it (R13); of options
that may be secret it has a hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import sys
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import quote, unquote_plus

from .._core.paths import absolute_path
from .._errors import UnsupportedError
from .._runtime.threads import Mutex

#: Paths in which there is nothing to quote, as in nearly all.
_PLAIN = re.compile(r"[A-Za-z0-9/._~-]*")

# Names of our own, for what has no address. By id of what has the name; the reference tells whether
# the id still is its id.
_names: dict[int, tuple[weakref.ref[object], str]] = {}
_names_mutex = Mutex()


def private_name(what: object) -> str:
    """Return a name for something in this process; it is the same for as long as that lives."""
    with _names_mutex:
        known = _names.get(id(what))
        if known is None or known[0]() is not what:
            known = (weakref.ref(what), secrets.token_hex(8))
            _names[id(what)] = known
        return known[1]


def _quoted(path: str) -> str:
    return path if _PLAIN.fullmatch(path) else quote(path, safe="/!$&'()*+,;=:~-._")


def _join(base: str, *parts: str) -> str:
    """Append quoted parts to a URL; "file://" and "s3://" keep their slashes."""
    path = "/".join(_quoted(part).strip("/") for part in parts if part.strip("/"))
    return f"{base}{path}" if base.endswith(("://", ":///")) else f"{base.rstrip('/')}/{path}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


# obstore.


def address_in_store(store: Any, key: str) -> str:
    """Return the address of an object, from the configuration of its store and the environment.

    Raises:
        UnsupportedError: if that does not tell the address.
    """
    kind = type(store).__name__
    prefix = str(getattr(store, "prefix", None) or "")
    if kind == "HTTPStore":
        base, _, query = str(store.url).partition("#")[0].partition("?")
        if key:  # obstore appends a slash and the key, unless the path is "/"
            base = f"{base.removesuffix('/') if base.count('/') == 3 else base}/{_quoted(key)}"
        return base + _mark_of_query(query)
    if kind == "LocalStore":
        return _join("file:///", prefix, key)
    if kind == "MemoryStore":
        return f"memory://{private_name(store)}/{_quoted(key)}"
    place = _place_of(store)
    if place is None:
        raise UnsupportedError(
            f"cache an object of {kind}", "its address cannot be told: pass url= to ObstoreSource"
        )
    return _join(*place, prefix, key)


def roots_of_store(store: Any) -> tuple[str, ...]:
    """Return the URLs, with a slash at the end, below which the objects of a store can be named."""
    roots = [address_in_store(store, "")]
    place, scheme = _place_of(store), _SCHEMES.get(type(store).__name__)
    if place is not None and scheme is not None:
        roots.append(_join(scheme, place[-1], str(getattr(store, "prefix", None) or "")))
    return tuple(root if root.endswith("/") else f"{root}/" for root in roots)


def _place_of(store: Any) -> tuple[str, ...] | None:
    """Return the address of the bucket of a cloud, in parts; None if it cannot be told."""
    kind = type(store).__name__
    home = _HOMES.get(kind)
    return None if home is None else home(_Settings(kind, getattr(store, "config", None) or {}))


class _Settings:
    """The settings of a store: those that it was given, and those that it finds by itself."""

    def __init__(self, kind: str, config: Mapping[str, str]) -> None:
        self._kind = kind
        self._config = config

    def get(self, key: str, *variables: str) -> str | None:
        """Return a setting, which may come from one of the variables of the environment."""
        given = self._config.get(key)
        if given:
            return given
        found = {value: name for name in variables if (value := os.environ.get(name))}
        if len(found) > 1:
            names = " and ".join(found.values())
            raise UnsupportedError(
                f"cache an object of {self._kind}",
                f"{names} in the environment do not agree: unset one of them",
            )
        return next(iter(found), None)

    def has(self, key: str, variable: str) -> bool:
        """Tell whether a switch is on."""
        return (self.get(key, variable) or "").lower() in ("1", "true", "on", "yes", "y")


def _home_in_s3(settings: _Settings) -> tuple[str, str] | None:
    bucket = settings.get("bucket", "AWS_BUCKET", "AWS_BUCKET_NAME")
    endpoint = settings.get("endpoint_url_s3", "AWS_ENDPOINT_URL_S3")  # goes before the other one
    if endpoint is None:
        endpoint = settings.get("endpoint", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    return (endpoint or "s3://", bucket) if bucket else None


def _home_in_gcs(settings: _Settings) -> tuple[str, str] | None:
    bucket = settings.get("bucket", "GOOGLE_BUCKET", "GOOGLE_BUCKET_NAME")
    endpoint = settings.get("base_url", "GOOGLE_BASE_URL") or _endpoint_of_account(settings)
    return (endpoint or "gs://", bucket) if bucket else None


def _endpoint_of_account(settings: _Settings) -> str | None:
    """Return the endpoint that a service account of GCS names; those of emulators do."""
    text = settings.get("service_account_key", "GOOGLE_SERVICE_ACCOUNT_KEY")
    path = settings.get(
        "service_account",
        "GOOGLE_SERVICE_ACCOUNT",
        "GOOGLE_SERVICE_ACCOUNT_PATH",
        "SERVICE_ACCOUNT",
    )
    with suppress(OSError, ValueError):  # the store has read it, too
        if text is None and path is not None:
            with open(path, encoding="utf-8") as file:
                text = file.read()
        account = json.loads(text or "null")
        if isinstance(account, dict) and account.get("gcs_base_url"):
            return str(account["gcs_base_url"])
    return None


def _home_in_azure(settings: _Settings) -> tuple[str, ...] | None:
    account = settings.get("account_name", "AZURE_STORAGE_ACCOUNT_NAME")
    container = settings.get("container_name", "AZURE_CONTAINER_NAME")
    if not container:
        return None
    if settings.has("use_emulator", "AZURE_STORAGE_USE_EMULATOR"):
        base = os.environ.get("AZURITE_BLOB_STORAGE_URL") or "http://127.0.0.1:10000"
        return base, account or "devstoreaccount1", container
    endpoint = settings.get("endpoint", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
    if endpoint:
        return endpoint, container
    fabric = settings.has("use_fabric_endpoint", "AZURE_USE_FABRIC_ENDPOINT")
    host = "blob.fabric.microsoft.com" if fabric else "blob.core.windows.net"
    return (f"https://{account}.{host}", container) if account else None


_SCHEMES = {"S3Store": "s3://", "GCSStore": "gs://", "AzureStore": "az://"}
_HOMES: dict[str, Callable[[_Settings], tuple[str, ...] | None]] = {
    "S3Store": _home_in_s3,
    "GCSStore": _home_in_gcs,
    "AzureStore": _home_in_azure,
}


# Whole URLs.


def address_of_url(url: str) -> str:
    """Replace the query of a URL by a hash of it in the path, because the query may be secret.

    Fields that only sign a request are left out, so that all signed URLs of an object have one
    address.
    """
    base, _, query = url.partition("#")[0].partition("?")
    return base + _mark_of_query(query)


def _mark_of_query(query: str) -> str:
    if not query:
        return ""
    fields = [(unquote_plus(field.partition("=")[0]), field) for field in query.split("&")]
    names = {name.lower() for name, _ in fields}
    signing = {name for needed, more in _SIGNATURES if needed <= names for name in more | needed}
    rest = "&".join(
        field
        for name, field in fields
        if field and name.lower() not in signing and not _SIGNING.match(name)
    )
    return f";query={_hash(rest)}" if rest else ""


#: Fields of a query that say who may read, and not which object.
_SIGNING = re.compile(r"(?i)x-(?:amz|goog|ms)-|(?:access_token|api_?key)$")
#: Fields that say so together, and others that do beside them; a name alone may mean anything.
_SIGNATURES: tuple[tuple[frozenset[str], frozenset[str]], ...] = (
    (frozenset({"signature", "awsaccesskeyid"}), frozenset({"expires"})),
    (frozenset({"signature", "googleaccessid"}), frozenset({"expires"})),
    (frozenset({"signature", "key-pair-id"}), frozenset({"expires", "policy"})),
    (
        frozenset({"sig", "sv"}),  # Azure
        frozenset({"ss", "srt", "sp", "st", "se", "sip", "spr", "sr", "si", "ses", "sdd", "scid"})
        | {"skoid", "sktid", "skt", "ske", "sks", "skv", "saoid", "suoid"}
        | {"rscc", "rscd", "rsce", "rscl", "rsct"},
    ),
)


# fsspec.


def address_in_file_system(fs: Any, path: str) -> str:
    """Return the address of an object of an fsspec file system."""
    url = str(fs.unstrip_protocol(path))
    scheme, _, rest = url.partition("://")
    if scheme in ("http", "https"):
        return address_of_url(url)
    endpoint = _endpoint_of(fs, scheme)
    if endpoint is not None:
        return _join(endpoint, rest)
    return f"{scheme}://{_quoted(rest)};fs={_mark_of(fs, scheme)}"


def _endpoint_of(fs: Any, scheme: str) -> str | None:
    """Return the URL below which a file system lies; None if only its options tell that."""
    if scheme in ("file", "local"):
        return "file:///"
    account = getattr(fs, "account_url", None)
    if isinstance(account, str):  # of Azure
        return account
    variables = _ENDPOINTS.get(scheme)
    if variables is None:
        return None
    options = getattr(fs, "storage_options", None) or {}
    inner = options.get("client_kwargs") or {}
    for given in (inner.get("endpoint_url"), options.get("endpoint_url")):
        if given:
            return str(given)
    # What has a session or a profile takes its endpoint from there, perhaps.
    if options.get("session") or options.get("profile") or os.environ.get("AWS_PROFILE"):
        return None
    return next((found for name in variables if (found := os.environ.get(name))), f"{scheme}://")


_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "s3a": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "gs": ("STORAGE_EMULATOR_HOST",),
    "gcs": ("STORAGE_EMULATOR_HOST",),
}
#: What file systems take from the environment, besides credentials.
_VARIABLES = (
    "AWS_CONFIG_FILE",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_PROFILE",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_CONNECTION_STRING",
    "STORAGE_EMULATOR_HOST",
)


class _UntoldError(Exception):
    """A file system has something that other processes cannot have, or that cannot be compared."""


def _mark_of(fs: Any, scheme: str) -> str:
    """Return a hash of all that a file system was made with; a private name if that is not all."""
    try:
        if scheme == "memory":
            raise _UntoldError
        variables = [os.environ.get(name) for name in _VARIABLES]
        settings = getattr(sys.modules.get("fsspec.config"), "conf", None)
        return _hash(json.dumps([_identity(fs), variables, _identity(settings)], sort_keys=True))
    except _UntoldError:
        pass
    try:
        return private_name(fs)
    except TypeError:  # there are no weak references to it
        return secrets.token_hex(8)


def _identity(value: Any, name: str = "") -> Any:
    """Return what is equal for equal values, in all processes, and can be written as JSON."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str | os.PathLike):
        return _identity_of_text(os.fspath(value), name)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise _UntoldError
        return {key: _identity(inner, key) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_identity(inner, name) for inner in value]
    options = getattr(value, "storage_options", None)
    if not isinstance(options, Mapping):
        raise _UntoldError
    # Relative paths stand in arguments without a name, too.
    arguments = _identity(getattr(value, "storage_args", ()), "path")
    kind = type(value)
    return [kind.__module__, kind.__qualname__, arguments, _identity(options)]


def _identity_of_text(text: str | bytes, name: str) -> str:
    if not isinstance(text, str) or re.search(r"(?:^|::)memory(?:$|:)", text):
        raise _UntoldError
    if name not in ("fo", "path") or "://" in text:
        return text
    path = absolute_path(text or ".")
    if not path.startswith("/"):  # the current folder was removed
        raise _UntoldError
    return path
