"""InternVL Rank: pictures by a sentence or by another picture, the best first."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..mulan.internvl.embeddings import Embeddings, check_same_model
from ..mulan.internvl.ranking import direction, rank
from .common import passes, show
from .internvl_inputs import (
    ABSENT,
    CATEGORY,
    EMBEDDINGS,
    WHOLE,
    Seen,
    check_source,
    first,
    folder_input,
    framing_input,
    image_input,
    look,
    model_input,
    or_absent,
    stamp_of,
)
from .internvl_reports import JSON_TOOLTIP, document, made_by, rounded, table, told_unreadable


class InternVLRank(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLRank",
            display_name="InternVL Rank",
            category=CATEGORY,
            description="Puts pictures of a batch or a folder in order by how well they fit a sentence in any language, or another picture: search a "
            "folder, or keep the best of several generations.",
            search_aliases=[
                "image search",
                "retrieval",
                "search images",
                "best of n",
                "pick best image",
                "clip score",
                "similar images",
                "以文搜图",
                "图像检索",
                "画像検索",
                "이미지 검색",
                "recherche d'images",
                "Bildersuche",
                "поиск картинок",
                "buscar imágenes",
            ],
            is_output_node=True,
            is_input_list=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                model_input(),
                io.String.Input(
                    "query",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="What to look for: a sentence in any language. A list of texts, or text and picture together: their mean.",
                ),
                io.Image.Input(
                    "query_image",
                    optional=True,
                    tooltip="Look for pictures like this one, or like the mean of several.",
                ),
                image_input(),
                folder_input(),
                EMBEDDINGS.Input(
                    "embeddings",
                    optional=True,
                    tooltip="Of InternVL Embed, in place of image and folder: pictures or texts to put in order.",
                ),
                io.Int.Input(
                    "top_k",
                    default=10,
                    min=0,
                    max=1000000,
                    optional=True,
                    tooltip="At most so many, the best; 1 for the best of all. 0: all of them, and each is loaded for the output images.",
                ),
                io.Float.Input(
                    "threshold",
                    default=-1.0,
                    min=-1.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Leave out what scores below. Scores are cosines: low between texts and pictures even where they fit, "
                    "higher between pictures.",
                ),
                framing_input(WHOLE),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images",
                    is_output_list=True,
                    tooltip="A list: the pictures in their new order, each in its own size. None for embeddings, and where nothing is "
                    "left; then what follows does not run.",
                ),
                io.Float.Output(
                    display_name="scores", is_output_list=True, tooltip="A list: the score of each, the highest first."
                ),
                io.Int.Output(
                    display_name="order",
                    is_output_list=True,
                    tooltip="A list: where each stood in the input; the first is 0.",
                ),
                io.String.Output(display_name="names", is_output_list=True, tooltip="A list: the name of each."),
                io.String.Output(display_name="json", tooltip=JSON_TOOLTIP),
            ],
        )

    @classmethod
    def validate_inputs(cls, query=(), query_image=ABSENT, image=ABSENT, folder="", embeddings=ABSENT):
        checked = passes(_check_query, query, query_image)
        return passes(check_source, image, first(folder), embeddings=embeddings) if checked is True else checked

    @classmethod
    def fingerprint_inputs(cls, folder="", **others):
        return stamp_of(folder)

    @classmethod
    def execute(
        cls,
        internvl,
        query=(),
        query_image=None,
        image=None,
        folder="",
        embeddings=None,
        top_k=10,
        threshold=-1.0,
        framing=WHOLE,
    ) -> io.NodeOutput:
        internvl, folder, framing = first(internvl), first(folder), first(framing)
        _check_query(query, or_absent(query_image))
        check_source(or_absent(image), folder, embeddings=or_absent(embeddings))
        seen = look(internvl, image, folder, framing) if embeddings is None else _seen_before(embeddings, internvl)
        texts, pictures = _texts(query), [picture[..., :3] for batch in query_image or [] for picture in batch]
        wanted = torch.cat([internvl.embed_texts(texts), internvl.embed_pictures(pictures, framing)])
        scores = seen.vectors @ direction(wanted)
        order = rank(scores, first(top_k), first(threshold))
        told = [
            {"position": number, "name": seen.names[number], "score": rounded(scores[number].item())}
            for number in order
        ]
        written = document(
            "rank",
            **made_by(internvl),
            framing=framing,
            query={"texts": texts, "pictures": len(pictures)},
            of=len(seen.names),
            ranked=told,
            unreadable=told_unreadable(seen.unreadable),
        )
        lines = [f"{each['score']:.3f}  {each['name']}" for each in told] or [
            f"none of {len(seen.names)} reaches the threshold"
        ]
        pictures = [seen.picture(number) for number in order] if seen.picture else []
        lists = pictures, [each["score"] for each in told], order, [each["name"] for each in told]
        return io.NodeOutput(
            *(values or [ExecutionBlocker(None)] for values in lists),
            written,
            ui=show(cls, table(lines, seen.unreadable), written),
        )


def _texts(query) -> list[str]:
    return [text.strip() for text in query if text.strip()]


def _check_query(query, query_image) -> None:
    """Raises ValueError where nothing is looked for; a connected text (None) is checked later."""
    if query_image is ABSENT and None not in query and not _texts(query):
        raise ValueError("query: write what to look for, or connect a query_image")


def _seen_before(embeddings: list[Embeddings], internvl) -> Seen:
    for each in embeddings:
        check_same_model("embeddings", each.identity, f"the connected {internvl.name}", internvl.identity)
    return Seen(torch.cat([each.vectors for each in embeddings]), sum((each.names for each in embeddings), ()), None)
