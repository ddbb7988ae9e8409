"""The language model that encodes prompts: windows of token ids in, hidden states out.

It is InternVL's LLaMA (7 billion parameters; source: mulankit 1.0.2, ``InternVLTextModel``) or the language model of a
chat file (from half a billion on). The LLaMA is ComfyUI's own, so streaming to small GPUs, casting and
quantized weights are ComfyUI's work. The adapter is nested in the encoder's module because LoRA keys need one common
prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import comfy.model_management
import torch
from comfy import sd1_clip
from comfy.text_encoders import llama

from ..checkpoints.devices import choose_dtype, streaming_memory
from ..checkpoints.language_model import LanguageConfig
from ..checkpoints.linear import operations_for
from .adapter import LanguageAdapter
from .adapter_sdxl import LanguageAdapterXL
from .text_config import TextConfig
from .tokenizer import BOS, EOS, PAD, Frame

INTERNVL_FRAME = Frame(BOS, EOS, PAD, ())


@dataclass
class LlamaConfig(llama.Llama2Config):
    """ComfyUI's LLaMA with InternVL's constants; the sizes come from the file."""

    vocab_size: int = 49954
    intermediate_size: int = 11008
    num_key_value_heads: int = 32
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0

    @classmethod
    def from_text_config(cls, config: TextConfig) -> LlamaConfig:
        """Build the configuration of a file's LLaMA."""
        sizes = {name: size for name, size in asdict(config).items() if name != "output_size"}
        llama_config = cls(**sizes, num_key_value_heads=config.num_attention_heads)
        llama_config.head_dim = config.hidden_size // config.num_attention_heads  # a class attribute, not a field
        return llama_config


class InternVLLlama(llama.BaseLlama, torch.nn.Module):
    """All rows of the last layer, behind the final norm and, of a narrow one, `output_projection`. `config` holds a
    `TextConfig` or a `LanguageConfig` under ``sizes``.
    """

    def __init__(self, config, dtype, device, operations):
        super().__init__()
        sizes = config["sizes"]
        self.num_layers = sizes.num_hidden_layers
        known = sizes if isinstance(sizes, LanguageConfig) else LlamaConfig.from_text_config(sizes)
        self.model = llama.Llama2_(known, device=device, dtype=dtype, ops=operations)
        self.dtype = dtype
        output_size = sizes.output_size if isinstance(sizes, TextConfig) else None
        self.output_projection: Any = None
        if output_size is not None:
            self.output_projection = operations.Linear(sizes.hidden_size, output_size, dtype=dtype, device=device)

    def forward(self, input_ids, *args, **options):
        states, *others = self.model(input_ids, *args, **options)
        return (states if self.output_projection is None else self.output_projection(states), *others)


