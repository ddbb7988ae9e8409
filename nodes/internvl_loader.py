"""InternVL Loader: one model to classify, compare and search images in many languages."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..mulan.boundary.files import parse_json
from ..mulan.checkpoints.tensor_files import describe_path, read_beside
from ..mulan.conditioning.model_files import ENCODER_SOURCE, TextEncoderFile, open_text_encoder
from ..mulan.internvl.internvl_files import MODES, SOURCE, open_internvl
from ..mulan.internvl.internvl_loader import check_pair, load_internvl
from . import categories
from .common import (
    PRECISIONS,
    device_input,
    device_of,
    fingerprint_model,
    list_models,
    locate_model,
    precision_input,
    validate,
)
from .internvl_inputs import ABSENT, INTERNVL, InternVLNode

KIND, ENCODERS = "internvl", "text_encoders"
INSIDE = "in the checkpoint"


class InternVLLoader(InternVLNode):
    files = ("checkpoint", "text_encoder")

    """Load the model; ComfyUI caches it.

    ComfyUI keeps outputs by a node's inputs and fingerprint, so loaders with the same settings give one model.
    """

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLLoader",
            display_name="InternVL Loader",
            category=categories.INTERNVL,
            description=(
                "Loads InternVL-C or InternVL-G, a CLIP-like model that scores how well images match "
                "text in 110+ languages: to classify, search, rank and compare images. It can share "
                "its text encoder with MuLan."
            ),
            search_aliases=[
                "load internvl",
                "internvl clip",
                "load clip vision",
                "multilingual clip",
                "clip score",
                "zero-shot model",
                "image embedding model",
                "image text matching",
                "image retrieval model",
                "clip score model",
                "图文匹配",
                "零样本分类",
                "以文搜图",
                "画像検索",
                "画像とテキストの類似度",
                "이미지 검색",
                "recherche d'images",
                "Bildersuche",
                "поиск картинок",
                "búsqueda de imágenes",
            ],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=_checkpoints(),
                    tooltip=(
                        f"The model in models/internvl: {SOURCE} or internvl_c_13b_224px.pth, or the "
                        "vision file that MuLan Get Model makes of either. A published folder in "
                        "models/text_encoders is listed too."
                    ),
                ),
                io.Combo.Input(
                    "text_encoder",
                    options=[INSIDE, *list_models(ENCODERS)],
                    default=INSIDE,
                    tooltip=(
                        "InternVL's text encoder: the one in the checkpoint, or its converted file in "
                        "models/text_encoders. Not used when a CLIP is connected."
                    ),
                ),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=MODES[0],
                    optional=True,
                    tooltip=(
                        "C: encodes images with the vision tower alone. G: the language model's queries "
                        "read them too; slower, but better at finding images by sentences."
                    ),
                ),
                precision_input(
                    "The precision the vision tower computes in, whatever the file holds. default: fp16 or "
                    "bf16 where the device is fast with it, otherwise fp32."
                ),
                device_input(),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip=(
                        "The CLIP of a MuLan Loader. Its text encoder is shared, so there is only one copy in memory."
                    ),
                ),
            ],
            outputs=[
                INTERNVL.Output(
                    display_name="INTERNVL",
                    tooltip="The model for the InternVL nodes. ComfyUI moves it to the GPU and back, like any model.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint, text_encoder, mode=MODES[0], clip=ABSENT):
        """Reject a wrong file before the run starts; only names and headers are read."""
        if clip is not ABSENT:
            text_encoder = ""  # the CLIP takes its place
        each = [
            validate(_check_checkpoint, checkpoint, mode, field="checkpoint"),
            validate(_open_encoder, text_encoder, field="text_encoder"),
        ]
        return each if each != [True, True] else validate(_check_pair, checkpoint, text_encoder, field="text_encoder")

    @classmethod
    def fingerprint_inputs(cls, checkpoint=None, text_encoder=None, **others):
        """Change when a file does, so that one downloaded again under its name is read again."""
        model = fingerprint_model(KIND, checkpoint) or fingerprint_model(ENCODERS, checkpoint)
        return model, fingerprint_model(ENCODERS, text_encoder)

    @classmethod
    def execute(
        cls, checkpoint, text_encoder, mode=MODES[0], precision="default", device="default", clip=None
    ) -> io.NodeOutput:
        encoder = None
        if clip is None and text_encoder != INSIDE:
            encoder = locate_model(ENCODERS, text_encoder, ENCODER_SOURCE)
        return io.NodeOutput(
            load_internvl(_located(checkpoint), mode, encoder, device_of(device), PRECISIONS[precision], clip)
        )


def _checkpoints() -> list[str]:
    """Return the models in models/internvl, and the published folders that are in models/text_encoders for MuLan."""
    folders = set(list_models(ENCODERS)) - set(folder_paths.get_filename_list(ENCODERS))
    return sorted({*list_models(KIND), *filter(_is_published, folders)})


def _is_published(folder: str) -> bool:
    try:
        config = parse_json(read_beside(locate_model(ENCODERS, folder, SOURCE), "config.json") or b"")
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "qllama_config" in config


def _located(name: str) -> Path:
    kind = ENCODERS if name not in list_models(KIND) and name in list_models(ENCODERS) else KIND
    return locate_model(kind, name, SOURCE)


def _check_checkpoint(checkpoint: str, mode: str) -> None:
    open_internvl(_located(checkpoint)).parts(mode)


def _open_encoder(name: str) -> TextEncoderFile | None:
    """Open a file of its own, if `name` is one."""
    return None if name in ("", INSIDE) else open_text_encoder(locate_model(ENCODERS, name, ENCODER_SOURCE))


def _check_pair(checkpoint: str, text_encoder: str) -> None:
    if text_encoder:
        file = open_internvl(_located(checkpoint))
        text = _open_encoder(text_encoder) or file.text_encoder()
        check_pair(file, text.config, describe_path(text.file.path))
