"""What a file of at most 1 MB costs `llvid ask` and `llvid serve`: peak memory above idle, and processor seconds.

    python tests/benchmarks/hostile_files.py [--names WORD...] [--ways ask request] [--keep FOLDER]

Each file is made here, to cost its reader far more than it weighs: huge or thin pictures in each format, thousands of
scans or frames, texts and profiles that inflate, formats that Pillow or FFmpeg would try to read. Idle is an ordinary
picture of 64 x 64 pixels. The last line of stdout is one JSON document. Linux.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import av
import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from av.video.stream import VideoStream

QUESTION = "What is it?"
MAX_BYTES, MAX_MEMORY_BYTES, MAX_SECONDS = 2**20, 2 * 2**30, 20.0
SIDE = 11_500  # pixels; a square of it is a little below the limit of a picture
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")

Maker = Callable[[], bytes]


def saved(image: Image.Image, format_name: str, **options: Any) -> bytes:
    """Return a picture as a file."""
    out = io.BytesIO()
    image.save(out, format_name, **options)
    return out.getvalue()


def flat(mode: str, width: int = SIDE, height: int = SIDE) -> Image.Image:
    """Return a black picture."""
    return Image.new(mode, (width, height))


def png(
    width: int, height: int, depth: int, color: int, row_bytes: int, interlaced: int = 0, texts: bytes = b""
) -> bytes:
    """Return a black PNG; `row_bytes` with the byte that tells the row's filter."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced))
    content = deflated(row_bytes * (height + 2 * interlaced * height // row_bytes))  # interlaced, there are more rows
    return b"\x89PNG\r\n\x1a\n" + head + texts + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def deflated(count: int, byte: bytes = b"\0") -> bytes:
    """Return the same byte, over and over, compressed."""
    packer, block = zlib.compressobj(9), byte * 2**20
    return b"".join(packer.compress(block[: count - at]) for at in range(0, count, 2**20)) + packer.flush()


def chunk(name: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def inflating(name: bytes, before: bytes = b"\0") -> bytes:
    """Return two chunks of a PNG that inflate to 500 MB each; `before` stands between key and content."""
    content = deflated(500 * 2**20, b"\xe9")
    return b"".join(chunk(name, key + b"\0" + before + content) for key in (b"a", b"b"))


def repeated_scans(image: Image.Image, count: int) -> bytes:
    """Return a progressive JPEG that repeats its last scan, at most as often as fits 1 MB."""
    content = saved(image, "JPEG", progressive=True, quality=60)
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * min(count, (MAX_BYTES - len(content)) // len(last)) + content[-2:]


def apng(width: int, height: int, count: int, texts: bytes = b"") -> bytes:
    """Return a PNG of `count` frames."""
    still = png(width, height, 8, 0, 1 + width, texts=chunk(b"acTL", struct.pack(">II", count, 0)) + texts)
    at = still.index(b"IDAT") - 4
    content = still[at + 8 : -16]
    frames = b"".join(
        chunk(b"fcTL", struct.pack(">IIIIIHHBB", number and 2 * number - 1, width, height, 0, 0, 1, 25, 0, 0))
        + (chunk(b"fdAT", struct.pack(">I", 2 * number) + content) if number else chunk(b"IDAT", content))
        for number in range(count)
    )
    return still[:at] + frames + still[-12:]


def webp(width: int, height: int, count: int) -> bytes:
    """Return a moving WebP of equal frames."""
    still = saved(Image.new("RGBA", (width, height)), "WEBP", lossless=True, method=0)
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    frame = bytes(6) + size + b"\x28\0\0\0" + still[still.index(b"VP8L") :]
    chunks = [(b"VP8X", b"\x12\0\0\0" + size), (b"ANIM", bytes(6)), *[(b"ANMF", frame)] * count]
    parts = (name + struct.pack("<I", len(each)) + each + bytes(len(each) % 2) for name, each in chunks)
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def gif(width: int, height: int, count: int, frame_width: int, frame_height: int) -> bytes:
    """Return a GIF of frames that cover a part of the screen, each as its decoder's shortest content."""
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    frame = b"\x21\xf9\x04\x04\x04\x00\x00\x00,"
    frame += struct.pack("<HHHHB", 0, 0, frame_width, frame_height, 0) + b"\x02\x02\x44\x01\x00"
    return head + frame * count + b";"


def tiff(tags: dict[int, tuple[str, list[int]]], content: bytes, pages: int = 1) -> bytes:
    """Return a little-endian TIFF; the content begins at byte 8, and each of its pages has the same tags."""
    out = bytearray(b"II*\0" + struct.pack("<I", 8 + len(content)) + content)
    for page in range(pages):
        fields, outside = b"", b""
        start = len(out) + 2 + 12 * len(tags) + 4
        for tag, (kind, values) in sorted(tags.items()):
            raw = struct.pack(f"<{len(values)}{kind}", *values)
            if len(raw) > 4:
                at = start + len(outside)
                outside += raw
                raw = struct.pack("<I", at)
            fields += struct.pack("<HHI", tag, {"H": 3, "I": 4}[kind], len(values)) + raw.ljust(4, b"\0")
        following = start + len(outside) if page < pages - 1 else 0
        out += struct.pack("<H", len(tags)) + fields + struct.pack("<I", following) + outside
    return bytes(out)


def shared_strips(width: int, height: int) -> bytes:
    """Return a TIFF whose rows all have the same compressed bytes, of noise."""
    row = zlib.compress(np.random.default_rng(0).integers(0, 255, (width, 3), np.uint8).tobytes())
    tags = {
        256: ("I", [width]), 257: ("I", [height]), 258: ("H", [8, 8, 8]), 259: ("H", [8]), 262: ("H", [2]),
        273: ("I", [8] * height), 277: ("H", [3]), 278: ("I", [1]), 279: ("I", [len(row)] * height),
    }  # fmt: skip
    return tiff(tags, row)


def tiny_pages() -> bytes:
    tags = {256: ("I", [1]), 257: ("I", [1]), 262: ("H", [1]), 273: ("I", [8]), 279: ("I", [1])}
    return tiff(tags, b"\0", pages=14_000)


def bmp_runs(width: int, height: int) -> bytes:
    row = b"\xff\0" * (width // 255) + bytes((width % 255, 0)) * bool(width % 255) + b"\0\0"
    content = row * height
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(content), 0, 0, 1, 0)
    return b"BM" + struct.pack("<IHHI", 58 + len(content), 0, 0, 58) + head + bytes(4) + content


def by_ffmpeg(codec: str, pixel_format: str, width: int, height: int, muxer: str = "image2pipe") -> bytes:
    """Return a black picture of one of FFmpeg's encoders."""
    out = io.BytesIO()
    with av.open(out, "w", format=muxer) as container:
        stream = cast("VideoStream", container.add_stream(codec, rate=1))
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        frame = av.VideoFrame(width, height, pixel_format)
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return out.getvalue()


def video(width: int, height: int, count: int, rate: int = 25) -> bytes:
    """Return an H.264 video of a still screen."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.full((height * 3 // 2, width), 90, np.uint8), "yuv420p")
        for number in range(count):
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


def y4m(width: int, height: int, count: int) -> bytes:
    frame = b"FRAME\n" + bytes(width * height + (width + 1) // 2 * ((height + 1) // 2) * 2)
    return f"YUV4MPEG2 W{width} H{height} F4:1 C420jpeg\n".encode() + frame * count


def psd(width: int, height: int) -> bytes:
    runs = b"\x81\0" * (width // 128) + bytes((257 - width % 128, 0)) * (width % 128 > 1)
    head = b"8BPS" + struct.pack(">H6xHIIHH", 1, 1, height, width, 8, 1) + bytes(12)
    return head + struct.pack(">H", 1) + struct.pack(">H", len(runs)) * height + runs * height


def ico() -> bytes:
    content = png(SIDE, SIDE, 1, 0, 1 + (SIDE + 7) // 8)
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(content), 22) + content


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\n{} loop\n%%EOF\n"
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (512, 512, 3), np.uint8))
FILES: dict[str, Maker] = {
    "1 x 60,000,000.png": lambda: png(1, 60_000_000, 1, 0, 2),
    "largest 1 bit.png": lambda: png(SIDE, SIDE, 1, 0, 1 + (SIDE + 7) // 8),
    "largest 16 bit RGBA.png": lambda: png(SIDE, SIDE, 16, 6, 1 + 8 * SIDE),
    "largest interlaced.png": lambda: png(SIDE, SIDE, 16, 6, 1 + 8 * SIDE, 1),
    "1 GB of zTXt.png": lambda: png(64, 64, 1, 0, 9, texts=inflating(b"zTXt")),
    "1 GB of iCCP.png": lambda: png(64, 64, 1, 0, 9, texts=inflating(b"iCCP")),
    "1 GB of iTXt.png": lambda: png(64, 64, 1, 0, 9, texts=inflating(b"iTXt", b"\1\0\0\0")),
    "moving, 1 GB of zTXt.png": lambda: apng(64, 64, 2, inflating(b"zTXt")),
    "moving, 1 GB of iCCP.png": lambda: apng(64, 64, 2, inflating(b"iCCP")),
    "8,000 frames.png": lambda: apng(64, 64, 8000),
    "large frames.png": lambda: apng(7900, 7900, 16),
    "1 x 65,500.jpg": lambda: saved(flat("RGB", 1, 65_500), "JPEG"),
    "largest gray.jpg": lambda: saved(flat("L"), "JPEG", optimize=True),
    "largest progressive.jpg": lambda: saved(flat("RGB"), "JPEG", progressive=True),
    "largest progressive CMYK.jpg": lambda: saved(flat("CMYK"), "JPEG", progressive=True),
    "scans of noise.jpg": lambda: repeated_scans(NOISE, 10**6),
    "scans of a flat picture.jpg": lambda: repeated_scans(flat("RGB", 7900, 7900), 1000),
    "scans, as many as allowed.jpg": lambda: repeated_scans(flat("RGB", 2000, 2000), 1050),
    "largest.webp": lambda: saved(flat("RGBA", 16_383, 4096), "WEBP", lossless=True, method=0),
    "2,000 frames.webp": lambda: webp(1000, 1000, 2000),
    "large frames.webp": lambda: webp(7900, 7900, 60),
    "large frames.gif": lambda: gif(7900, 7900, 502, 7900, 7900),
    "40,000 tiny frames.gif": lambda: gif(64, 64, 40_000, 1, 1),
    "tiny frames on a large screen.gif": lambda: gif(8000, 8000, 40_000, 1, 1),
    "frames, as many as allowed.gif": lambda: gif(8000, 8000, 67, 8000, 8000),
    "largest G4.tiff": lambda: saved(flat("1"), "TIFF", compression="group4"),
    "largest deflate RGBA.tiff": lambda: saved(flat("RGBA"), "TIFF", compression="tiff_adobe_deflate"),
    "largest deflate float.tiff": lambda: saved(flat("F"), "TIFF", compression="tiff_adobe_deflate"),
    "largest LZW.tiff": lambda: saved(flat("L"), "TIFF", compression="tiff_lzw"),
    "rows that share their bytes.tiff": lambda: shared_strips(20_000, 6000),
    "14,000 pages.tiff": tiny_pages,
    "largest.avif": lambda: saved(flat("RGBA", 8192, 8192), "AVIF", speed=10),
    "runs.bmp": lambda: bmp_runs(SIDE, SIDE),
    "header only.ppm": lambda: f"P6 {SIDE} {SIDE} 255\n".encode().ljust(10**6, b"\0"),
    "plain.ppm": lambda: b"P3 1000 170 255\n" + b"0 " * 510_000,
    "thin.ppm": lambda: b"P5 1 1000000 255\n" + bytes(10**6),
    "hostile.eps": lambda: EPS,
    "clip.mp4": lambda: EPS,
    "a.psd": lambda: psd(2000, 2000),
    "a.ico": ico,
    "a.jp2": lambda: by_ffmpeg("jpeg2000", "rgb24", 2000, 2000),
    "a.tga": lambda: by_ffmpeg("targa", "gray", 2000, 2000),
    "a.sgi": lambda: by_ffmpeg("sgi", "gray", 2000, 2000),
    "a.pcx": lambda: by_ffmpeg("pcx", "gray", 2000, 2000),
    "a.qoi": lambda: by_ffmpeg("qoi", "rgb24", 2000, 2000),
    "a.jls": lambda: by_ffmpeg("jpegls", "gray", 2000, 2000),
    "thin.y4m": lambda: y4m(2, 100_000, 4),
    "thin within the limit.y4m": lambda: y4m(62, 5000, 2),
    "thin within the limit.mp4": lambda: video(16, 16_000, 60),
    "large frames.mp4": lambda: video(7680, 4320, 100),
    "two hours of a still screen.mp4": lambda: video(1280, 720, 7200, rate=1),
}


@dataclass(frozen=True)
class Cost:
    memory_bytes: int
    seconds: float
    result: str


def ask(path: Path) -> Cost:
    """Ask about a file in a process of its own."""
    command = [sys.executable, "-m", "llava_video_cli", "ask", str(path), QUESTION, "-m", "demo", "-q"]
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        words = out.read().decode(errors="replace").strip().replace(str(path), "FILE")
    return Cost(usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime, f"{process.returncode}: {words}")


class Server:
    """A server with the demo checkpoint, and what its processes use."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "llava_video_cli", "serve", "-m", "demo", "--port", "0"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        found = re.search(r"http://127.0.0.1:(\d+)", self.process.stderr.readline())
        assert found
        self.port = int(found[1])
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def _processes(self) -> Iterator[list[str]]:
        """Yield the fields of /proc/PID/stat behind the name, of the server and its children."""
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                fields = (folder / "stat").read_text(encoding="utf-8").rpartition(") ")[2].split()
            except OSError:
                continue
            if folder.name == str(self.process.pid) or fields[1] == str(self.process.pid):
                yield fields

    def memory_bytes(self) -> int:
        """Return what the processes hold."""
        return sum(int(fields[21]) for fields in self._processes()) * _PAGE

    def seconds(self) -> float:
        """Return the processor time of the processes, those that have ended included."""
        return sum(int(field) for fields in self._processes() for field in fields[11:15]) / _TICKS

    def request(self, path: Path) -> Cost:
        """Ask about a file; what goes on after the answer counts, too."""
        url = f"data:application/octet-stream;base64,{base64.b64encode(path.read_bytes()).decode()}"
        parts = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": QUESTION}]
        body = json.dumps({"messages": [{"role": "user", "content": parts}], "max_tokens": 8})
        started, peak, answered = self.seconds(), [0], threading.Event()

        def watch() -> None:
            while not answered.wait(0.02):
                peak.append(self.memory_bytes())

        watcher = threading.Thread(target=watch)
        watcher.start()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        words = response.read().decode()
        connection.close()
        time.sleep(2.0)
        answered.set()
        watcher.join()
        return Cost(max(peak), self.seconds() - started, f"{response.status}: {words}")


@contextmanager
def server() -> Iterator[Server]:
    served = Server()
    try:
        yield served
    finally:
        served.process.terminate()
        served.process.wait(60)


def main() -> None:
    """Make the files, measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", nargs="+", default=[""], help="only files whose names contain one of these")
    parser.add_argument("--ways", nargs="+", default=["ask", "request"], choices=["ask", "request"])
    parser.add_argument("--keep", type=Path, help="the folder for the files, which are made once")
    options = parser.parse_args()
    rows: dict[str, dict[str, dict[str, object]]] = {}
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        idle_file = folder / "idle.png"
        NOISE.resize((64, 64)).save(idle_file)
        ways: dict[str, Callable[[Path], Cost]] = {"ask": ask}
        if "request" in options.ways:
            ways["request"] = stack.enter_context(server()).request
        idle: dict[str, Cost] = {}
        for way in options.ways:
            if way == "request":
                ways[way](idle_file)  # the first one imports the decoders
            idle[way] = ways[way](idle_file)
            print(f"idle: {way} {idle[way].memory_bytes / 2**30:.2f} GiB {idle[way].seconds:.1f} s", flush=True)
        print("| file | bytes | way | GiB above idle | s above idle | result |\n|---|---|---|---|---|---|", flush=True)
        for name, make in FILES.items():
            if not any(word in name for word in options.names):
                continue
            path = folder / name
            if not path.exists():
                path.write_bytes(make())
            for way in options.ways:
                cost = ways[way](path)
                memory, seconds = cost.memory_bytes - idle[way].memory_bytes, cost.seconds - idle[way].seconds
                holds = memory <= MAX_MEMORY_BYTES and seconds <= MAX_SECONDS
                words = cost.result.replace("\n", " / ")[:220]
                size = path.stat().st_size
                print(f"| {name} | {size:,} | {way} | {memory / 2**30:.2f} | {seconds:.1f} | {words} |", flush=True)
                rows.setdefault(name, {})[way] = {
                    "bytes": size, "memory_bytes": memory, "seconds": round(seconds, 2), "holds": holds,
                }  # fmt: skip
    small = [row for each in rows.values() for row in each.values() if row["bytes"] <= MAX_BYTES]  # type: ignore[operator]
    print(json.dumps({"files": rows, "holds": all(row["holds"] for row in small)}))


if __name__ == "__main__":
    main()
