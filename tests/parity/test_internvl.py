"""InternVL-C and -G against upstream: images, states, embeddings and scores of mulankit's model; and the published
checkpoint's every tensor.

Cases are read from <goldens>/internvl/*.json, so that another folder of the same layout serves too; internvl_recipe.py
makes one.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mulan_nodes.mulan.checkpoints.tensor_files import TensorFile
from mulan_nodes.mulan.conditioning.model_files import text_encoder_from_tensors
from mulan_nodes.mulan.internvl import internvl_keys as names
from mulan_nodes.mulan.internvl.internvl_files import internvl_from_tensors, unexpected
from mulan_nodes.mulan.internvl.internvl_loader import load_internvl
from mulan_nodes.mulan.internvl.internvl_model import text_ids
from mulan_nodes.mulan.internvl.preprocessing import FRAMINGS, preprocess

HERE = Path(__file__).parent
TOLERANCE = 1e-4


class Case:
    """One golden: upstream's `facts` and `stored` tensors, and the published folder they were computed with."""

    def __init__(self, facts: Path, folder: Path):
        self.name = f"internvl {facts.stem}"
        self.facts = json.loads(facts.read_text("utf-8"))
        self.stored = load_file(facts.with_suffix(".safetensors"))
        self.folder = folder
        spec = importlib.util.spec_from_file_location("internvl_recipe", HERE / Path(self.facts["recipe"]).name)
        recipe = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(recipe)
        save_file(
            {
                name: torch.from_numpy(recipe.tensor(self.facts["seed"], name, tuple(shape)))
                for name, shape in self.facts["weights"].items()
            },
            folder / "model.safetensors",
        )
        (folder / "config.json").write_text(json.dumps(self.facts["config"]), "utf-8")
        (folder / "tokenizer.model").write_bytes((facts.parent / self.facts["tokenizer"]).read_bytes())
        self.loaded = {mode: load_internvl(folder, mode) for mode in "CG"}

    def images(self, kind: str) -> list[torch.Tensor]:
        """The images upstream was given, in 8 bits, as ComfyUI has them."""
        stored = [
            value
            for key, value in sorted(self.stored.items())
            if key.startswith(f"{kind}.") and value.dtype == torch.uint8
        ]
        return [torch.from_numpy(value.numpy().astype(np.float32) / 255) for value in stored]

    def unit(self, key: str) -> torch.Tensor:
        """The golden embeddings, normalised as upstream does before it compares."""
        return self.stored[key] / self.stored[key].norm(dim=1, keepdim=True)


def pytest_generate_tests(metafunc):
    """A folder given by --goldens that holds none of InternVL's leaves the committed ones."""
    if "case" in metafunc.fixturenames:
        folders = (
            Path(root) / "internvl" for root in (metafunc.config.getoption("--goldens"), HERE / "goldens") if root
        )
        found = next(files for folder in folders if (files := whole(folder)))
        metafunc.parametrize("case", found, ids=lambda file: file.stem, indirect=True, scope="module")


def whole(folder: Path) -> list[Path]:
    """The goldens of a folder that have their tensors and their tokenizer."""
    return [
        file
        for file in sorted(folder.glob("*.json"))
        if file.with_suffix(".safetensors").is_file()
        and (file.parent / json.loads(file.read_text("utf-8"))["tokenizer"]).is_file()
    ]


@pytest.fixture(scope="module")
def case(request, tmp_path_factory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp("internvl"))


@pytest.fixture
def near(case, close):
    """near(ours, golden): against a golden tensor, or the stored one of that name."""
    return lambda ours, golden: close(
        ours, case.stored[golden] if isinstance(golden, str) else golden, case.name, TOLERANCE
    )


def test_texts_have_upstreams_ids(case):
    tokenizer = case.loaded["C"].tokenizer
    for text, ids in zip(case.facts["texts"], case.facts["ids"], strict=True):
        ours = list(text_ids(tokenizer, text))
        assert ours + [0] * (len(ids) - len(ours)) == ids, text


def test_images_are_upstreams_bit_by_bit(case):
    size = case.loaded["C"].model.config.vision.image_size
    assert torch.equal(
        torch.stack([preprocess(image, size, "whole") for image in case.images("picture")]), case.stored["pixels"]
    )
    for framing in FRAMINGS:
        ours = torch.stack([preprocess(image, size, framing) for image in case.images("other")])
        assert torch.equal(ours, case.stored[f"other.{framing}"]), framing


def test_tower_and_poolings(case, near):
    model, reader = case.loaded["G"].model, case.loaded["G"].reader
    with torch.no_grad():
        near(model.encode_images(case.stored["pixels"]), "states")
        near(model.clip_projector(case.stored["states"]), "pooled")
        near(reader.clip_projector2(case.stored["read"]), "read.pooled")


def test_queries_read_the_states(case, near):
    loaded = case.loaded["G"]
    with torch.no_grad():
        near(loaded.reader(case.stored["states"], loaded.encoder.transformer.model), case.unit("read.pooled"))


