"""The Ray cluster that a run takes place on: joined, or made on this machine; and what a run takes of it."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import LlvidError, first_line
from ..video.limits import Limits, cores

_KNOCK_SECONDS = 10.0
# Ray reads these as it is imported.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "^",  # what it tells of workers that died would go to stdout
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_WAIT_POLICY": "passive",
}


@dataclass(frozen=True)
class Cluster:
    """Where a run takes place, and on how much of it.

    `address` is `local` (a cluster on this machine, for this run) or `auto` (the one that this machine is part of).
    The pool holds `fewest` to `most` actors with a model, each with a GPU where there are GPUs, or by `device`: `cuda`
    waits for them, `cpu` leaves them alone. `readers` read at a time. None takes what is there.
    """

    address: str = "auto"
    fewest: int = 1
    most: int | None = None
    readers: int | None = None
    device: str = "auto"
    memory_bytes: int | None = None

    @contextmanager
    def joined(self) -> Iterator[Joined]:
        """Be part of the cluster for the length of a block. Raises LlvidError if it can't be reached."""
        ray = _ray()
        if ray.is_initialized():
            yield self._sized(ray, "")
            return
        try:
            self._knock()
            with _hushed():
                context = ray.init(**self._options())
        except (ConnectionError, ValueError, RuntimeError, TimeoutError, OSError) as error:
            where, hint = self.address, "`ray start --head` makes one; `--ray local` needs none"
            words = first_line(error)
            if "any running Ray instance" in words:
                where, words = "this machine", "none runs, and RAY_ADDRESS names none"
            raise LlvidError(f"no Ray cluster at {where}: {words}", hint) from None
        try:
            yield self._sized(ray, str(getattr(context, "dashboard_url", "") or ""))
        finally:
            ray.shutdown()

    def _knock(self) -> None:
        """Raise OSError if nobody listens where the cluster should be: Ray itself tries for minutes."""
        address = os.environ.get("RAY_ADDRESS", "") if self.address == "auto" else self.address
        host, colon, port = address.rpartition(":")
        if colon and port.isdigit():
            try:
                socket.create_connection((host, int(port)), _KNOCK_SECONDS).close()
            except OSError as error:
                raise ConnectionError(f"{address}: {error.strerror or error}") from None

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL, "address": self.address}
        if self.address == "local":
            options["include_dashboard"] = None  # if it is installed
            # CPUs are what Ray gives work out by; the system shares the real ones out
            options["num_cpus"] = (self.readers or cores(Limits())) + max(self.most or 1, cores(Limits())) + 1
            if self.memory_bytes:
                options["object_store_memory"] = self.memory_bytes
        return options

    def _sized(self, ray: Any, dashboard: str) -> Joined:
        there = ray.cluster_resources()
        gpus, cpus = int(there.get("GPU", 0)), int(there.get("CPU", 0))
        on_gpus = self.device.startswith("cuda") or (gpus > 0 and self.device != "cpu")
        most = self.most or gpus or 1
        if not on_gpus:
            if cpus < 2:
                raise LlvidError(f"the cluster has {cpus} CPUs: one to read and one to answer are needed")
            most = min(most, cpus - 1)  # a reader needs one too
        # the pool begins with what is there and grows into what an autoscaler adds
        fewest = min(self.fewest, most, max(1, gpus) if on_gpus else most)
        readers = self.readers or max(1, cores(Limits()) if self.address == "local" else cpus - most)
        nodes = sum(bool(node["Alive"]) for node in ray.nodes())
        # as many threads as a model's products get on a CPU: Ray sets them by the CPUs that a worker takes
        each = max(1, cores(Limits()) // most) if self.address == "local" and not on_gpus else 1
        return Joined(fewest, most, readers, on_gpus, nodes, gpus, cpus, dashboard, each)


@dataclass(frozen=True)
class Joined:
    """A cluster that was reached, and what a run takes of it."""

    fewest: int
    most: int
    readers: int
    on_gpus: bool
    nodes: int
    gpus: int
    cpus: int
    dashboard: str
    cores_each: int = 1


@contextmanager
def _hushed() -> Iterator[None]:
    """Keep a line of Ray's C++ part, which nothing else turns off, from stderr."""
    try:
        kept = os.dup(2)
    except OSError:  # closed
        yield
        return
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _quieten(ray: Any) -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    warnings.filterwarnings("ignore", category=UserWarning, module=r"ray\.data")
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _ray() -> Any:
    """Import Ray, which then sends nothing anywhere and keeps its words to itself. Raises LlvidError without it."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
        import ray.util.scheduling_strategies
    except ImportError:
        raise LlvidError("--ray needs the package ray", "pip install 'llava-video-cli[ray]'") from None
    _quieten(ray)
    return ray
