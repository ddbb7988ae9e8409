"""Every model with random and tiny weights, and in 8 bits: float32 on the CPU against the device in three dtypes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mulan_nodes.mulan.conditioning.clip import load_clip
from mulan_nodes.mulan.conversion.converters import convert
from mulan_nodes.mulan.internvl.internvl_loader import load_internvl
from mulan_nodes.mulan.internvl_chat.chat_loader import load_chat
from mulan_nodes.visionllm_nodes.model import answers, contexts, decoding, perception, prompt_templates
from mulan_nodes.visionllm_nodes.model.prefill import ImageView, super_link_states
from mulan_nodes.visionllm_nodes.model.visionllm_loader import load_visionllm

from ..comfyui import write_tiny_models
from ..random_checkpoints import internvl as random_internvl
from ..random_checkpoints import internvl_chat as random_internvl_chat
from ..random_checkpoints import visionllm as random_visionllm
from ..shards import shard
from .measuring import Section, relative_error

Results = dict[str, Any]  # tensors, and texts
Run = Callable[[str | None, torch.dtype | None], Results]  # device (None: ComfyUI's), dtype
WIDE: dict[str, Any] = {
    "width": 512,
    "feed_forward": 1024,
    "layers": 6,
    "heads": 8,
    "text_width": 512,
    "text_feed_forward": 1024,
    "text_layers": 6,
    "text_heads": 8,
}
PIXELS = (np.random.default_rng(0).random((64, 96, 3)) * 255).astype(np.uint8)
IMAGE = torch.from_numpy(PIXELS).float() / 255
REORDERED = ("boxes", "logits", "pose")  # rounding changes the order of the proposals


def parity(section: Section) -> None:
    for name, run in _models(section).items():
        reference: Results = {}
        if not section.case(f"{name} on the CPU", lambda run=run, out=reference: out.update(run("cpu", torch.float32))):
            continue
        # A MuLan CLIP always computes in float32.
        dtypes = (torch.float32, torch.bfloat16, torch.float16)[: 1 if name.startswith("MuLan") else None]
        for dtype in dtypes:

            def compare(run=run, reference=reference, dtype=dtype) -> dict[str, Any]:
                return {"relative": compare_results(run("cpu" if section.on_cpu else None, dtype), reference, dtype)}

            section.case(f"{name} {str(dtype)[6:]}", compare)


def _models(section: Section) -> dict[str, Run]:
    """The files, written first; $MODELS (names' beginnings, with commas) picks some."""
    folder, tiny = section.work / "parity", section.work / "tiny"
    folder.mkdir(parents=True, exist_ok=True)
    write_tiny_models(tiny)
    shard(random_visionllm.checkpoint(folder / "V", mappers=True))
    shard(random_internvl_chat.checkpoint(folder / "C"))
    random_internvl.checkpoint(folder / "I", shards="safetensors", **WIDE)
    tiny_text = tiny / "text_encoders" / "tiny_internvl.safetensors"
    tiny_vision = tiny / "visionllm" / "tiny_visionllm.safetensors"
    adapter = tiny / "mulan" / "tiny_sd15_adapter.safetensors"
    for weight_format in ("int8", "fp8"):
        for name, source in (("V", tiny_vision), ("C", folder / "C"), ("T", tiny_text), ("I_text", folder / "I")):
            convert(source, folder / f"{name}_{weight_format}.safetensors", weight_format, overwrite=True)
    vision_side = next(folder.glob("I*vision_int8*"))
    models = {
        "VisionLLM random": visionllm(folder / "V"),
        "VisionLLM tiny": visionllm(tiny_vision),
        "VisionLLM int8": visionllm(folder / "V_int8.safetensors"),
        "VisionLLM fp8": visionllm(folder / "V_fp8.safetensors"),
        "MuLan tiny": mulan(tiny_text, adapter),
        "MuLan int8": mulan(folder / "T_int8.safetensors", adapter),
        "MuLan fp8": mulan(folder / "T_fp8.safetensors", adapter),
        "InternVL G random": internvl(folder / "I"),
        "InternVL G int8": internvl(vision_side, folder / "I_text_int8.safetensors"),
        "chat random": chat(folder / "C"),
        "chat int8": chat(folder / "C_int8.safetensors"),
        "chat fp8": chat(folder / "C_fp8.safetensors"),
    }
    wanted = tuple(os.environ.get("MODELS", "").split(","))
    return {name: run for name, run in models.items() if name.startswith(wanted)}


def compare_results(results: Results, reference: Results, dtype: torch.dtype) -> dict[str, Any]:
    """Relative error of each result; in half precision the best proposals are compared, not those of one index."""
    found: dict[str, Any] = {}
    best = reference["logits"].float().cpu().amax(-1)[0].topk(10).indices if "boxes" in reference else None
    for name, expected in reference.items():
        ours = results[name]
        if isinstance(expected, str):
            found[name] = ours == expected
            continue
        ours, expected = ours.float().cpu(), expected.float().cpu()
        finite = torch.isfinite(expected)
        same_places = torch.equal(torch.isfinite(ours), finite)
        if best is not None and name in REORDERED and dtype != torch.float32:
            if name == "boxes":
                distance = torch.cdist(expected[0][best], ours[0], p=1).amin(1).mean().item()
                found["10 best boxes, to the nearest (0..1)"] = f"{distance:.1e}"
            if name == "logits":
                gap = (expected.flatten().topk(10).values - ours.flatten().topk(10).values).abs().max().item()
                found["10 best logits"] = f"{gap:.1e}"
            found[f"{name} finite"] = bool(torch.isfinite(ours).any()) if name == "logits" else same_places
            continue
        error = relative_error(ours[finite], expected[finite])
        found[name] = f"{error:.1e}" + ("" if same_places else " NOT FINITE")
    return found


def visionllm(path: Path) -> Run:
    @torch.no_grad()
    def run(device: str | None, dtype: torch.dtype | None) -> Results:
        loaded = load_visionllm(path, device, dtype)
        model, results = loaded.model, Results()
        assert model.grounding is not None
        view = ImageView(loaded, PIXELS)
        (queries,) = super_link_states(loaded, view, [prompt_templates.detection(["star", "圆"])])
        results["queries"] = queries
        output = decoding._ground(loaded, decoding.grounding_canvas(loaded, view), queries)
        results["boxes"], results["logits"] = output.boxes, output.logits
        results["masks"] = model.grounding.masks(output, torch.zeros(1, 3, dtype=torch.long, device=loaded.device))  # pyright: ignore[reportCallIssue]  (a torch module's method)
        if model.pose is not None:
            turn = prompt_templates.pose(["person"], ["nose", "left eye"])
            (asked,) = super_link_states(loaded, view, [turn])
            canvas = decoding.pose_canvas(loaded, view)
            known = torch.ones(1, 3, dtype=torch.bool, device=loaded.device)
            pose = model.pose(canvas.image, canvas.mask, asked[None, :1], known[:, :1], asked[None, 1:], known[:, 1:])
            results["pose"] = pose.keypoints
        results["tokens"] = model.encode_images(view.views.to(loaded.device, loaded.dtype)).tokens
        if model.generate is not None:
            results["generation"] = contexts.generation_context(loaded, "a red star")
            results["editing"] = contexts.editing_context(loaded, PIXELS, "winter")
        if model.region_encoder is not None:
            size = loaded.settings.tower
            region_masks = torch.zeros(2, size, size, dtype=torch.bool)
            region_masks[:, : size // 2] = True
            perception.detect_at_regions(loaded, PIXELS, region_masks)
        loaded.prefix_cache.clear()
        questions = [prompt_templates.chat("What is it?"), prompt_templates.chat("Which colours are there?")]
        for index, reply in enumerate(answers.answer(loaded, [PIXELS], questions, max_tokens=5)):
            results[f"text {index}"] = reply.text
        perception.segment(loaded, PIXELS, ["a", "b"])
        perception.detect(loaded, PIXELS, ["a"], iou_threshold=0.5, max_per_name=3)
        loaded.patcher.detach()
        return results

    return run


def mulan(path: Path, adapter: Path) -> Run:
    def run(device: str | None, dtype: torch.dtype | None) -> Results:
        clip: Any = load_clip(path, adapter, device=device)  # a CLIP asked for its pooled output gives a pair
        prompts = ("a big (red:1.2) star", "", "一只猫 " * 60)
        return {text: clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)[0] for text in prompts}

    return run


def internvl(path: Path, text_encoder: Path | None = None) -> Run:
    def run(device: str | None, dtype: torch.dtype | None) -> Results:
        loaded = load_internvl(path, "G", text_encoder, device, dtype)
        return {"images": loaded.embed_images([IMAGE, IMAGE[:40]]), "texts": loaded.embed_texts(["a star", "蓝色的圆"])}

    return run


def chat(path: Path) -> Run:
    @torch.no_grad()
    def run(device: str | None, dtype: torch.dtype | None) -> Results:
        clip, results = load_chat(path, device, dtype), Results()
        tokens = clip.tokenize("What is it?", images=[IMAGE], tiles=4)
        for name, sampled, temperature in (("greedy", False, 0.0), ("sampled", True, 0.7)):
            ids = clip.generate(
                tokens, max_length=6, do_sample=sampled, temperature=temperature, top_k=0, top_p=0.9, seed=0
            )
            results[name] = clip.decode(ids)
        model: Any = clip.cond_stage_model.chat
        on, compute_dtype, size = clip.patcher.load_device, dtype or torch.float32, model.config.vision.image_size
        tiles = torch.full((2, 3, size, size), 0.3, device=on, dtype=compute_dtype)
        results["tiles"] = model.encode_tiles(tiles)
        hidden_size = model.config.language.hidden_size
        embeddings = torch.linspace(-1, 1, 24 * hidden_size).view(1, 24, -1).to(on, compute_dtype)
        language = model.language_model
        results["logits"] = language.logits(language.model.forward(None, embeds=embeddings)[0])
        return results

    return run
