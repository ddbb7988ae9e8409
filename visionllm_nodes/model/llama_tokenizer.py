"""VisionLLM v2's tokenizer: sentencepiece as the slow LLaMA tokenizer of transformers 4.34 uses it, plus added tokens.

Tokens that VisionLLM v2 added take the white space on both sides with them. What `legacy` decides is the text behind
one of them: with it each text gets sentencepiece's leading space (",": "▁,"), without it only the prompt's first does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby

from ...mulan.checkpoints.tokenizer_files import load_pieces, read_added_tokens
from .special_tokens import ADDED, BASE, IMAGE, PATCH

SPACE = "\u2581"
# Protobuf: normalizer_spec.add_dummy_prefix = false, merged into the model that it is appended to.
_NO_PREFIX = b"\x1a\x02\x18\x00"
_CLOSING = tuple(".,;:!?)]}'\"\n")


class VisionTokenizer:
    """Text <-> token ids, on a sentencepiece model given as bytes.

    added: ids by name, or the names in the order in which they follow the sentencepiece vocabulary; None: as published.
    Raises ValueError where the bytes are not a sentencepiece model, or one that the added tokens do not belong to.
    """

    def __init__(self, model: bytes, added: Mapping[str, int] | Sequence[str] | None = None, legacy: bool = True):
        self.model = model
        self.legacy = legacy
        self._model = load_pieces(model)
        self._part_model = self._model if legacy else load_pieces(model + _NO_PREFIX)
        self.base_size = len(self._model)
        self.bos, self.eos, self.unk = self._model.bos_id(), self._model.eos_id(), self._model.unk_id()
        if min(self.bos, self.eos, self.unk) < 0:
            raise ValueError("VisionLLM's tokenizer model has no <s>, </s> or <unk>: it is not LLaMA's")
        self.ids = {name: id for name in BASE if (id := self._model.piece_to_id(name)) != self.unk or name == "<unk>"}
        self.ids |= self._added(ADDED if added is None else added)
        self.names = {id: name for name, id in self.ids.items()}
        self._check()
        self._split = re.compile(
            "(" + "|".join(re.escape(name) for name in sorted(self.ids, key=len, reverse=True)) + ")"
        )
        self._unk_pieces = len(self._part_model.encode("<unk>"))

    @classmethod
    def from_files(cls, model: bytes, config: Mapping | None, added: Mapping[str, int] | None) -> VisionTokenizer:
        """Return the tokenizer of tokenizer.model and of what its JSON files hold.

        Those are tokenizer_config.json and added_tokens.json (None: there is no such file). Raises ValueError.
        """
        config = config or {}
        tokens = {name: token["id"] for name, token in read_added_tokens(config, added or {}).items()}
        legacy = config.get("legacy")
        if legacy is not None and not isinstance(legacy, bool):
            raise ValueError(f"its `legacy` is {legacy!r:.40}, expected true or false")
        return cls(model, tokens if tokens.keys() - set(BASE) else None, legacy is not False)

    def __len__(self) -> int:
        """Return how many rows the vocabulary needs."""
        return max(self.base_size, max(self.ids.values()) + 1)

    def encode(self, text: str, *patches: int, bos: bool = True) -> list[int]:
        """Encode a text -> token ids; the n-th `<image>` becomes patches[n] times `<im_patch>`.

        The texts between images are tokenized apart, as upstream does, so each begins with sentencepiece's leading
        space. Raises ValueError where the text has more or fewer `<image>`s than `patches`.
        """
        texts = text.split(IMAGE)
        if len(texts) - 1 != len(patches):
            raise ValueError(f"the prompt has {len(texts) - 1} {IMAGE}, but there are {len(patches)} images")
        ids = [self.bos] if bos else []
        for index, part in enumerate(texts):
            if index:
                ids += [self.ids[PATCH]] * patches[index - 1]
            ids += self._encode_text(part)
        return ids

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """Decode token ids -> text, without special tokens unless `special`.

        Bytes become the characters they are together, or U+FFFD. Raises ValueError for an id that is not in the
        vocabulary.
        """
        wrong = [id for id in ids if not (0 <= id < self.base_size or id in self.names)]
        if wrong:
            raise ValueError(f"id {wrong[0]} is not in the vocabulary of {len(self)}")
        text = ""
        for is_special, run in groupby(ids, key=self.names.__contains__):
            if is_special:
                text += "".join(self.names[id] for id in run) if special else ""
                continue
            words = self._model.decode(list(run))
            text += words if not text or words.startswith((" ", *_CLOSING)) else " " + words
        return text

    def _encode_text(self, text: str) -> list[int]:
        if not text:
            return []
        parts = self._split.split(text if self.legacy else SPACE + text.replace(SPACE, " "))
        ids: list[int] = []
        for index, part in enumerate(parts):
            if part in self.ids:
                if not self.legacy and index == 1 and parts[0] == SPACE and part in BASE:
                    ids = []  # nothing but the leading space of the prompt stands before it
                ids.append(self.ids[part])
                continue
            if index and parts[index - 1] in ADDED:
                part = part.lstrip()
            if index + 1 < len(parts) and parts[index + 1] in ADDED:
                part = part.rstrip()
            if part:
                ids += self._encode_part(part)
        return ids

    def _encode_part(self, part: str) -> list[int]:
        if self.legacy or not part.startswith((SPACE, " ")):
            return self._part_model.encode(part)
        return self._part_model.encode("<unk>" + part)[
            self._unk_pieces :
        ]  # so that sentencepiece keeps the leading space

    def _added(self, added: Mapping[str, int] | Sequence[str]) -> dict[str, int]:
        if isinstance(added, Mapping):
            return dict(added)
        ids, following = {}, self.base_size
        for name in added:
            id = self._model.piece_to_id(name)
            if id == self.unk:  # a name that is a piece already keeps its id
                id, following = following, following + 1
            ids[name] = id
        return ids

    def _check(self):
        missing = [name for name in ADDED if name not in self.ids]
        if missing:
            raise ValueError(f"VisionLLM's tokenizer lacks the tokens {', '.join(missing)}")
        if len(self.names) != len(self.ids):
            raise ValueError("VisionLLM's tokenizer gives one id to several added tokens")
        for id, name in self.names.items():
            piece = self._model.id_to_piece(id) if id < self.base_size else name
            unused = (
                self._model.is_control(id) or self._model.is_unused(id) or "UNUSED" in piece
                if id < self.base_size
                else True
            )
            if piece != name and not unused:
                raise ValueError(
                    f"the added token {name} has id {id}, which is {piece!r} in a tokenizer model of "
                    f"{self.base_size} pieces: this tokenizer model belongs to another language model"
                )
