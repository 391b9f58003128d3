"""Graphics cards: which of them torch can use, what is free on each, and why one can't be used."""

from __future__ import annotations

import json
import shutil
import subprocess
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from ..errors import first_line
from ..system.machine import ask_python, has_nvidia, may_have_accelerator

_SMI_SECONDS = 10.0
_CONTEXT_BYTES = 500_000_000  # that the driver takes of a card before anything is stored there
_EXCLUSIVE = "Exclusive_Process"


@dataclass(frozen=True)
class Card:
    """A graphics card. `compute_capability` is NVIDIA's; `problem` says why it can't be used, if it can't."""

    device: str
    name: str
    compute_capability: str
    total_bytes: int
    free_bytes: int
    has_bfloat16: bool
    problem: str = ""


@dataclass(frozen=True)
class Accelerators:
    """The devices of torch; `has_nvidia` means that there is an NVIDIA card, even if torch can't use it.

    `torch_built_for` is the version of CUDA or ROCm that torch was built for, or empty. `why_none` is what torch says
    where it finds no card.
    """

    cards: tuple[Card, ...] = ()
    has_mps: bool = False
    has_nvidia: bool = False
    torch_built_for: str = ""
    why_none: str = ""


def accelerators() -> Accelerators:
    """Return the devices of torch. A separate process asks torch, and only if there may be a device.

    Raises OSError with the reason if torch fails.
    """
    if not may_have_accelerator():
        return Accelerators()
    values = ask_python("from llava_video_cli.inference import cards\nprint(cards.as_json())")
    cards = tuple(Card(**card) for card in values.pop("cards"))
    return Accelerators(cards, has_nvidia=has_nvidia(), **values)


def as_json() -> str:
    """Return the devices of torch as JSON; torch is imported."""
    import torch

    cards = find_cards()
    values = {
        "cards": list(map(asdict, cards)),
        "has_mps": torch.backends.mps.is_available(),
        "torch_built_for": torch.version.cuda or torch.version.hip or "",
        "why_none": "" if cards else why_none(),
    }
    return json.dumps(values)


def find_cards(only: int | None = None) -> list[Card]:
    """Return the cards that torch finds, or one of them, in its order.

    Where there are several, nvidia-smi tells what is free: torch would take 0.3 to 0.5 GB of each card that it asks.
    """
    import torch

    with _quiet():
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        numbers = range(count) if only is None else range(only, min(count, only + 1))
        by_uuid = _cards_by_smi() if len(numbers) > 1 else {}
        return [_card(number, by_uuid) for number in numbers]


def why_none() -> str:
    """Return why torch finds no card: what it says itself, as of a driver that is too old."""
    import torch

    if not (torch.version.cuda or torch.version.hip):
        return "this torch is built for the CPU only"
    try:
        with _quiet():
            torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return first_line(error).partition(". ")[0]
    return "torch finds none"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's warnings back: they say in many lines what `Card.problem` says in one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def has_kernels(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Return whether a torch that was built for these architectures, such as `sm_80`, has kernels for a card.

    A card runs what was compiled for its own major version and no later minor one, or, from a `compute_` entry, what
    the driver compiles for it. Source: CUDA C++ Programming Guide, "Binary Compatibility" and "PTX Compatibility".
    """
    for architecture in architectures:
        kind, _, version = architecture.partition("_")
        digits = version.rstrip("af")  # of one card, or one family, alone
        if not digits.isdecimal():
            return True  # AMD's names
        built = divmod(int(digits), 10)
        if digits != version and built[0] != capability[0]:
            continue
        if built <= capability and (kind == "compute" or built[0] == capability[0]):
            return True
    return not architectures


def _card(number: int, by_uuid: dict[str, tuple[int, str]]) -> Card:
    import torch

    properties = torch.cuda.get_device_properties(number)
    capability = (properties.major, properties.minor)
    free, problem = by_uuid.get(f"GPU-{getattr(properties, 'uuid', '')}", (0, None))
    if not has_kernels(capability, torch.cuda.get_arch_list()):
        problem = f"this torch has no kernels for compute capability {capability[0]}.{capability[1]}"
    elif problem is None:
        try:
            free, problem = torch.cuda.mem_get_info(number)[0], ""
        except RuntimeError as error:  # it is full, or another process uses it alone
            problem = first_line(error)
    free += torch.cuda.memory_reserved(number) - torch.cuda.memory_allocated(number)  # for this process's next tensors
    return Card(
        f"cuda:{number}", properties.name, f"{capability[0]}.{capability[1]}", properties.total_memory, free,
        capability >= (8, 0), problem,
    )  # fmt: skip


def _cards_by_smi() -> dict[str, tuple[int, str]]:
    """Return the free bytes of each card by its UUID, and why it can't be used; empty without nvidia-smi."""
    by_uuid: dict[str, tuple[int, str]] = {}
    rows = _smi("--query-gpu=uuid,memory.free,compute_mode")
    busy = {row[0] for row in _smi("--query-compute-apps=gpu_uuid")} if _EXCLUSIVE in str(rows) else set()
    for row in rows:
        if len(row) != 3 or not row[1].isdecimal():  # it does not tell of parts of a card, nor of shared memory
            continue
        uuid, free, mode = row[0], int(row[1]) * 2**20, row[2]
        problem = "its compute mode is Prohibited" if mode == "Prohibited" else ""
        if mode == _EXCLUSIVE and uuid in busy:
            problem = "another process uses it alone"
        if free < _CONTEXT_BYTES:
            problem = f"only {free / 1e9:.1f} GB is free"
        by_uuid[uuid] = free, problem
    return by_uuid


def _smi(query: str) -> list[list[str]]:
    """Return what nvidia-smi says, a row for each card or process; nothing if it isn't there or fails."""
    if (program := shutil.which("nvidia-smi")) is None:
        return []
    command = [program, query, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SMI_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [[word.strip() for word in line.split(",")] for line in done.stdout.splitlines()]
