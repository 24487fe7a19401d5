"""OpenTelemetry spans of slow operations; needs opentelemetry-api (the extra ``opentelemetry``).

``instrument(threshold=0.01)`` is all an application has to do. A span is made when its operation
has ended, so that one below the threshold costs no more than looking at the clock; its parent is
the span that is current in the task that asked. Inline verbs make none: they take microseconds.
"""

from __future__ import annotations

import importlib.metadata
import math
from functools import partial

from ._runtime.tracing import Operation, set_observer

try:
    from opentelemetry.trace import Status, StatusCode, Tracer, TracerProvider, get_tracer
except ImportError as _missing:
    raise ImportError(
        'aiommap.opentelemetry needs opentelemetry-api: pip install "aiommap[opentelemetry]"'
    ) from _missing

__all__ = ("instrument", "uninstrument")

# Read here, because instrument may be called on an event loop, which must not wait for a disk.
_VERSION = importlib.metadata.version("aiommap")


def instrument(tracer_provider: TracerProvider | None = None, *, threshold: float = 0.0) -> None:
    """Make a span of every operation that goes to a worker thread and takes long enough.

    - ``aiommap.open``; ``aiommap.prewarm``;
    - ``aiommap.read``: a read that was not answered inline, ``read_many`` as one;
    - ``aiommap.write``: a write that was not stored inline, until it is durable under ``always()``;
    - ``aiommap.append``: an append, until it is durable under ``always()``;
    - ``aiommap.flush``: one for everybody who waits for a flush, from the request to its answer,
      and for flushes of a policy and of closing.

    Attributes: ``aiommap.path``, ``aiommap.offset`` and ``aiommap.length`` in bytes, and
    ``aiommap.hops``, trips to a worker thread. An exception is recorded, without its traceback,
    and sets the status; a cancellation sets ``aiommap.cancelled``. All files of the process are
    meant, also those open already; called again, the last call holds.

    Args:
        tracer_provider: where the spans go; None means the global one.
        threshold: operations shorter than this, in seconds, make no span.
    Raises:
        ValueError: if the threshold is negative or not a number.
    Concurrency: spans are made on the loop thread: use a processor that does not export there,
        such as ``BatchSpanProcessor``.
    """
    if isinstance(tracer_provider, int | float):
        raise TypeError(f"tracer_provider is {tracer_provider}: write threshold={tracer_provider}")
    if not 0 <= threshold < math.inf:
        raise ValueError(f"threshold is {threshold}: give seconds, 0 for a span of everything")
    tracer = get_tracer("aiommap", _VERSION, tracer_provider)
    set_observer(partial(_report, tracer, threshold))


def uninstrument() -> None:
    """Make no more spans; twice is once."""
    set_observer(None)


def _report(tracer: Tracer, threshold: float, operation: Operation) -> None:
    if operation.seconds < threshold:
        return
    span = tracer.start_span(
        f"aiommap.{operation.name}",
        start_time=operation.started,
        attributes={
            # A path need not be UTF-8, but an attribute has to be.
            "aiommap.path": operation.path.encode("utf-8", "backslashreplace").decode(),
            "aiommap.offset": operation.offset,
            "aiommap.length": operation.length,
            "aiommap.hops": operation.hops,
        },
    )
    error, end = operation.error, operation.started + round(operation.seconds * 1e9)
    if isinstance(error, Exception):
        span.add_event("exception", _facts(error), end)
        span.set_status(Status(StatusCode.ERROR, str(error)))
    elif error is not None:
        span.set_attribute("aiommap.cancelled", True)
    span.end(end)


def _facts(error: Exception) -> dict[str, str]:
    # Not the span's own record_exception: it formats the traceback, and so reads source files on
    # the loop thread (I1).
    kind = type(error)
    return {
        "exception.type": f"{kind.__module__}.{kind.__qualname__}",
        "exception.message": str(error),
    }
