"""InternVL Rank: sort images by a sentence or by another image."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..mulan.internvl.ranking import Embeddings, check_same_model, mean_embedding, rank
from . import categories
from .common import show_text, validation_result
from .internvl_inputs import (
    ABSENT,
    EMBEDDINGS,
    WHOLE,
    InternVLNode,
    folder_input,
    framing_input,
    image_input,
    model_input,
    or_absent,
    unwrap_single,
)
from .internvl_reports import JSON_TOOLTIP, document, model_fields, round_score, summary_text, unreadable_records
from .internvl_sources import ImageEmbeddings, check_source, embed_images, fingerprint_folder


class InternVLRank(InternVLNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLRank",
            display_name="InternVL Rank",
            category=categories.INTERNVL,
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
                "text to image search",
                "choose best image",
                "best image",
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
                "图片搜索",
                "поиск изображений",
                "画像を選ぶ",
            ],
            is_output_node=True,
            is_input_list=True,
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
                        "Embeddings from InternVL Embed, instead of image and folder: the images, videos or texts to "
                        "sort."
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
        return [
            validation_result(_check_query, query, query_image),
            validation_result(check_source, image, unwrap_single(folder), embeddings=embeddings),
        ]

    @classmethod
    def fingerprint_inputs(cls, folder="", **others):
        return fingerprint_folder(folder)

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
        internvl, folder, framing = unwrap_single(internvl), unwrap_single(folder), unwrap_single(framing)
        _check_query(query, or_absent(query_image))
        source = check_source(or_absent(image), folder, embeddings=or_absent(embeddings))
        if not embeddings:
            candidates = embed_images(internvl, image, source, framing)
        else:
            candidates = _given_embeddings(embeddings, internvl)
        texts, query_images = _texts(query), [each[..., :3] for batch in query_image or [] for each in batch]
        target = torch.cat([internvl.embed_texts(texts), internvl.embed_images(query_images, framing)])
        scores = candidates.vectors @ mean_embedding(target)
        order = rank(scores, unwrap_single(top_k), unwrap_single(threshold))
        ranked = [
            {"position": index, "name": candidates.names[index], "score": round_score(scores[index].item())}
            for index in order
        ]
        written = document(
            "rank",
            **model_fields(internvl),
            framing=framing,
            query={"texts": texts, "pictures": len(query_images)},
            of=len(candidates.names),
            ranked=ranked,
            unreadable=unreadable_records(candidates.unreadable),
        )
        lines = [f"{each['score']:.3f}  {each['name']}" for each in ranked] or [
            f"none of {len(candidates.names)} reaches the threshold"
        ]
        images = candidates.images(order)
        lists = images, [each["score"] for each in ranked], order, [each["name"] for each in ranked]
        return io.NodeOutput(
            *(values or [ExecutionBlocker(None)] for values in lists),
            written,
            ui=show_text(summary_text(lines, candidates.unreadable), written),
        )


def _texts(query) -> list[str]:
    return [text.strip() for text in query if text.strip()]


def _check_query(query, query_image) -> None:
    """Raise ValueError if there is nothing to look for; a connected text (None) is checked later."""
    if query_image is ABSENT and None not in query and not _texts(query):
        raise ValueError("query: enter what to look for, or connect query_image")


def _given_embeddings(embeddings: list[Embeddings], internvl) -> ImageEmbeddings:
    for each in embeddings:
        check_same_model("embeddings", each.identity, f"the connected {internvl.name}", internvl.identity)
    return ImageEmbeddings(
        torch.cat([each.vectors for each in embeddings]), sum((each.names for each in embeddings), ()), None
    )
