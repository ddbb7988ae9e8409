"""MuLan Loader: the one node to swap for the text encoder of an existing graph."""
from __future__ import annotations

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..mulan.clip import check_pair, load_clip, negative_view
from ..mulan.files import ADAPTER_SOURCE, ENCODER_SOURCE, open_adapter, open_text_encoder
from ..mulan.prompts import STYLES
from .model_files import locate, names


class MulanLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MuLanLoader",
            display_name="MuLan Loader",
            category="MuLan",
            description="Gives a Stable Diffusion 1.5 or 2.1 checkpoint prompts in 110+ languages: InternVL's text encoder with a MuLan adapter, "
                        "as a CLIP for the stock text nodes.",
            search_aliases=["multilingual", "mulan", "internvl", "language adapter", "translate prompt", "multilingual clip", "text encoder",
                            "多语言", "多言語", "다국어", "multilingue", "mehrsprachig", "многоязычный"],
            inputs=[
                io.Model.Input("model", optional=True,
                               tooltip="The checkpoint's MODEL. It passes through unchanged for SD1.5 and SD2.1; connecting it has the adapter checked "
                                       "against it."),
                io.Combo.Input("text_encoder", options=names("text_encoders"),
                               tooltip=f"InternVL's text encoder in models/text_encoders: one .safetensors, or the folder of {ENCODER_SOURCE}."),
                io.Combo.Input("adapter", options=names("mulan"),
                               tooltip=f"The MuLan adapter in models/mulan, from {ADAPTER_SOURCE}. Its tensors tell which family it is for."),
                io.Combo.Input("prompt_style", options=list(STYLES), default=STYLES[0],
                               tooltip="default: prompt weights as (word:1.2), long prompts in several windows, nothing lost. "
                                       "upstream: token by token what MuLan's authors do; brackets are text and all past 75 tokens is dropped."),
                io.Combo.Input("device", options=["default", "cpu"], default="default", optional=True, advanced=True,
                               tooltip="cpu keeps the text encoder in main memory and computes there: slower, but it takes nothing of the GPU."),
            ],
            outputs=[
                io.Model.Output(tooltip="The MODEL that came in."),
                io.Clip.Output(tooltip="For prompts, and for negatives too."),
                io.Clip.Output(display_name="CLIP (negative)",
                               tooltip="The same weights, for negatives as MuLan's authors encode them: without the words put before a prompt."),
            ],
        )

    @classmethod
    def validate_inputs(cls, text_encoder, adapter):
        """Only names and headers are read, so a wrong file is told before the queue starts."""
        try:
            encoder_file = text_encoder and open_text_encoder(locate("text_encoders", text_encoder, ENCODER_SOURCE))
            adapter_file = adapter and open_adapter(locate("mulan", adapter, ADAPTER_SOURCE))
            if encoder_file and adapter_file:
                check_pair(encoder_file, adapter_file)
        except (OSError, ValueError) as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, text_encoder, adapter, prompt_style, device="default", model=None) -> io.NodeOutput:
        adapter_path = locate("mulan", adapter, ADAPTER_SOURCE)
        if model is not None:
            _check_model(model, adapter_path)
        clip = load_clip(locate("text_encoders", text_encoder, ENCODER_SOURCE), adapter_path, prompt_style,
                         device="cpu" if device == "cpu" else None)
        passed = model if model is not None else ExecutionBlocker("MuLan Loader: its MODEL output is used, but no MODEL goes in.")
        return io.NodeOutput(passed, clip, negative_view(clip))


def _check_model(model, adapter_path) -> None:
    family = open_adapter(adapter_path).family
    width = model.model.model_config.unet_config.get("context_dim")
    if width != family.context_width:
        raise ValueError(f"the adapter {adapter_path.name} is for {family.title} (contexts of width {family.context_width}), "
                         f"but the connected MODEL is a {type(model.model.model_config).__name__} (width {width}). "
                         f"Take the adapter of the model's family, or a {family.title} checkpoint.")
