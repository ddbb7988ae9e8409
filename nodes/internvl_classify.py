"""InternVL Zero-Shot Classify: the best labels for images, of labels that nothing was trained on."""

from __future__ import annotations

from comfy_api.latest import io

from ..mulan.boundary.interrupts import interruptible
from ..mulan.internvl.ranking import rank
from ..mulan.internvl.zeroshot import classify, embed_labels
from . import categories
from .common import show_text, validation_result
from .internvl_inputs import (
    ABSENT,
    CROP,
    NONE,
    SOFTMAX,
    InternVLNode,
    check_label_inputs,
    folder_input,
    framing_input,
    image_input,
    label_inputs,
    model_input,
    or_absent,
    parse_labels,
    parse_templates,
    unwrap_single,
)
from .internvl_reports import (
    JSON_TOOLTIP,
    document,
    label_line,
    label_records,
    model_fields,
    repeated_note,
    summary_text,
    unreadable_records,
)
from .internvl_sources import check_source, embed_images, fingerprint_folder


class InternVLZeroShotClassify(InternVLNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLZeroShotClassify",
            display_name="InternVL Zero-Shot Classify",
            category=categories.INTERNVL,
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
                "classify image",
                "classification d'images",
                "Bildklassifikation",
                "clasificar imagen",
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
                "классификация изображений",
            ],
            is_output_node=True,
            is_input_list=True,
            inputs=[
                model_input(),
                *label_inputs(),
                image_input(),
                folder_input(),
                framing_input(CROP),
                io.Float.Input(
                    "threshold",
                    default=-1.0,
                    min=-1.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip=(
                        "Leaves out labels that score below this, of the kind chosen in scores, from labels and JSON. "
                        "For tags: independent, and the lowest score of a tag that fits."
                    ),
                ),
            ],
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
        return [
            validation_result(check_label_inputs, labels, templates, own_templates),
            validation_result(check_source, image, unwrap_single(folder)),
        ]

    @classmethod
    def fingerprint_inputs(cls, folder="", **others):
        return fingerprint_folder(folder)

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
        threshold=-1.0,
    ) -> io.NodeOutput:
        internvl, kind, choice, framing, folder = (
            unwrap_single(internvl),
            unwrap_single(scores),
            unwrap_single(templates),
            unwrap_single(framing),
            unwrap_single(folder),
        )
        source = check_source(or_absent(image), folder)
        parsed = parse_labels(labels)
        label_embeddings = embed_labels(internvl, parsed.names, parse_templates(choice, own_templates))
        images = embed_images(internvl, image, source, framing)
        results = classify(images.vectors, label_embeddings, internvl.logit_scale)
        best = [rank(row, unwrap_single(top_k)) for row in interruptible(results.cosine)]
        shown = results.softmax if kind == SOFTMAX else results.cosine
        least = unwrap_single(threshold)
        fitting = [[label for label in order if row[label] >= least] for row, order in zip(shown, best, strict=True)]
        records = [
            {"name": name, "labels": label_records(parsed, results, index, order)}
            for index, (name, order) in enumerate(interruptible(zip(images.names, fitting, strict=True)))
        ]
        written = document(
            "classify",
            **model_fields(internvl),
            framing=framing,
            templates=choice,
            scores=kind,
            labels=list(parsed.names),
            repeated=list(parsed.repeated) or None,
            pictures=records,
            unreadable=unreadable_records(images.unreadable),
        )
        lines = [
            label_line(name, parsed.names, row, order)
            for name, row, order in interruptible(zip(images.names, shown, fitting, strict=True))
        ]
        return io.NodeOutput(
            [parsed.names[order[0]] for order in best],
            [row[order[0]].item() for row, order in zip(shown, best, strict=True)],
            [", ".join(parsed.names[label] for label in order) for order in fitting],
            list(images.names),
            written,
            ui=show_text(summary_text([*lines, *repeated_note(parsed)], images.unreadable), written),
        )
