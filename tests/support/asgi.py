"""A client that calls an ASGI application without a server, on any event loop."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from urllib.parse import unquote

import anyio

import aiommap

#: The content of the file that most tests ask for.
CONTENT = random.Random(1).randbytes((1 << 20) + 17)
SIZE = len(CONTENT)


@dataclass
class Answer:
    """The messages that an application has sent."""

    messages: list = field(default_factory=list)

    @property
    def status(self):
        return self.messages[0]["status"]

    @property
    def headers(self):
        found = {}
        for name, value in self.messages[0]["headers"]:
            assert name not in found, name
            found[name.decode()] = value.decode()
        return found

    @property
    def bodies(self):
        """The pieces of the body, as a server would write them."""
        assert all(message["type"].startswith("http.response.") for message in self.messages)
        return [_bytes_of(message) for message in self.messages[1:]]

    @property
    def body(self):
        return b"".join(self.bodies)

    @property
    def is_complete(self):
        return len(self.messages) > 1 and not self.messages[-1].get("more_body", False)


def _bytes_of(message):
    if message["type"] == "http.response.body":
        return message.get("body", b"")
    assert message["type"] == "http.response.zerocopysend"
    return message["copied"]


def scope_of(path, /, method="GET", **given):
    """Make a scope as a server does; header fields are keyword arguments with underscores."""
    headers = given.pop("headers", {})
    target, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(target),
        "raw_path": target.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(b"host", b"test"), (b"accept", b"*/*")],
        "server": ("test", 80),
        "client": ("test", 1234),
    }
    for name, value in headers.items():
        scope["headers"].append((name.replace("_", "-").encode(), value.encode("latin-1")))
    return scope | given


async def ask(app, path, /, method="GET", *, on_send=None, receive=None, answer=None, **given):
    """Send a request and return the answer, complete or not; raise what the application raises.

    Args:
        on_send: called and awaited with each message before it counts as sent.
        receive: called by the application for messages; by default the client stays connected.
        answer: gets the messages, for a caller that looks at them while they are being sent.
    """
    answer = Answer() if answer is None else answer

    async def send(message):
        if on_send is not None:
            await on_send(message)
        if message["type"] == "http.response.zerocopysend":
            copied = os.pread(message["file"].fileno(), message["count"], message["offset"])
            message = message | {"copied": copied}
        answer.messages.append(message)

    async def stay():
        await anyio.sleep_forever()

    await app(scope_of(path, method, **given), receive or stay, send)
    return answer


def replace(path, content):
    beside = path.with_name("beside")
    beside.write_bytes(content)
    beside.replace(path)


def overwrite(path, content, offset=0):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


async def until_answered(app, path, expected):
    """Ask until the body is the expected one, which it is once the watcher has noticed."""
    with anyio.fail_after(100):
        while True:
            await anyio.sleep(0.001)  # leave the processor to the watcher
            try:
                answer = await ask(app, path)
            except aiommap.StaleSnapshotError:  # noticed while an older version was being sent
                continue
            if answer.body == expected:
                return


async def until_unknown(app, path, tag):
    """Ask until the answer has another entity tag."""
    with anyio.fail_after(100):
        while (await ask(app, path, headers={"if_none_match": tag})).status == 304:
            await anyio.sleep(0.001)
