"""`dev.py eval tracks`: how often objects of drawn videos keep their names, without and with InternVL's vectors."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment

from ..comfyui import open_comfyui
from .telling import Ticker, located, table, tell, tiny_internvl

FILE = "tracks_scores.md"
SEED = 20_000
NOISE, MISSED = 1.5, 0.05  # of true boxes: pixels, and the share that is left out
ROWS = {  # the table's rows: where boxes come from, and whether all objects of a shape have one colour
    "true boxes with noise": (False, False),
    "true boxes with noise, one colour per shape": (False, True),
    "boxes of VisionLLM Detect": (True, False),
}


def evaluation(comfyui: Path, cpu: bool, output: Path, options: Namespace) -> None:
    """`options.videos` for each row, a third as many where boxes are detected; writes output/tracks_scores.md."""
    open_comfyui(*(["--cpu"] if cpu else []))
    import torch

    from mulan_nodes.mulan.tiny_models.unpacking import VISIONLLM
    from mulan_nodes.visionllm_nodes.detections.looks import embed_boxes
    from mulan_nodes.visionllm_nodes.detections.tracking import track_boxes
    from mulan_nodes.visionllm_nodes.model.visionllm_loader import load_visionllm

    from ..tinyworld_visionllm.videos import draw_video

    internvl = tiny_internvl(comfyui)
    visionllm = load_visionllm(located(comfyui, VISIONLLM))
    count, ticker, rows = options.videos, Ticker(), []
    for row, (detected, twins) in ROWS.items():
        found: dict[str, list[tuple[float, int]]] = {}
        videos = max(1, count // 3) if detected else count  # detecting takes long
        for number in range(videos):
            rng = np.random.default_rng([SEED, number])
            video = draw_video(rng, twins=twins)
            if detected:
                frames, owners = detected_boxes(visionllm, video)
            else:
                frames, owners = noisy_boxes(video, rng)
            looks = embed_boxes(internvl, torch.from_numpy(video.frames).float() / 255, frames)
            for way, vectors in (("motion", None), ("motion and looks", looks)):
                tracks = track_boxes(frames, min_length=2, looks=vectors)
                found.setdefault(way, []).append(score(tracks, owners, video.seen))
            ticker.show(f"{row}: video {number + 1} of {videos}")
        for way, scores in found.items():
            idf1, switches = np.mean(scores, axis=0)
            rows.append([row, way, str(videos), f"{idf1:.3f}", f"{switches:.1f}"])
    ticker.end()
    tell(table(("boxes", "compared by", "videos", "IDF1", "name changes per video"), rows), output / FILE)


def noisy_boxes(video, rng: np.random.Generator) -> tuple[list[list[dict]], list[list[int | None]]]:
    """The true boxes in any order, labelled by shape, with noise and some left out, and whose each is."""
    frames, owners = [], []
    for seen in video.seen:
        kept = [index for index in rng.permutation(sorted(seen)).tolist() if rng.random() >= MISSED]
        frames.append([_box(seen[index] + rng.normal(0, NOISE, 4), video.things[index].shape) for index in kept])
        owners.append(kept)
    return frames, owners


def detected_boxes(visionllm, video) -> tuple[list[list[dict]], list[list[int | None]]]:
    """What VisionLLM Detect finds of the shapes of a video, and whose each box is (None: nobody's)."""
    from mulan_nodes.visionllm_nodes.model.perception import detect

    from ..tinyworld_visionllm.evaluation import FOUND, overlaps

    shapes = list(dict.fromkeys(thing.shape for thing in video.things))
    frames, owners = [], []
    for pixels, seen in zip(video.frames, video.seen, strict=True):
        found = detect(visionllm, pixels, shapes, threshold=0.3, iou_threshold=0.7, class_agnostic=True, masks=False)
        boxes, labels = found.boxes.numpy(), [shapes[label] for label in found.labels.tolist()]
        there = [*seen]
        iou = overlaps(boxes, np.array([seen[index] for index in there]).reshape(-1, 4))
        rows, columns = linear_sum_assignment(iou, maximize=True)
        of = {row: there[column] for row, column in zip(rows, columns, strict=True) if iou[row, column] >= FOUND}
        frames.append([_box(box, label) for box, label in zip(boxes, labels, strict=True)])
        owners.append([of.get(row) for row in range(len(boxes))])
    return frames, owners


def _box(corners: np.ndarray, label: str) -> dict:
    x1, y1, x2, y2 = corners.tolist()
    return {"x": x1, "y": y1, "width": max(0.0, x2 - x1), "height": max(0.0, y2 - y1), "label": label}


def score(tracks, owners, seen) -> tuple[float, int]:
    """IDF1 (Ristani et al. 2016) of the tracks, and how often an object's track changes."""
    track_of = {
        sighting: number
        for number, track in enumerate(tracks)
        for sighting in zip(track.frames, track.places, strict=True)
    }
    objects = sorted({index for of_frame in seen for index in of_frame})
    shared = np.zeros((len(objects), max(1, len(tracks))))
    latest, changes = {}, 0
    for frame, of_frame in enumerate(owners):
        for place, owner in enumerate(of_frame):
            number = track_of.get((frame, place))
            if owner is None or number is None:
                continue
            shared[objects.index(owner), number] += 1
            changes += latest.get(owner, number) != number
            latest[owner] = number
    rows, columns = linear_sum_assignment(shared, maximize=True)
    return 2 * shared[rows, columns].sum() / (len(track_of) + sum(map(len, seen))), changes
