"""The Ray cluster of a run, existing or started on this machine, and how much of it the run uses."""

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

from ..errors import LlvidError, MissingExtraError, UsageError, first_line
from ..video.limits import Limits, cores

_CONNECT_SECONDS = 10.0
# Ray reads these while it is imported.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "^",  # its messages about dead workers would go to stdout
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_WAIT_POLICY": "passive",
}


@dataclass(frozen=True)
class Cluster:
    """The cluster that a run asks for, and how much of it; None means all that the cluster has.

    `address` is `local` (a new cluster on this machine, for this run) or `auto` (the one that this machine is part of).
    `min_workers` to `max_workers` actors hold a model. Each gets a GPU if the cluster has GPUs; with the `device`
    `cuda` they wait for GPUs, with `cpu` they use none; `cuda:N` raises UsageError. `readers` is the number of videos
    that are read at a time.
    """

    address: str = "auto"
    min_workers: int = 1
    max_workers: int | None = None
    readers: int | None = None
    device: str = "auto"
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.device.startswith("cuda:"):
            number = self.device.partition(":")[2]
            raise UsageError(
                f"--device {self.device} can't be used with --ray: Ray gives each worker a GPU of its own",
                f"use --device cuda; with --ray local, CUDA_VISIBLE_DEVICES={number} chooses the GPU",
            )

    @contextmanager
    def connected(self) -> Iterator[ClusterSession]:
        """Connect to the cluster for the length of a block. Raises LlvidError if it can't be reached."""
        ray = _import_ray()
        if ray.is_initialized():
            yield self._session(ray, "")
            return
        try:
            _check_reachable(os.environ.get("RAY_ADDRESS", "") if self.address == "auto" else self.address)
            with _silent_stderr():
                context = ray.init(**self._options())
        except (ConnectionError, ValueError, RuntimeError, TimeoutError, OSError) as error:
            where, hint = self.address, "start one with `ray start --head`, or use `--ray local`"
            words = first_line(error)
            if "any running Ray instance" in words:
                where, words = "this machine", "Ray is not running here, and RAY_ADDRESS is not set"
            raise LlvidError(f"no Ray cluster at {where}: {words}", hint) from None
        try:
            yield self._session(ray, str(getattr(context, "dashboard_url", "") or ""))
        finally:
            ray.shutdown()

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL, "address": self.address}
        if self.address == "local":
            options["include_dashboard"] = None  # if it is installed
            # Ray only counts these CPUs to schedule tasks; the system shares the real ones
            options["num_cpus"] = (self.readers or cores(Limits())) + max(self.max_workers or 1, cores(Limits())) + 1
            if self.memory_bytes:
                options["object_store_memory"] = self.memory_bytes
        return options

    def _session(self, ray: Any, dashboard: str) -> ClusterSession:
        resources = ray.cluster_resources()
        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
        on_gpus = self.device.startswith("cuda") or (gpus > 0 and self.device != "cpu")
        max_workers = self.max_workers or gpus or 1
        if not on_gpus:
            if cpus < 2:
                raise LlvidError(f"the cluster has too few CPUs ({cpus}): a run needs one to read and one to answer")
            max_workers = min(max_workers, cpus - 1)  # a reader needs one too
        # the pool starts with the GPUs that exist, and grows when an autoscaler adds more
        min_workers = min(self.min_workers, max_workers, max(1, gpus) if on_gpus else max_workers)
        readers = self.readers or max(1, cores(Limits()) if self.address == "local" else cpus - max_workers)
        nodes = sum(bool(node["Alive"]) for node in ray.nodes())
        # Ray sets the threads of a worker's matrix products to the number of its CPUs
        per_worker = max(1, cores(Limits()) // max_workers) if self.address == "local" and not on_gpus else 1
        return ClusterSession(min_workers, max_workers, readers, on_gpus, nodes, dashboard, per_worker)


@dataclass(frozen=True)
class ClusterSession:
    """A connected cluster, and how much of it a run uses. `cores_per_worker` is for workers without a GPU."""

    min_workers: int
    max_workers: int
    readers: int
    on_gpus: bool
    nodes: int
    dashboard: str
    cores_per_worker: int = 1


def _check_reachable(address: str) -> None:
    """Raise ConnectionError if nothing listens at the address: Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        try:
            socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
        except OSError as error:
            raise ConnectionError(f"{address}: {error.strerror or error}") from None


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drop what is written to stderr: no option turns off one line of Ray's C++ part."""
    try:
        stderr = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    with Path(os.devnull).open("w") as devnull:
        os.dup2(devnull.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _import_ray() -> Any:
    """Import Ray, without its usage statistics and its messages. Raises LlvidError if it is not installed."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
        import ray.util.scheduling_strategies
    except ImportError:
        raise MissingExtraError("--ray needs the package ray", "ray") from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    warnings.filterwarnings("ignore", category=UserWarning, module=r"ray\.data")
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return ray
