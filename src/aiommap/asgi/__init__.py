"""Serve files over HTTP from any ASGI server; needs starlette (the extra ``asgi``).

``MappedFiles(folder)`` is an application: mount it, or run it alone. An endpoint of Starlette or
FastAPI returns ``MappedFileResponse(file)``. ``import aiommap`` does not load this module.
"""

from __future__ import annotations

from ._files import MappedFiles as MappedFiles

try:
    from ._response import MappedFileResponse as MappedFileResponse
except ModuleNotFoundError as _missing:
    if (_missing.name or "").partition(".")[0] != "starlette":
        raise
    raise ImportError('aiommap.asgi needs starlette: pip install "aiommap[asgi]"') from _missing

__all__ = ("MappedFileResponse", "MappedFiles")

for _name in __all__:
    globals()[_name].__module__ = __name__
