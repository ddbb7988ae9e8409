"""How many names the shipped models draw right with a text encoder of another size in place of their own."""

from __future__ import annotations

import numpy as np

from mulan_nodes.mulan.conditioning.adapter import LanguageAdapter
from mulan_nodes.mulan.tiny_models.full_width import UNET_HEADS
from mulan_nodes.mulan.tiny_models.packs import pack_path, read_pack

from ..tinyworld import narrow
from ..tinyworld.adapter_training import TextStates
from ..tinyworld.packed_models import load_packed, packed_text_encoder
from ..tinyworld.stages import SEED, as_pictures
from ..tinyworld.text_training import TextEncoder
from . import reader
from .adapter_training import draw_names
from .autoencoder_training import WIDTH
from .base_training import Base
from .concepts import trained_languages
from .evaluation import MULAN, choose, name_cases

HEAD = "| text encoder | parameters | English | mean of the others | lowest |\n| --- | --: | --: | --: | --: |"
ASKED = 24  # names in each language, all things equally often


def read_shipped() -> tuple[narrow.TinyAutoencoder, TextEncoder, Base, LanguageAdapter]:
    """The shipped models, narrow: autoencoder, text encoder, base and adapter."""
    packed, _ = read_pack(pack_path("emoji"))
    base, autoencoder, adapter = Base(), narrow.TinyAutoencoder(WIDTH), narrow.adapter()
    load_packed(packed, base, autoencoder, adapter, int(packed[UNET_HEADS]))
    return autoencoder, packed_text_encoder(read_pack(pack_path("world"))[0]), base, adapter


def shares_right(
    autoencoder: narrow.TinyAutoencoder, text_encoder: TextEncoder, base: Base, adapter: LanguageAdapter
) -> dict[str, float]:
    """The share of names in each language that is drawn right."""
    judge, states, shares = reader.load(), TextStates(text_encoder), {}
    for turn, code in enumerate(trained_languages()):
        cases = name_cases(MULAN, code, choose(ASKED, SEED, turn=turn))
        drawn = draw_names(autoencoder, states, base, adapter, [case.prompt for case in cases])
        shares[code] = float(judge.agrees(as_pictures(drawn), [case.expected.thing for case in cases]).mean())
    return shares


def row_of(name: str, count: int, shares: dict[str, float]) -> str:
    """A row below `HEAD`: a text encoder, its parameters, and the shares of `shares_right`."""
    others = [share for code, share in shares.items() if code != "en"]
    return f"| {name} | {count} | {shares['en']:.2f} | {np.mean(others):.3f} | {min(others):.2f} |"
