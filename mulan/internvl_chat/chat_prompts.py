"""What the host calls the tokenizer of a CLIP: a question with its pictures, history and settings -> ids and tiles."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .chat_model import ChatConfig
from .chat_preprocessing import MOST_TILES, tiles_of
from .chat_template import SEEN, SYSTEM, THINKING, dialogue, with_places
from .chat_tokenizer import Words

KEY = "internvl_chat"
RATE = 24  # frames of a video per second, as core's Generate Text says; one of each second is looked at

Entry = int | dict  # an id, or {"type": "image", "data": tiles [N, 3, S, S]}


class ChatPrompts:
    """`title` names the checkpoint in errors, `system` is what the model is told first unless a question says otherwise."""

    def __init__(self, words: Words, config: ChatConfig, title: str, system: str = SYSTEM):
        self.words = words
        self.config = config
        self.title = title
        self.system = system

    def tokenize_with_weights(
        self,
        text: str,
        return_word_ids: bool = False,
        *,
        image=None,
        video=None,
        audio=None,
        skip_template: bool = False,
        thinking: bool = False,
        pictures: Sequence[torch.Tensor] = (),
        frames: Sequence[torch.Tensor] = (),
        history: Sequence[tuple[str, str]] = (),
        system: str | None = None,
        tiles: int = MOST_TILES,
        **others,
    ):
        """The arguments of core's Generate Text: image [B, H, W, C] are B pictures, video [B, H, W, C] frames at 24 a second; and our own:
        `pictures` and `frames` [H, W, C] each, `history`, `system` (None: the model's own), at most so many `tiles` of a picture.

        -> {KEY: [[(entry, 1.0), ...]]}. ValueError for sound, for what is no picture, and for more than the model can read.
        """
        if audio is not None:
            raise ValueError(f"{self.title} cannot hear: leave audio unconnected")
        pictures = [*pictures, *(image if image is not None else ())]
        frames = [*frames, *(video[::RATE] if video is not None else ())]
        if skip_template:
            (prompt,) = with_places([text], len(pictures), len(frames))
        else:
            *before, last = with_places([*(question for question, _ in history), text], len(pictures), len(frames))
            said = [(question, answer) for question, (_, answer) in zip(before, history)]
            prompt = dialogue(last, said, THINKING if thinking else self.system if system is None else system)
        size = self.config.vision.picture
        seen = [tiles_of(picture, size, tiles) for picture in pictures] + [tiles_of(frame, size, 1) for frame in frames]
        return {KEY: [[(entry, 1.0) for entry in self._entries(prompt, seen)]]}

    def _entries(self, prompt: str, seen: Sequence[torch.Tensor]) -> list[Entry]:
        ids, place = self.words.encode(prompt), self.words.id(SEEN)
        if ids.count(place) != len(seen):
            raise ValueError(f"a text cannot hold {SEEN} itself: it stands for pictures")
        of_pictures = iter(seen)
        entries = [{"type": "image", "data": next(of_pictures)} if id == place else id for id in ids]
        longest, length = self.config.language.longest, rows(entries, self.config)
        if length >= longest:
            tiles = sum(map(len, seen))
            raise ValueError(
                f"the prompt takes {length} tokens, {tiles * self.config.tokens} of them for {tiles} tiles of pictures, and "
                f"{self.title} reads {longest}: take fewer pictures or tiles, or a shorter text"
            )
        return entries

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self.words.decode(ids).strip()

    def state_dict(self) -> dict:
        return {}


def rows(entries: Sequence[Entry], config: ChatConfig) -> int:
    """How many places a prompt takes in the language model."""
    return sum(len(entry["data"]) * config.tokens if isinstance(entry, dict) else 1 for entry in entries)
