"""A folder of images to caption, and captions beside the images: a data set for training."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import cast

import folder_paths
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..mulan.boundary.interrupts import interruptible
from ..mulan.boundary.limits import MAX_RESULT_PIXELS
from ..mulan.images.captions import caption_file, check_language, one_line, save_captions
from ..mulan.images.image_files import UnreadableImageError, read_image
from ..mulan.internvl.image_folder import ImageFolder, UnreadableImage, display_name
from ..visionllm_nodes.detections.names import split_names
from . import categories
from .common import show_text, validate, validation_result, with_field_name
from .internvl_inputs import ABSENT, InternVLNode, unwrap_single
from .internvl_reports import summary_text
from .internvl_sources import check_source, fingerprint_folder


class InternVLImagesToCaption(InternVLNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLImagesToCaption",
            display_name="Load Images to Caption",
            category=categories.INTERNVL,
            description=(
                "Loads the images of a folder that have no caption yet, with their names, for InternVL Chat, "
                "VisionLLM Ask or another node that writes about images. Save Captions writes the answers beside them."
            ),
            search_aliases=[
                "load image folder",
                "load images from folder",
                "batch caption",
                "caption folder",
                "caption dataset",
                "lora dataset",
                "training dataset",
                "auto caption",
                "批量打标",
                "文件夹打标",
                "フォルダーの画像を読み込む",
                "폴더 이미지 불러오기",
                "légender un dossier",
                "Ordner beschriften",
                "описать папку",
                "describir carpeta",
            ],
            inputs=[
                io.String.Input(
                    "folder",
                    default="",
                    tooltip="A folder of images inside ComfyUI's input or output folder. Its subfolders are not read.",
                ),
                io.Boolean.Input(
                    "only_new",
                    default=True,
                    tooltip=(
                        "Leaves out images with a .txt of the same name beside them: run again to continue where a run "
                        "was stopped."
                    ),
                ),
                io.Int.Input(
                    "limit",
                    default=100,
                    min=1,
                    max=100000,
                    tooltip="The maximum number of images in one run. Their captions are saved at the end of the run.",
                ),
                io.String.Input(
                    "languages",
                    default="",
                    optional=True,
                    tooltip=(
                        "Languages that captions are saved in besides the .txt, such as 'de, ja': an image is new "
                        "until it has all of them."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images",
                    is_output_list=True,
                    tooltip="List: the images in the order people count, each at its own size.",
                ),
                io.String.Output(
                    display_name="names", is_output_list=True, tooltip="List: the file name of each image."
                ),
                io.String.Output(display_name="folder", tooltip="The folder, for Save Captions."),
                io.Int.Output(display_name="left", tooltip="How many images without a caption are left after these."),
            ],
        )

    @classmethod
    def validate_inputs(cls, folder, languages=""):
        return [validation_result(_open, folder), validate(_codes, languages)]

    @classmethod
    def fingerprint_inputs(cls, folder="", only_new=True, languages="", **others):
        captions = []
        if only_new:
            try:
                opened = _open(folder)
                codes = _codes(languages)
                captions = [file.name for file in opened.files if not _is_new(file, codes)] if opened else []
            except (OSError, ValueError):
                return ""
        return fingerprint_folder(folder) + hashlib.sha256(repr(captions).encode("utf-8", "replace")).hexdigest()

    @classmethod
    def execute(cls, folder, only_new=True, limit=100, languages="") -> io.NodeOutput:
        opened, codes = cast(ImageFolder, _open(folder)), _codes(languages)
        waiting = [file for file in opened.files if not only_new or _is_new(file, codes)]
        images, names, unreadable, pixels, left = [], [], [], 0, len(waiting)
        for file in interruptible(waiting):
            if len(images) == limit:
                break
            left -= 1
            try:
                images.append(read_image(file)[None])
            except UnreadableImageError as error:
                unreadable.append(UnreadableImage(display_name(file), str(error)))
                continue
            names.append(display_name(file))
            pixels += images[-1][0, :, :, 0].numel()
            if pixels > MAX_RESULT_PIXELS:
                raise ValueError(
                    f"limit: the first {len(images)} images have {pixels // 2**20} million pixels, and at most "
                    f"{MAX_RESULT_PIXELS // 2**20} million are loaded at a time. Lower limit"
                )
        text = summary_text([f"{len(images)} of {len(opened.files)} images, {left} left after these"], unreadable)
        lists = [values or [ExecutionBlocker(None)] for values in (images, names)]
        return io.NodeOutput(*lists, str(opened.path), left, ui=show_text(text))


class InternVLSaveCaptions(InternVLNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLSaveCaptions",
            display_name="Save Captions",
            category=categories.INTERNVL,
            description=(
                "Writes each caption into a .txt beside its image, with a trigger word in front: the data set that "
                "LoRA trainers read."
            ),
            search_aliases=[
                "save captions",
                "save text files",
                "caption txt",
                "lora captions",
                "trigger word",
                "training captions",
                "保存描述",
                "保存标签",
                "キャプションを保存",
                "캡션 저장",
                "enregistrer les légendes",
                "Bildunterschriften speichern",
                "сохранить подписи",
                "guardar descripciones",
            ],
            is_output_node=True,
            is_input_list=True,
            inputs=[
                io.String.Input("captions", force_input=True, tooltip="The captions: a list, one per image."),
                io.String.Input("names", force_input=True, tooltip="The names output of Load Images to Caption."),
                io.String.Input("folder", default="", tooltip="The folder output of Load Images to Caption."),
                io.String.Input(
                    "trigger",
                    default="",
                    optional=True,
                    tooltip="Words in front of each caption, followed by a comma, such as the name of what is trained.",
                ),
                io.Boolean.Input(
                    "overwrite", default=False, optional=True, tooltip="Replaces captions that are there already."
                ),
                io.String.Input(
                    "language",
                    default="",
                    optional=True,
                    tooltip=(
                        "The language of the captions, such as de, to keep several beside each image: 1.de.txt. Empty: "
                        "1.txt, which trainers read."
                    ),
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="captions",
                    is_output_list=True,
                    tooltip="List: the captions as written, each in one line.",
                ),
                io.Int.Output(display_name="count", tooltip="How many files were written."),
            ],
        )

    @classmethod
    def validate_inputs(cls, folder, language=("",)):
        return [
            validation_result(_open, unwrap_single(folder)),
            validate(check_language, unwrap_single(language), field="language"),
        ]

    @classmethod
    def execute(cls, captions, names, folder, trigger=("",), overwrite=(False,), language=("",)) -> io.NodeOutput:
        if len(captions) != len(names):
            raise ValueError(f"captions: got {len(captions)} captions for {len(names)} images. Connect one per image")
        opened = cast(ImageFolder, _open(unwrap_single(folder)))
        known = {display_name(file): file for file in opened.files}
        absent = [name for name in names if name not in known]
        if absent:
            raise ValueError(f"names: {absent[0]!r} is not an image in {opened.path}")
        lines = [one_line(caption, unwrap_single(trigger)) for caption in captions]
        code = with_field_name("language", check_language, unwrap_single(language))
        files = [known[name] for name in names]
        written = with_field_name("names", save_captions, files, lines, unwrap_single(overwrite), code)
        said = [f"{name}: {line or '(empty, not saved)'}" for name, line in zip(names, lines, strict=True)]
        text = summary_text([f"{len(written)} captions saved in {opened.path}", *said])
        return io.NodeOutput(lines, len(written), ui=show_text(text))


def _codes(languages: str) -> list[str]:
    """Return the languages that an image needs captions in; "" is the .txt's, which it always needs."""
    return ["", *(with_field_name("languages", check_language, name) for name in split_names(languages))]


def _is_new(file: Path, codes: list[str]) -> bool:
    return not all(caption_file(file, code).exists() for code in codes)


def _open(name: str | None) -> ImageFolder | None:
    """Return the folder of this name. Raise ValueError that begins with the field. None is not known yet."""
    if name is None:
        return None
    if not name.strip():
        raise ValueError("folder: enter a folder of images")
    folder = cast(ImageFolder, check_source(ABSENT, name))
    roots = [folder_paths.get_input_directory(), folder_paths.get_output_directory()]
    if not any(Path(os.path.abspath(folder.path)).is_relative_to(os.path.abspath(root)) for root in roots):
        raise ValueError(
            f"folder: {folder.path} is outside of ComfyUI's input and output folders, and captions are written only "
            "there. Copy or link it to the input folder"
        )
    return folder
