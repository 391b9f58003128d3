"""Damaged files through the reader: `python tests/mutate.py [--files 2000] [--seed N] [--pictures | --containers]`.

Bits are flipped, pieces cut out, doubled or swapped, boxes swapped, and numbers in headers made absurd; or the pictures
stay as they are, and the container says something wrong of them: keyframe flags, second boxes, colours, sizes. Every
file has to give frames or a MediaError that names it once, in time, with all its handles closed. A frame that is none
of the pictures of a full decode is counted as wrong, unless a note says that something is broken. With `--keep`, each
such file is copied to the folder, as `SEED-NUMBER` and the suffix of its kind. The last line is one JSON document.

With `--pictures`, the containers are whole, and only coded pictures are damaged, of clips so large that decoders share
the work. Each is read on one core, and twice on two. A picture of the whole clip is right as well: behind damage, a
full decode may lose more than one that begins at the next keyframe.

With `--containers`, headers before packets are damaged, or stretches overwritten or cut out, in containers of which
FFmpeg skips damaged places. Frames other than the whole clip's are wrong, unless a note says that something is broken.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import struct
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from clips import Pixels, copy_packets, decode_all, digest, make_clip, make_indexed, stored

from llava_video_cli.errors import MediaError
from llava_video_cli.video import Frames, iter_frames, probe, read_frames
from llava_video_cli.video.limits import Limits
from llava_video_cli.video.sampling import Sampling

LIMITS = Limits(seconds=4.0, pixels=4096 * 2304, bytes=2**28)
LONG = 60  # pictures of a large clip
HEADER_BYTES = 8  # that are damaged of what is before a packet: it begins so many bytes before FFmpeg's place
BEFORE = {".mkv": 3, ".webm": 3, ".avi": 8}
ABSURD = (0, 1, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
HARMLESS = ("used once", "keyframe", "no movement")  # notes on the sampling, not on the file
WRONG = ("wrong", "frames that differ from run to run")
BOXES = (b"mvhd", b"tkhd", b"mdhd", b"stts", b"ctts", b"stsc", b"stsz", b"stco", b"stss", b"elst", b"avc1", b"vp09",
         b"moof", b"tfhd", b"trun", b"avih", b"strh", b"strf", b"idx1", b"avcC", b"hdlr", b"stsd", b"colr", b"edts",
         b"dref", b"mp4v")  # fmt: skip
PARENTS = {b"moov": 8, b"trak": 8, b"edts": 8, b"mdia": 8, b"minf": 8, b"dinf": 8, b"stbl": 8, b"stsd": 16,
           b"avc1": 86, b"mp4v": 86}  # fmt: skip


def seeds(folder: Path) -> list[Path]:
    """One small file of each kind."""
    x264: dict[str, Any] = {"bf": "2", "g": "8", "preset": "ultrafast"}
    x265: dict[str, Any] = {"codec": "libx265", "x265-params": "keyint=8:log-level=0"}
    return [
        make_clip(folder / "plain.mp4", **x264),
        make_clip(folder / "late.mkv", [k + 50 for k in range(24)], **x264),
        make_clip(folder / "variable.mp4", [0, 40, 90, 200, 240, 700], Fraction(1, 1000), **x264),
        make_clip(folder / "stream.ts", **x264),
        make_clip(folder / "old.avi", codec="mpeg4", bf="2", g="8"),
        make_clip(folder / "new.webm", codec="libvpx-vp9", deadline="realtime", g="8"),
        make_clip(folder / "apart.mov", codec="mjpeg"),
        make_clip(folder / "flash.flv", **x264),
        copy_packets(make_clip(folder / "film.ts", **x264), folder / "film.avi"),
        make_clip(folder / "broadcast.ts", codec="mpeg2video", bf="2", g="8"),
        make_clip(folder / "hevc.ts", **x265),
        make_clip(folder / "part2.mp4", codec="mpeg4", g="8"),
        make_clip(folder / "phone.3gp", codec="h263", size=(176, 144), g="8"),
        make_clip(folder / "microsoft.avi", codec="msmpeg4", g="8"),
        make_clip(folder / "sorenson.flv", codec="flv", g="8"),
        make_clip(folder / "cinepak.mov", codec="cinepak", g="8"),
        make_clip(
            folder / "coloured.mp4", **x264 | {"x264-params": "colormatrix=bt709:colorprim=bt709:transfer=bt709"}
        ),
        make_indexed(folder / "palette.avi", "rawvideo"),
        make_indexed(folder / "palette.mov", "smc"),
        make_clip(folder / "thin.mkv", codec="mjpeg", size=(16, 1500)),
    ]


def large(folder: Path) -> list[Path]:
    """One file of each codec that takes more than one decoder."""
    size: dict[str, Any] = {"stamps": range(LONG), "size": (320, 192)}
    x264: dict[str, Any] = size | {"preset": "ultrafast", "qp": "2"}
    x265: dict[str, Any] = size | {"codec": "libx265", "preset": "ultrafast"}
    older: dict[str, Any] = size | {"qmin": "1", "qmax": "1", "b": "50M", "g": "12"}
    return [
        make_clip(folder / "cavlc.mp4", g="12", bf="2", **x264),
        make_clip(folder / "cabac.mkv", g="12", bf="2", coder="cabac", **x264),
        make_clip(folder / "slices.mp4", g="20", bf="0", slices="4", **x264),
        make_clip(folder / "one_gop.mp4", g="250", bf="2", coder="cabac", **x264),
        make_clip(folder / "open.ts", g="12", bf="2", **x264 | {"x264-params": "open-gop=1"}),
        make_clip(folder / "refresh.mkv", g="12", bf="0", **x264 | {"intra-refresh": "1"}),
        make_clip(folder / "hevc.mp4", **x265 | {"x265-params": "qp=4:keyint=12:log-level=0:open-gop=0"}),
        make_clip(folder / "hevc_open.mkv", **x265 | {"x265-params": "qp=4:keyint=12:log-level=0"}),
        make_clip(folder / "hevc_slices.mp4", **x265 | {"x265-params": "qp=4:keyint=12:log-level=0:slices=3"}),
        make_clip(folder / "hevc_hash.mp4", **x265 | {"x265-params": "qp=4:keyint=12:log-level=0:hash=1"}),
        make_clip(folder / "vp9.webm", codec="libvpx-vp9", deadline="realtime", crf="0", b="9M", g="12", **size),
        make_clip(folder / "vp8.webm", codec="libvpx", deadline="realtime", qmin="0", qmax="2", b="9M", g="12", **size),
        make_clip(folder / "av1.mp4", codec="libsvtav1", preset="12", crf="2", g="12", **size),
        make_clip(folder / "mpeg2.ts", codec="mpeg2video", bf="2", **older),
        make_clip(folder / "mpeg1.mpg", codec="mpeg1video", bf="2", **older),
        make_clip(folder / "mpeg4.mp4", codec="mpeg4", bf="2", **older),
        make_clip(folder / "packed.avi", codec="mpeg4", bf="0", **older),
        make_clip(folder / "wmv.asf", codec="wmv2", **older),
        make_clip(folder / "microsoft.avi", codec="msmpeg4", **older),
        make_clip(folder / "h263.avi", codec="h263p", **older),
        make_clip(folder / "jpeg.mov", codec="mjpeg", **older),
        make_clip(folder / "ffv1.mkv", codec="ffv1", **size),
        make_clip(folder / "prores.mov", codec="prores_ks", **size),
    ]


def with_damaged_pictures(path: Path, draw: random.Random) -> bytes:
    """A copy of the file with flipped bits, overwritten bytes or zeros in some of its packets."""
    damaged = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size and packet.pos]
    for _ in range(draw.choice((1, 1, 2, 5))):
        at, size = draw.choice(packets)
        size = min(size, len(damaged) - at)
        start = at + draw.randrange(size)
        length = min(draw.choice((1, 40, size)), at + size - start)
        kind = draw.randrange(4)
        if kind == 0:
            for _ in range(draw.choice((1, 3, 30))):
                damaged[at + draw.randrange(size)] ^= 1 << draw.randrange(8)
        else:
            damaged[start : start + length] = (bytes(length), b"\xff" * length, draw.randbytes(length))[kind - 1]
    return bytes(damaged)


def containers(folder: Path) -> list[Path]:
    """One file of each container of which FFmpeg skips damaged places."""
    x264: dict[str, Any] = {"bf": "2", "g": "12", "preset": "ultrafast"}
    kinds: dict[str, dict[str, Any]] = {
        "mkv": x264, "flv": x264, "webm": {"codec": "libvpx-vp9", "deadline": "realtime", "g": "12"},
        "ogg": {"codec": "libvpx", "deadline": "realtime", "g": "12"}, "avi": {"codec": "mpeg4", "g": "12"},
        "wmv": {"codec": "wmv2", "g": "12"},
    }  # fmt: skip
    return [
        copy_packets(
            make_clip(folder / f"made.{kind}", range(LONG), size=(320, 192), **options), folder / f"film.{kind}"
        )
        for kind, options in kinds.items()
    ]


def with_damaged_container(path: Path, draw: random.Random) -> bytes:
    """A copy of the file with wrong bytes or bits just before a packet, or a stretch that is overwritten or cut out."""
    damaged = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        starts = [packet.pos for packet in container.demux(video=0) if packet.size and packet.pos]
    kind, length = draw.randrange(4), draw.choice((16, 200, 512, 4096))
    at = draw.randrange(starts[0], len(damaged) - length)
    headers = [start - BEFORE.get(path.suffix, 0) for start in starts]
    if kind == 0:
        for _ in range(draw.choice((1, 1, 2))):
            damaged[draw.choice(headers) + draw.randrange(HEADER_BYTES)] = draw.randrange(256)
    elif kind == 1:
        damaged[draw.choice(headers) + draw.randrange(HEADER_BYTES)] ^= 1 << draw.randrange(8)
    elif kind == 2:
        damaged[at : at + length] = draw.choice((bytes(length), draw.randbytes(length)))
    else:
        del damaged[at : at + length]
    return bytes(damaged)


def mutated(content: bytes, draw: random.Random) -> bytes:
    """A copy that is damaged, or that is whole and described wrongly."""
    damaged = bytearray(content)
    if draw.random() < 0.5:
        for _ in range(draw.choice((1, 1, 2))):
            draw.choice((_flag_keys, _double_box, _double_box, _make_thin, _recolour))(damaged, draw)
        return bytes(damaged)
    for _ in range(draw.choice((1, 1, 2, 4))):
        draw.choice((_flip, _cut, _lose, _move, _swap_boxes, _make_absurd, _make_absurd))(damaged, draw)
    return bytes(damaged)


def _flag_keys(damaged: bytearray, draw: random.Random) -> None:
    """Flag all pictures as keyframes, or any."""
    every = draw.random() < 0.5
    if (at := damaged.rfind(b"idx1") + 8) > 8:
        while damaged[at + 2 : at + 3] == b"d":
            damaged[at + 4] = 0x10 if every or draw.random() < 0.5 else 0
            at += 16
    elif damaged[:3] == b"FLV":
        at = 13
        while at + 11 < len(damaged):
            if damaged[at] == 9:
                damaged[at + 11] = damaged[at + 11] & 15 | (0x10 if every or draw.random() < 0.5 else 0x20)
            at += 15 + int.from_bytes(damaged[at + 1 : at + 4], "big")
    elif (at := damaged.find(b"stss")) > 0:
        if every:
            damaged[at : at + 4] = b"free"
        else:
            count = int.from_bytes(damaged[at + 8 : at + 12], "big")
            numbers = sorted(draw.sample(range(1, 25), min(count, 24)))
            damaged[at + 12 : at + 12 + 4 * len(numbers)] = struct.pack(f">{len(numbers)}I", *numbers)


def _double_box(damaged: bytearray, draw: random.Random) -> None:
    """Insert a second box of a kind beside the first, the same or with another number in it; or an empty one."""
    boxes = list(_nested(damaged, 0, len(damaged), ()))
    if not boxes:
        return
    start, stop, parents = draw.choice([box for box in boxes if box[2]] or boxes)
    copy = damaged[start:stop]
    if draw.random() < 0.3:
        copy = bytearray(struct.pack(">I4s8x", 16, bytes(copy[4:8])))
    elif draw.random() < 0.6 and len(copy) > 16:
        at = draw.randrange(8, len(copy) - 4)
        copy[at : at + 4] = struct.pack(">I", draw.choice((*ABSURD, draw.randrange(2**32))))
    for parent in parents:
        size = int.from_bytes(damaged[parent : parent + 4], "big") + len(copy)
        damaged[parent : parent + 4] = struct.pack(">I", size)
    to = start if draw.random() < 0.5 else stop
    damaged[to:to] = copy


def _nested(
    content: bytearray, at: int, end: int, parents: tuple[int, ...]
) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """The mp4 boxes from `at` to `end`, and where those begin that hold them."""
    while at + 8 <= end:
        size, kind = int.from_bytes(content[at : at + 4], "big"), bytes(content[at + 4 : at + 8])
        if size < 8 or at + size > end:
            return
        yield at, at + size, parents
        if kind in PARENTS:
            yield from _nested(content, at + PARENTS[kind], at + size, (*parents, at))
        at += size


def _make_thin(damaged: bytearray, draw: random.Random) -> None:
    """Write another width or height where a header keeps it."""
    value = draw.choice((0, 1, 2, 3, 16, 4096, 65535))
    places = {b"avc1": (28, ">H"), b"mp4v": (28, ">H"), b"s263": (28, ">H"), b"tkhd": (80, ">H"), b"strf": (8, "<I"),
              b"avih": (36, "<I"), b"\xb0\x82": (2, ">H"), b"\xba\x82": (2, ">H")}  # fmt: skip
    known = [(damaged.find(name) + shift, packing) for name, (shift, packing) in places.items() if name in damaged]
    if known:
        at, packing = draw.choice(known)
        at += draw.choice((0, struct.calcsize(packing)))
        damaged[at : at + struct.calcsize(packing)] = struct.pack(packing, value)


def _recolour(damaged: bytearray, draw: random.Random) -> None:
    """Give another colour matrix, or another palette."""
    if (at := damaged.find(b"nclx")) > 0:
        damaged[at + 8 : at + 10] = struct.pack(">H", draw.randrange(19))
    elif (at := damaged.find(b"strf")) > 0:
        damaged[at + 52 : at + 56] = draw.randbytes(4)


def _flip(damaged: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice((1, 4, 30, 300))):
        if damaged:
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)


def _cut(damaged: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(damaged) + 1)
    del damaged[at : at + draw.choice((1, 100, len(damaged)))]


def _lose(damaged: bytearray, draw: random.Random) -> None:
    """Leave out pieces of 188 bytes, as a bad reception of a transport stream does."""
    at = 188 * draw.randrange(len(damaged) // 188 + 1)
    del damaged[at : at + 188 * draw.choice((1, 1, 2, 5))]


def _move(damaged: bytearray, draw: random.Random) -> None:
    at, to, size = draw.randrange(len(damaged) + 1), draw.randrange(len(damaged) + 1), draw.choice((4, 64, 1000))
    piece = damaged[at : at + size]
    if draw.random() < 0.5:
        del damaged[at : at + size]
    damaged[to:to] = piece


def _swap_boxes(damaged: bytearray, draw: random.Random) -> None:
    found = [at for name in BOXES for at in _places(damaged, name)]
    if len(found) > 1:
        one, other = draw.sample(found, 2)
        damaged[one : one + 4], damaged[other : other + 4] = damaged[other : other + 4], damaged[one : one + 4]


def _make_absurd(damaged: bytearray, draw: random.Random) -> None:
    """Write a number where a header keeps one: behind a box's name, or anywhere in the first 600 bytes."""
    places = [at + draw.randrange(-4, 60) for name in BOXES for at in _places(damaged, name)] or [0]
    at = draw.choice(places) if draw.random() < 0.7 else draw.randrange(600)
    value = draw.choice((*ABSURD, draw.randrange(2**32)))
    number = struct.pack(">I" if draw.random() < 0.7 else "<I", value)[-draw.choice((1, 2, 4)) :]
    if 0 <= at <= len(damaged) - len(number):
        damaged[at : at + len(number)] = number


