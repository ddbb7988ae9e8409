"""InternVL Embed and InternVL Compare: pictures and texts as vectors, and how alike each two of them are."""

from __future__ import annotations

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..mulan.images.text_drawing import TextRenderer
from ..mulan.internvl.embeddings import PICTURE, TEXT, Embeddings, check_same_model
from ..mulan.internvl.ranking import best_pairs
from ..mulan.internvl.similarity_image import MOST, draw
from .common import passes, show
from .internvl_inputs import (
    ABSENT,
    CATEGORY,
    EMBEDDINGS,
    WHOLE,
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

MOST_IN_JSON = 100_000  # scores of a matrix; of a larger one the JSON has only the pairs


class InternVLEmbed(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLEmbed",
            display_name="InternVL Embed",
            category=CATEGORY,
            description=(
                "Encodes the images of a batch or folder, or texts, as embeddings for InternVL Rank "
                "and InternVL Compare: encode once, use as often as you like."
            ),
            search_aliases=[
                "image embedding",
                "text embedding",
                "clip embedding",
                "feature vector",
                "image features",
                "clip vision encode",
                "encode images",
                "index images",
                "图像嵌入",
                "特征向量",
                "文本嵌入",
                "画像埋め込み",
                "特徴ベクトル",
                "이미지 임베딩",
                "vecteur d'image",
                "Bild-Embedding",
                "эмбеддинг картинки",
                "incrustación de imagen",
            ],
            is_output_node=True,
            is_input_list=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                model_input(),
                io.String.Input(
                    "texts",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="Texts to encode instead of images, one per line, in any language.",
                ),
                image_input(),
                folder_input(),
                framing_input(WHOLE),
            ],
            outputs=[
                EMBEDDINGS.Output(
                    display_name="embeddings",
                    tooltip="The embeddings, for InternVL Rank and InternVL Compare with the same model.",
                ),
                io.String.Output(
                    display_name="names", is_output_list=True, tooltip="List: the texts, or the names of the images."
                ),
                io.String.Output(display_name="json", tooltip=JSON_TOOLTIP),
            ],
        )

    @classmethod
    def validate_inputs(cls, texts=(), image=ABSENT, folder=""):
        return passes(
            check_source, image, first(folder), texts=ABSENT if None not in texts and not _lines(texts) else texts
        )

    @classmethod
    def fingerprint_inputs(cls, folder="", **others):
        return stamp_of(folder)

    @classmethod
    def execute(cls, internvl, texts=(), image=None, folder="", framing=WHOLE) -> io.NodeOutput:
        internvl, folder, framing, lines = first(internvl), first(folder), first(framing), _lines(texts)
        check_source(or_absent(image), folder, texts=lines or ABSENT)
        if lines:
            made, unreadable = Embeddings(internvl.embed_texts(lines), tuple(lines), TEXT, internvl.identity), []
        else:
            seen = look(internvl, image, folder, framing)
            made, unreadable = Embeddings(seen.vectors, seen.names, PICTURE, internvl.identity), seen.unreadable
        written = document(
            "embed",
            **made_by(internvl),
            framing=None if lines else framing,
            kind=made.kind,
            identity=made.identity,
            length=made.vectors.shape[1],
            names=list(made.names),
            unreadable=told_unreadable(unreadable),
        )
        text = table(
            [f"{len(made)} {made.kind}{'' if len(made) == 1 else 's'} as vectors of {made.vectors.shape[1]} numbers"],
            unreadable,
        )
        return io.NodeOutput(made, list(made.names), written, ui=show(cls, text, written))


class InternVLCompare(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLCompare",
            display_name="InternVL Compare",
            category=CATEGORY,
            description=(
                "Shows how similar images or texts are to each other, as a matrix and as numbers: "
                "finds near duplicates, captions that fit, and words with the same meaning in two "
                "languages."
            ),
            search_aliases=[
                "compare images",
                "image similarity",
                "cosine similarity",
                "similarity matrix",
                "similarity score",
                "find duplicates",
                "duplicate images",
                "near duplicates",
                "clip score",
                "图像相似度",
                "查找重复图片",
                "画像の類似度",
                "重複画像",
                "이미지 유사도",
                "중복 이미지",
                "similarité d'images",
                "Bildähnlichkeit",
                "сходство картинок",
                "similitud de imágenes",
            ],
            is_output_node=True,
            inputs=[
                EMBEDDINGS.Input("a", tooltip="Embeddings from InternVL Embed: the rows of the matrix."),
                EMBEDDINGS.Input(
                    "b",
                    optional=True,
                    tooltip=(
                        "Embeddings from the same model: the columns. If not connected, a is compared with itself."
                    ),
                ),
                io.Int.Input(
                    "pairs",
                    default=10,
                    min=1,
                    max=10000,
                    optional=True,
                    tooltip="The number of most similar pairs to report.",
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="The similarity matrix, up to 256 rows and columns. Darker is more similar."),
                io.String.Output(
                    display_name="json",
                    tooltip=f"{JSON_TOOLTIP} The full matrix is included up to {MOST_IN_JSON:,} scores.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, a, b=None, pairs=10) -> io.NodeOutput:
        same = b is None
        b = a if same else b
        check_same_model("a and b", a.identity, "the embeddings b", b.identity)
        found = best_pairs(a.vectors, b.vectors, pairs, same)
        scores = (a.vectors @ b.vectors.T).tolist() if len(a) * len(b) <= MOST_IN_JSON else None
        written = document(
            "compare",
            kinds=[a.kind, b.kind],
            identity=a.identity,
            rows=list(a.names),
            columns=list(b.names),
            pairs=[{"row": row, "column": column, "score": rounded(score)} for row, column, score in found],
            scores=scores and [[rounded(score) for score in of_row] for of_row in scores],
        )
        picture = draw(
            a.vectors[:MOST] @ b.vectors[:MOST].T,
            a.names,
            b.names,
            TextRenderer(sample="".join(a.names[:MOST] + b.names[:MOST])),
        )
        image = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]
        text = table([f"{score:.3f}  {a.names[row]} - {b.names[column]}" for row, column, score in found])
        return io.NodeOutput(
            image, written, ui={**ui.PreviewImage(image, cls=cls).as_dict(), **show(cls, text, written).as_dict()}
        )


def _lines(texts) -> list[str]:
    """One text per line, of one text or a list of them."""
    return [line.strip() for text in texts for line in (text or "").splitlines() if line.strip()]
