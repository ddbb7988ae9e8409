"""InternVL 3.5 Flash against upstream: scores of tiles, which are compressed, what is read, the answer; and the tensors
of a published size.

<goldens>/internvl_chat/flash.json is made by internvl_flash_recipe.py.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from mulan_nodes.mulan.checkpoints.tensor_files import TensorFile, WrongFileError
from mulan_nodes.mulan.conversion.converters import convert
from mulan_nodes.mulan.internvl_chat.chat_files import chat_from_tensors, open_chat, unexpected
from mulan_nodes.mulan.internvl_chat.chat_loader import load_chat
from mulan_nodes.mulan.internvl_chat.chat_prompts import KEY
from mulan_nodes.tests.parity import internvl_flash_recipe as recipe
from mulan_nodes.tests.parity.test_internvl_chat import full_size, random_chat, saved

TOLERANCE = 1e-4
NEVER = 10**6  # an id that no vocabulary has
pytestmark = pytest.mark.needs("internvl_chat", "flash.json", "flash.safetensors", "tokenizer.json")


@pytest.fixture(scope="module")
def flash(folder):
    """(upstream's facts, its tensors, the folder of both)"""
    goldens = folder.side("internvl_chat")
    return (json.loads((goldens / "flash.json").read_text("utf-8")), load_file(goldens / "flash.safetensors"), goldens)


@pytest.fixture(scope="module")
def published(flash, tmp_path_factory):
    """published({...}) -> the checkpoint with these thresholds."""

    def make(thresholds=None, **config):
        facts, _, goldens = flash
        made = recipe.published(tmp_path_factory.mktemp("flash") / "InternVL3_5-Flash", facts, thresholds or {})
        shutil.copy(goldens / "tokenizer.json", made)
        if config:
            (made / "config.json").write_text(json.dumps({**recipe.config({}), **config}), "utf-8")
        return made

    return make


@pytest.fixture(scope="module")
def plain(published):
    return load_chat(published())


def asked(clip, name: str) -> dict:
    question, _, _, history, _ = recipe.CASES[name]
    images, frames = ([torch.from_numpy(image).float() / 255 for image in each] for each in recipe.pictures(name))
    return clip.tokenize(question, images=images, frames=frames, history=history)


@pytest.mark.parametrize("name", recipe.CASES)
def test_tiles_tokens_and_answers(name, flash, published, plain, close, monkeypatch):
    facts, stored, _ = flash
    case, thresholds = facts["cases"][name], recipe.CASES[name][-1]
    clip = load_chat(published(thresholds)) if thresholds else plain
    encoder = clip.cond_stage_model
    tokens = asked(clip, name)
    entries = [entry for entry, _ in tokens[KEY][0]]
    context = clip.tokenizer.tokenizer.token_to_id("<IMG_CONTEXT>")
    ids = [
        id
        for entry in entries
        for id in ([entry] if isinstance(entry, int) else [context] * (256 * len(entry["data"])))
    ]
    assert ids == stored[f"{name}.ids"].tolist()
    assert [len(entry["data"]) for entry in entries if isinstance(entry, dict)] == case["tiles"]

    seen: dict = {}
    router, model = type(encoder.chat.config.router), encoder.chat.language_model
    choose, generate = router.compressed, model.generate

    def watched(self, scores):
        seen["scores"], seen["compressed"] = scores, choose(self, scores)
        return seen["compressed"]

    monkeypatch.setattr(router, "compressed", watched)
    monkeypatch.setattr(model, "generate", lambda prompt, **how: seen.update(read=prompt) or generate(prompt, **how))
    monkeypatch.setattr("mulan_nodes.mulan.internvl_chat.chat_clip.TILE_BATCH_SIZE", 4)
    monkeypatch.setattr(encoder, "stop_tokens", [NEVER])
    written = clip.generate(tokens, do_sample=False, max_length=recipe.WRITTEN)
    close(seen["scores"], stored[f"{name}.scores"], "internvl flash scores", TOLERANCE)
    assert seen["compressed"] == case["compressed"]
    read = seen["read"][0, :, : recipe.KEPT]
    assert len(read) == len(entries) - len(case["tiles"]) + sum(64 if few else 256 for few in case["compressed"])
    close(read, stored[f"{name}.read"], "internvl flash prompt", TOLERANCE)
    assert written == case["answer_ids"] and clip.decode(written) == case["answer"]


def test_whole_rows_of_both_projectors(flash, plain, close):
    _, stored, _ = flash
    chat = plain.cond_stage_model.chat
    image = torch.from_numpy(recipe.tiles(recipe.pictures("one tile")[0][0]))
    (patches,) = chat.vision_model(image)
    close(chat.encode_tiles(image), stored["256"], "internvl flash 256", TOLERANCE)
    close(chat.mlp2(chat._merge(patches, 4)), stored["64"], "internvl flash 64", TOLERANCE)


def test_without_its_flag_it_is_a_plain_model_as_upstream(published):
    opened = open_chat(published(flash_mode=False))
    assert opened.config.router is None and {name.split(".")[0] for name in unexpected(opened)} == {
        "mlp2",
        "gating",
        "pooling_before_gating",
    }
    assert unexpected(open_chat(published())) == []


@pytest.mark.parametrize(
    "config, words",
    [
        ({"flash_relative_threshold": None}, "flash_relative_threshold is missing, expected a number from 0 to 1"),
        ({"flash_absolute_threshold": 7}, "flash_absolute_threshold is 7, expected a number from 0 to 1"),
        ({"flash_mode": "yes"}, "flash_mode is 'yes', expected true or false"),
    ],
)
def test_wrong_configurations(published, config, words):
    with pytest.raises(WrongFileError, match=words):
        open_chat(published(**config))


def test_a_converted_one_compresses_the_same_tiles(published, plain, tmp_path):
    clip = load_chat(convert(published(), tmp_path, "fp8").path)
    config = clip.cond_stage_model.chat.config
    assert config.router == plain.cond_stage_model.chat.config.router
    images = torch.from_numpy(recipe.tiles(recipe.pictures("pictures")[0][2]))
    ours, theirs = ([len(rows) for rows in each.cond_stage_model.chat.read_tiles([images])] for each in (clip, plain))
    assert ours == theirs and set(ours) == {64, 256}


# Bytes as Hugging Face lists them of InternVL3_5-2B-Flash's model.safetensors; its language model is InternVL3_5-2B's.
def test_every_tensor_of_a_published_size(tmp_path):
    made = full_size("InternVL3_5-2B")
    tensors, config = {saved(key): tensor for key, tensor in made.state_dict().items()}, made.config.to_dict()
    tensors = random_chat.to_opengvlab(tensors)
    config = {**random_chat.opengvlab_config(config, "qwen3"), "flash_mode": True, **recipe.THRESHOLDS}
    vision, language = 1024, 2048
    shapes = {f"mlp2.0.{kind}": (16 * vision,) for kind in ("weight", "bias")}
    for index, rows, columns in (
        ("mlp2.1", 2 * language, 16 * vision),
        ("mlp2.4", 2 * language, 2 * language),
        ("mlp2.7", language, 2 * language),
        *((f"gating.block{block}.0", 4 * vision, vision) for block in range(1, 5)),
        *((f"gating.block{block}.3", vision, 4 * vision) for block in range(1, 5)),
        *((f"pooling_before_gating.attn{number}.out_proj", vision, vision) for number in range(1, 5)),
        ("gating.gate.1", 2, vision),
    ):
        shapes |= {f"{index}.weight": (rows, columns), f"{index}.bias": (rows,)}
    for number in range(1, 5):
        attention = f"pooling_before_gating.attn{number}.in_proj_"
        shapes |= {f"{attention}weight": (3 * vision, vision), f"{attention}bias": (3 * vision,)}
    norms = [f"gating.block{block}.5" for block in range(1, 5)] + ["gating.gate.0"]
    norms += [f"pooling_before_gating.norm{number}" for number in range(1, 5)]
    shapes |= {f"{norm}.{kind}": (vision,) for norm in norms for kind in ("weight", "bias")}
    shapes["pooling_before_gating.query_token"] = (1, vision)
    tensors |= {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    listed = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    opened = chat_from_tensors(TensorFile(tmp_path, listed, tensors.__getitem__, {"config": json.dumps(config)}))
    assert unexpected(opened) == [] and opened.config.tokens_per_tile == 256
    built = opened.build(operations=torch.nn, device="meta").state_dict()
    assert {name: tensor.shape for name, tensor in opened.tensors()} == {n: tensor.shape for n, tensor in built.items()}
    assert round(2 * sum(tensor.numel() for tensor in tensors.values()) / 1e9, 2) == 4.98
