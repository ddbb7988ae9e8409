"""InternVL Video Classify: which of your labels fits a video."""

from __future__ import annotations

from comfy_api.latest import io

from ..mulan.images.video_frames import middle_frames, sample_frames
from ..mulan.internvl.ranking import mean_embedding, rank
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
    framing_input,
    label_inputs,
    model_input,
    or_absent,
    parse_labels,
    parse_templates,
)
from .internvl_reports import (
    JSON_TOOLTIP,
    document,
    label_line,
    label_records,
    model_fields,
    repeated_note,
    summary_text,
)


class InternVLVideoClassify(InternVLNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLVideoClassify",
            display_name="InternVL Video Classify",
            category=categories.INTERNVL,
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
        return [
            validation_result(check_label_inputs, labels, templates, own_templates),
            validation_result(_check_frames, video, image),
        ]

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
        elif image is not None and len(image):
            chosen = [image[index][..., :3] for index in middle_frames(len(image), frames)]
        else:
            raise ValueError("image: there are no images in the batch")
        parsed = parse_labels(labels)
        label_embeddings = embed_labels(internvl, parsed.names, parse_templates(templates, own_templates))
        video_embedding = mean_embedding(internvl.embed_images(chosen, framing))
        results = classify(video_embedding[None], label_embeddings, internvl.logit_scale)
        order = rank(results.cosine[0], top_k)
        shown = (results.softmax if scores == SOFTMAX else results.cosine)[0]
        written = document(
            "classify video",
            **model_fields(internvl),
            framing=framing,
            templates=templates,
            scores=scores,
            labels=list(parsed.names),
            repeated=list(parsed.repeated) or None,
            frames=len(chosen),
            video=label_records(parsed, results, 0, order),
        )
        text = summary_text([label_line("video", parsed.names, shown, order), *repeated_note(parsed)])
        return io.NodeOutput(
            parsed.names[order[0]],
            shown[order[0]].item(),
            ", ".join(parsed.names[label] for label in order),
            written,
            ui=show_text(text, written),
        )


def _check_frames(video, image) -> None:
    if (video is ABSENT) == (image is ABSENT):
        raise ValueError("video, image: connect exactly one of them")
