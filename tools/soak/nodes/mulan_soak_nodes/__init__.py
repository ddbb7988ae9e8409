"""A node that only the soak's server has: what the process holds."""

from __future__ import annotations

import ctypes
import gc
import json
import sys

import psutil
from comfy_api.latest import ComfyExtension, io, ui


class MallInfo(ctypes.Structure):
    """glibc's mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"  # as in malloc.h
        ).split()
    ]


class SoakMemory(io.ComfyNode):
    """Show the resident memory, what of it malloc has given out (0 where the system is not Linux), both in MB, and the
    number of Python objects. Free pages between blocks in use are given back first: the C library keeps them.
    """

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SoakMemory", category="tests", is_output_node=True, inputs=[io.Int.Input("number")], outputs=[]
        )

    @classmethod
    def execute(cls, number) -> io.NodeOutput:
        gc.collect()
        held = 0.0
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)
            mallinfo = ctypes.CDLL(None).mallinfo2
            mallinfo.restype = MallInfo
            info = mallinfo()
            held = (info.uordblks + info.hblkhd) / 1e6
        resident = psutil.Process().memory_info().rss / 1e6
        told = {"resident": resident, "held": held, "objects": len(gc.get_objects())}
        return io.NodeOutput(ui=ui.PreviewText(json.dumps(told)))


class SoakNodes(ComfyExtension):
    async def get_node_list(self):
        return [SoakMemory]


async def comfy_entrypoint() -> SoakNodes:
    return SoakNodes()
