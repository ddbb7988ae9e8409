"""InternVL Video Classify: which of your labels fits a video."""

from __future__ import annotations

from comfy_api.latest import io

from ..mulan.images.video_frames import middle_frames, sample_frames
from ..mulan.internvl.ranking import mean_embedding, rank
from ..mulan.internvl.zeroshot import classify, embed_labels
from .common import passes, show
from .internvl_inputs import (
    ABSENT,
    CATEGORY,
    CROP,
    NONE,
    SOFTMAX,
    check_label_inputs,
    framing_input,
    label_inputs,
    labels_of,
    model_input,
    or_absent,
    templates_of,
)
from .internvl_reports import JSON_TOOLTIP, document, line, made_by, table, told_labels, told_repeated


class InternVLVideoClassify(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLVideoClassify",
            display_name="InternVL Video Classify",
            category=CATEGORY,
            description=(
                "Finds which of your labels fits a video, with scores. Averages the embeddings of a "
                "few evenly spaced frames, as InternVL's authors do for action recognition."
            ),
            search_aliases=[
                "video classification",
                "classify video",
                "action recognition",
                "label video",
                "tag video",
                "zero-shot video",
                "video tagging",
                "视频分类",
                "动作识别",
                "動画分類",
                "動作認識",
                "동영상 분류",
                "행동 인식",
                "classer une vidéo",
                "Video klassifizieren",
                "классификация видео",
                "clasificar vídeo",
            ],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                model_input(),
                *label_inputs(),
                io.Video.Input(
                    "video", optional=True, tooltip="The video to classify. Connect this, or its frames as image."
                ),
                io.Image.Input("image", optional=True, tooltip="The frames of a video as a batch, instead of video."),
                io.Int.Input(
                    "frames",
                    default=8,
                    min=1,
                    max=256,
                    optional=True,
                    tooltip=(
                        "The number of frames to use, evenly spaced: the middle frames of equal parts. "
                        "The paper uses 8."
                    ),
                ),
                framing_input(CROP),
            ],
            outputs=[
                io.String.Output(display_name="label", tooltip="The best label."),
                io.Float.Output(display_name="score", tooltip="The score of that label, of the kind chosen in scores."),
                io.String.Output(display_name="labels", tooltip="The top_k labels, best first, separated by commas."),
                io.String.Output(display_name="json", tooltip=JSON_TOOLTIP),
            ],
        )

    @classmethod
    def validate_inputs(cls, labels, templates=NONE, own_templates="", video=ABSENT, image=ABSENT):
        checked = passes(check_label_inputs, labels, templates, own_templates)
        return passes(_check_frames, video, image) if checked is True else checked

    @classmethod
    def execute(
        cls,
        internvl,
        labels,
        templates=NONE,
        own_templates="",
        scores=SOFTMAX,
        top_k=5,
        video=None,
        image=None,
        frames=8,
        framing=CROP,
    ) -> io.NodeOutput:
        _check_frames(or_absent(video), or_absent(image))
        if video is not None:
            chosen = sample_frames(video, frames)
        elif len(image):
            chosen = [image[number][..., :3] for number in middle_frames(len(image), frames)]
        else:
            raise ValueError("image: there is no picture in the batch")
        read = labels_of(labels)
        of_labels = embed_labels(internvl, read.names, templates_of(templates, own_templates))
        found = classify(mean_embedding(internvl.embed_images(chosen, framing))[None], of_labels, internvl.logit_scale)
        order = rank(found.cosine[0], top_k)
        shown = (found.softmax if scores == SOFTMAX else found.cosine)[0]
        written = document(
            "classify video",
            **made_by(internvl),
            framing=framing,
            templates=templates,
            scores=scores,
            labels=list(read.names),
            repeated=list(read.repeated) or None,
            frames=len(chosen),
            video=told_labels(read, found, 0, order),
        )
        text = table([line("video", read.names, shown, order), *told_repeated(read)])
        return io.NodeOutput(
            read.names[order[0]],
            shown[order[0]].item(),
            ", ".join(read.names[label] for label in order),
            written,
            ui=show(cls, text, written),
        )


def _check_frames(video, image) -> None:
    if (video is ABSENT) == (image is ABSENT):
        raise ValueError("video and image: connect one of them, and not both")