class InternVLEncoder(sd1_clip.SDClipModel):
    """Windows of token ids -> hidden states; it holds the adapter, which reads them.

    `is_quantized`: whether the file has quantized layers. `frame`: the tokens around a prompt.
    """

    def __init__(
        self,
        config: TextConfig | LanguageConfig,
        adapter: LanguageAdapter | LanguageAdapterXL | None = None,
        projection_dim: int | None = None,
        dtype=None,
        device="cpu",
        model_options=None,
        is_quantized: bool = False,
        frame: Frame = INTERNVL_FRAME,
    ):
        operations = operations_for(dtype if is_quantized else None)
        super().__init__(
            device=device,
            dtype=dtype,
            textmodel_json_config={"sizes": config},
            model_class=InternVLLlama,  # pyright: ignore[reportArgumentType]: a default is all ComfyUI declares
            layer="last",
            layer_norm_hidden_state=True,
            enable_attention_masks=True,
            special_tokens={"start": frame.bos, "end": frame.eos, "pad": frame.pad},
            model_options={**(model_options or {}), "custom_operations": operations},
        )
        self.config = config
        self.states_size = config.states_size if isinstance(config, TextConfig) else config.hidden_size
        self.frame = frame
        self._compute_dtype = torch.float32
        self._stored_dtype = None if is_quantized else dtype
        if projection_dim is not None:
            self.text_projection = torch.nn.Parameter(
                torch.empty(self.states_size, projection_dim, dtype=dtype, device=device), requires_grad=False
            )
        if adapter is not None:
            self.adapter = adapter
            self.adapter.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where ComfyUI wants it to compute."""
        return self.execution_device or self.transformer.get_input_embeddings().weight.device

    def process_tokens(self, tokens, device):
        """Embed the tokens and mask every row of padding's id, as upstream does: also a literal <unk> inside the text,
        and nothing else.
        """
        embeds, _, _, info = super().process_tokens(tokens, device)
        embeds = embeds.to(self._compute_dtype)
        mask = (torch.tensor(tokens, device=device) != self.frame.pad).long()
        return embeds, mask, mask.sum(dim=1).tolist(), info

    def computes_in(self, device: torch.device) -> torch.dtype:
        """Return the dtype on a device. Chat files are trained in bfloat16: a few values are beyond float16's."""
        is_of_chat = isinstance(self.config, LanguageConfig)
        return choose_dtype(device, torch.bfloat16) if is_of_chat else compute_dtype(device)

    def hidden_states(
        self,
        windows: Sequence[Sequence[int]],
        after_layer: Callable[[], None] = lambda: None,
        positions: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """Encode windows of T token ids each -> the states of each, [T, states_size] float32.

        In half precision where the device is fast with it, and again in float32 where that overflows. `after_layer` is
        called after each layer. positions: long [T], in windows without some rows of padding, which no row reads; the
        states are then the last layer's. Stops when the user interrupts.
        """

        def hook(*_):
            comfy.model_management.throw_exception_if_processing_interrupted()
            after_layer()

        llama_model: Any = self.transformer.model
        hooks = [layer.register_forward_hook(hook) for layer in llama_model.layers]
        try:
            for dtype in dict.fromkeys((self.computes_in(self.device), torch.float32)):
                self._compute_dtype = dtype
                states = self._forward([list(window) for window in windows], positions)
                if states.isfinite().all():
                    break
            return list(states)
        finally:
            for registered in hooks:
                registered.remove()

    def _forward(self, tokens: list[list[int]], positions: torch.Tensor | None) -> torch.Tensor:
        if positions is None:
            return self(tokens)[0]
        embeds, mask, *_ = self.process_tokens(tokens, self.device)
        return self.transformer(None, mask, embeds=embeds, position_ids=positions[None].to(self.device))[0].float()

    def text_embeds(self, input_ids: Sequence[int], states: torch.Tensor) -> torch.Tensor:
        """Return upstream's pooled vector [1, projection_dim]: `last_token_state`, projected."""
        row = last_token_state(input_ids, states)
        return row[None] @ self.text_projection.to(row)

    def memory_required(self, num_rows: int, device: torch.device | None = None) -> int:
        """Return the bytes that encoding so many rows takes beside the weights: the widest layer's activations, and a
        weight made what it is computed in. Where `device` cannot hold the weights, also the weight that is sent there.
        """
        hidden_size, intermediate_size = self.config.hidden_size, self.config.intermediate_size
        matrix = hidden_size * max(intermediate_size, self.states_size)
        dtype = torch.float32 if device is None else self.computes_in(device)
        made = 0 if dtype == self._stored_dtype else matrix
        norm = 0 if dtype is torch.float32 else torch.float32.itemsize * num_rows * hidden_size  # in float32 always
        widest = max(2 * intermediate_size, self.states_size)
        memory = dtype.itemsize * (num_rows * (4 * hidden_size + widest) + made) + norm
        largest = 0 if device is None else streaming_memory(self.transformer, device, memory)
        return max(memory + 2 * matrix, largest) if largest else memory


def compute_dtype(device: torch.device) -> torch.dtype:
    """Return what the text encoder computes in on a device: the authors' float16 on a fast card, else float32."""
    return choose_dtype(device, torch.float16)


def last_token_state(input_ids: Sequence[int], states: torch.Tensor) -> torch.Tensor:
    """Return the row of a text's states [T, states_size] that stands for the text.

    Upstream takes the row that the count of ids above 0 points at, normally eos.
    """
    return states[sum(token_id > 0 for token_id in input_ids) - 1]
