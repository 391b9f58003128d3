"""Requests that are broken, or meant to break the server: each must get its 4xx, and the next good one its answer.

`python tests/broken_requests.py [COUNT] [SEED]` sends COUNT of them (500) and prints the failures.
"""

from __future__ import annotations

import base64
import io
import json
import random
import struct
import sys
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from grounds import KEY, MAX_BODY_BYTES, Case, Grounds, grounds
from serving import QUESTION, data_url, message

_PATH = "/v1/chat/completions"


def cases(grounds: Grounds, count: int, seed: int) -> Iterator[Case]:
    """Yield `count` cases, of all kinds in rotation, with random values."""
    rng = random.Random(seed)
    kinds = (_json, _types, heads, _media, paths, hosts, _keys, heads, _types, paths)
    counts = Counter[object]()
    for number in range(count):
        kind = _slow if number % 50 == 25 else kinds[number % len(kinds)]
        made = kind(grounds, rng)
        yield made[(17 * seed + counts[kind]) % len(made)]
        counts[kind] += 1


def request(body: bytes, *headers: str, host: str = "127.0.0.1", length: int | None = None) -> bytes:
    """Return the bytes of a request."""
    own = {name.partition(":")[0].lower() for name in headers}
    lines = [f"POST {_PATH} HTTP/1.1"]
    lines += [] if "host" in own else [f"Host: {host}"]
    lines += [] if "content-type" in own else ["Content-Type: application/json"]
    lines += [] if "transfer-encoding" in own or "content-length" in own else [f"Content-Length: {length or len(body)}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1") + body


def _values(grounds: Grounds, **values: Any) -> dict[str, Any]:
    return {"messages": [message(QUESTION, grounds.clip.as_uri())], "max_tokens": 4} | values


def _asking(name: str, url: str, *statuses: int, key: bool = False) -> Case:
    body = json.dumps({"messages": [message(QUESTION, url)], "max_tokens": 4}).encode()
    return Case(f"{name} {url[:80]}", [request(body)], statuses or (400,), key=key)


def _json(grounds: Grounds, rng: random.Random) -> list[Case]:
    good = json.dumps(_values(grounds)).encode()
    cut = good[: rng.randrange(1, len(good) - 1)]
    at = rng.randrange(len(good))
    depth = rng.randrange(5000, 100_000)
    bodies = {
        "cut off": cut,
        "no UTF-8": good[:at] + bytes([rng.randrange(0x80, 0xC0)]) + good[at:],
        "noise": rng.randbytes(rng.randrange(1, 4000)),
        "nested": b"[" * depth + b"]" * depth,
        "nested objects": b'{"a":' * depth + b"1" + b"}" * depth,
        "a list": b"[" + good + b"]",
        "a number": str(rng.random()).encode(),
        "no number": good[:-1] + b',"temperature":NaN}',
        "infinity": good[:-1] + b',"temperature":-Infinity}',
        "twice the same key": good[:-1] + b',"max_tokens":3}',
        "a long number": good[:-1] + b',"seed":' + b"9" * rng.randrange(5000, 100_000) + b"}",
        "empty": b"",
        "half a character": good.replace(b"What", b"\\ud800"),
        "a mark at the start": b"\xef\xbb\xbf" + good,
        "two documents": good + good,
        "form data": b"messages=hello",
        "cut in the middle of an escape": good[:10] + b"\\u12",
    }
    many = b"[" + b"[]," * 300_000 + b"[]]"
    return [Case(f"JSON: {name}", [request(body)], (400,)) for name, body in bodies.items()] + [
        Case("JSON: many parts", [request(many)], (413,))
    ]


_ODD: tuple[Any, ...] = (0, -1, 1.5, True, "x", [], {}, [[]], {"a": 1}, [None], "\0", 10**30, 1e300)


