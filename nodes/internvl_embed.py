"""InternVL Embed and InternVL Compare: embeddings of images and texts, and their similarities."""

from __future__ import annotations

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..mulan.boundary.interrupts import interruptible
from ..mulan.images.text_drawing import TextRenderer
from ..mulan.images.video_frames import sample_frames
from ..mulan.internvl.ranking import IMAGE, TEXT, VIDEO, Embeddings, best_pairs, check_same_model, mean_embedding
from ..mulan.internvl.similarity_image import MAX_NAMES, draw_similarity
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
from .internvl_sources import check_source, embed_images, fingerprint_folder

MOST_IN_JSON = 100_000  # scores of a matrix; of a larger one the JSON has only the pairs


class InternVLEmbed(InternVLNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLEmbed",
            display_name="InternVL Embed",
            category=categories.INTERNVL,
            description=(
                "Encodes the images of a batch or folder, videos, or texts, as embeddings for InternVL Rank "
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
                "feature extraction",
                "embed images",
                "video embedding",
                "embed video",
                "video retrieval",
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
                io.Video.Input(
                    "video",
                    optional=True,
                    tooltip="Videos to encode instead of images: one, or a list. A video is the mean of its frames.",
                ),
                io.Int.Input(
                    "frames",
                    default=8,
                    min=1,
                    max=256,
                    optional=True,
                    tooltip=(
                        "The number of frames to use of each video, evenly spaced: the middle frames of equal parts."
                    ),
                ),
            ],
            outputs=[
                EMBEDDINGS.Output(
                    display_name="embeddings",
                    tooltip="The embeddings, for InternVL Rank and InternVL Compare with the same model.",
                ),
                io.String.Output(
                    display_name="names",
                    is_output_list=True,
                    tooltip="List: the texts, or the names of the images or videos.",
                ),
                io.String.Output(display_name="json", tooltip=JSON_TOOLTIP),
            ],
        )

    @classmethod
    def validate_inputs(cls, texts=(), image=ABSENT, folder="", video=ABSENT):
        return validation_result(
            check_source,
            image,
            unwrap_single(folder),
            texts=ABSENT if None not in texts and not _lines(texts) else texts,
            video=video,
        )

    @classmethod
    def fingerprint_inputs(cls, folder="", **others):
        return fingerprint_folder(folder)

    @classmethod
    def execute(cls, internvl, texts=(), image=None, folder="", framing=WHOLE, video=None, frames=8) -> io.NodeOutput:
        internvl, folder, framing, lines = (
            unwrap_single(internvl),
            unwrap_single(folder),
            unwrap_single(framing),
            _lines(texts),
        )
        source = check_source(or_absent(image), folder, texts=lines or ABSENT, video=or_absent(video))
        unreadable = []
        if lines:
            embeddings = Embeddings(internvl.embed_texts(lines), tuple(lines), TEXT, internvl.identity)
        elif video:
            vectors = [_embed_video(internvl, each, unwrap_single(frames), framing) for each in interruptible(video)]
            names = tuple(f"video {number}" for number in range(1, len(vectors) + 1))
            embeddings = Embeddings(torch.stack(vectors), names, VIDEO, internvl.identity)
        else:
            images = embed_images(internvl, image, source, framing)
            embeddings = Embeddings(images.vectors, images.names, IMAGE, internvl.identity)
            unreadable = images.unreadable
        written = document(
            "embed",
            **model_fields(internvl),
            framing=None if lines else framing,
            kind=embeddings.kind,
            identity=embeddings.identity,
            length=embeddings.vectors.shape[1],
            names=list(embeddings.names),
            unreadable=unreadable_records(unreadable),
        )
        text = summary_text(
            [
                f"{len(embeddings)} {embeddings.kind}{'' if len(embeddings) == 1 else 's'} as vectors of "
                f"{embeddings.vectors.shape[1]} numbers"
            ],
            unreadable,
        )
        return io.NodeOutput(embeddings, list(embeddings.names), written, ui=show_text(text, written))


class InternVLCompare(InternVLNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLCompare",
            display_name="InternVL Compare",
            category=categories.INTERNVL,
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
                "similar images",
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
                "сходство изображений",
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
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, a, b=None, pairs=10) -> io.NodeOutput:
        same = b is None
        b = a if same else b
        check_same_model("a and b", a.identity, "the embeddings b", b.identity)
        best = best_pairs(a.vectors, b.vectors, pairs, same)
        scores = (a.vectors @ b.vectors.T).tolist() if len(a) * len(b) <= MOST_IN_JSON else None
        written = document(
            "compare",
            kinds=[a.kind, b.kind],
            identity=a.identity,
            rows=list(a.names),
            columns=list(b.names),
            pairs=[{"row": row, "column": column, "score": round_score(score)} for row, column, score in best],
            scores=scores and [[round_score(score) for score in row] for row in scores],
        )
        matrix = draw_similarity(
            a.vectors[:MAX_NAMES] @ b.vectors[:MAX_NAMES].T,
            a.names,
            b.names,
            TextRenderer(sample="".join(a.names[:MAX_NAMES] + b.names[:MAX_NAMES])),
        )
        image = torch.from_numpy(np.asarray(matrix, dtype=np.float32) / 255)[None]
        lines = [f"{score:.3f}  {a.names[row]} - {b.names[column]}" for row, column, score in best]
        text = summary_text(lines or ["there is one embedding, and no pair: connect b too"])
        return io.NodeOutput(
            image, written, ui={**ui.PreviewImage(image, cls=cls).as_dict(), **show_text(text, written)}
        )


def _embed_video(internvl, video, frames: int, framing: str) -> torch.Tensor:
    return mean_embedding(internvl.embed_images(sample_frames(video, frames), framing))


def _lines(texts) -> list[str]:
    """Return the lines that are not empty, of one text or a list of texts."""
    return [line.strip() for text in texts for line in (text or "").splitlines() if line.strip()]
