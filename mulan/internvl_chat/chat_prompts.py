"""What ComfyUI calls the tokenizer of a CLIP: a question with its images, history and settings -> ids and tiles."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .chat_model import ChatConfig
from .chat_preprocessing import MAX_TILES, preprocess_tiles
from .chat_template import IMAGE_CONTEXT, SYSTEM, THINKING, format_dialogue, insert_images
from .chat_tokenizer import Tokenizer

KEY = "internvl_chat"
FRAME_RATE = 24  # of a video, as core's Generate Text says; one frame of each second is used

Entry = int | dict  # an id, or {"type": "image", "data": tiles [N, 3, S, S]}


class ChatPrompts:
    """The tokenizer of a chat model's CLIP.

    `title` names the checkpoint in errors, `system` is the default system prompt.
    """

    def __init__(self, tokenizer: Tokenizer, config: ChatConfig, title: str, system: str = SYSTEM):
        self.tokenizer = tokenizer
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
        images: Sequence[torch.Tensor] = (),
        frames: Sequence[torch.Tensor] = (),
        history: Sequence[tuple[str, str]] = (),
        system: str | None = None,
        tiles: int = MAX_TILES,
        **others,
    ):
        """Return {KEY: [[(entry, 1.0), ...]]}, from the arguments of core's Generate Text or of InternVL Chat.

        Core's: `image` [B, H, W, C] is B images, `video` [B, H, W, C] frames at 24 per second. Our own: `images` and
        `frames` of [H, W, C] each, `history`, `system` (None: the model's default), at most so many `tiles` of an
        image. Raises ValueError for audio, for what is no image, and for more than the model can read.
        """
        if audio is not None:
            raise ValueError(f"{self.title} cannot use audio: leave audio unconnected")
        images = [*images, *(image if image is not None else ())]
        frames = [*frames, *(video[::FRAME_RATE] if video is not None else ())]
        if skip_template:
            (prompt,) = insert_images([text], len(images), len(frames))
        else:
            *before, last = insert_images([*(question for question, _ in history), text], len(images), len(frames))
            exchanges = [(question, answer) for question, (_, answer) in zip(before, history, strict=True)]
            system = THINKING if thinking else self.system if system is None else system
            prompt = format_dialogue(last, exchanges, system)
        size = self.config.vision.image_size
        tiles_of_each = [preprocess_tiles(each, size, tiles) for each in images]
        tiles_of_each += [preprocess_tiles(frame, size, 1) for frame in frames]
        return {KEY: [[(entry, 1.0) for entry in self._entries(prompt, tiles_of_each)]]}

    def _entries(self, prompt: str, images: Sequence[torch.Tensor]) -> list[Entry]:
        input_ids, context_id = self.tokenizer.encode(prompt), self.tokenizer.token_to_id(IMAGE_CONTEXT)
        if context_id is None or input_ids.count(context_id) != len(images):
            raise ValueError(f"a text must not contain {IMAGE_CONTEXT}: it stands for an image")
        remaining = iter(images)
        entries: list[Entry] = [
            {"type": "image", "data": next(remaining)} if token_id == context_id else token_id for token_id in input_ids
        ]
        max_length, length = self.config.language.max_position_embeddings, prompt_length(entries, self.config)
        if length >= max_length:
            tiles = sum(map(len, images))
            raise ValueError(
                f"the prompt takes {length} tokens, {tiles * self.config.tokens_per_tile} of them for {tiles} image "
                "tiles, but "
                f"{self.title} reads {max_length}: use fewer images or tiles, or a shorter text"
            )
        return entries

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self.tokenizer.decode(token_ids).strip()

    def state_dict(self) -> dict:
        return {}


def prompt_length(entries: Sequence[Entry], config: ChatConfig) -> int:
    """Return how many tokens a prompt takes in the language model."""
    return sum(len(entry["data"]) * config.tokens_per_tile if isinstance(entry, dict) else 1 for entry in entries)
