"""OpenTelemetry spans of slow operations; needs opentelemetry-api (the extra ``opentelemetry``).

An application only has to call ``instrument(threshold=0.01)``. A span is made when its operation
has ended, so an operation below the threshold costs no more than reading the clock. The parent of a
span is the current span of the task that called. Inline verbs make no spans: they take
microseconds.
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

# Read at import, because ``instrument`` may be called on an event loop, which must not wait for a
# disk.
_VERSION = importlib.metadata.version("aiommap")


def instrument(tracer_provider: TracerProvider | None = None, *, threshold: float = 0.0) -> None:
    """Make a span for every operation that leaves the loop thread and takes long enough.

    - ``aiommap.open``; ``aiommap.prewarm``;
    - ``aiommap.read``: a read that was not answered inline; one span for a ``read_many``;
    - ``aiommap.write``: a write that was not stored inline, until it is durable under ``always()``;
    - ``aiommap.append``: an append, until it is durable under ``always()``;
    - ``aiommap.flush``: one span for each task that waits for a flush, from the request to its
      answer; also for background flushes and those of closing.

    The attributes of a span are ``aiommap.path``, ``aiommap.offset`` and ``aiommap.length`` in
    bytes, and ``aiommap.hops``, the number of hops. An exception is recorded, without its
    traceback, and sets the status. A cancellation sets ``aiommap.cancelled``. Spans are made for
    all files of the process, also for those that are open already. The last call of this function
    counts.

    Args:
        tracer_provider: where the spans go; None means the global one.
        threshold: operations shorter than this, in seconds, make no span.
    Raises:
        ValueError: if the threshold is negative, infinite or not a number.
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
    """Make no more spans; a second call does nothing."""
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
    # We do not call the span's own record_exception: it formats the traceback, and so reads source
    # files on the loop thread (I1).
    kind = type(error)
    return {
        "exception.type": f"{kind.__module__}.{kind.__qualname__}",
        "exception.message": str(error),
    }
