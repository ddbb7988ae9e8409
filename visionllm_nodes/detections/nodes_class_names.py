"""Class Names: the lists of well-known data sets, for every node that takes names or labels."""

from __future__ import annotations

from comfy_api.latest import io

from ...nodes import categories
from ..node_io import VisionLLMNode
from .class_lists import LISTS, class_names


class VisionLLMClassNames(VisionLLMNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMClassNames",
            display_name="Class Names",
            category=categories.DETECTIONS,
            description="The class names of COCO, ADE20K or LVIS, for any node that takes names or labels.",
            search_aliases=[
                "COCO classes",
                "COCO-80",
                "ADE20K",
                "LVIS",
                "class list",
                "label list",
                "names preset",
                "category names",
                "object names",
                "detect everything",
                "类别名称",
                "类别列表",
                "クラス名",
                "클래스 이름",
                "noms de classes",
                "Klassennamen",
                "имена классов",
                "nombres de clases",
            ],
            inputs=[
                io.Combo.Input(
                    "list",
                    options=list(LISTS),
                    tooltip="COCO-80: everyday objects. ADE20K-150: objects and surfaces such as wall, sky, road; for "
                    "semantic segmentation. LVIS-1203: objects of every kind; frequent, common and rare by how many of "
                    "its training images show them.",
                )
            ],
            outputs=[
                io.String.Output(
                    display_name="names",
                    tooltip="The names, one per line, in the data set's order. Connect them to names, others, negative "
                    "or labels of another node.",
                ),
                io.Int.Output(display_name="count", tooltip="Number of names."),
            ],
        )

    @classmethod
    def execute(cls, list) -> io.NodeOutput:
        names = class_names(list)
        return io.NodeOutput("\n".join(names), len(names))
