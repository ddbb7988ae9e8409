"""The language model of the tiny InternVL that talks, as it is trained: transformers' Qwen3, whose tensors have the
published names, behind the tower and the projector that ComfyUI will run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F
from transformers import Qwen3Config, Qwen3Model

from mulan_nodes.mulan.checkpoints.language_tokenizers import END, IMAGE_CONTEXT, START
from mulan_nodes.mulan.internvl_chat.chat_template import format_dialogue, insert_images

from .chat_seeing import LONGEST, Seeing, chat_config
from .talks import Exchange, Talk

SYSTEM = "You look at pictures of coloured shapes."


def language_model(vocabulary: int) -> Qwen3Model:
    config = chat_config(vocabulary).language
    return Qwen3Model(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.rms_norm_eps,
            max_position_embeddings=LONGEST,
            use_cache=False,
            rope_theta=config.rope_theta,  # pyright: ignore[reportCallIssue]  (read from **kwargs)
        )
    )


class Talker(nn.Module):
    """The language model and the projector before it. Words are read and written by one table."""

    def __init__(self, seeing: Seeing, tokenizer: Tokenizer):
        super().__init__()
        self.language = language_model(tokenizer.get_vocab_size())
        self.seeing = seeing
        self.tokenizer = tokenizer
        self._seen, self._end = tokenizer.token_to_id(IMAGE_CONTEXT), tokenizer.token_to_id(END)
        self._begin = tokenizer.encode(f"{START}assistant\n").ids

    def loss(self, prompts: Sequence[str], states: Sequence[torch.Tensor]) -> torch.Tensor:
        """Whole talks, and the tower's states [tiles, patches, width] of each picture in their order -> the loss of the
        answers' tokens.
        """
        tokens = self.seeing.project(torch.cat(list(states))).split([len(tiles) for tiles in states])
        return self.loss_of_tokens(prompts, tokens)

    def loss_of_tokens(self, prompts: Sequence[str], tokens: Iterable[torch.Tensor]) -> torch.Tensor:
        """The same, from what the projector makes of the states: [tiles, tokens, width] of each picture."""
        inputs, wanted = self.embed(prompts, tokens)
        answering = wanted != -100
        written = self.language(inputs_embeds=inputs).last_hidden_state[:, :-1][answering]
        return F.cross_entropy(F.linear(written, self.language.embed_tokens.weight), wanted[answering])

    def embed(self, prompts: Sequence[str], tokens: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Whole talks, and the tokens [tiles, tokens, width] of each picture in their order -> what the model reads
        [B, T, width], and which token it should write behind each [B, T - 1], -100 where none.
        """
        rows = iter(tokens)
        embedded, targets = zip(
            *(self._embedded(self.tokenizer.encode(prompt).ids, rows) for prompt in prompts), strict=True
        )
        wanted = nn.utils.rnn.pad_sequence(list(targets), batch_first=True, padding_value=-100)[:, 1:]
        # nothing stands behind padding, so it needs no mask
        return nn.utils.rnn.pad_sequence(list(embedded), batch_first=True), wanted

    def first_image(self, prompt: str) -> int:
        """The place of the first token of a talk's first picture."""
        ids = self.tokenizer.encode(prompt).ids
        return next(number for number, id in enumerate(ids) if id == self._seen)

    def _embedded(self, ids: list[int], rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids -> what the model reads, with the pictures' rows in their places, and what it should answer, -100
        elsewhere.
        """
        answers, inside = [], False
        for number, id in enumerate(ids):
            answers.append(id if inside else -100)
            inside = (inside and id != self._end) or ids[number + 1 - len(self._begin) : number + 1] == self._begin
        words = self.language.embed_tokens(torch.tensor(ids))
        parts, wanted, begin = [], [], 0
        for place in [number for number, id in enumerate(ids) if id == self._seen]:
            of_picture = next(rows).flatten(0, 1)
            parts += [words[begin:place], of_picture]
            wanted += [*answers[begin:place], *[-100] * len(of_picture)]
            begin = place + 1
        return torch.cat([*parts, words[begin:]]), torch.tensor(wanted + answers[begin:])


def prompt_of(talk: Talk, system: str = SYSTEM) -> str:
    """The whole talk with all its answers, as the model reads it."""
    return prompt_of_exchanges(talk.exchanges, len(talk.things), system)


def prompt_of_exchanges(exchanges: Sequence[Exchange], pictures: int, system: str = SYSTEM) -> str:
    """Exchanges about so many pictures with all answers, as the model reads them."""
    *said, last = exchanges
    *before, question = insert_images([exchange.question for exchange in exchanges], pictures)
    history = [(asked, exchange.answer) for asked, exchange in zip(before, said, strict=True)]
    return f"{format_dialogue(question, history, system)}{last.answer}{END}"
