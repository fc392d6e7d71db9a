"""How costs are measured: the contenders take turns, and what is compared are neighbours in time."""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

__all__ = ["Timer", "device_name", "milliseconds", "peak_memory", "processor_name", "ratios"]


class Timer:
    """A stopwatch that waits for the accelerator before it looks.

    Args:
        device: Where the work is done.
        clock: `"wall"`, or `"cpu"` for the time of this process, which heeds other load less.
    """

    def __init__(self, device: str | torch.device, clock: Literal["wall", "cpu"] = "wall") -> None:
        self._on_gpu = torch.device(device).type == "cuda"
        self._clock = time.perf_counter if clock == "wall" else time.process_time

    def now(self) -> float:
        """The time in seconds, once all work is done."""
        if self._on_gpu:
            torch.cuda.synchronize()
        return self._clock()

    def time(self, function: Callable[[], Any]) -> float:
        """The seconds that a call takes."""
        start = self.now()
        function()
        return self.now() - start


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """The median ratio of neighbours, its quartiles, and the median times in milliseconds."""
    pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
    low, middle, high = statistics.quantiles(pairs, n=4, method="inclusive")
    return {
        "ratio": round(middle, 4),
        "quartiles": [round(low, 4), round(high, 4)],
        "ratio_of_fastest": round(min(ours) / min(theirs), 4),
        "ours_ms": milliseconds(ours),
        "plain_ms": milliseconds(theirs),
        "repeats": len(pairs),
    }


def milliseconds(times: Sequence[float]) -> float:
    """The median in milliseconds."""
    return round(1e3 * statistics.median(times), 3)


def device_name(device: str | torch.device) -> str:
    """The name of a GPU, or of the processor."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor_name()


def processor_name() -> str:
    """The name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def peak_memory(device: str | torch.device) -> float | None:
    """The most memory that this process has held so far in MB, on the GPU if it works there; None if not known."""
    if torch.device(device).type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    if sys.platform == "win32":
        return None
    import resource  # there is none on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
