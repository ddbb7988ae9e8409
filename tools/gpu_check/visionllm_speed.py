"""VisionLLM v2 at full size (7B, Swin-T), with random weights: load, questions, prefix cache, decoders, generation."""

from __future__ import annotations

import gc
import json
import math
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import comfy.model_patcher
import comfy.ops
import numpy as np
import torch

from mulan_nodes.mulan.checkpoints.devices import choose_dtype
from mulan_nodes.mulan.checkpoints.linear import operations_for
from mulan_nodes.mulan.checkpoints.quantization import FORMATS, INT8, tensor_layout
from mulan_nodes.mulan.checkpoints.tensor_files import TensorFile, open_tensors
from mulan_nodes.mulan.conversion.visionllm import language_matrices
from mulan_nodes.visionllm_nodes.model import answers, decoding, perception, prompt_templates
from mulan_nodes.visionllm_nodes.model.prefill import ImageView
from mulan_nodes.visionllm_nodes.model.visionllm_files import visionllm_from_tensors
from mulan_nodes.visionllm_nodes.model.visionllm_loader import LoadedVisionLLM

from ..comfyui import ROOT
from ..random_checkpoints import visionllm as random_visionllm
from .measuring import GIB, Section, measured, peak, release, seconds, synchronize

MANIFEST = ROOT / "tests" / "parity" / "manifests" / "visionllm" / "visionllmv2_7b_swin_t.json"
Shapes = dict[str, tuple[int, ...]]


def visionllm(section: Section) -> None:
    folder = section.work / ("vision_quick" if section.quick else "vision_7b")
    folder.mkdir(exist_ok=True)
    if section.quick:
        shapes = dict(open_tensors(random_visionllm.checkpoint(folder, mappers=True)).shapes)
    else:
        (folder / "tokenizer.model").write_bytes(random_visionllm.sentencepiece_model(320))
        manifest = json.loads(MANIFEST.read_text("utf-8"))["tensors"]
        shapes = {name: tuple(shape) for name, shape in manifest.items()}
    pixels = np.random.default_rng(0).integers(0, 256, (1080, 1440, 3), dtype=np.uint8)
    for weight_format in ("bf16", "int8"):
        made: dict[str, LoadedVisionLLM] = {}

        def build(weight_format=weight_format, made=made) -> dict[str, Any]:
            start = time.perf_counter()
            made["loaded"] = _load(folder, shapes, weight_format == "int8", section.device)
            return {"s": time.perf_counter() - start, "dtype": str(made["loaded"].dtype)}

        if not section.case(f"{weight_format} build", build):
            continue
        loaded = made.pop("loaded")
        with torch.no_grad():
            _questions(section, weight_format, loaded, pixels)
            _parts(section, weight_format, loaded, pixels)
            _generation(section, weight_format, loaded, pixels)

        def free(loaded=loaded) -> dict[str, float]:
            loaded.patcher.detach()
            gc.collect()
            return {"left_GiB": section.held()}

        section.case(f"{weight_format} /free", free)
        del loaded, build, free
        release()


def _load(folder: Path, shapes: Shapes, quantized: bool, device: torch.device) -> LoadedVisionLLM:
    shapes = dict(shapes)
    if quantized:
        empty = TensorFile(folder, shapes, lambda name: torch.empty(shapes[name], device="meta"), {})
        quantization = FORMATS["int8"]
        assert quantization is not None
        for name in language_matrices(visionllm_from_tensors(empty), quantization):
            layout = tensor_layout(name, shapes[name], quantization)
            shapes |= {part: tuple(spec.shape) for part, spec in layout.items()}
    file = visionllm_from_tensors(TensorFile(folder, shapes, random_reader(shapes, torch.bfloat16), {}))
    dtype = choose_dtype(device, torch.bfloat16, torch.float16)
    quantized_ops = operations_for(dtype) if quantized else None
    model = file.build(operations=comfy.ops.manual_cast, language_operations=quantized_ops, device="meta")
    model.load_state_dict(dict(file.tensors()), assign=True)
    model.train(False).requires_grad_(False)
    patcher = comfy.model_patcher.CoreModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))
    return LoadedVisionLLM(file, model, patcher, dtype, torch.float32)


