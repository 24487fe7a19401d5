"""The loggers below ``aiommap``; silent unless the application configures logging."""

from __future__ import annotations

import logging

#: Files opened and closed, DEBUG.
FILES = logging.getLogger("aiommap.files")
#: The flush failure that latches, ERROR.
FLUSHES = logging.getLogger("aiommap.flushes")
#: Problems that keep files from being watched, WARNING and ERROR.
WATCHING = logging.getLogger("aiommap.watching")
#: New generations of followed paths, INFO; a failure to close an old one, WARNING; a file that
#: cannot be served, or an error that ends following, ERROR with its traceback.
FOLLOWING = logging.getLogger("aiommap.following")
#: A log that has no room for its next segment, WARNING; the failure that ends a writer, ERROR.
LOGS = logging.getLogger("aiommap.logs")
#: Failures of the cache of remote objects, WARNING: reads then miss the cache, and do not fail.
REMOTE = logging.getLogger("aiommap.remote")
#: Errors of callbacks and observers of the application, ERROR with their traceback.
CALLBACKS = logging.getLogger("aiommap.callbacks")

# Without this handler Python would print records that no handler takes.
logging.getLogger("aiommap").addHandler(logging.NullHandler())