def _places(damaged: bytearray, name: bytes) -> list[int]:
    at = damaged.find(name)
    return [] if at < 0 else [at]


def peak_memory() -> int:
    """The most bytes that this process has held; getrusage would count those of the process that started it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first file: for runs in parts")
    parser.add_argument("--seed", type=int, default=0)
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--pictures", action="store_true", help="damage only coded pictures, of large clips")
    kinds.add_argument("--containers", action="store_true", help="damage containers, and compare with the whole clip")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where to copy the files with wrong frames")
    options = parser.parse_args()
    outcomes: Counter[str] = Counter()
    slowest, handles, wrong = 0.0, set[int](), dict[int, str]()
    av.logging.set_level(None)
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        originals = (large if options.pictures else containers if options.containers else seeds)(Path(name))
        damage: Callable[[Path, random.Random], bytes] = lambda path, draw: mutated(path.read_bytes(), draw)  # noqa: E731
        if options.pictures or options.containers:
            damage = with_damaged_pictures if options.pictures else with_damaged_container
        cores = (1, 2, 2) if options.pictures else (None,)
        whole = {path: _pictures(path) if options.pictures else frozenset() for path in originals}
        for number in range(options.first, options.first + options.files):
            draw = random.Random(f"{options.seed}/{number}")
            path = Path(name) / "damaged.bin"
            original = draw.choice(originals)
            path.write_bytes(damage(original, draw))
            start = time.monotonic()
            read = _like(original, path) if options.containers else _read(str(path), draw, cores, whole[original])
            for outcome in (*read, _probe(str(path))):
                outcomes[outcome] += 1
                if outcome in WRONG:
                    wrong[number] = f"{outcome}: {original.name}"
                    if options.keep:
                        shutil.copyfile(path, options.keep / f"{options.seed}-{number}{original.suffix}")
            slowest = max(slowest, time.monotonic() - start)
            handles.add(len(list(Path("/proc/self/fd").iterdir())))
    print(  # noqa: T201
        json.dumps(
            {
                "files": options.files,
                "outcomes": outcomes,
                "wrong": wrong,
                "slowest_seconds": round(slowest, 2),
                "peak_memory_mib": round(peak_memory() / 2**20),
                "handles": sorted(handles),
                "threads": [thread.name for thread in threading.enumerate()],
            }
        )
    )


def _read(path: str, draw: random.Random, cores: Sequence[int | None], whole: frozenset[str]) -> list[str]:
    sampling = Sampling(frames=draw.choice((1, 4, 32)), mode=draw.choice(("uniform", "endpoints", "keyframes")))
    try:
        if draw.random() < 0.3 and len(cores) == 1:
            single = iter_frames(path, sampling, limits=LIMITS)
            next(single)
            single.close()  # a reader that leaves early
            return ["left early"]
        read = [read_frames(path, sampling, limits=replace(LIMITS, cores=count)) for count in cores]
    except MediaError as error:
        assert str(error).startswith(f"{path}: ") and str(error).count(path) == 1, error
        return ["in time" if "not read within" in str(error) else "refused"]
    silent = [frames for frames in read if all(any(words in note for words in HARMLESS) for note in frames.notes)]
    told = ["frames with a note"] * (len(read) - len(silent))
    for words, (one, other) in zip(("one and two cores differ", "two runs differ"), pairwise(read), strict=False):
        if not np.array_equal(one.images, other.images):
            told.append(words + (", without a note" if silent else ", with notes"))
    return [*told, *_compare(Path(path), silent, whole)] if silent else told


def _like(original: Path, path: Path) -> list[str]:
    """Compare the frames of a damaged file with those of the whole one."""
    try:
        frames = read_frames(path, Sampling(16), limits=LIMITS)
    except MediaError:
        return ["refused"]
    if any(not any(words in note for words in HARMLESS) for note in frames.notes):
        return ["frames with a note"]
    return ["frames" if np.array_equal(frames.images, read_frames(original, Sampling(16)).images) else WRONG[0]]


def _compare(path: Path, read: list[Frames], whole: frozenset[str]) -> list[str]:
    """Look for the frames among the pictures of a full decode; the decoder may give others the next time."""
    pictures = _pictures(path)
    are_right = [{*map(_unordered, frames.images)} <= pictures | whole for frames in read]
    wrong = "" if all(are_right) else WRONG[0] if pictures == _pictures(path) else WRONG[1]
    return ["frames" if is_right else wrong for is_right in are_right]


def _pictures(path: Path) -> frozenset[str]:
    return frozenset(each for _, each in decode_all(path, fingerprint=_fingerprint))


def _fingerprint(frame: av.VideoFrame) -> str:
    try:
        return _unordered(stored(frame))
    except av.error.FFmpegError:  # colours that swscale refuses
        return ""


def _unordered(pixels: Pixels) -> str:
    """A digest of how often a picture has each value of each colour, however it is rotated."""
    counts = np.stack([np.bincount(channel, minlength=256) for channel in pixels.reshape(-1, 3).T])
    return digest(counts.astype(np.int64).view(np.uint8))


def _probe(path: str) -> str:
    try:
        return "probed" if probe(path, LIMITS).width else "none"
    except MediaError:
        return "not probed"


if __name__ == "__main__":
    main()