def random_reader(shapes: Shapes, dtype: torch.dtype) -> Callable[[str], torch.Tensor]:
    """Tensors of any published name, all from one pool of random numbers: 18 GB out of half of one."""
    pool_size = min(max(map(math.prod, shapes.values())), 2**24)
    pools = {
        "float": (torch.randn(pool_size) * 0.02).to(dtype),
        "int8": torch.randint(-127, 128, (pool_size,), dtype=torch.int8),
    }

    @lru_cache(maxsize=64)
    def values(kind: str, count: int) -> torch.Tensor:
        pool = pools[kind]
        return pool[:count] if count <= len(pool) else pool.repeat(-(-count // len(pool)))[:count]

    def read(name: str) -> torch.Tensor:
        shape = shapes[name]
        if name.endswith("comfy_quant"):
            return INT8.mark()
        if name.endswith("weight_scale"):
            return torch.full(shape, 2e-4)
        kind = "int8" if name.removesuffix("weight") + "comfy_quant" in shapes else "float"
        return values(kind, math.prod(shape)).view(shape)

    return read


def _questions(section: Section, title: str, loaded: LoadedVisionLLM, pixels: np.ndarray) -> None:
    """Detection with and without what the prefix cache keeps."""

    def to_device() -> dict[str, float]:
        start = time.perf_counter()
        loaded.load(2 * GIB)
        synchronize()
        return {"s": time.perf_counter() - start, "GiB": section.held()}

    section.case(f"{title} to the device", to_device)
    for name, labels, fresh in (
        ("first question, 1 name", ["star"], True),
        ("second question", ["cup"], False),
        ("first question, 80 names", [f"thing{index}" for index in range(80)], True),
    ):

        def ask(labels=labels, fresh=fresh) -> None:
            if fresh:
                loaded.prefix_cache.clear()
            perception.detect(loaded, pixels, labels)

        section.case(f"{title} detect, {name}", lambda ask=ask: measured(ask, 3, 0))


def _parts(section: Section, title: str, loaded: LoadedVisionLLM, pixels: np.ndarray) -> None:
    """Image preparation, tower, prefill, cache and decoders, each alone."""
    device, model = section.device, loaded.model
    view = ImageView(loaded, pixels)
    section.case(
        f"{title} preparing the image (CPU)",
        lambda: {"s": seconds(lambda: ImageView(loaded, pixels), 2, 0), "views": len(view.views)},
    )
    views = view.views.to(device, loaded.dtype)
    section.case(f"{title} encode_images", lambda: {"s": seconds(lambda: model.encode_images(views))})
    hidden_size, tokens = loaded.file.parts["language"].config.hidden_size, 60 if section.quick else 2920
    embeddings = torch.randn(1, tokens, hidden_size, device=device, dtype=loaded.dtype)
    section.case(f"{title} prefill {tokens}", lambda: measured(lambda: model.language(embeddings, use_cache=True)))

    def move_cache() -> dict[str, float]:
        _, cache = model.language(embeddings, use_cache=True)
        assert cache is not None
        in_main_memory = cache.to("cpu")
        return {
            "GiB": cache.bytes / GIB,
            "out_s": seconds(lambda: cache.to("cpu"), 2),
            "back_s": seconds(lambda: in_main_memory.to(device), 2),
        }

    section.case(f"{title} cache to main memory and back", move_cache)
    grounding, pose = model.grounding, model.pose
    queries = torch.randn(80, 4, hidden_size, device=device, dtype=loaded.dtype)
    if grounding is not None:
        canvas = decoding.grounding_canvas(loaded, view)
        section.case(
            f"{title} grounding decoder, 80 names",
            lambda: {
                **measured(lambda: decoding._ground(loaded, canvas, queries)),
                "memory_required_GiB": canvas.memory / GIB,
            },
        )
    if pose is not None:
        on = decoding.pose_canvas(loaded, view)
        known = torch.ones(1, 18, dtype=torch.bool, device=device)

        def find() -> Any:
            return pose(on.image, on.mask, queries[None, :1], known[:, :1], queries[None, 1:18], known[:, 1:])

        section.case(f"{title} pose decoder, 17 keypoints", lambda: {"s": seconds(find)})


def _generation(section: Section, title: str, loaded: LoadedVisionLLM, pixels: np.ndarray) -> None:
    tokens = 4 if section.quick else 64
    for count in (1, 4):

        def generate(count=count) -> dict[str, float]:
            questions = [prompt_templates.chat(f"What is it {index}?") for index in range(count)]
            start = time.perf_counter()
            conversation = answers.Conversation(loaded, [pixels], questions, max_tokens=tokens)
            conversation._generation._end = -1  # random weights end an answer at any time
            synchronize()
            first = time.perf_counter() - start
            start = time.perf_counter()
            conversation._generation.run()
            synchronize()
            took = time.perf_counter() - start
            return {"first_s": first, "tokens/s each": tokens / took, "s": took}

        def with_peak(generate=generate) -> dict[str, float]:
            most, figures = peak(generate)
            return {**figures, "peak_GiB": most}

        section.case(f"{title} generating {tokens} tokens, {count} side by side", with_peak)
