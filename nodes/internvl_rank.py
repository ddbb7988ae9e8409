"""InternVL Rank: pictures by a sentence or by another picture, the best first."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..mulan.internvl.embeddings import Embeddings, check_same_model
from ..mulan.internvl.ranking import mean_embedding, rank
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
            description=(
                "Sorts the images of a batch or folder by how well they match a sentence in any "
                "language, or another image. Use it to search a folder, or to keep the best of "
                "several generations."
            ),
            search_aliases=[
                "search images",
                "image search",
                "image retrieval",
                "search folder by text",
                "find similar images",
                "reverse image search",
                "rank images",
                "sort by prompt",
                "best of n",
                "pick best image",
                "clip score",
                "aesthetic ranking",
                "以文搜图",
                "以图搜图",
                "图像检索",
                "画像検索",
                "類似画像検索",
                "이미지 검색",
                "비슷한 이미지",
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
                    tooltip=(
                        "What to look for: a sentence in any language. Several texts, or a text and "
                        "query_image together, are averaged."
                    ),
                ),
                io.Image.Input(
                    "query_image",
                    optional=True,
                    tooltip="Looks for images similar to this one. Several images are averaged.",
                ),
                image_input(),
                folder_input(),
                EMBEDDINGS.Input(
                    "embeddings",
                    optional=True,
                    tooltip=(
                        "Embeddings from InternVL Embed, instead of image and folder: the images or texts to sort."
                    ),
                ),
                io.Int.Input(
                    "top_k",
                    default=10,
                    min=0,
                    max=1000000,
                    optional=True,
                    tooltip="Returns at most this many images, best first. 0 returns all (loads every image).",
                ),
                io.Float.Input(
                    "threshold",
                    default=-1.0,
                    min=-1.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip=(
                        "Drops results that score below this. Scores are cosine similarities: low between "
                        "a text and an image even if they match well, higher between two images."
                    ),
                ),
                framing_input(WHOLE),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images",
                    is_output_list=True,
                    tooltip=(
                        "List: the images, best first, each at its own size. Empty for embeddings, or if "
                        "nothing reaches the threshold: nodes after it then do not run."
                    ),
                ),
                io.Float.Output(
                    display_name="scores", is_output_list=True, tooltip="List: the score of each result, highest first."
                ),
                io.Int.Output(
                    display_name="order",
                    is_output_list=True,
                    tooltip="List: the index of each result in the input, starting at 0.",
                ),
                io.String.Output(display_name="names", is_output_list=True, tooltip="List: the name of each result."),
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
        wanted = torch.cat([internvl.embed_texts(texts), internvl.embed_images(pictures, framing)])
        scores = seen.vectors @ mean_embedding(wanted)
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
