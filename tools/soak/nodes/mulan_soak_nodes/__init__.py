"""A node that only the soak's server has: what the process holds."""

from __future__ import annotations

import ctypes
import gc
import json
import sys

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
    """Show what malloc has given out in MB (0 where the system is not Linux), and the number of Python objects."""

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
            mallinfo = ctypes.CDLL(None).mallinfo2
            mallinfo.restype = MallInfo
            info = mallinfo()
            held = (info.uordblks + info.hblkhd) / 1e6
        return io.NodeOutput(ui=ui.PreviewText(json.dumps({"held": held, "objects": len(gc.get_objects())})))


class SoakNodes(ComfyExtension):
    async def get_node_list(self):
        return [SoakMemory]


async def comfy_entrypoint() -> SoakNodes:
    return SoakNodes()
