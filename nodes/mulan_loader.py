"""MuLan Loader: the one node to add to a workflow for prompts in many languages."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..mulan.conditioning.base_model import apply_adapter, check_family
from ..mulan.conditioning.chat_encoder_file import CHAT_SOURCE
from ..mulan.conditioning.clip import load_clip, negative_view
from ..mulan.conditioning.encoder_files import check_pair, check_whole_pixart, open_prompt_encoder, pair_warning
from ..mulan.conditioning.families import DEFAULT_ZEROING, PIXART, ZEROING
from ..mulan.conditioning.model_files import ADAPTER_SOURCE, ENCODER_SOURCE, open_adapter
from ..mulan.conditioning.prompt_tokenizer import STYLES
from . import categories
from .checked_node import CheckedNode
from .common import fingerprint_model, has_model, list_models, locate_model, prompt_memory, show_progress, validate

ENCODERS, CHATS = "text_encoders", "internvl_chat"
FROM_CHATS = f"{CHATS}/"  # begins the names of files there in the list of text encoders
NO_ADAPTER = "none (a whole MuLan PixArt model)"


class MulanLoader(CheckedNode):
    files = ("text_encoder", "adapter")

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MuLanLoader",
            display_name="MuLan Loader",
            category=categories.MULAN,
            description=(
                "Adds prompts in 110+ languages to a Stable Diffusion 1.5, 2.1, SDXL or PixArt "
                "checkpoint. Returns InternVL's text encoder with a MuLan adapter as a CLIP for the "
                "standard text nodes."
            ),
            search_aliases=[
                "multilingual prompt",
                "multilingual clip",
                "multilingual text encoder",
                "non-english prompt",
                "prompt in any language",
                "translate prompt",
                "language adapter",
                "load mulan",
                "mulan adapter",
                "internvl text encoder",
                "load clip",
                "chinese prompt",
                "japanese prompt",
                "korean prompt",
                "prompt in chinese",
                "multilingual sdxl",
                "deutscher Prompt",
                "多语言提示词",
                "中文提示词",
                "多言語プロンプト",
                "日本語プロンプト",
                "다국어 프롬프트",
                "한국어 프롬프트",
                "prompt multilingue",
                "mehrsprachiger Prompt",
                "многоязычный промпт",
                "prompt multilingüe",
                "prompt en français",
                "prompt en español",
                "русский промпт",
                "prompt em português",
                "Türkçe istem",
                "موجه متعدد اللغات",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip=(
                        "The checkpoint's MODEL. Required for PixArt and some SDXL adapters, which "
                        "replace weights in it; SD1.5 and SD2.1 pass through unchanged. If connected, its "
                        "family must match the adapter's."
                    ),
                ),
                io.Combo.Input(
                    "text_encoder",
                    options=[*list_models(ENCODERS), *(f"{FROM_CHATS}{name}" for name in list_models(CHATS))],
                    tooltip=(
                        "InternVL's text encoder in models/text_encoders: a single .safetensors file, or "
                        f"the folder of {ENCODER_SOURCE}. MuLan Get Model downloads it as one smaller "
                        "file, or converts the folder. internvl_chat/... is a chat model in models/internvl_chat, a "
                        "small text encoder for adapters that were trained with it; no published adapter was."
                    ),
                ),
                io.Combo.Input(
                    "adapter",
                    options=[*list_models("mulan"), NO_ADAPTER],
                    tooltip=(
                        f"The MuLan adapter in models/mulan, from {ADAPTER_SOURCE}. Its model family is "
                        "detected from its tensors. Choose none for the mulan-pixart model, which "
                        "contains its adapter."
                    ),
                ),
                io.Combo.Input(
                    "prompt_style",
                    options=list(STYLES),
                    default=STYLES[0],
                    tooltip=(
                        "default: supports weights such as (word:1.2), BREAK and prompts of any length. "
                        "upstream: tokenizes exactly like MuLan's own code, so brackets are plain text "
                        "and everything past the first window (75 or 78 tokens) is dropped."
                    ),
                ),
                io.Combo.Input(
                    "device",
                    options=["default", "cpu"],
                    default="default",
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "cpu keeps the text encoder in system memory and runs it there: slower, but uses no VRAM."
                    ),
                ),
                io.Combo.Input(
                    "sdxl_zeros",
                    options=list(ZEROING),
                    default=DEFAULT_ZEROING,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "SDXL only: which embeddings are set to zero. negative pooled: the pooled "
                        "embedding of negatives, as in MuLan's SDXL examples. all pooled, empty negative: "
                        "every pooled embedding and all of an empty negative, mulankit's default. "
                        "nothing: none of them. Negatives are prompts encoded with CLIP (negative)."
                    ),
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    lazy=True,
                    tooltip=(
                        "The checkpoint's CLIP, to compare with: it takes MuLan's place when this node is bypassed, "
                        "and is not used otherwise."
                    ),
                ),
                io.Boolean.Input(
                    "remember_prompts",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Keeps encoded prompts on disk, at most 512 MB of them. A prompt that was encoded before then "
                        "needs no text encoder, also after a restart. Off encodes every prompt anew and keeps none."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(
                    tooltip="The MODEL with the adapter's weights in it. Use it in place of the checkpoint's."
                ),
                io.Clip.Output(tooltip="Encodes prompts, and negative prompts too."),
                io.Clip.Output(
                    display_name="CLIP (negative)",
                    tooltip=(
                        "Encodes negative prompts as MuLan's authors do: without the prefix 'summarize:', "
                        "or for SDXL with the prefix and a pooled embedding of zeros. Shares its weights "
                        "with CLIP."
                    ),
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, text_encoder, adapter):
        """Reject a wrong file before the run starts; only names and headers are read."""
        each = [
            validate(_open_encoder, text_encoder, field="text_encoder"),
            validate(_open_adapter, adapter, field="adapter"),
        ]
        return each if each != [True, True] else validate(_check_pair, text_encoder, adapter, field="adapter")

    @classmethod
    def check_lazy_status(cls, **values):
        """Never ask for `clip`: it is there for bypassing alone."""
        return []

    @classmethod
    def fingerprint_inputs(cls, text_encoder=None, adapter=None, **others):
        """Change when a file does, so that one downloaded again under its name is read again."""
        kind, name = _folder_of(text_encoder) if text_encoder else (ENCODERS, None)
        return fingerprint_model(kind, name), fingerprint_model("mulan", adapter)

    @classmethod
    def execute(
        cls,
        text_encoder,
        adapter,
        prompt_style,
        device="default",
        sdxl_zeros=DEFAULT_ZEROING,
        model=None,
        clip=None,
        remember_prompts=True,
    ) -> io.NodeOutput:
        encoder_file, adapter_file = _open_encoder(text_encoder), _open_adapter(adapter)
        if adapter_file:
            check_pair(encoder_file, adapter_file)
            if warning := pair_warning(encoder_file, adapter_file):
                show_progress(cls, warning)
        if model is not None:
            check_family(
                model,
                adapter_file.family if adapter_file else PIXART,
                f"the adapter {adapter}" if adapter_file else "the choice adapter = none",
            )
            if adapter_file:
                model = apply_adapter(model, adapter_file)
        elif adapter_file and adapter_file.patches_model:
            raise ValueError(
                f"model: the adapter {adapter} replaces weights of the {adapter_file.family.title} model. Connect the "
                "checkpoint's MODEL to MuLan Loader, and use MuLan Loader's MODEL output in its place."
            )
        mulan = load_clip(
            encoder_file,
            adapter_file,
            prompt_style,
            device="cpu" if device == "cpu" else None,
            zeroing=sdxl_zeros,
            memory=prompt_memory() if remember_prompts else None,
        )
        passed = (
            model
            if model is not None
            else ExecutionBlocker("MuLan Loader: the MODEL output is used, but no MODEL is connected to the input.")
        )
        return io.NodeOutput(passed, mulan, negative_view(mulan))


def _check_pair(text_encoder: str, adapter: str) -> None:
    encoder_file = _open_encoder(text_encoder)
    if adapter_file := _open_adapter(adapter):
        check_pair(encoder_file, adapter_file)
    else:
        check_whole_pixart(encoder_file)


def _open_encoder(name: str):
    return open_prompt_encoder(_locate_encoder(name))


def _locate_encoder(name: str) -> Path:
    kind, name = _folder_of(name)
    return locate_model(kind, name, CHAT_SOURCE if kind == CHATS else ENCODER_SOURCE)


def _folder_of(name: str) -> tuple[str, str]:
    """Return the kind of folder in models/ that a name of the list is in, and the name there."""
    is_chat = name.startswith(FROM_CHATS) and not has_model(ENCODERS, name)
    return (CHATS, name.removeprefix(FROM_CHATS)) if is_chat else (ENCODERS, name)


def _open_adapter(name: str):
    return None if name == NO_ADAPTER else open_adapter(locate_model("mulan", name, ADAPTER_SOURCE))
