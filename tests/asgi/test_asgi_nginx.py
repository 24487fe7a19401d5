"""Random and hostile requests, each sent to MappedFiles and to nginx, which serve one folder.

Where the two answer differently on purpose, ``DIFFERENCES`` says how, and docs/serving.md lists it.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
from dataclasses import dataclass
from email.utils import formatdate
from urllib.parse import unquote, urljoin, urlsplit

import pytest

from tests.support.http_servers import RawClient, nginx, uvicorn
from tests.support.internals import canonical

REQUESTS = 2000
FILES = {
    "/data.bin": random.Random(1).randbytes(70_001),
    "/page.html": b"<p>page",
    "/sub/text.txt": b"text" * 1000,
    "/sub/index.html": b"<p>sub",
    "/index.html": b"<p>root",
    "/empty": b"",
    "/a b+c&d.txt": b"odd name",
    "/ü.txt": b"umlaut",
    "/%41": b"percent",
    "/back\\slash": b"back",
    "/.hidden": b"hidden",
}
NAMES = [
    "data.bin",
    "page.html",
    "sub",
    "text.txt",
    "empty",
    "index.html",
    "none",
    "bare",
    ".hidden",
]
NAMES += ["in", "out", "outfile", "pipe", "a%20b+c%26d.txt", "%C3%BC.txt", "%2541", "back%5cslash"]
HOSTILE = [
    "..",
    ".",
    "",
    "%2e%2e",
    "%2E",
    ".%2e",
    "%2f",
    "..%2f",
    "%00",
    "..\\",
    "%5c..",
    "...",
    "%2e%2e%2f",
]
HOSTILE += ["~", "etc", "passwd", ";", "%c0%ae", "%ff", "\\", "*", "a" * 300]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "file").write_bytes(b"secret")
    made = tmp_path_factory.mktemp("folder") / "www"
    for name, content in FILES.items():
        path = made / name[1:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (0, 1_600_000_000))
    (made / "bare").mkdir()
    (made / "in").symlink_to("sub")
    (made / "out").symlink_to(outside)
    (made / "outfile").symlink_to(outside / "file")
    os.mkfifo(made / "pipe")
    return made


@pytest.fixture(scope="module")
def clients(folder, tmp_path_factory):
    with nginx(folder, tmp_path_factory.mktemp("nginx")) as theirs, uvicorn(folder) as ours:
        pair = RawClient(ours), RawClient(theirs)
        yield pair
        for client in pair:
            client.close()


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    headers: dict

    @property
    def path(self):
        return unquote(self.target.partition("?")[0])

    @property
    def names(self):
        """The names in the path, with dots resolved."""
        found = []
        for name in self.path.split("/"):
            if name == ".." and found:
                found.pop()
            elif name not in ("", "."):
                found.append(name)
        return found


def draw_target(draw):
    kind = draw.random()
    if kind < 0.55:
        target = draw.choice(["/data.bin", "/page.html", "/sub/text.txt", "/empty", "/in/text.txt"])
    elif kind < 0.75:
        target = "/" + "/".join(draw.choices(NAMES, k=draw.randint(1, 3)))
    else:
        target = "/" + "/".join(draw.choices(NAMES + HOSTILE, k=draw.randint(1, 6)))
    if draw.random() < 0.15:
        target += "/"
    if draw.random() < 0.1:
        target += draw.choice(["?", "?a=b", "?a=%20&b=/../c", "?#", "?/etc/passwd"])
    return target


def draw_spec(draw):
    first = draw.choice([0, 0, 1, 5, 4095, 4096, 69_999, 70_000, 70_001, 99_999, 2**63, 2**64])
    last = draw.choice([0, 1, 9, 4096, 69_999, 70_000, 80_000, 2**63 - 1, 2**64 + 5])
    form = draw.random()
    if form < 0.5:
        return f"{first}-{last}"
    if form < 0.7:
        return f"{first}-"
    if form < 0.9:
        return f"-{draw.choice([0, 1, 5, 70_000, 70_001, 99_999])}"
    return draw.choice(["", "-", "a-b", "1-2-3", "--1", "+1-2", "5-4", "1 - 2", "0x1-2", "1_0-2"])


def draw_range(draw):
    if draw.random() < 0.05:
        return draw.choice(["bytes", "bytes=", "lines=1-2", "bytes 0-1", "0-1", "bytes=0-1;2-3"])
    if draw.random() < 0.04:
        return "bytes=" + ",".join(f"{2 * i}-{2 * i}" for i in range(draw.choice([99, 101, 300])))
    specs = [draw_spec(draw) for _ in range(draw.choice([1, 1, 1, 2, 3, 8]))]
    return draw.choice(["bytes=", "bytes=", "BYTES=", "bytes= "]) + draw.choice([",", ", "]).join(
        specs
    )


def draw_tags(draw):
    tags = draw.choices(
        ["{etag}", "W/{etag}", '"other"', "*", "junk", '""'], k=draw.choice([1, 1, 2])
    )
    return ", ".join(tags)


def draw_date(draw):
    seconds = 1_600_000_000 + draw.choice([-86_400, -1, 0, 0, 1, 86_400])
    return draw.choice([formatdate(seconds, usegmt=True)] * 4 + ["soon", "0"])


def draw_request(draw):
    method = draw.choices(
        ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"], [80, 10, 3, 3, 2, 2]
    )[0]
    headers = {}
    if draw.random() < 0.5:
        headers["Range"] = draw_range(draw)
    if draw.random() < 0.15:
        headers["If-Range"] = draw.choice(["{etag}", "W/{etag}", '"other"', draw_date(draw)])
    for name, make, share in (
        ("If-Match", draw_tags, 0.15),
        ("If-None-Match", draw_tags, 0.15),
        ("If-Modified-Since", draw_date, 0.1),
        ("If-Unmodified-Since", draw_date, 0.15),
    ):
        if draw.random() < share:
            headers[name] = make(draw)
    if method in ("POST", "PUT"):
        headers["Content-Length"] = "0"
    return Request(method, draw_target(draw), headers)


def ask(client, request, tags):
    """Ask with the entity tag that this server gives the file."""
    headers = dict(request.headers)
    if any("{etag}" in value for value in headers.values()):
        path = request.target.partition("?")[0]
        if path not in tags:
            tags[path] = client.ask("HEAD", path).headers.get("etag", '"none"')
        headers = {name: value.replace("{etag}", tags[path]) for name, value in headers.items()}
    return client.ask(request.method, request.target, headers.items())


def parts_of(response):
    """Return the bytes of a 206 by their offset, whether it has one part or several."""
    kind = response.headers["content-type"]
    if not kind.startswith("multipart/byteranges"):
        return place(response.headers["content-range"], response.body)
    boundary = kind.partition("boundary=")[2].encode()
    found = {}
    before, *parts, end = response.body.split(b"\r\n--" + boundary)
    assert (before, end) == (b"", b"--\r\n")
    for part in parts:
        head, _, body = part.partition(b"\r\n\r\n")
        (said,) = re.findall(rb"(?i)content-range: ([^\r\n]+)", head)
        found |= place(said.decode(), body)
    return found


def place(said, body):
    first, last, _ = map(int, re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", said).groups())
    assert last - first + 1 == len(body)
    return {first + i: byte for i, byte in enumerate(body)}


def summary(request, response):
    """Return what must be equal in both answers."""
    headers = response.headers
    found = {"status": response.status}
    if response.status in (200, 304):
        found["modified"] = headers.get("last-modified")
        found["tagged"] = "etag" in headers
    if response.status == 200:
        found["type"] = headers["content-type"]
        found["length"] = headers["content-length"]
        found["body"] = hashlib.sha256(response.body).hexdigest()
        found["ranges"] = headers.get("accept-ranges")
    if response.status == 206 and request.method == "GET":
        found["bytes"] = parts_of(response)
    if response.status == 416:
        found["range"] = headers["content-range"]
    if response.status == 301:
        place = urlsplit(urljoin(f"http://test{request.target}", headers["location"]))
        found["place"] = canonical(unquote(place.path)), place.query
    return found


def size_of(request):
    names = ["sub" if name == "in" else name for name in request.names]
    path = "/" + "/".join(names)
    for found in (path, path.rstrip("/") + "/index.html"):
        if found in FILES:
            return len(FILES[found])
    return 0


def is_malformed(spec):
    found = re.fullmatch(r"\s*(\d*)-(\d*)\s*", spec)
    if found is None or found[0].strip() == "-":
        return True
    return bool(found[1] and found[2]) and int(found[2]) < int(found[1])


def specs_of(request):
    return request.headers.get("Range", "").partition("=")[2].split(",")


def total_asked(request):
    """Return how many bytes the ranges have together; common ones count more than once."""
    size, total = size_of(request), 0
    for spec in specs_of(request):
        first, _, last = spec.strip().partition("-")
        start = int(first) if first else max(size - int(last), 0)
        end = min(int(last) + 1, size) if first and last else size
        total += max(end - start, 0)
    return total


DATED = ("If-Modified-Since", "If-Unmodified-Since")

#: What is answered differently on purpose: (what, whether it applies, our status, that of nginx).
DIFFERENCES = (
    (
        "a date that is none is ignored",
        lambda r: any(r.headers.get(name) in ("soon", "0") for name in DATED),
        {200, 206, 304, 416},
        {412},
    ),
    (
        "where there is an entity tag, the date does not count",
        lambda r: "If-None-Match" in r.headers and "If-Modified-Since" in r.headers,
        {304},
        {200, 206, 416},
    ),
    (
        "where there is an entity tag to match, the date does not count",
        lambda r: "If-Match" in r.headers and "If-Unmodified-Since" in r.headers,
        {200, 206, 304, 416},
        {412},
    ),
    (
        "a number beyond 63 bits is a number",
        lambda r: any(int(n) >= 2**63 for n in re.findall(r"\d+", r.headers.get("Range", ""))),
        {206},
        {416},
    ),
    (
        "ranges are defined for GET alone",
        lambda r: r.method == "HEAD" and "Range" in r.headers,
        {200},
        {206, 416},
    ),
    (
        "a malformed Range is ignored, and not refused",
        lambda r: any(map(is_malformed, specs_of(r))),
        {200},
        {416, 206},
    ),
    (
        "an empty member of a list of ranges is none",
        lambda r: len(specs_of(r)) > 1 and any(not spec.strip() for spec in specs_of(r)),
        {206},
        {416},
    ),
    (
        "of an empty file no range can be named",
        lambda r: size_of(r) == 0 and "Range" in r.headers,
        {200},
        {416},
    ),
    (
        "ranges that overlap are merged, where nginx sends the whole file",
        lambda r: not any(map(is_malformed, specs_of(r))) and total_asked(r) > size_of(r),
        {206},
        {200},
    ),
    ("more than 100 ranges are refused", lambda r: len(specs_of(r)) > 100, {416}, {200, 206}),
    (
        "a date in If-Range never matches",
        lambda r: r.headers.get("If-Range", "").endswith("GMT"),
        {200},
        {206, 416},
    ),
    ("a folder without index is not there", lambda r: True, {404}, {403}),
    (
        "a link that leads out is not there",
        lambda r: r.names[:1] in (["out"], ["outfile"]),
        {404, 405},
        {200, 206, 301, 304, 403, 404, 412, 416},
    ),
    (
        "another method is refused before the file is looked for",
        lambda r: r.method not in ("GET", "HEAD"),
        {405},
        {301, 400, 403, 404},
    ),
)


def difference(request, ours, theirs):
    for what, applies, our_status, their_status in DIFFERENCES:
        if ours["status"] in our_status and theirs["status"] in their_status and applies(request):
            return what
    return None


@pytest.mark.slow
def test_nginx_answers_the_same(clients):
    draw = random.Random(4)
    tags = {}, {}
    met, unexplained, equal = {}, [], 0
    for _ in range(REQUESTS):
        request = draw_request(draw)
        answers = [ask(client, request, known) for client, known in zip(clients, tags, strict=True)]
        assert b"secret" not in answers[0].body
        ours, theirs = (summary(request, answer) for answer in answers)
        if ours == theirs:
            equal += 1
            continue
        what = difference(request, ours, theirs)
        if what is None:
            unexplained.append(f"{request}\n  ours {ours}\n  nginx {theirs}"[:1000])
        else:
            met[what] = met.get(what, 0) + 1
    assert not unexplained, f"{len(unexplained)} of {REQUESTS}:\n" + "\n".join(unexplained)
    assert met.keys() == {what for what, *_ in DIFFERENCES}
    assert equal > REQUESTS * 0.6
