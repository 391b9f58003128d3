"""Media of requests are decoded in processes of their own, which end when their time or their client is gone."""

from __future__ import annotations

import asyncio
import base64
import fcntl
import json
import multiprocessing
import os
import resource
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from clips import sample
from numpy.typing import NDArray
from PIL import Image
from serving import data_url, message, serving
from waiting_model import WaitingModel

from llava_video_cli import Frames, Sampling, read_frames
from llava_video_cli.conversation import Media
from llava_video_cli.errors import MediaError
from llava_video_cli.server import media_pool
from llava_video_cli.server.media import MediaCache, MediaContent, MediaSources, remove_leftovers
from llava_video_cli.server.media_pool import MediaPool
from llava_video_cli.server.media_worker import PIECE_BYTES, Bounds, DecodeJob
from llava_video_cli.server.responses import RequestError
from llava_video_cli.system.machine import usable_cores
from llava_video_cli.video import Resize
from llava_video_cli.video.files import PictureList
from llava_video_cli.video.fit import FrameInput, FrameResize
from llava_video_cli.video.image import Picture, read_image
from llava_video_cli.video.limits import RAISE_HINT, Limits

LIMITS = Limits(seconds=60.0, bytes=2 * 2**30, cores=1)
PIXELS = 10**7
JOB = (Sampling(2), LIMITS, PIXELS)


@pytest.fixture
def pool() -> Iterator[MediaPool]:
    opened = MediaPool(2)
    yield opened
    opened.close()


def unchanged(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return image


def decode(
    pool: MediaPool, path: Path, sampling: Sampling | None = None, resize: Resize = unchanged
) -> Frames | Picture:
    return pool.decode(DecodeJob(str(path), sampling or Sampling(8), LIMITS, PIXELS), resize, threading.Event())


@pytest.mark.parametrize("name", ["circle.mp4", "bikes.mp4", "sample.avi", "pigs_in_a_polka.gif"])
def test_the_frames_are_those_of_the_reader(pool: MediaPool, clip: Path, name: str) -> None:
    path = clip if name == clip.name else sample(name)
    sampling = Sampling(5, start_seconds=0.3, mode="endpoints")
    got, expected = decode(pool, path, sampling, lambda image: image[:9, ::2]), read_frames(path, sampling)
    assert isinstance(got, Frames)
    assert np.array_equal(got.images, expected.images[:, :9, ::2])
    assert (got.times_seconds, got.info, got.notes) == (expected.times_seconds, expected.info, expected.notes)
    assert got.sampling == sampling


def test_the_pictures_are_those_of_the_reader(pool: MediaPool, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 50, 4), np.uint8), "RGBA").save(path)
    got = decode(pool, path)
    assert isinstance(got, Picture) and np.array_equal(got.pixels, read_image(path).pixels)