def test_text_states_of_every_row(case, near):
    """Padding too, as upstream pads all texts to one length."""
    near(torch.stack(case.loaded["C"].encoder.hidden_states(case.facts["ids"])), "text.states")


@pytest.mark.parametrize("mode", ("C", "G"))
def test_embeddings_and_logits(case, near, mode):
    loaded = case.loaded[mode]
    texts, images = loaded.embed_texts(case.facts["texts"]), loaded.embed_images(case.images("picture"))
    near(texts, case.unit("text.projected"))
    near(images, case.unit(f"{mode}.image"))
    near(loaded.logit_scale * images @ texts.T, f"{mode}.logits")


def other_than(num_heads: int) -> int:
    return 2 if num_heads == 1 else 1


def _fewer_heads(loaded):
    loaded.model.vision_model.layers[0].attn.num_heads = other_than(loaded.model.vision_model.layers[0].attn.num_heads)


def _other_pool_heads(loaded):
    loaded.model.clip_projector.cross_attn.num_heads = other_than(loaded.model.clip_projector.cross_attn.num_heads)


def _no_norm(loaded):
    loaded.model.clip_projector.norm1_v = torch.nn.Identity()


def _bias_forgotten(loaded):
    loaded.model.clip_projector.cross_attn.q.bias = None


def _other_epsilon(loaded):
    loaded.model.clip_projector.norm1_k.eps = 0.1


def _cross_attention_in_the_wrong_layer(loaded):
    first, *_ = loaded.reader.config.layers
    loaded.reader.config = type(loaded.reader.config)(**{**vars(loaded.reader.config), "layers": (first + 1,)})
    loaded.reader.layers[str(first + 1)] = loaded.reader.layers[str(first)]


def _vision_norm_forgotten(loaded):
    for layer in loaded.reader.layers.values():
        layer.norm2 = torch.nn.Identity()


def _wrong_row(loaded):
    loaded.model.pool_images = lambda states: torch.nn.functional.normalize(
        loaded.model.clip_projector(states[:, 1:]), dim=-1
    )


def _queries_in_order(loaded):
    """A causal mask in the LLaMA's blocks, as texts have it."""

    def attend(q, k, v, heads, **_):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)

    for block in loaded.encoder.transformer.model.layers:
        inner = block.self_attn.forward
        block.self_attn.forward = lambda x, inner=inner, **kw: inner(x, **{**kw, "optimized_attention": attend})


MISTAKES = {
    "C": (_fewer_heads, _other_pool_heads, _no_norm, _bias_forgotten, _other_epsilon, _wrong_row),
    "G": (_cross_attention_in_the_wrong_layer, _vision_norm_forgotten, _queries_in_order),
}


@pytest.mark.parametrize("mode, mistake", [(mode, mistake) for mode, all in MISTAKES.items() for mistake in all])
def test_a_mistake_would_be_seen(case, mode, mistake):
    loaded = load_internvl(case.folder, mode)
    mistake(loaded)
    ours = loaded.embed_images(case.images("picture"))
    assert (ours - case.unit(f"{mode}.image")).abs().max() > 10 * TOLERANCE


@pytest.fixture(scope="module")
def published(manifest, tmp_path_factory):
    """The published checkpoint as the manifests of its two sides tell it: names and shapes, values on "meta"."""
    shapes = manifest("internvl_14b_full_checkpoint") | manifest("internvl_text_14b_224px")
    folder = tmp_path_factory.mktemp("published")
    (folder / "tokenizer.model").touch()
    return TensorFile(folder, shapes, lambda name: torch.empty(shapes[name], device="meta"), {})


def test_every_tensor_of_the_published_checkpoint_has_its_place(published):
    opened = internvl_from_tensors(published)
    of_c, of_g = ({name for source in part.sources.values() for name in source.names} for part in opened.parts("G"))
    of_text = set(text_encoder_from_tensors(published).names.values())
    unused = {name for name in published.shapes if name.startswith(("itm_head.", "qllama.lm_head."))}
    assert len(published.shapes) == 1048 and unexpected(opened) == []
    assert len(of_c) + len(of_g) + len(of_text) + len(unused) == len(published.shapes)
    assert of_c | of_g | of_text | unused == published.shapes.keys()
    assert all(names.unused(name) for name in unused)


def test_both_modes_are_filled_from_the_published_checkpoint(published):
    opened = internvl_from_tensors(published)
    for part in opened.parts("G"):
        module = part.build(operations=torch.nn, device="meta")
        missing, unknown = module.load_state_dict(dict(opened.tensors(part)), assign=True)
        assert not missing and not unknown
    config = opened.model.config
    vision = config.vision
    assert (vision.hidden_size, vision.num_hidden_layers) == (3200, 48)
    assert (vision.num_attention_heads, vision.image_size) == (25, 224)
    assert (config.text_hidden_size, config.embedding_size, config.pool_num_heads) == (4096, 768, 16)
    assert (
        opened.reader.config.num_queries,
        opened.reader.config.num_attention_heads,
        opened.reader.config.layers,
    ) == (96, 32, tuple(range(0, 32, 2)))
