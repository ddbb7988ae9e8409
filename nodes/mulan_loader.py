"""MuLan Loader: the one node to swap for the text encoder of an existing graph."""

from __future__ import annotations

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..mulan.conditioning.base_model import check_family, with_adapter
from ..mulan.conditioning.clip import check_pair, load_clip, negative_view
from ..mulan.conditioning.families import DEFAULT_ZEROING, PIXART, ZEROING
from ..mulan.conditioning.model_files import ADAPTER_SOURCE, ENCODER_SOURCE, open_adapter, open_text_encoder
from ..mulan.conditioning.prompt_tokenizer import STYLES
from .common import locate, names, stamp

NO_ADAPTER = "none (a whole MuLan PixArt model)"


class MulanLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MuLanLoader",
            display_name="MuLan Loader",
            category="MuLan",
            description="Gives a Stable Diffusion 1.5, 2.1, SDXL or PixArt checkpoint prompts in 110+ languages: InternVL's text encoder with a MuLan "
            "adapter, as a CLIP for the stock text nodes.",
            search_aliases=[
                "multilingual",
                "mulan",
                "internvl",
                "language adapter",
                "translate prompt",
                "multilingual clip",
                "text encoder",
                "多语言",
                "多言語",
                "다국어",
                "multilingue",
                "mehrsprachig",
                "многоязычный",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The checkpoint's MODEL. It passes through unchanged for SD1.5 and SD2.1; for PixArt and some SDXL adapters the "
                    "output is needed, with the adapter's weights in it. Connected, it is checked to be of the adapter's family.",
                ),
                io.Combo.Input(
                    "text_encoder",
                    options=names("text_encoders"),
                    tooltip=f"InternVL's text encoder in models/text_encoders: one .safetensors, or the folder of {ENCODER_SOURCE}.",
                ),
                io.Combo.Input(
                    "adapter",
                    options=[*names("mulan"), NO_ADAPTER],
                    tooltip=f"The MuLan adapter in models/mulan, from {ADAPTER_SOURCE}. Its tensors tell which family it is for. "
                    "None: for the mulan-pixart model, which has its own.",
                ),
                io.Combo.Input(
                    "prompt_style",
                    options=list(STYLES),
                    default=STYLES[0],
                    tooltip="default: prompt weights as (word:1.2), long prompts in several windows, nothing lost. "
                    "upstream: token by token what MuLan's authors do; brackets are text and all past 75 tokens is dropped.",
                ),
                io.Combo.Input(
                    "device",
                    options=["default", "cpu"],
                    default="default",
                    optional=True,
                    advanced=True,
                    tooltip="cpu keeps the text encoder in main memory and computes there: slower, but it takes nothing of the GPU.",
                ),
                io.Combo.Input(
                    "sdxl_zeros",
                    options=list(ZEROING),
                    default=DEFAULT_ZEROING,
                    optional=True,
                    advanced=True,
                    tooltip="SDXL only: what becomes zeros, as in mulankit. negative pooled: MuLan's own SDXL examples, the pooled vector of "
                    "negatives. all pooled, empty negative: mulankit's default, every pooled vector and the whole of an empty negative. "
                    "Negatives are what CLIP (negative) encodes.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The MODEL that came in, with what the adapter replaces of it."),
                io.Clip.Output(tooltip="For prompts, and for negatives too."),
                io.Clip.Output(
                    display_name="CLIP (negative)",
                    tooltip="The same weights, for negatives as MuLan's authors encode them: without the words put before a prompt; "
                    "for SDXL with them, and with zeros for the pooled vector.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, text_encoder, adapter):
        """Only names and headers are read, so a wrong file is told before the queue starts."""
        try:
            encoder_file = text_encoder and open_text_encoder(locate("text_encoders", text_encoder, ENCODER_SOURCE))
            adapter_file = adapter and _open_adapter(adapter)
            if encoder_file and adapter_file:
                check_pair(encoder_file, adapter_file)
        except (OSError, ValueError) as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, text_encoder=None, adapter=None, **others):
        """A file that was downloaded again under its name is read again."""
        return stamp("text_encoders", text_encoder), stamp("mulan", adapter)

    @classmethod
    def execute(
        cls, text_encoder, adapter, prompt_style, device="default", sdxl_zeros=DEFAULT_ZEROING, model=None
    ) -> io.NodeOutput:
        adapter_file = _open_adapter(adapter)
        if model is not None:
            check_family(
                model,
                adapter_file.family if adapter_file else PIXART,
                f"the adapter {adapter}" if adapter_file else "the choice adapter = none",
            )
            if adapter_file:
                model = with_adapter(model, adapter_file)
        elif adapter_file and adapter_file.patches_model:
            raise ValueError(
                f"the adapter {adapter} replaces weights of the {adapter_file.family.title} model: connect the checkpoint's MODEL to the "
                f"MuLan Loader, and its MODEL output to what follows."
            )
        clip = load_clip(
            locate("text_encoders", text_encoder, ENCODER_SOURCE),
            adapter_file and adapter_file.file.path,
            prompt_style,
            device="cpu" if device == "cpu" else None,
            zeroing=sdxl_zeros,
        )
        passed = (
            model
            if model is not None
            else ExecutionBlocker("MuLan Loader: its MODEL output is used, but no MODEL goes in.")
        )
        return io.NodeOutput(passed, clip, negative_view(clip))


def _open_adapter(name: str):
    return None if name == NO_ADAPTER else open_adapter(locate("mulan", name, ADAPTER_SOURCE))
