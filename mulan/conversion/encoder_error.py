"""How far a converted text encoder is from its source: the same sentences through both, in memory for one layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management
import torch

from ..checkpoints.weight_source import has_quantized
from ..conditioning.internvl_llama import InternVLEncoder
from ..conditioning.model_files import TextEncoderFile
from ..conditioning.text_config import OUTPUT
from ..conditioning.tokenizer import BOS, EOS, PAD, InternVLTokenizer

WINDOW = 80  # rows, as MuLan's adapters read them
SENTENCES = {
    "English": "An old fisherman mends his net on a wooden pier at dawn, with seagulls above the misty harbour.",
    "Chinese": "清晨，一位老渔夫在木码头上修补渔网，海鸥在雾蒙蒙的港口上空盘旋。",
    "Spanish": "Un viejo pescador remienda su red en un muelle de madera al amanecer, con gaviotas sobre el puerto brumoso.",  # noqa: E501
    "French": "Un vieux pêcheur répare son filet sur un ponton en bois à l'aube, des mouettes au-dessus du port brumeux.",  # noqa: E501
    "German": "Ein alter Fischer flickt im Morgengrauen sein Netz auf einem Holzsteg, über dem nebligen Hafen kreisen Möwen.",  # noqa: E501
    "Russian": "Старый рыбак чинит сеть на деревянном причале на рассвете, над туманной гаванью летают чайки.",
    "Arabic": "صياد عجوز يصلح شبكته على رصيف خشبي عند الفجر، والنوارس تحلق فوق الميناء الضبابي.",
    "Hindi": "भोर में एक बूढ़ा मछुआरा लकड़ी के घाट पर अपना जाल सुधार रहा है।",
    "Japanese": "夜明けの木の桟橋で年老いた漁師が網を繕い、霧の港の上をカモメが飛んでいる。",
    "Korean": "새벽녘 나무 부두에서 늙은 어부가 그물을 손질하고, 안개 낀 항구 위로 갈매기가 난다.",
}


def encoder_error(
    converted: TextEncoderFile, source: TextEncoderFile, progress: Callable[[int, int], None] = lambda done, all: None
) -> dict[str, float]:
    """Return language -> |converted - source| / |source| of the hidden states of its sentence, all rows of the window.

    Both run through the class that graphs run through, layer by layer from the disk; files from `open_streaming` take
    the memory of about a layer. progress(done, all) counts layers.
    """
    tokenizer = InternVLTokenizer(source.tokenizer())
    windows = [_window(tokenizer, sentence) for sentence in SENTENCES.values()]
    layers = source.config.num_hidden_layers + converted.config.num_hidden_layers
    done = 0

    def after_layer() -> None:
        nonlocal done
        done += 1
        progress(done, layers)

    expected = hidden_states(source, windows, after_layer)
    found = hidden_states(converted, windows, after_layer)
    return {
        language: ((a - b).norm() / b.norm()).item() for language, a, b in zip(SENTENCES, found, expected, strict=True)
    }


def hidden_states(
    file: TextEncoderFile, windows: list[list[int]], after_layer: Callable[[], None] = lambda: None
) -> list[torch.Tensor]:
    """Return the states [T, states_size] float32 of each window of token ids.

    The encoder's layers are read when they are needed and then dropped.
    """
    device = comfy.model_management.get_torch_device()
    with torch.device("meta"):
        encoder = _empty_encoder(file)
    encoder.set_clip_options({"execution_device": device})
    llama: Any = encoder.transformer.model
    _load(llama.embed_tokens, file, "model.embed_tokens.")
    _load(llama.norm, file, "model.norm.")
    projection: Any = encoder.transformer.output_projection
    if projection is not None:
        _load(projection, file, OUTPUT)
    llama.norm.to(device)

    def read(index: int) -> Callable[..., None]:
        def before(layer: Any, _: Any) -> None:
            _load(layer, file, f"model.layers.{index}.")
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.to(device)  # ComfyUI casts the weights of Linear layers to where the states are, not these

        return before

    def drop(index: int) -> Callable[..., None]:
        def after(*_: Any) -> None:
            llama.layers[index] = torch.nn.Identity()

        return after

    for index, layer in enumerate(llama.layers):
        layer.register_forward_pre_hook(read(index))
        layer.register_forward_hook(drop(index))
    with torch.no_grad():
        return encoder.hidden_states(windows, after_layer)


def _empty_encoder(file: TextEncoderFile) -> InternVLEncoder:
    dtype = file.file.read(file.names["model.norm.weight"]).dtype
    return InternVLEncoder(file.config, dtype=dtype, is_quantized=has_quantized(file.names))


def _load(module: torch.nn.Module, file: TextEncoderFile, prefix: str) -> None:
    weights = {
        name[len(prefix) :]: file.file.read(stored) for name, stored in file.names.items() if name.startswith(prefix)
    }
    module.load_state_dict(weights, strict=True, assign=True)


def _window(tokenizer: InternVLTokenizer, sentence: str) -> list[int]:
    ids = [BOS, *(piece.id for piece in tokenizer.encode_prefixed(sentence, keep_merged=True)[: WINDOW - 2]), EOS]
    return ids + [PAD] * (WINDOW - len(ids))