def _types(grounds: Grounds, rng: random.Random) -> list[Case]:
    wrong: dict[str, Sequence[Any]] = {
        "messages": (
            None,
            1,
            "hello",
            {},
            [],
            [1],
            [[]],
            [{}],
            [{"role": "user"}],
            [{"role": "wizard", "content": "x"}],
        ),
        "temperature": (-1, "hot", True, [1], {}, 1e400),
        "top_p": (0, 2, -0.5, "x", [], False),
        "max_tokens": (0, -5, 1.5, "many", [], {}, 10**30, True),
        "max_completion_tokens": (0, "x", 2.5, 2**31),
        "repetition_penalty": (0, -2, "x", {}),
        "seed": (-1, 2**63, 1.5, "x", [1], True),
        "stop": (1, {}, [1], [""], "", ["x"] * 17, ["y" * 300], [None]),
        "stream": (1, "yes", [], {}),
        "stream_options": (1, "x", [], {"include_usage": 1}, {"unknown": True}),
        "n": (0, 17, "1", True, [1]),
        "tools": ([{"type": "function"}], {}, 1),
        "response_format": (
            {"type": "xml"},
            "json",
            1,
            {"type": "json_schema"},
            {"type": "json_schema", "json_schema": {"schema": 1}},
            {"type": "json_schema", "json_schema": {"schema": {"not": {}}}},
            {"type": "json_schema", "json_schema": {"schema": {"$ref": "file:///etc/passwd"}}},
            {"type": "json_object", "schema": {}},
        ),
        "structured_outputs": (1, {}, {"choice": []}, {"choice": [1]}, {"regex": "("}, {"json": 1}, {"grammar": "x"}),
        "logprobs": (1, "x"),
        "top_logprobs": (1, -1, 21, "x"),
        "top_k": (-2, 1.5, "x"),
        "min_p": (-1, 2, "x"),
        "logit_bias": ({"1": 2}, 1),
        "frequency_penalty": (1e9, "x"),
        "presence_penalty": (-1e9, "x"),
        "sampling": (
            1,
            [],
            {"frames": 0},
            {"frames": 10**9},
            {"frames": "8"},
            {"fps": -1},
            {"mode": "odd"},
            {"nope": 1},
        ),
        "media_io_kwargs": (1, {"video": 1}, {"video": {"num_frames": -3}}, {"video": {"fps": "x"}}, {"nope": {}}),
        rng.choice(("temprature", "frames", "prompt", "__class__", "", "ф")): (1, {}),
    }
    contents: tuple[Any, ...] = (
        1, {}, [1], [{"type": "text"}], [{"type": "text", "text": 1}], [{"type": "video_url"}],
        [{"type": "video_url", "video_url": {"url": 1}}], [{"type": "image_url", "image_url": {}}],
        [{"type": "input_audio", "input_audio": {}}], [{"type": "video_url", "video_url": {"url": ""}}],
        [None], [{"type": []}], "x" * 300_000,
    )  # fmt: skip
    turns: tuple[Any, ...] = (
        [{"role": "assistant", "content": "hello"}], [{"role": "system", "content": "hello"}],
        [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}, {"role": "user", "content": "c"}],
        [{"role": "tool", "content": "a", "tool_call_id": "1"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [{}]}],
        [{"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}],
        [{"role": "user", "content": "word " * 40_000}],
    )  # fmt: skip
    invalid = [({name: rng.choice(values)}, name) for name, values in wrong.items()]
    invalid += [({"messages": [{"role": "user", "content": content}]}, "content") for content in contents]
    invalid += [({"messages": messages}, "turns") for messages in turns]
    made = [
        Case(f"types: {name} {str(v)[:90]}", [request(_dumped(_values(grounds, **v)))], (400,)) for v, name in invalid
    ]
    other: Any = rng.choice(("gpt-4", 1, "../demo", [], ""))
    return [*made, Case(f"types: model {other}", [request(_dumped(_values(grounds, model=other)))], (404,))]


def _dumped(values: Any) -> bytes:
    return json.dumps(values).encode().replace(b"Infinity", b"1e999")


def heads(grounds: Grounds, rng: random.Random) -> list[Case]:
    """Return requests with broken heads."""
    good = _dumped(_values(grounds))
    evil = rng.choice(
        ("evil.example", "evil.example:8377", "127.0.0.1.evil.example", "169.254.169.254", "[::2]", "a@b", "[")
    )
    origin = rng.choice(("https://evil.example", "null", "http://127.0.0.1:1", "file://", "http://localhost"))
    flood = b"".join(b"10000\r\n" + b"x" * 0x10000 + b"\r\n" for _ in range(MAX_BODY_BYTES // 0x10000 + 2))
    chunked = "Transfer-Encoding: chunked"
    claim = rng.choice((2 * 2**30, MAX_BODY_BYTES + 1, 10**17))
    return [
        Case(f"head: {claim} bytes claimed", [request(b"", f"Content-Length: {claim}")], (413,)),
        Case("head: a length of many digits", [request(b"", "Content-Length: " + "9" * 30)], (400, 413)),
        Case("head: a length below zero", [request(good, "Content-Length: -5")], (400,)),
        Case("head: a length that is none", [request(good, "Content-Length: many")], (400,)),
        Case("head: two lengths", [request(good, "Content-Length: 5", f"Content-Length: {len(good)}")], (400,)),
        Case("head: length and chunks", [request(b"0\r\n\r\n", "Content-Length: 5", chunked)], (400,)),
        Case("head: chunks without end", [request(b"", chunked), flood], (413,), may_close=True),
        Case("head: a chunk of no size", [request(b"zz\r\nhello\r\n", chunked)], (400,), may_close=True),
        Case("head: a chunk of a size below zero", [request(b"-1\r\nhello\r\n", chunked)], (400,), may_close=True),
        Case(
            "head: text", [request(good, f"Content-Type: {rng.choice(('text/plain', 'multipart/form-data'))}")], (415,)
        ),
        Case("head: packed", [request(zlib.compress(b" " * 2**20), "Content-Encoding: deflate")], (415,)),
        Case(f"head: host {evil}", [request(good, host=evil)], (400, 403)),
        Case("head: no host", [request(good).replace(b"Host: 127.0.0.1\r\n", b"")], (400,)),
        Case(f"head: origin {origin}", [request(good, f"Origin: {origin}")], (403,)),
        Case("head: a long line", [request(good, "X-Long: " + "x" * rng.randrange(600_000, 900_000))], (400,), True),
        Case("head: many lines", [request(good, *(f"X-{n}: {'y' * 90}" for n in range(9000)))], (400,), True),
        Case("head: no HTTP", [rng.randbytes(200) + b"\r\n\r\n"], (400,)),
        Case("head: TLS", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(300)], (400,), True),
        Case("head: a line in a line", [request(good, "X-A: b\r\n \x00c")], (400,)),
        Case("path: none", [request(good).replace(_PATH.encode(), b"/v1/nothing")], (404,)),
        Case("path: up", [request(good).replace(_PATH.encode(), b"/../../etc/passwd")], (404,)),
        Case("path: up, hidden", [request(good).replace(_PATH.encode(), b"/%2e%2e/%2e%2e/etc/passwd")], (404,)),
        Case("path: long", [request(good).replace(_PATH.encode(), b"/" + b"a" * 10_000)], (404, 400)),
        Case("method: DELETE", [request(good).replace(b"POST", b"DELETE", 1)], (405,)),
        Case("method: GET", [b"GET /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n\r\n"], (405,)),
        Case("method: odd", [request(good).replace(b"POST", b"BREW", 1)], (405,)),
        Case("model: none", [b"GET /v1/models/..%2f..%2fetc HTTP/1.1\r\nHost: localhost\r\n\r\n"], (404,)),
    ]


def _slow(grounds: Grounds, _: random.Random) -> list[Case]:
    good = request(_dumped(_values(grounds)))
    head, body = good.split(b"\r\n\r\n")
    drip = [bytes([byte]) for byte in body[:30]]
    return [
        Case("slow: nothing", [b""], (408,), may_close=True),
        Case("slow: half a head", [good[:40]], (408,), may_close=True),
        Case("slow: a head in drops", [bytes([byte]) for byte in good[:25]], (408,), True, pause_seconds=0.05),
        Case("slow: a body in drops", [head + b"\r\n\r\n", *drip], (408,), pause_seconds=0.05),
        Case("slow: no body", [head + b"\r\n\r\n"], (408,)),
    ]


def _media(grounds: Grounds, rng: random.Random) -> list[Case]:
    clip = grounds.clip.read_bytes()
    cut = clip[: rng.randrange(1, len(clip) // 2)]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("clip.mp4", b"\0" * 10**7)
    huge = rng.choice((20_000, 60_000))
    secret = str(grounds.secret)
    contents = {
        "cut off": cut,
        "empty": b"",
        "noise": rng.randbytes(5000),
        "text": b"hello " * 100,
        "a zip bomb": packed.getvalue(),
        "a gzip bomb": zlib.compress(b"\0" * 10**7),
        "a PNG bomb": _png(huge, huge, zlib.compress(b"\0" * 10**7, 9)),
        "a PNG without pixels": _png(100, 100, b""),
        "a playlist": f"#EXTM3U\n#EXTINF:10,\n{secret}\n#EXT-X-ENDLIST\n".encode(),
        "a playlist of the web": b"#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:1/x.ts\n#EXT-X-ENDLIST\n",
        "a list of files": f"ffconcat version 1.0\nfile '{secret}'\n".encode(),
        "an SVG": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="file://{secret}"/></svg>'.encode(),
        "XML": b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><x>&a;</x>',
        "a GIF bomb": b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\0\0\0,\0\0\0\0" + b"\xff" * 4 + b"\0\2\1\0\0;",
        "a BMP that claims too much": b"BM"
        + struct.pack("<IHHIIiiHH", 100, 0, 0, 54, 40, 2**30, 2**30, 1, 24)
        + b"\0" * 24,
        "an SDP": b"v=0\nm=video 5004 RTP/AVP 96\nc=IN IP4 127.0.0.1\n",
    }
    kind = rng.choice(("video/mp4", "image/png", "application/octet-stream", ""))
    made = [_asking(f"media: {name}", _url(content, kind)) for name, content in contents.items()]
    good = data_url(grounds.clip)
    return [
        *made,
        _asking("media: no base64", "data:video/mp4;base64,%%%"),
        _asking("media: base64 cut off", good[: len(good) - rng.randrange(1, 3)] + "!"),
        _asking("media: no comma", "data:video/mp4;base64"),
        _asking("media: as text", "data:text/plain,hello"),
        _asking("media: a long head", "data:" + "x" * 500 + ";base64,AAAA"),
        _asking("media: a list of pictures", "data:video/jpeg;base64,AAAA,AAAA"),
        _asking(
            "media: another scheme",
            rng.choice(("ftp://a/b", "rtsp://a/b", "concat:a|b", "/etc/passwd", "x", "gopher:x")),
        ),
        Case("media: too many", [request(_dumped({"messages": [message("?", *["data:x;base64,AA"] * 65)]}))]),
        Case("media: past its end", [request(_dumped(_values(grounds, sampling={"start_seconds": 1e6})))]),
    ]


def _url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _png(width: int, height: int, pixels: bytes) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def paths(grounds: Grounds, rng: random.Random) -> list[Case]:
    """Return `file:` URLs that lead outside the folder, or to no file."""
    allowed, secret = grounds.allowed, grounds.secret
    up = rng.choice(("..", "%2e%2e", "%2E.", ".%2e"))
    outside = [
        secret.as_uri(), f"file://{allowed}/{up}/secret/square.mp4", f"file://{allowed}/link.mp4",
        f"file://{allowed}/folder/square.mp4", f"file://{allowed}/folder/../../secret/square.mp4",
        "file:///etc/passwd", "file:///proc/self/environ", "file:///dev/zero", "file:///",
        f"file:///proc/self/root{secret}", f"file:///proc/self/cwd/{up}/{up}/x", f"file://{allowed}x/square.mp4",
        f"file://{allowed}/./{up}/secret/./square.mp4", f"FILE://{secret}", f"file://localhost{secret}",
        f"file://{allowed}/circle/x", f"file:{secret}",
    ]  # fmt: skip
    odd = [
        f"file://host{grounds.clip}", f"file://127.0.0.1{grounds.clip}", f"file://user@localhost{grounds.clip}",
        "file:circle.mp4", f"{grounds.clip.as_uri()}%00.png", f"{grounds.clip.as_uri()}?x",
        f"{grounds.clip.as_uri()}#x",
        f"file://{allowed}/nothing.mp4", f"file://{allowed}/empty.mp4", f"file://{allowed}/pipe", f"file://{allowed}",
        f"file://{allowed}/circle.mp4/x", f"file://{allowed}/%252e%252e/secret/square.mp4", "file://[",
        f"file://{allowed}/{'a' * 5000}", f"file://{allowed}/{'a/' * 3000}x", "file://", "file:",
    ]  # fmt: skip
    return [_asking("path:", url, 403) for url in outside] + [_asking("path:", url, 400, 403) for url in odd]


def hosts(grounds: Grounds, rng: random.Random) -> list[Case]:
    """Return URLs of hosts that are not allowed, or that send something harmful."""
    here = grounds.open.port
    private = rng.choice(
        ("10.0.0.1", "169.254.169.254", "[::1]", "0.0.0.0", "2130706433", "0x7f.1", "127.1", "192.168.0.1")
    )
    forbidden = [
        f"http://127.0.0.1:{here}/v1/models", f"http://localhost:{here}/health", f"http://{private}/x",
        f"http://{private}:{grounds.malicious_port}/clip", "https://example.com/x.mp4", "http://allowed.invalid:81/x",
        f"http://localhost.evil.example:{grounds.malicious_port}/", f"http://x.localhost:{grounds.malicious_port}/clip",
    ]  # fmt: skip
    host = f"http://localhost:{grounds.malicious_port}"
    return [_asking("host:", url, 403) for url in forbidden] + [
        _asking("host:", f"http://user:word@localhost:{grounds.malicious_port}/clip", 400),
        _asking("host:", "http://[", 400),
        _asking("host:", "http:///x", 400),
        _asking("host:", "http://allowed.invalid:99999/x", 400),
        _asking("host: no such", "http://allowed.invalid/x", 400),
        _asking("host: leads elsewhere", f"{host}/elsewhere", 403),
        _asking("host: leads to a file", f"{host}/file", 400),
        _asking("host: leads round", f"{host}/round", 400),
        _asking("host: has nothing", f"{host}/nothing", 400),
        _asking("host: too much", f"{host}/much", 400),
        _asking("host: no HTTP", f"{host}/noise", 400),
        _asking("host: drops", f"{host}/drops", 400),
    ]


def _keys(grounds: Grounds, rng: random.Random) -> list[Case]:
    good = _dumped(_values(grounds))
    wrong = (
        "Bearer wrong", "Bearer", "Bearer ", f"Basic {KEY}", KEY, f"Bearer {KEY}x", f"Bearer {KEY[:-1]}",
        f"Bearer {KEY.upper()}", f"Bearer {'k' * 8000}", "Bearer \xe9\xff", f"Bearer {KEY} {KEY}", f"Bearer\t{KEY}",
    )  # fmt: skip
    paths = (b"/v1/models", b"/metrics", b"/v1/models/demo")
    return [
        *(Case(f"key: {key[:30]!r}", [request(good, f"Authorization: {key}")], (401,), key=True) for key in wrong),
        Case("key: none", [request(good)], (401,), key=True),
        Case(
            "key: in the path",
            [request(good).replace(b"completions", f"completions?key={KEY}".encode())],
            (401,),
            key=True,
        ),
        Case("key: none to look", [b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % rng.choice(paths)], (401,), key=True),
    ]


def run(grounds: Grounds, count: int, seed: int, report: Callable[[str], None]) -> int:
    """Send the cases; return how many failed."""
    wrong, kinds = 0, Counter[str]()
    for number, case in enumerate(cases(grounds, count, seed)):
        kinds[case.name.partition(":")[0]] += 1
        fault = grounds.check(case)
        if fault is None and not (
            grounds.answers() if number % 25 == 24 else grounds.open.send("GET", "/health")[0] == 200
        ):
            fault = f"{case.name}: the server did not answer after it"
        if fault is not None:
            wrong += 1
            report(fault)
    report(f"{count} sent: {', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))}; {wrong} failed")
    return wrong


if __name__ == "__main__":
    from llava_video_cli import open_model

    numbers = [int(argument) for argument in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as name, grounds(open_model("demo"), Path(name)) as ready:
        count, seed = [*numbers, *(500, 1)[len(numbers) :]]
        sys.exit(run(ready, count, seed, print) > 0)