def test_each_of_many_frames_has_its_own_image(pool: MediaPool, tmp_path: Path) -> None:
    path, count = tmp_path / "many.gif", 300
    images = [Image.new("RGB", (4, 4), (number % 256, number // 256, 0)) for number in range(count)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=40)
    got, expected = decode(pool, path, Sampling(count)), read_frames(path, Sampling(count))
    assert isinstance(got, Frames) and len(got.images) > 256 and np.array_equal(got.images, expected.images)


def test_an_error_is_that_of_the_reader(pool: MediaPool, tmp_path: Path, clip: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(clip.read_bytes()[:300])
    with pytest.raises(MediaError) as expected:
        read_frames(broken)
    with pytest.raises(MediaError) as got:
        decode(pool, broken)
    assert (str(got.value), got.value.hint) == (str(expected.value), expected.value.hint)
    assert isinstance(decode(pool, clip), Frames)


def test_a_process_that_was_killed_while_it_was_idle_is_replaced(pool: MediaPool, clip: Path) -> None:
    decode(pool, clip)
    (pid,) = children()
    os.kill(pid, 9)
    until(lambda: pid not in children())
    assert isinstance(decode(pool, clip), Frames)
    assert children() != [pid]


def children() -> list[int]:
    """Return the decoding processes of this one."""
    return sorted(child.pid for child in multiprocessing.active_children() if child.pid is not None)


def slow_gif(path: Path, frames: int = 440) -> Path:
    """Write an animation whose decoding takes many seconds, though it has few bytes."""
    images = [Image.new("P", (3000, 3000), number) for number in range(2)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=40, loop=0)
    content = path.read_bytes()
    body = content[content.index(b"!\xf9") : -1]
    path.write_bytes(content[: content.index(b"!\xf9")] + body * (frames // 2) + b";")
    return path


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return slow_gif(tmp_path_factory.mktemp("slow") / "slow.gif")


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        (Bounds(clock_seconds=0.5), r"slow\.gif: not read within 0\.5 seconds"),
        (Bounds(picture_seconds=0), r"slow\.gif: takes too much processor time"),
    ],
)
def test_a_picture_that_takes_too_long_is_ended(slow: Path, bounds: Bounds, message: str) -> None:
    with closing(MediaPool(2, bounds)) as pool:
        (pid,) = children()
        with pytest.raises(MediaError, match=message):
            decode(pool, slow)
        (other,) = children()
        assert other != pid, "which waits for the next job"


def test_a_picture_larger_than_a_piece_is_whole_and_not_resized(pool: MediaPool, tmp_path: Path) -> None:
    path = tmp_path / "large.bmp"
    pixels = np.arange(3 * 1300 * 1700, dtype=np.uint32).reshape(1300, 1700, 3) % 251
    assert pixels.size > PIECE_BYTES
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    got = decode(pool, path, resize=lambda image: image[:1])
    assert isinstance(got, Picture) and np.array_equal(got.pixels, pixels)


def test_as_many_processes_as_may_wait_are_kept_and_none_after_the_end(clip: Path) -> None:
    pool, both = MediaPool(1), threading.Barrier(2)

    def meet(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        with suppress(threading.BrokenBarrierError):
            both.wait(0 if both.broken else 20)
            both.abort()  # once is enough
        return image

    threads = [threading.Thread(target=decode, args=(pool, clip, None, meet)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(children()) == 1

    def close(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        pool.close()
        return image

    decode(pool, clip, resize=close)
    assert children() == []


def test_a_slow_process_gets_less_of_the_processor_and_no_other_job(
    pool: MediaPool, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode(pool, clip)
    (pid,) = children()
    usual, own, during = os.getpriority(os.PRIO_PROCESS, pid), os.getpriority(os.PRIO_PROCESS, 0), list[int]()

    def look(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        during.append(os.getpriority(os.PRIO_PROCESS, pid))
        return image

    monkeypatch.setattr(media_pool, "_SLOW_SECONDS", 0.0)
    decode(pool, clip, resize=look)
    assert usual == min(19, own + 5) and during[-1] == min(19, usual + 5)
    assert os.getpriority(os.PRIO_PROCESS, 0) == own and pid not in children()


def test_a_slow_process_of_a_server_that_is_nice_itself_gets_no_higher_priority(
    pool: MediaPool, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only root may do that: for others, it took the decoder for crashed, and waited for its end for ever."""
    asked = list[int]()
    monkeypatch.setattr(media_pool, "_SLOW_SECONDS", 0.0)
    monkeypatch.setattr(os, "getpriority", lambda *_: 15)
    monkeypatch.setattr(os, "setpriority", lambda _, __, nice: asked.append(nice))
    decode(pool, clip)
    assert asked == [19]


def test_each_job_has_its_own_seconds_and_the_process_neither_writes_nor_ends_by_ctrl_c(
    pool: MediaPool, clip: Path, tmp_path: Path
) -> None:
    picture, animation = tmp_path / "a.png", tmp_path / "a.gif"
    images = [Image.new("RGB", (30, 50), (number, 0, 0)) for number in range(2)]
    images[0].save(picture)
    images[0].save(animation, save_all=True, append_images=images[1:])
    pictures, bounds = PictureList([str(picture)] * 2), Bounds()
    (pid,) = children()
    for path, seconds in (
        (picture, bounds.picture_seconds), (clip, bounds.video_seconds), (animation, bounds.picture_seconds),
        (pictures, bounds.video_seconds),
    ):  # fmt: skip
        pool.decode(DecodeJob(str(path) if isinstance(path, Path) else path, *JOB), unchanged, threading.Event())
        soft, _ = resource.prlimit(pid, resource.RLIMIT_CPU)
        assert seconds < soft <= seconds + 15, "besides what the process has taken"
    assert [os.readlink(f"/proc/{pid}/fd/{number}") for number in (1, 2)] == [os.devnull] * 2  # noqa: PTH115
    os.kill(pid, signal.SIGINT)
    assert isinstance(decode(pool, clip), Frames) and children() == [pid]


def test_pictures_have_fewer_pixels_alone_and_as_a_video_and_hints_arrive(pool: MediaPool, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (30, 50)).save(path)
    for typed in (str(path), PictureList([str(path)] * 2)):
        job = DecodeJob(typed, Sampling(2), LIMITS, 30 * 50)
        pool.decode(job, unchanged, threading.Event())
        with pytest.raises(MediaError, match="30x50 are too large: at most 1,499 pixels") as error:
            pool.decode(replace(job, max_pixels=30 * 50 - 1), unchanged, threading.Event())
        assert RAISE_HINT in (error.value.hint or "")


def test_the_memory_of_a_process_is_bounded(tmp_path: Path, clip: Path) -> None:
    large = tmp_path / "large.png"
    Image.new("1", (11_000, 11_000)).save(large)  # the reader makes 363 MB of it
    with closing(MediaPool(1, Bounds(memory_bytes=128 * 2**20))) as pool:
        with pytest.raises(MediaError, match=r"large\.png: .* more memory than is free"):
            pool.decode(DecodeJob(str(large), Sampling(), LIMITS, 10**9), unchanged, threading.Event())
        assert isinstance(decode(pool, clip), Frames)


def test_a_bug_in_the_decoder_is_no_error_of_the_client(pool: MediaPool, clip: Path) -> None:
    job = DecodeJob(str(clip), cast("Sampling", None), cast("Limits", 1), PIXELS)
    with pytest.raises(RuntimeError, match=r"(?s)a bug\nTraceback.*media_worker\.py.*AttributeError"):
        pool.decode(job, unchanged, threading.Event())
    assert isinstance(decode(pool, clip), Frames)


def test_a_client_that_disconnects_ends_its_process(slow: Path, clip: Path) -> None:
    with serving(WaitingModel(), sources=MediaSources([slow.parent, clip.parent])) as served:
        assert served.answer(clip.as_uri(), "a") == "text: a"
        (pid,) = children()
        body = json.dumps({"messages": [message("b", slow.as_uri())]}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
            until(lambda: processor_seconds(pid) > 0.5)
            assert served.answer(clip.as_uri(), "c", sampling={"frames": 3}) == "text: c"  # beside it
        until(lambda: pid not in children(), 5)


def test_a_server_that_stops_does_not_wait_for_media(slow: Path) -> None:
    statuses: list[int] = []
    with serving(WaitingModel(), sources=MediaSources([slow.parent])) as served:
        (pid,) = children()
        values = {"messages": [message("a", slow.as_uri())]}
        thread = threading.Thread(target=lambda: statuses.append(served.post(values)[0]))
        thread.start()
        until(lambda: processor_seconds(pid) > 0.5)
        start = time.monotonic()
    thread.join(20)
    assert statuses == [503] and time.monotonic() - start < 5
    until(lambda: not children(), 5)


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def until(holds: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@dataclass(frozen=True)
class WaitingSources(MediaSources):
    """URLs that turn out to be unreadable as soon as they are in `ended`, or their client is gone."""

    opened: list[str] = field(default_factory=list)
    ended: set[str] = field(default_factory=set)

    @contextmanager
    def open(self, url: str, cancelled: threading.Event) -> Iterator[MediaContent]:
        self.opened.append(url)
        while url not in self.ended and not cancelled.wait(0.02):
            pass
        raise MediaError("nothing")
        yield


@pytest.fixture
def waiting() -> Iterator[tuple[MediaCache, WaitingSources]]:
    sources = WaitingSources()
    with closing(MediaCache(sources, FrameResize(FrameInput(48, 48), unchanged))) as cache:
        yield cache, sources


def reading(cache: MediaCache, url: str) -> asyncio.Task[list[Media]]:
    """Begin to read a URL, whose first letter names the client."""
    return asyncio.ensure_future(cache.read([url], ["param"], [Sampling()], url[:1]))


async def opened(sources: WaitingSources, urls: Sequence[str]) -> None:
    """Wait until these URLs, and no others, were opened in this order."""
    for _ in range(500):
        if sources.opened == urls:
            break
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert sources.opened == urls


def test_clients_take_turns(waiting: tuple[MediaCache, WaitingSources]) -> None:
    cache, sources = waiting
    slots = usable_cores() + 4
    letters = [chr(0x100 + number) for number in range(slots)]

    async def run() -> None:
        others = [reading(cache, letter) for letter in letters]
        await opened(sources, letters)
        several = [reading(cache, url) for url in ("a0", "a1", "a2", "b0", "c0", "b1")]
        expected = [*letters, "a0", "b0", "c0", "a1", "b1", "a2"]
        for number, ended in enumerate([*letters[:3], "a0", "b0", "a1"]):
            sources.ended.add(ended)
            await opened(sources, expected[: slots + number + 1])
        sources.ended.update(expected)
        await asyncio.wait({*others, *several}, timeout=20)

    asyncio.run(run())


def test_a_client_reads_for_one_request_at_a_time(waiting: tuple[MediaCache, WaitingSources]) -> None:
    cache, sources = waiting

    async def run() -> None:
        first, second, third = (reading(cache, url) for url in ("a0", "a1", "a2"))
        other = reading(cache, "b0")
        await opened(sources, ["a0", "b0"])
        second.cancel()  # it waits, and takes no turn
        first.cancel()  # it reads, and stops
        await opened(sources, ["a0", "b0", "a2"])
        assert first.cancelled() and second.cancelled()
        sources.ended.update(("b0", "a2"))
        await asyncio.wait({other, third}, timeout=20)
        assert isinstance(other.exception(), RequestError) and isinstance(third.exception(), RequestError)

    asyncio.run(run())


def test_a_cache_that_is_closed_refuses_those_that_wait(waiting: tuple[MediaCache, WaitingSources]) -> None:
    cache, sources = waiting

    async def run() -> None:
        tasks = [reading(cache, url) for url in ("a0", "a1")]
        await opened(sources, ["a0"])
        cache.close()
        await asyncio.wait(tasks, timeout=20)
        assert [cast("RequestError", task.exception()).status for task in tasks] == [503, 503]
        assert sources.opened == ["a0"]

    asyncio.run(run())


def test_folders_of_killed_servers_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("llvid-serve-dead", "llvid-serve-alive", "llvid-serve-new", "other"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "media").write_text("x")
        if "new" not in name:
            os.utime(folder, (time.time() - 100, time.time() - 100))
    (tmp_path / "llvid-serve-link").symlink_to(tmp_path / "other")
    descriptor = os.open(tmp_path / "llvid-serve-alive", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    remove_leftovers()
    os.close(descriptor)
    left = {path.name.removeprefix("llvid-serve-") for path in tmp_path.iterdir()}
    assert left == {"alive", "new", "other", "link"} and (tmp_path / "other" / "media").exists()


def test_a_folder_in_use_is_locked(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with MediaSources().open(data_url(clip), threading.Event()) as content, content.open() as path:
        os.utime(Path(path).parent, (0, 0))
        remove_leftovers()
        assert Path(path).read_bytes() == clip.read_bytes()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_one_url", [True, False])
def test_pictures_that_come_with_a_request_take_few_open_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_one_url: bool
) -> None:
    """Else one request could take all that the server may open, also those of its connections."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    coded = [base64.b64encode(f"{number}".encode()).decode() for number in range(200)]
    listed = PictureList([f"data:image/jpeg;base64,{each}" for each in coded])
    url = "data:video/jpeg;base64," + ",".join(coded) if is_one_url else listed
    with MediaSources().open(url, threading.Event()) as content:
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        with content.open() as path:
            assert isinstance(path, PictureList)
            assert [Path(each).read_text() for each in path.paths] == [f"{number}" for number in range(200)]
            assert len(os.listdir("/proc/self/fd")) < before + 20  # noqa: PTH208
    assert list(tmp_path.iterdir()) == []
