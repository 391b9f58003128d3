"""What figures were measured on: the machine, how busy it was, and the versions that count."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

from ..runs.record import versions
from ..system.machine import Card, accelerators, memory, processor

# Cores that others use, and their share of all, from which on a measurement is off.
_BUSY_CORES, _BUSY_SHARE = 0.5, 0.25


@dataclass(frozen=True)
class Surroundings:
    """Where something was measured. `cores` are those that this process may use, `load` that of the last minute."""

    cpu: str
    cores: int
    memory_bytes: int | None
    gpus: tuple[Card, ...]
    system: str
    load: float | None
    versions: dict[str, str]

    @property
    def is_busy(self) -> bool:
        """Whether other programs run so much that a measurement would be off."""
        return self.load is not None and self.load > max(_BUSY_CORES, _BUSY_SHARE * self.cores)


def look_around() -> Surroundings:
    """Return what this machine is; what can't be found out is left empty."""
    cpu = processor()
    try:
        memory_bytes: int | None = memory().total_bytes
    except OSError:
        memory_bytes = None
    try:
        cards = accelerators().cards
    except OSError:
        cards = ()
    return Surroundings(
        cpu=cpu.name,
        cores=cpu.cores,
        memory_bytes=memory_bytes,
        gpus=cards,
        system=f"{platform.system()} {platform.machine()}",
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        versions=versions(),
    )
