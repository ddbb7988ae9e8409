"""What ComfyUI calls the tokenizer of a CLIP: a question with its images, history and settings -> ids and tiles."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..boundary.interrupts import interruptible
from ..boundary.limits import MAX_CONTEXT_TOKENS
from ..boundary.tensors import check_images
from ..boundary.texts import whole_characters
from ..checkpoints.language_tokenizers import IMAGE_CONTEXT, Tokenizer
from ..images.tiling import count_tiles
from .chat_model import ChatConfig
from .chat_preprocessing import MAX_TILES, preprocess_tiles
from .chat_template import SYSTEM, THINKING, format_dialogue, insert_images

KEY = "internvl_chat"
MAX_CHARACTERS = 16  # of a prompt, for each token that the model reads: few tokens are longer
FRAME_RATE = 24  # of a video, as core's Generate Text says; one frame of each second is used

# Settings of other text encoders, which ComfyUI passes to all: prompts of a chat have no padding and no weights
WITHOUT_EFFECT = ("min_length", "tokenizer_options", "disable_weights")

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
        system_prompt: str | None = None,
        tiles: int = MAX_TILES,
        **others,
    ):
        """Return {KEY: [[(entry, 1.0), ...]]}, from the arguments of core's Generate Text or of InternVL Chat.

        Core's: `image` [B, H, W, C] is B images, `video` [B, H, W, C] frames at 24 per second, `system_prompt` (empty:
        the model's default). Our own: `images` and `frames` of [H, W, C] each, `history`, `system` (None: the model's
        default), at most so many `tiles` of an image. Halves of characters become U+FFFD. Raises ValueError for audio,
        for what is no image, for more than the model can read, and for a setting that it does not know.
        """
        unknown = [name for name, value in others.items() if name not in WITHOUT_EFFECT and _is_set(value)]
        if unknown:
            raise ValueError(f"{self.title} does not know the setting {', '.join(unknown)}: leave it at its default")
        if system_prompt and system_prompt.strip():
            if skip_template or thinking:
                why = "thinking is on, which has one of its own" if thinking else "the default template is off"
                raise ValueError(f"system_prompt: leave it empty when {why}")
            system = system_prompt
        if audio is not None:
            raise ValueError(f"{self.title} cannot use audio: leave audio unconnected")
        images = [*images, *(_checked("image", image) if image is not None else ())]
        frames = [*frames, *(_checked("video", video[::FRAME_RATE]) if video is not None else ())]
        if skip_template:
            (prompt,) = insert_images([text], len(images), len(frames))
        else:
            *before, last = insert_images([*(question for question, _ in history), text], len(images), len(frames))
            exchanges = [(question, answer) for question, (_, answer) in zip(before, history, strict=True)]
            system = THINKING if thinking else self.system if system is None else system
            prompt = format_dialogue(last, exchanges, system)
        pictures = [(each, tiles) for each in images] + [(frame, 1) for frame in frames]
        input_ids = self._input_ids(prompt, pictures)
        size, context_id = self.config.vision.image_size, self.tokenizer.token_to_id(IMAGE_CONTEXT)
        data = (preprocess_tiles(each, size, most) for each, most in interruptible(pictures))
        entries = [{"type": "image", "data": next(data)} if one == context_id else one for one in input_ids]
        return {KEY: [[(entry, 1.0) for entry in entries]]}

    def _input_ids(self, prompt: str, images: Sequence[tuple[torch.Tensor, int]]) -> list[int]:
        """Return the ids of a prompt with one for each of its images, which come with their `max_tiles`.

        Raises ValueError where the model cannot read that much, before the images are prepared.
        """
        max_length = min(self.config.language.max_position_embeddings, MAX_CONTEXT_TOKENS)
        size = self.config.vision.image_size
        tiles = sum(count_tiles(image.shape[1], image.shape[0], size, most) for image, most in images)
        of_images = tiles * self.config.tokens_per_tile
        if of_images >= max_length:
            raise ValueError(
                f"{len(images)} images in {tiles} tiles take {of_images} tokens, but {self.title} reads {max_length}: "
                "use fewer images or tiles"
            )
        if len(prompt) > MAX_CHARACTERS * max_length:
            raise ValueError(
                f"the prompt is {len(prompt)} characters long, but {self.title} reads {max_length} tokens: use a "
                "shorter text"
            )
        input_ids = self.tokenizer.encode(whole_characters(prompt)[0])
        if not input_ids:
            raise ValueError("the prompt is empty: enter one, or turn the default template on")
        context_id = self.tokenizer.token_to_id(IMAGE_CONTEXT)
        if context_id is None or input_ids.count(context_id) != len(images):
            raise ValueError(f"a text must not contain {IMAGE_CONTEXT}: it stands for an image")
        length = len(input_ids) - len(images) + of_images
        if length >= max_length:
            raise ValueError(
                f"the prompt takes {length} tokens, {of_images} of them for {tiles} image tiles, but {self.title} "
                f"reads {max_length}: use fewer images or tiles, or a shorter text"
            )
        return input_ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens).strip()

    def state_dict(self) -> dict:
        return {}


def _checked(name: str, value) -> torch.Tensor:
    try:
        return check_images(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _is_set(value) -> bool:
    return value is not None and value is not False and not (isinstance(value, (str, list, tuple, dict)) and not value)


def prompt_length(entries: Sequence[Entry], config: ChatConfig) -> int:
    """Return how many tokens a prompt takes in the language model."""
    return sum(len(entry["data"]) * config.tokens_per_tile if isinstance(entry, dict) else 1 for entry in entries)
