"""Cases for every node of the pack, from what the server tells of it: a graph that works, with one input gone wrong.

An id is node/kind/input/name, and makes its case again. Names with "random:" hold the seed of what was drawn.
"""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import model_files, values
from .model_files import Damage, Tiny

UNDER_TEST = "n"
SINK = "sink"
IMAGE = values.IMAGES["right"][0]
BOXES, KEYPOINTS, POSE = (repr(values.RECORDS[name]) for name in ("BOUNDING_BOX", "KEYPOINTS", "POSE_KEYPOINT"))

SAVED = "fuzz"  # the file of conditioning that the first graph leaves

Graph = dict[str, dict]


def build(kind: str, /, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def _value(expr: str) -> dict:
    return build("FuzzValue", expr=expr)


MULAN = build(
    "MuLanLoader",
    text_encoder="tiny_internvl.safetensors",
    adapter="tiny_sd15_adapter.safetensors",
    prompt_style="default",
)
INTERNVL = build(
    "InternVLLoader", checkpoint="tiny_internvl_vision.safetensors", text_encoder="tiny_internvl.safetensors"
)
# What gives each kind of value: its node and output, and the nodes that this one needs
SOURCES: dict[str, tuple[str, int]] = {
    "CLIP": ("mulan", 1),
    "CONDITIONING": ("conditioning", 0),
    "INTERNVL": ("internvl", 0),
    "INTERNVL_EMBEDDINGS": ("embeddings", 0),
    "VISIONLLM": ("visionllm", 0),
    "MODEL": ("checkpoint", 0),
    "IMAGE": ("image", 0),
    "MASK": ("mask", 0),
    "BOUNDING_BOX": ("boxes", 0),
    "KEYPOINTS": ("keypoints", 0),
    "POSE_KEYPOINT": ("pose", 0),
    "VIDEO": ("video", 0),
    "LATENT": ("latent", 0),
}
NODES: Graph = {
    "mulan": MULAN,
    "chat": build("InternVLChatLoader", checkpoint="tiny_internvl_chat.safetensors"),
    "conditioning": build("CLIPTextEncode", clip=["mulan", 1], text="a red circle"),
    "internvl": INTERNVL,
    "embeddings": build("InternVLEmbed", internvl=["internvl", 0], texts="a red circle\na dog"),
    "visionllm": build("VisionLLMLoader", checkpoint="tiny_visionllm.safetensors"),
    "checkpoint": build("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors"),
    "image": _value(IMAGE),
    "latent": build("VAEEncode", pixels=["image", 0], vae=["checkpoint", 2]),
    "mask": _value(values.MASKS["right"][0]),
    "boxes": _value(BOXES),
    "keypoints": _value(KEYPOINTS),
    "pose": _value(POSE),
    "video": build("CreateVideo", images=["image", 0], fps=8.0),
}
# Inputs of the graph that works, where the defaults are not enough or take long
CHOSEN: dict[str, dict] = {
    "MuLanLoader": MULAN["inputs"],
    "InternVLLoader": INTERNVL["inputs"],
    "InternVLChatLoader": NODES["chat"]["inputs"],
    "VisionLLMLoader": NODES["visionllm"]["inputs"],
    "MuLanLoadConditioning": {"file": f"conditioning/{SAVED}_00001_.safetensors [output]"},
    "MuLanEncodeLanguages": {"prompts": "en: a red circle\nde: ein roter Kreis"},
    "MuLanPromptInspector": {"text": "a (red:1.2) circle"},
    "MuLanWordMaps": {"text": "a red circle", "steps": 1},
    "InternVLZeroShotClassify": {"labels": "a red circle\na dog", "image": ["image", 0]},
    "InternVLVideoClassify": {"labels": "a red circle\na dog", "image": ["image", 0]},
    "InternVLRank": {"query": "a red circle", "image": ["image", 0]},
    "InternVLEmbed": {"texts": "a red circle"},
    "InternVLChat": {
        "clip": ["chat", 0],
        "question": "what is it?",
        "max_tokens": 8,
        "tiles": 1,
        "images.image_1": ["image", 0],
    },
    "VisionLLMDetect": {"names": "circle, square", "threshold": 0.1, "top_k": 5},
    "VisionLLMSegment": {"names": "circle, square", "top_k": 5},
    "VisionLLMGround": {"sentence": "the circle"},
    "VisionLLMPose": {
        "objects": "star",
        "skeleton": "own keypoints",
        "keypoints": "nose, left eye, right eye",
        "top_k": 5,
    },
    "VisionLLMRegion": {"bboxes": ["boxes", 0], "top_k": 5},
    "VisionLLMAsk": {"question": "what is it?", "max_tokens": 8, "images.image_1": ["image", 0]},
    "VisionLLMCheckImages": {"checklist": "circle\nIs it red?", "visionllm": ["visionllm", 0]},
    "VisionLLMInstruct": {"sentence": "find the circle", "max_tokens": 8, "image": ["image", 0]},
    "VisionLLMFilterBoxes": {"masks": ["mask", 0]},
    "VisionLLMDrawDetections": {"image": ["image", 0], "bboxes": ["boxes", 0]},
    "VisionLLMSaveDetections": {"bboxes": ["boxes", 0], "image": ["image", 0]},
    "VisionLLMLoadDetections": {"json": json.dumps(values.DOCUMENT)},
    "VisionLLMTrackDetections": {"bboxes": ["boxes", 0], "masks": ["mask", 0], "min_length": 1},
    "InternVLFindAlike": {"masks": ["mask", 0]},
}
# Inputs that exclude each other: where the first is tried, the others go
INSTEAD: dict[tuple[str, str], tuple[str, ...]] = {
    ("InternVLZeroShotClassify", "folder"): ("image",),
    ("InternVLVideoClassify", "video"): ("image",),
    ("InternVLRank", "query_image"): ("query",),
    ("InternVLRank", "embeddings"): ("image",),
    ("InternVLRank", "folder"): ("image",),
    ("InternVLEmbed", "image"): ("texts",),
    ("InternVLEmbed", "folder"): ("texts",),
    ("InternVLEmbed", "video"): ("texts",),
    ("VisionLLMRegion", "mask"): ("bboxes",),
    ("VisionLLMRegion", "points"): ("bboxes",),
    ("VisionLLMDrawDetections", "keypoints"): ("bboxes",),
    ("VisionLLMSaveDetections", "json"): ("bboxes", "image"),
    ("VisionLLMSaveDetections", "keypoints"): ("bboxes",),
    ("VisionLLMTrackDetections", "keypoints"): ("bboxes", "masks"),
    ("InternVLChat", "video"): ("images.image_1",),
    ("MuLanPromptInspector", "clip"): (),
}
# What runs behind a loader, so that its model is used
USES: dict[str, tuple[dict, ...]] = {
    "MuLanLoader": (build("CLIPTextEncode", clip=["l", 1], text="a red circle"),),
    "InternVLLoader": (
        build("InternVLZeroShotClassify", internvl=["l", 0], labels="a red circle\na dog", image=["image", 0]),
    ),
    "InternVLChatLoader": (
        build(
            "InternVLChat",
            clip=["l", 0],
            question="what is it?",
            max_tokens=4,
            tiles=1,
            **{"images.image_1": ["image", 0]},
        ),
    ),
    "VisionLLMLoader": (
        build(
            "VisionLLMDetect", visionllm=["l", 0], image=["image", 0], names="circle, square", threshold=0.1, top_k=5
        ),
    ),
}
# The tiny VisionLLM has no mappers; captions need a folder of images
NO_MODEL = (
    "VisionLLMGenerateConditioning",
    "VisionLLMEditConditioning",
    "InternVLImagesToCaption",
    "InternVLSaveCaptions",
)
BLOCKED = {
    "MuLanLoader": (0,),
    "VisionLLMInstruct": (6, 7, 8),
    "VisionLLMTrackDetections": (2,),
}  # outputs without a value in the graph that works
TENSORS = {"IMAGE": values.IMAGES, "MASK": values.MASKS}
WIDGETS = ("STRING", "INT", "FLOAT", "BOOLEAN", "COMBO")
# Of a hundred cases; what is left is drawn
SHARES = {
    "right": 2,
    "missing": 2,
    "widget": 10,
    "link": 6,
    "text": 20,
    "json": 6,
    "tensor": 16,
    "record": 14,
    "foreign": 4,
    "model": 20,
}
KINDS = tuple(SHARES)


@dataclass(frozen=True)
class Case:
    """`answers`: False where an answer would be wrong without a word. `finite`: whether its numbers must be.

    `file`: its place in models/, and the damage.
    """

    id: str
    graph: Graph
    answers: bool = True
    finite: bool = True
    file: tuple[str, Damage, Tiny] | None = None

    @property
    def node(self) -> str:
        return self.id.split("/")[0]

    @property
    def kind(self) -> str:
        return self.id.split("/")[1]


@dataclass(frozen=True)
class Input:
    """An input as the editor's schema has it."""

    name: str
    type: str
    options: Mapping
    required: bool


class Cases:
    """All cases of the nodes in `info` (object_info of the pack's nodes) with the tiny models in `models`."""

    def __init__(self, info: Mapping[str, dict], models: Path):
        self.info, self._models = info, models
        self._tiny: dict[str, Tiny] = {}
        self._damages: dict[str, dict[str, Damage]] = {}

    # --- which there are ---

    def ids(self, kinds: tuple[str, ...] = KINDS) -> list[str]:
        """Every case that is not drawn, in a fixed order: the models of neighbours are the same."""
        found = []
        for node in sorted(self.info):
            names = [*self._of_node(node)]
            found += [f"{node}/{name}" for name in names if name.split("/")[0] in kinds]
        return found

    def drawn(self, seed: int, count: int, kinds: tuple[str, ...] = KINDS) -> list[str]:
        """`count` cases of a seed, of each kind its share, alike for all inputs; drawn ones fill what is left."""
        chosen = random.Random(seed)
        everything = self.ids(kinds)
        taken: list[str] = []
        for kind in kinds:
            queues = [chosen.sample(cases, len(cases)) for cases in _groups(everything, kind)]
            wanted = min(sum(map(len, queues)), round(count * SHARES[kind] / sum(SHARES[kind] for kind in kinds)))
            while wanted:
                round_ = [queue.pop() for queue in queues if queue]
                some = chosen.sample(round_, min(len(round_), wanted))
                taken, wanted = taken + some, wanted - len(some)
        places = [place for place in self._drawable() if place.split("/")[1] in kinds]
        if places:
            numbers = (chosen.randrange(10**9) for _ in range(count - len(taken)))
            taken += [f"{chosen.choice(places)}/random:{number}" for number in numbers]
        order = {case: place for place, case in enumerate(everything)}
        return sorted(taken, key=lambda case: (case.split("/")[0], order.get(case, len(order)), case))

    def _of_node(self, node: str) -> Iterator[str]:
        if node not in NO_MODEL:
            yield "right/-/right"
        for each in self._inputs(node):
            if each.required:
                yield f"missing/{each.name}/gone"
            if each.type in WIDGETS:
                yield from (f"widget/{each.name}/{name}" for name in values.WIDGETS)
                numbers = each.type in ("INT", "FLOAT")
                if numbers:
                    yield from (f"widget/{each.name}/{name}" for name in (*values.NUMBERS, "below", "above"))
                yield from (
                    f"link/{each.name}/{name}" for name in (*values.FOREIGN, *(values.LEAVES if numbers else ()))
                )
            if each.type == "STRING":
                yield from (f"text/{each.name}/{name}" for name in values.TEXTS)
                if each.name in values.DOCUMENTS or each.options.get("forceInput"):
                    yield from (f"json/{each.name}/{name}" for name in values.JSONS)
                    yield from (f"json/{each.name}/{name}" for name in self._spoilt(each.name))
            elif each.type in TENSORS:
                yield from (f"tensor/{each.name}/{name}" for name in TENSORS[each.type])
                yield from (f"tensor/{each.name}/list:{name}" for name in ("empty", "str", "two", "sizes"))
            elif each.type in ("CONDITIONING", "VIDEO", "INTERNVL_EMBEDDINGS"):
                yield from (f"record/{each.name}/{name}" for name in _RECORDS[each.type])
            elif each.type in values.RECORDS:
                yield from (f"record/{each.name}/{name}" for name in self._spoilt(each.type))
                yield from (f"record/{each.name}/{name}" for name in WHOLE[each.type])
            if each.type not in WIDGETS and not each.options.get("lazy"):  # a lazy one is not asked for
                yield from (f"foreign/{each.name}/{name}" for name in values.FOREIGN)
        for target in model_files.TARGETS:
            if target.node == node:
                yield from (f"model/{target.input}/{name}" for name in self.damages(target))

    def _spoilt(self, what: str) -> Iterator[str]:
        record = values.RECORDS.get(what) or values.DOCUMENTS.get(what)
        leaves = values.LEAVES if what in values.RECORDS else values.JSON_LEAVES
        for place in values.paths(record) if record else ():
            where = ".".join(map(str, place))
            yield f"{where}:gone"
            yield from (f"{where}={leaf}" for leaf in leaves)

    def _drawable(self) -> list[str]:
        places = []
        for node in sorted(self.info):
            for each in self._inputs(node):
                if each.type == "STRING":
                    places.append(f"{node}/text/{each.name}")
                    if each.name in values.DOCUMENTS:
                        places.append(f"{node}/json/{each.name}")
                elif each.type in values.RECORDS:
                    places.append(f"{node}/record/{each.name}")
        return places

    def _inputs(self, node: str) -> list[Input]:
        found = []
        for part, required in (("required", True), ("optional", False)):
            for name, told in self.info[node]["input"].get(part, {}).items():
                kind, options = told[0], told[1] if len(told) > 1 else {}
                if isinstance(kind, list):
                    kind, options = "COMBO", {**options, "options": kind}
                if kind == "COMFY_AUTOGROW_V3":
                    template = options["template"]
                    inner = next(iter(template["input"]["required"].values()))
                    found.append(Input(f"{name}.{template['names'][0]}", inner[0], {}, False))
                else:
                    found.append(Input(name, kind, options, required))
        return found

    # --- one of them ---

    def make(self, id: str) -> Case:
        """The case of an id; KeyError for one that the nodes do not have."""
        node, kind, name, what = id.split("/", 3)
        if kind == "right":
            return Case(id, self.graph(node))
        if kind == "model":
            return self._model(id, node, name, what)
        each = next(each for each in self._inputs(node) if each.name == name)
        if kind == "missing":
            graph = self.graph(node, name)
            del graph[UNDER_TEST]["inputs"][name]
            return Case(id, _without_loose(graph), answers=False)
        if kind == "widget":
            value = {**values.WIDGETS, **values.NUMBERS, **_bounds(each)}[what]
            nan = each.type in ("INT", "FLOAT") and isinstance(value, float) and value != value
            return Case(id, self.graph(node, name, value), answers=not nan)
        if kind == "text":
            return Case(id, self.graph(node, name, values.TEXTS[what] if what in values.TEXTS else _random_text(what)))
        if kind == "json":
            return Case(id, self.graph(node, name, self._json(name, what)))
        expression, answers = self._expression(kind, each, what)
        graph = self.graph(node, name, ["fuzz", 0])
        graph["fuzz"] = build("FuzzList" if what.startswith("list:") else "FuzzValue", expr=expression)
        return Case(id, graph, answers, finite=each.type != "CONDITIONING")

    def _expression(self, kind: str, each: Input, what: str) -> tuple[str, bool]:
        if kind == "tensor" and what.startswith("list:"):
            right, other = (
                TENSORS[each.type]["right"][0],
                TENSORS[each.type]["other_size" if each.type == "MASK" else "two"][0],
            )
            lists = {"empty": "[]", "str": "['a']", "two": f"[{right}, {right}]", "sizes": f"[{right}, {other}]"}
            return lists[what.removeprefix("list:")], True
        if kind == "tensor":
            return TENSORS[each.type][what]
        if kind in ("foreign", "link") and what in values.FOREIGN:
            right = (what == "none" and not each.required) or (what == "tensor" and each.type == "MASK")  # one mask
            return values.FOREIGN[what], right or kind == "link" or each.type in (*values.RECORDS, "CONDITIONING")
        if kind == "link":
            return values.LEAVES[what], what != "nan" and not what.startswith("np_nan")
        if each.type in _RECORDS:
            return _RECORDS[each.type][what], True
        if what in WHOLE[each.type]:
            return WHOLE[each.type][what], True
        record = values.RECORDS[each.type]
        if what.startswith("random:"):
            return repr(_random_record(record, what)), True
        return repr(_spoil(record, what)), True

    def _json(self, name: str, what: str) -> str:
        if what in values.JSONS:
            return values.JSONS[what]
        record = values.DOCUMENTS[name]
        if what.startswith("random:"):
            return _random_json(json.dumps(record), what)
        spoilt = _spoil(record, what)
        return json.dumps(spoilt, default=lambda part: eval(part.text, {"nan": float("nan"), "inf": float("inf")}))

    def _model(self, id: str, node: str, name: str, what: str) -> Case:
        target = next(target for target in model_files.TARGETS if (target.node, target.input) == (node, name))
        damage = self.damages(target)[what]
        file = model_files.STEM + damage.suffix
        graph = {"l": copy.deepcopy(self.graph(node)[UNDER_TEST]), "image": NODES["image"]}
        graph["l"]["inputs"][name] = file
        graph[UNDER_TEST] = copy.deepcopy(USES[node][0])
        used = graph[UNDER_TEST]["class_type"]
        outputs = range(len(self.info[used]["output"])) if used in self.info else (0,)
        graph[SINK] = build("FuzzSink", **{f"value_{number}": [UNDER_TEST, number] for number in outputs})
        return Case(
            id, _without_loose(graph), damage.answers, file=(f"{target.folder}/{file}", damage, self._tiny[target.file])
        )

    def damages(self, target: model_files.Target) -> dict[str, Damage]:
        """The damages of a model file, by name."""
        if target.file not in self._damages:
            self._tiny[target.file] = Tiny(self._models / target.folder / target.file)
            self._damages[target.file] = model_files.damages(target, self._tiny[target.file])
        return self._damages[target.file]

    def tiny(self, target: model_files.Target) -> Tiny:
        """The tiny model that stands for a file."""
        self.damages(target)
        return self._tiny[target.file]

    # --- graphs ---

    def graph(self, node: str, name: str = "", value: object = None) -> Graph:
        """The graph that works, with input `name` at `value`."""
        told = self.info[node]
        inputs: dict[str, object] = {}
        for each in self._inputs(node):
            if not each.required:
                continue
            if each.type in SOURCES:
                inputs[each.name] = list(SOURCES[each.type])
            elif each.type == "COMBO":
                options = each.options.get("options") or [""]
                inputs[each.name] = each.options.get("default", options[0])
            else:
                inputs[each.name] = each.options.get("default", "")
        inputs |= copy.deepcopy(CHOSEN.get(node, {}))
        if name:
            for other in INSTEAD.get((node, name), ()):
                inputs.pop(other, None)
            inputs[name] = value
        graph = {**copy.deepcopy(NODES), UNDER_TEST: build(node, **inputs)}
        outputs = range(min(len(told["output"]), 10))
        outputs = [number for number in outputs if number not in BLOCKED.get(node, ()) or "model" in inputs]
        graph[SINK] = build("FuzzSink", **{f"value_{number}": [UNDER_TEST, number] for number in outputs})
        return _without_loose(graph, keep="fuzz")


def _groups(ids: list[str], kind: str) -> list[list[str]]:
    """The cases of a kind by node and input, of model files also by the way of the damage."""
    groups: dict[str, list[str]] = {}
    for id in ids:
        node, of, name, what = id.split("/", 3)
        if of == kind:
            groups.setdefault(f"{node}/{name}/{what.split(':')[0] if kind == 'model' else ''}", []).append(id)
    return list(groups.values())


def _without_loose(graph: Graph, keep: str = "") -> Graph:
    """Only the nodes that the sink needs."""
    needed, waiting = set(), [SINK]
    while waiting:
        node = waiting.pop()
        if node in needed or node not in graph:
            continue
        needed.add(node)
        for value in graph[node]["inputs"].values():
            if isinstance(value, list) and len(value) == 2 and value[0] in (*graph, keep) and isinstance(value[1], int):
                waiting.append(value[0])
    return {node: graph[node] for node in graph if node in needed}


def _bounds(each: Input) -> dict[str, object]:
    low, high = each.options.get("min", -(2**31)), each.options.get("max", 2**31)
    step = 1 if each.type == "INT" else 0.001
    return {"below": low - step, "above": high + step}


def _spoil(record, what: str):
    where, leaf = (
        what.rsplit(":gone", 1)[0] if what.endswith(":gone") else what.rsplit("=", 1)[0],
        what.rsplit("=", 1)[-1],
    )
    place = tuple(int(part) if part.isdigit() else part for part in where.split("."))
    part = values.GONE if what.endswith(":gone") else values.Expression(values.LEAVES[leaf])
    return values.with_part(record, place, part)


_RECORDS = {"CONDITIONING": values.CONDITIONINGS, "VIDEO": values.VIDEOS, "INTERNVL_EMBEDDINGS": values.EMBEDDINGS}
_SEGS = "((64, 64), [])"
_CANVAS = "{'canvas_width': 64, 'canvas_height': 64"
_MANY_BOXES = "[[{'x': 4., 'y': 4., 'width': 20., 'height': 20., 'label': 'a', 'score': .9}] * 3000]"
WHOLE: dict[str, dict[str, str]] = {
    "BOUNDING_BOX": {
        "whole:one_dict": repr(values.BOXES[0]),
        "whole:flat": repr(values.BOXES),
        "whole:too_deep": repr([[values.BOXES]]),
        "whole:two_images": repr([values.BOXES, values.BOXES]),
        "whole:empty_image": "[[]]",
        "whole:many": _MANY_BOXES,
        "whole:tuples": repr(((4, 4, 20, 20),)),
        "whole:lists": repr([[[4, 4, 20, 20]]]),
        "whole:tensor": "torch.tensor([[4., 4., 24., 24.]])",
        "whole:np": "np.array([[4., 4., 24., 24.]])",
        "whole:segs": _SEGS,
        "whole:tuple_of_boxes": repr((tuple(values.BOXES),)),
        "whole:reversed": repr([[{**values.BOXES[0], "width": -20.0}]]),
        "whole:empty_box": repr([[{**values.BOXES[0], "width": 0, "height": 0}]]),
        "whole:outside": repr([[{**values.BOXES[0], "x": 1000}]]),
        "whole:huge": repr([[{**values.BOXES[0], "x": -1e9, "width": 2e9}]]),
    },
    "KEYPOINTS": {
        "whole:one_dict": repr(values.KEYPOINTS),
        "whole:too_deep": repr([[values.KEYPOINTS]]),
        "whole:two_images": repr([values.KEYPOINTS] * 2),
        "whole:no_objects": repr([{**values.KEYPOINTS, "objects": []}]),
        "whole:many": repr([{**values.KEYPOINTS, "objects": values.KEYPOINTS["objects"] * 500}]),
        "whole:tuple": repr((values.KEYPOINTS,)),
        "whole:huge": repr([{**values.KEYPOINTS, "width": 10**6, "height": 10**6}]),
        "whole:boxes": repr([values.BOXES]),
        "whole:pose": repr([values.POSE]),
        "whole:triples": repr([values.with_part(values.KEYPOINTS, ("objects", 0, "keypoints"), [[1, 2, 3]])]),
    },
    "POSE_KEYPOINT": {
        "whole:one_dict": repr(values.POSE),
        "whole:two_images": repr([values.POSE] * 2),
        "whole:too_deep": repr([[values.POSE]]),
        "whole:no_people": repr([{**values.POSE, "people": []}]),
        "whole:animals": f"[{_CANVAS}, 'animals': [[[1., 2., 1.]] * 17]}}]",
        "whole:animals_none": f"[{_CANVAS}, 'animals': [None]}}]",
        "whole:tuple": repr((values.POSE,)),
        "whole:tensor": "torch.zeros(1, 18, 3)",
        "whole:keypoints": repr([values.KEYPOINTS]),
        "whole:kp_tensor": f"[{_CANVAS}, 'people': [{{'pose_keypoints_2d': torch.zeros(54)}}]}}]",
        "whole:scores_list": f"[{_CANVAS}, 'people': [{{'pose_keypoints_2d': [1., 1., 1.], 'scores': [1]}}]}}]",
    },
}


# --- drawn ---

_PARTS = (
    *"abc ,;:()[]{}|<>\"'\\/%\n\r\t\x00\x1c\x85\u2028\u2029\ufeff\u200b\u3000\u0301\u202e\uff0c\uff1b\uff08",
    "\ud83d",
    "\udca9",
    "\U0001f98a",
    "circle",
    "BREAK",
    "(a:1.2)",
    "embedding:x",
    "<image>",
    "[DET]",
    "</s>",
    "<|im_end|>",
    "en:",
    "\u5706\u5f62",
    "\u062f\u0627",
    "1e999",
    "nan",
    "  ",
)


def _random_text(seed: str) -> str:
    chosen = random.Random(seed)
    parts = [
        chosen.choice(_PARTS) if chosen.random() < 0.9 else chr(chosen.randrange(0x10FFFF))
        for _ in range(chosen.choice((1, 3, 12, 60, 400)))
    ]
    return "".join(parts)


def _random_json(text: str, seed: str) -> str:
    """Bytes cut out, doubled or replaced."""
    chosen = random.Random(seed)
    for _ in range(chosen.randrange(1, 4)):
        start = chosen.randrange(len(text) or 1)
        end = start + chosen.choice((1, 1, 2, 8, 40))
        piece = chosen.choice(
            (
                "",
                text[start:end] * 2,
                '"',
                "[",
                "]",
                "{",
                "}",
                ",",
                "null",
                "-1",
                "1e999",
                "NaN",
                "\x00",
                "0.5",
                "9" * 30,
            )
        )
        text = text[:start] + piece + text[end:]
    return text


def _random_record(record, seed: str):
    """Several parts at once are others."""
    chosen = random.Random(seed)
    for _ in range(chosen.randrange(2, 5)):
        try:
            place = chosen.choice(values.paths(record))
            record = values.with_part(
                record, place, values.Expression(values.LEAVES[chosen.choice(sorted(values.LEAVES))])
            )
        except IndexError:
            break
    return record


def is_case(id: str) -> bool:
    """Whether this has the form of an id."""
    return bool(re.fullmatch(r"\w+/\w+/[^/]+/.+", id, re.DOTALL))
