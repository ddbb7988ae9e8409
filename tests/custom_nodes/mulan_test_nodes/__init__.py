"""Nodes that only the tests' server has: what other packs do to a MODEL, made small, and a look at the memory of the
accelerator that is not there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json

import comfy.model_management
import comfy.model_patcher
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy_api.latest import ComfyExtension, io


class ImageTokens(io.ComfyNode):
    """What IP-Adapter does: beside every cross-attention to the text, one to tokens of a picture, on the positive side
    alone.

    The tokens are the means of 4x4 fields; keys and values are fixed random projections of them.
    """

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ImageTokens",
            category="tests",
            inputs=[io.Model.Input("model"), io.Image.Input("image"), io.Float.Input("strength", default=1.0)],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, image, strength) -> io.NodeOutput:
        tokens = (
            torch.nn.functional.adaptive_avg_pool2d(image[:1].movedim(-1, 1), 4).flatten(2).movedim(1, 2)
        )  # [1, 16, 3]

        def attend(q, k, v, extra_options):
            heads, sides = (
                extra_options["n_heads"],
                extra_options["cond_or_uncond"],
            )  # sides: 0 for each positive part of the batch
            own = [tokens.to(q) @ _projection(tokens.shape[-1], k.shape[-1], seed).to(q) for seed in (1, 2)]
            key, value = (side.expand(q.shape[0], -1, -1) for side in own)
            share = (
                torch.tensor([strength * (side == 0) for side in sides])
                .to(q)
                .repeat_interleave(q.shape[0] // len(sides))
            )
            return optimized_attention(q, k, v, heads) + share[:, None, None] * optimized_attention(
                q, key, value, heads
            )

        patched = model.clone()
        for part, blocks in (("input", 12), ("middle", 1), ("output", 12)):
            for block in range(blocks):
                patched.set_model_attn2_replace(attend, part, block)
        return io.NodeOutput(patched)


def _projection(width_in: int, width_out: int, seed: int) -> torch.Tensor:
    return torch.randn(width_in, width_out, generator=torch.Generator().manual_seed(seed))


class ConditioningOfWidth(io.ComfyNode):
    """Random text states of any width, for a model whose own text encoder is too large for tests: the SDXL refiner's
    CLIP-G.
    """

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ConditioningOfWidth",
            category="tests",
            inputs=[io.Int.Input("width", default=1280), io.Int.Input("seed", default=0)],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, width, seed) -> io.NodeOutput:
        rows = torch.randn(1, 78, width, generator=torch.Generator().manual_seed(seed))
        return io.NodeOutput([[rows[:, 1:], {"pooled_output": rows[:, 0]}]])


class NpuMemory(io.ComfyNode):
    """On the accelerator of tests/accelerator: gives it `total` bytes (0: as many as it has), of which dynamic VRAM
    leaves `headroom` to others, lets a model of `rival` bytes come and go, and shows what is there then. `value` goes
    through; nodes after it run anew each time.
    """

    @classmethod
    def define_schema(cls):
        after = io.Autogrow.TemplatePrefix(io.AnyType.Input("after"), prefix="after_", min=0, max=10)
        return io.Schema(
            node_id="NpuMemory",
            category="tests",
            is_output_node=True,
            inputs=[
                io.AnyType.Input("value"),
                io.Int.Input("total", default=0, max=2**50, optional=True),
                io.Int.Input("headroom", default=0, max=2**50, optional=True),
                io.Int.Input("rival", default=0, max=2**50, optional=True),
                io.Autogrow.Input("after", template=after, optional=True),
            ],
            outputs=[io.AnyType.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return float("nan")  # equal to nothing

    @classmethod
    def execute(cls, value, total=0, headroom=0, rival=0, after=None) -> io.NodeOutput:
        from torch_npu import memory

        memory.total, memory.headroom = total or memory.total, headroom
        if rival:
            module = torch.nn.Linear(64, rival // 256 + 1, bias=False).requires_grad_(False)
            patcher = comfy.model_patcher.CoreModelPatcher(
                module, comfy.model_management.get_torch_device(), torch.device("cpu")
            )
            comfy.model_management.load_models_gpu([patcher])
        models = {
            type(model.model).__name__: [model.loaded_size(), model.model_size()]
            for model in comfy.model_management.loaded_models()
        }
        told = {
            "used": memory.used,
            "work": memory.work,
            "models": models,
            "copy": id(value),
            "pictures": len(value.memory) if hasattr(value, "memory") else 0,
            "digest": _digest(list((after or {}).values())),
        }
        return io.NodeOutput(value, ui={"text": [json.dumps(told)]})


class Places(io.ComfyNode):
    """Shows device and dtype of every tensor in a value."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Places", category="tests", is_output_node=True, inputs=[io.AnyType.Input("value")], outputs=[]
        )

    @classmethod
    def execute(cls, value) -> io.NodeOutput:
        places = sorted({(str(tensor.device), str(tensor.dtype)[6:]) for tensor in _tensors(value)})
        return io.NodeOutput(ui={"text": [json.dumps(places)]})


def _tensors(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _digest(value) -> str:
    """A name for values such as CONDITIONING and texts: the same for equal bits only."""
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, torch.Tensor):
        value = (
            str(value.dtype),
            list(value.shape),
            hashlib.sha256(value.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest(),
        )
    elif isinstance(value, (list, tuple)):
        value = [_digest(part) for part in value]
    elif isinstance(value, dict):
        value = {name: _digest(part) for name, part in value.items()}
    return hashlib.sha256(repr(value).encode()).hexdigest()


class Nodes(ComfyExtension):
    async def get_node_list(self):
        return [ImageTokens, ConditioningOfWidth, NpuMemory, Places]


async def comfy_entrypoint() -> Nodes:
    return Nodes()
