"""InternVL's LLaMA with a MuLan adapter as its last stage: the cond-stage model of a `comfy.sd.CLIP`.

Source: mulankit 1.0.2, ``InternVLTextModel`` and ``LanguageAdapter``. The LLaMA is the host's own, so streaming to small GPUs,
casting and quantised weights are the host's work. The adapter is nested in the encoder's module because LoRA keys need one common prefix.
"""
from __future__ import annotations

import logging
from dataclasses import dataclass

import comfy.model_management
import comfy.ops
import comfy.utils
import torch
from comfy import sd1_clip
from comfy.text_encoders import llama

from .adapter import AdapterShape, LanguageAdapter
from .families import Family
from .files import TextConfig
from .tokenizer import BOS, EOS, PAD

BYTES_PER_ACTIVATION = 4  # the host computes text encoders in float32


@dataclass
class LlamaConfig(llama.Llama2Config):
    """The host's LLaMA with InternVL's constants; the sizes come from the file."""

    vocab_size: int = 49954
    intermediate_size: int = 11008
    num_key_value_heads: int = 32
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0

    @classmethod
    def of(cls, config: TextConfig) -> LlamaConfig:
        llama_config = cls(
            vocab_size=config.vocabulary, hidden_size=config.width, intermediate_size=config.feed_forward,
            num_hidden_layers=config.layers, num_attention_heads=config.heads, num_key_value_heads=config.heads,
            rms_norm_eps=config.norm_eps,
        )
        llama_config.head_dim = config.width // config.heads  # a class attribute of the host's, not a field
        return llama_config


class InternVLLlama(llama.BaseLlama, torch.nn.Module):
    """All rows of the last layer behind the final norm; `config` is a `TextConfig`."""

    def __init__(self, config, dtype, device, operations):
        super().__init__()
        self.num_layers = config["sizes"].layers
        self.model = llama.Llama2_(LlamaConfig.of(config["sizes"]), device=device, dtype=dtype, ops=operations)
        self.dtype = dtype


class InternVLEncoder(sd1_clip.SDClipModel):
    """Token windows -> hidden states, and `adapt`: hidden states -> the context of the cross-attention."""

    def __init__(self, config: TextConfig, adapter: AdapterShape | None, prefix_ids: list[int], prefixed_window: int,
                 dtype=None, adapter_dtype=None, device="cpu", model_options=None):
        super().__init__(
            device=device, dtype=dtype, textmodel_json_config={"sizes": config}, model_class=InternVLLlama, layer="last",
            layer_norm_hidden_state=True, enable_attention_masks=True, special_tokens={"start": BOS, "end": EOS, "pad": PAD},
            model_options=model_options or {},
        )
        self.config = config
        self.prefix_ids = prefix_ids
        self.prefixed_window = prefixed_window
        if adapter is not None:
            # Its own dtype: in the encoder's half precision it would lose 3e-3. Its layers are never quantised.
            operations = (model_options or {}).get("custom_operations") or comfy.ops.manual_cast
            self.adapter = LanguageAdapter(adapter, dtype=adapter_dtype, device=device, operations=operations)
            self.adapter.requires_grad_(False)

    def process_tokens(self, tokens, device):
        """Upstream masks every row of id 0, also a literal <unk> inside the text, and nothing else."""
        embeds, _, _, info = super().process_tokens(tokens, device)
        mask = (torch.tensor(tokens, device=device) != PAD).long()
        return embeds, mask, mask.sum(dim=1).tolist(), info

    def gen_empty_tokens(self, special_tokens, length):
        """The window that weights are measured from: an empty prompt of the same form."""
        rows = [BOS, *(self.prefix_ids if length == self.prefixed_window else []), EOS]
        return rows + [PAD] * (length - len(rows))

    def forward(self, tokens):
        """Windows of ids [B][T] -> states [B, T, width] float32. Reports a step per layer and stops when the user interrupts."""
        layers = self.transformer.model.layers
        progress = comfy.utils.ProgressBar(len(layers))

        def after_layer(*_):
            comfy.model_management.throw_exception_if_processing_interrupted()
            progress.update(1)

        hooks = [layer.register_forward_hook(after_layer) for layer in layers]
        try:
            return super().forward(tokens)
        finally:
            for hook in hooks:
                hook.remove()

    def rows_for_adapter(self, states: torch.Tensor) -> torch.Tensor:
        """States [B, T, width] -> the rows the adapter reads: those of the prefix are cut, by position, as upstream does."""
        if states.shape[1] != self.prefixed_window:
            return states
        return torch.cat((states[:, :1], states[:, 1 + len(self.prefix_ids):]), dim=1)

    def adapt(self, states: torch.Tensor) -> torch.Tensor:
        """States [B, T, width] of whole windows -> context [B, queries, context width]."""
        device = self.execution_device or self.adapter.queries.device
        return self.adapter(self.rows_for_adapter(states.to(device)))


class MulanTextEncoder(torch.nn.Module):
    """ComfyUI's cond-stage contract around `InternVLEncoder`."""

    def __init__(self, family: Family, encoder: InternVLEncoder):
        super().__init__()
        self.family = family
        self.internvl = encoder
        self.dtypes = {parameter.dtype for parameter in encoder.parameters()}

    def set_clip_options(self, options):
        self.internvl.set_clip_options(options)

    def reset_clip_options(self):
        self.internvl.reset_clip_options()

    def encode_token_weights(self, tokens):
        """{token key: windows of (id, weight)} -> (context [1, windows * queries, context width] float32, None).

        Weights act on the hidden states: a query of the adapter belongs to no token.
        """
        windows = tokens[self.family.token_key]
        states, _ = self.internvl.encode_token_weights(windows)
        context = self.internvl.adapt(states.unflatten(1, (len(windows), -1)).flatten(0, 1))
        return context.flatten(0, 1).unsqueeze(0).to(comfy.model_management.intermediate_device()), None

    def load_sd(self, sd):
        """One call per file: the encoder's tensors (``model.*``) or the adapter's. Gives (missing, unexpected) names."""
        if "queries" in sd:
            adapter = self.internvl.adapter
            return adapter.load_state_dict(sd, strict=False, assign=getattr(self, "can_assign_sd", False))
        missing, unexpected = self.internvl.load_sd(sd)
        if unexpected:
            logging.warning("MuLan: the text encoder's file holds %d tensors that are not used, the first is %s", len(unexpected), unexpected[0])
        return missing, unexpected

    def memory_estimation_function(self, tokens, device=None):
        """Bytes for one encode beside the weights: the widest layer's activations and one weight cast to float32, twice for safety."""
        config = self.internvl.config
        rows = sum(len(window) for window in tokens.get(self.family.token_key, []))
        activations = rows * (6 * config.width + 3 * config.feed_forward)
        return 2 * BYTES_PER_ACTIVATION * (activations + config.width * config.feed_forward)
