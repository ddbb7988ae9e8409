"""MuLan's int8 file on the whole card, and on 12 and 8 GB of it: `dev.py bench --gpu`'s own measuring."""

from __future__ import annotations

import time
from dataclasses import replace

from ..bench import run, weights
from .measuring import GIB, Section

CARDS = (("8 GB", 8 * GIB), ("12 GB", 12 * GIB), ("whole", None))


def card(section: Section) -> None:
    sizes = weights.Sizes(1 if section.quick else 32)
    if section.quick:
        sizes = replace(sizes, feed_forward=512, vocabulary=1014)
    cache = section.work / "bench"
    folder = cache / sizes.name
    folder.mkdir(parents=True, exist_ok=True)
    bench = run.Bench(section.comfyui, cache, section.work, sizes, repeat=2, threads=8)
    bench.log.write_bytes(b"")
    adapter = weights.write_adapter(folder / "adapter", sizes)
    start = time.monotonic()
    file = weights.write_own(folder / "repeated-int8.safetensors", sizes, "int8", print)
    section.row(name="wrote the int8 file", s=time.monotonic() - start)
    device = section.device.type
    for name, size in CARDS:
        with run.rest_of_card_taken(device, size) as free:
            for dynamic in (False,) if section.on_cpu else (True, False):
                section.case(
                    f"MuLan int8 on {name}, dynamic VRAM {'on' if dynamic else 'off'}",
                    lambda dynamic=dynamic, free=free: run.measure_on_card(bench, file, adapter, device, dynamic, free),
                )
