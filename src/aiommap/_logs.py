"""The loggers: ``aiommap`` and those below it; silent unless the application configures logging."""

from __future__ import annotations

import logging

#: Files opened and closed, DEBUG.
FILES = logging.getLogger("aiommap.files")
#: The flush failure that latches, ERROR.
FLUSHES = logging.getLogger("aiommap.flushes")
#: What keeps files from being watched, WARNING and ERROR.
WATCHING = logging.getLogger("aiommap.watching")
#: New generations of followed paths, INFO; trouble closing an old one, WARNING; what could not be
#: served, or ended following, ERROR with its traceback.
FOLLOWING = logging.getLogger("aiommap.following")
#: The next segment of a log that found no room, WARNING; the failure that ends a writer, ERROR.
LOGS = logging.getLogger("aiommap.logs")
#: Failures of the cache of remote objects, WARNING: each was a miss, and no error of a read.
REMOTE = logging.getLogger("aiommap.remote")
#: What an application's callback or observer raised, ERROR with its traceback.
CALLBACKS = logging.getLogger("aiommap.callbacks")

# Without it Python would print what no handler takes.
logging.getLogger("aiommap").addHandler(logging.NullHandler())
