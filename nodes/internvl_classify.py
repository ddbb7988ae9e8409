"""InternVL Zero-Shot Classify: labels for pictures out of words that no one trained it on."""

from __future__ import annotations

from comfy_api.latest import io

from ..mulan.internvl.ranking import rank
from ..mulan.internvl.zeroshot import classify, embed_labels
from .common import passes, show
from .internvl_inputs import (
    ABSENT,
    CATEGORY,
    CROP,
    NONE,
    SOFTMAX,
    check_label_inputs,
    check_source,
    first,
    folder_input,
    framing_input,
    image_input,
    label_inputs,
    labels_of,
    look,
    model_input,
    or_absent,
    stamp_of,
    templates_of,
)
from .internvl_reports import JSON_TOOLTIP, document, line, made_by, table, told_labels, told_repeated, told_unreadable


class InternVLZeroShotClassify(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLZeroShotClassify",
            display_name="InternVL Zero-Shot Classify",
            category=CATEGORY,
            description=(
                "Finds which of your labels fits each image of a batch or folder, with scores. "
                "Labels are words or sentences in any language; nothing is trained."
            ),
            search_aliases=[
                "zero-shot classification",
                "image classification",
                "classify images",
                "label images",
                "tag images",
                "image tagger",
                "sort images",
                "clip score",
                "clip classify",
                "filter images",
                "零样本分类",
                "图像分类",
                "图片打标",
                "画像分類",
                "画像のタグ付け",
                "이미지 분류",
                "이미지 태그",
                "classer des images",
                "Bilder klassifizieren",
                "классификация картинок",
                "clasificar imágenes",
            ],
            is_output_node=True,
            is_input_list=True,
            hidden=[io.Hidden.unique_id],
            inputs=[model_input(), *label_inputs(), image_input(), folder_input(), framing_input(CROP)],
            outputs=[
                io.String.Output(
                    display_name="label", is_output_list=True, tooltip="List: the best label of each image."
                ),
                io.Float.Output(
                    display_name="score",
                    is_output_list=True,
                    tooltip="List: the score of that label, of the kind chosen in scores.",
                ),
                io.String.Output(
                    display_name="labels",
                    is_output_list=True,
                    tooltip="List: the top_k labels of each image, best first, separated by commas.",
                ),
                io.String.Output(
                    display_name="names",
                    is_output_list=True,
                    tooltip="List: the file name of each image, or 'picture 1', 'picture 2', ... for a batch.",
                ),
                io.String.Output(display_name="json", tooltip=JSON_TOOLTIP),
            ],
        )

    @classmethod
    def validate_inputs(cls, labels, templates=NONE, own_templates="", image=ABSENT, folder=""):
        checked = passes(check_label_inputs, labels, templates, own_templates)
        return passes(check_source, image, first(folder)) if checked is True else checked

    @classmethod
    def fingerprint_inputs(cls, folder="", **others):
        return stamp_of(folder)

    @classmethod
    def execute(
        cls,
        internvl,
        labels,
        templates=NONE,
        own_templates="",
        scores=SOFTMAX,
        top_k=5,
        image=None,
        folder="",
        framing=CROP,
    ) -> io.NodeOutput:
        internvl, kind, choice, framing, folder = (
            first(internvl),
            first(scores),
            first(templates),
            first(framing),
            first(folder),
        )
        check_source(or_absent(image), folder)
        read = labels_of(labels)
        of_labels = embed_labels(internvl, read.names, templates_of(choice, own_templates))
        seen = look(internvl, image, folder, framing)
        found = classify(seen.vectors, of_labels, internvl.logit_scale)
        best = [rank(row, first(top_k)) for row in found.cosine]
        shown = getattr(found, "softmax" if kind == SOFTMAX else "cosine")
        told = [
            {"name": name, "labels": told_labels(read, found, number, order)}
            for number, (name, order) in enumerate(zip(seen.names, best))
        ]
        written = document(
            "classify",
            **made_by(internvl),
            framing=framing,
            templates=choice,
            scores=kind,
            labels=list(read.names),
            repeated=list(read.repeated) or None,
            pictures=told,
            unreadable=told_unreadable(seen.unreadable),
        )
        lines = [line(name, read.names, row, order) for name, row, order in zip(seen.names, shown, best)]
        return io.NodeOutput(
            [read.names[order[0]] for order in best],
            [row[order[0]].item() for row, order in zip(shown, best)],
            [", ".join(read.names[label] for label in order) for order in best],
            list(seen.names),
            written,
            ui=show(cls, table([*lines, *told_repeated(read)], seen.unreadable), written),
        )
