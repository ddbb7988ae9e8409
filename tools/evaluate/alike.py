"""`dev.py eval alike`: how often the thing that one drawn scene marks is found in another, beside chance and labels."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np

from ..comfyui import open_comfyui
from .telling import Ticker, located, table, tell, tiny_internvl

FILE = "alike_scores.md"
SEED = 30_000
SCENES = 300
THRESHOLDS = 0.7, 0.8, 0.9


def evaluation(comfyui: Path, cpu: bool, output: Path, options: Namespace) -> None:
    """`options.scenes` pairs of scenes; writes output/alike_scores.md."""
    open_comfyui(*(["--cpu"] if cpu else []))
    import torch

    from mulan_nodes.mulan.tiny_models.unpacking import VISIONLLM
    from mulan_nodes.visionllm_nodes.detections.looks import FRAMING, crop
    from mulan_nodes.visionllm_nodes.model.in_context import detect_like_examples
    from mulan_nodes.visionllm_nodes.model.perception import detect
    from mulan_nodes.visionllm_nodes.model.regions import masks_from_boxes
    from mulan_nodes.visionllm_nodes.model.selection import Limits
    from mulan_nodes.visionllm_nodes.model.visionllm_loader import load_visionllm

    from ..tinyworld.world import SHAPES
    from ..tinyworld_visionllm.evaluation import FOUND, overlaps
    from ..tinyworld_visionllm.scenes import PICTURE_SIZE, draw_pair

    count, ticker = options.scenes or SCENES, Ticker()
    internvl = tiny_internvl(comfyui)
    visionllm = load_visionllm(located(comfyui, VISIONLLM))
    best: dict[str, list[float]] = {"chance": [], "label": [], "vector": [], "in context": []}
    hits, chosen, there = np.zeros(1 + len(THRESHOLDS)), np.zeros(1 + len(THRESHOLDS)), 0
    rng = np.random.default_rng(SEED)
    for number in range(count):
        example, marked, scene = draw_pair(rng)
        thing = example.items[marked].thing
        wanted = [i for i, item in enumerate(scene.items) if _kind(item.thing) == _kind(thing)]
        truth = np.array([item.box for item in scene.items])
        found = detect(
            visionllm, scene.picture, list(SHAPES), threshold=0.3, iou_threshold=0.7, class_agnostic=True, masks=False
        )
        boxes, labels = found.boxes.numpy(), [list(SHAPES)[label] for label in found.labels.tolist()]
        iou = overlaps(boxes, truth)
        right = (iou[:, wanted].max(1) >= FOUND) & (np.isin(iou.argmax(1), wanted))
        image = torch.from_numpy(scene.picture).float() / 255
        parts = [crop(torch.from_numpy(example.picture).float() / 255, _box(example.items[marked].box))]
        parts += [crop(image, _box(box)) for box in boxes]
        vectors = internvl.embed_images([part for part in parts if part is not None], FRAMING).numpy()
        scores = vectors[1:] @ vectors[0]
        same_label = np.array([label == thing.shape for label in labels], bool)
        best["chance"].append(right.mean() if len(right) else 0.0)
        best["label"].append(right[same_label].mean() if same_label.any() else 0.0)
        best["vector"].append(float(right[scores.argmax()]) if len(scores) else 0.0)
        for column, kept in enumerate((same_label, *(scores >= threshold for threshold in THRESHOLDS))):
            hits[column] += (right & kept).sum()
            chosen[column] += kept.sum()
        there += len(wanted)
        marks = masks_from_boxes(
            torch.from_numpy(example.items[marked].box[None]), PICTURE_SIZE, PICTURE_SIZE, visionllm.settings.tower
        )
        alike = detect_like_examples(
            visionllm, scene.picture, [example.picture], marks[:, 0], Limits(max_detections=1), masks=False
        )
        best["in context"].append(float(overlaps(alike.boxes.numpy(), truth[wanted]).max() >= FOUND))
        ticker.show(f"scene {number + 1} of {count}")
    ticker.end()
    ways = ["the detector's label", *(f"InternVL's vector, threshold {threshold}" for threshold in THRESHOLDS)]
    rows = [["chance", f"{np.mean(best['chance']):.3f}", "", ""]]
    for way, hit, of in zip(ways, hits, chosen, strict=True):
        first = np.mean(best["label"]) if way == ways[0] else np.mean(best["vector"])
        shown = f"{first:.3f}" if way in ways[:2] else ""
        rows.append([way, shown, f"{hit / max(1, of):.3f}", f"{hit / there:.3f}"])
    rows.append(["VisionLLM Region with `example`", f"{np.mean(best['in context']):.3f}", "", ""])
    tell(table(("chosen by", "the one box is right", "precision", "recall"), rows), output / FILE)


def _kind(thing) -> tuple[str, str]:
    return thing.colour, thing.shape


def _box(corners: np.ndarray) -> dict:
    x1, y1, x2, y2 = corners.tolist()
    return {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}
