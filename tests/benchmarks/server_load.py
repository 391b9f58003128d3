"""Honest clients of the server beside hostile ones: 1,000 idle connections, and two pictures that take long.

`python tests/benchmarks/server_load.py [--seconds 10] [--descriptors 1024]`: a server of its own with the demo
checkpoint. 16 clients each ask about a clip of their own, whose frames differ in each request, so that no cache helps.
First they are alone; then beside the idle connections and two clients that send slow pictures again and again. All
connections go to 127.0.0.1. The last line of stdout is one JSON document. Linux.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import resource
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from serve import CLIENTS, bodies, server
from serving import data_url, message

IDLE, SLOW = 1000, 2
MAX_GROWTH = 3.0
ANSWER_SECONDS = 120.0
_JSON = {"Content-Type": "application/json"}
_HEAD = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def slow_picture(path: Path, scans: int = 20) -> Path:
    """Write a progressive JPEG that repeats its last scan: seconds of one core, within the limits of pictures."""
    Image.new("RGB", (7900, 7900), (90, 120, 30)).save(path, "JPEG", progressive=True, quality=60)
    content = path.read_bytes()
    last = content[content.rindex(b"\xff\xda") : -2]
    path.write_bytes(content[:-2] + last * scans + content[-2:])
    return path


def ask(port: int, body: bytes) -> tuple[int, float]:
    """Send a request on a connection of its own; return the status, and the seconds until the whole answer."""
    start = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
    try:
        connection.request("POST", "/v1/chat/completions", body, _JSON)
        response = connection.getresponse()
        response.read()
        return response.status, time.perf_counter() - start
    finally:
        connection.close()


def hang_up(connection: socket.socket) -> None:
    """End a connection that another thread may read from, which closing alone does not."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def honest(port: int, requests: list[list[bytes]], seconds: float, offset: int) -> tuple[list[float], int]:
    """Have all clients ask for some seconds; return how long each request took, and how many failed."""
    until, waits, failures = time.monotonic() + seconds, list[float](), list[int]()

    def client(own: list[bytes]) -> None:
        for number, body in zip(itertools.count(offset), itertools.cycle(own)):
            if time.monotonic() > until:
                return
            values = json.loads(body) | {"max_tokens": 8}
            start = 0.001 * (number % 900)  # other frames each time: the media are decoded anew
            status, wait = ask(port, json.dumps(values | {"sampling": {"start_seconds": start}}).encode())
            waits.append(wait)
            if status != 200:
                failures.append(status)

    threads = [threading.Thread(target=client, args=(own,)) for own in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return waits, len(failures)


def health_seconds(port: int, times: int = 20) -> float:
    """Return the longest time that `/health` takes, each time on a new connection."""
    longest = 0.0
    for _ in range(times):
        start = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
        connection.close()
        longest = max(longest, time.perf_counter() - start)
    return longest


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each part of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--descriptors", type=int, default=1024, help="that the server may have open (ulimit -n)")
    options = parser.parse_args()
    own_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (options.descriptors, own_limit[1]))
    rows: list[dict[str, float]] = []
    with ExitStack() as outer:
        folder = Path(outer.enter_context(tempfile.TemporaryDirectory()))
        slow = slow_picture(folder / "slow.jpg")
        content, numbers = slow.read_bytes(), itertools.count()
        requests = bodies(folder, 8)
        _, port = outer.enter_context(server())
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, own_limit[1]), own_limit[1]))
        honest(port, requests, 2 * options.seconds, 0)  # the first batches take longer
        for number in range(options.rounds):
            alone, failed = honest(port, requests, options.seconds, 100 * number)
            with ExitStack() as stack:
                over = threading.Event()
                ended: list[bytes] = []

                def hostile(stack: ExitStack = stack, over: threading.Event = over, ended: list[bytes] = ended) -> None:
                    while not over.is_set():
                        slow.write_bytes(content + str(next(numbers)).encode())  # another picture, to any cache
                        body = json.dumps({"messages": [message("What is it?", data_url(slow, "image/jpeg"))]}).encode()
                        head = f"{_HEAD}Content-Length: {len(body)}\r\n\r\n"
                        with suppress(OSError):
                            connection = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_SECONDS)
                            stack.enter_context(connection)
                            stack.callback(hang_up, connection)
                            connection.sendall(head.encode() + body)
                            ended.append(connection.recv(12))

                for _ in range(IDLE):
                    stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
                for _ in range(SLOW):
                    threading.Thread(target=hostile, daemon=True).start()
                time.sleep(2.0)  # by now their pictures are being decoded
                health = health_seconds(port)
                beside, failed_beside = honest(port, requests, options.seconds, 100 * number + 50)
                over.set()
            row = {
                "alone_p50": statistics.median(alone), "beside_p50": statistics.median(beside),
                "alone_p95": statistics.quantiles(alone, n=20)[-1],
                "beside_p95": statistics.quantiles(beside, n=20)[-1],
                "alone_max": max(alone), "beside_max": max(beside), "health_max": health,
                "failed": failed + failed_beside,
            }  # fmt: skip
            rows.append(row)
            print(" ".join(f"{name} {value:.3f}" for name, value in row.items()), Counter(ended), flush=True)
    medians = {name: round(statistics.median(row[name] for row in rows), 4) for name in rows[0]}
    growth = {p: round(medians[f"beside_{p}"] / medians[f"alone_{p}"], 2) for p in ("p50", "p95", "max")}
    result = medians | {"growth": growth, "wanted_growth": MAX_GROWTH, "clients": CLIENTS, "idle": IDLE, "slow": SLOW}
    print(json.dumps(result | {"holds": growth["p50"] <= MAX_GROWTH and not medians["failed"]}))


if __name__ == "__main__":
    main()
