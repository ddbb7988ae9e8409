"""The trainer with every family: bases in both layouts, adapters as published, contexts as the nodes make them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from mulan_nodes.mulan.conditioning.adapter import from_published, to_published
from mulan_nodes.mulan.conditioning.clip import load_clip, negative_view
from mulan_nodes.mulan.conditioning.families import PIXART, SD15, SD21, SDXL
from mulan_nodes.mulan.conditioning.model_files import open_adapter, open_text_encoder
from mulan_nodes.mulan.training import (
    adapters,
    base_models,
    diffusion,
    latents,
    run,
    samples,
    tensor_store,
    text_states,
    validation,
)
from mulan_nodes.mulan.training.__main__ import main
from mulan_nodes.mulan.training.estimate import describe_estimate, estimate_training
from mulan_nodes.mulan.training.text_states import CaptionEncoder, LiveCaptions, store_captions
from mulan_nodes.mulan.training.trainer import train_adapter
from mulan_nodes.tests.unit import narrow_sdxl
from mulan_nodes.tests.unit.train_bases import (
    diffusers_folder,
    original_pixart,
    original_sdxl,
    original_vae,
    published_pixart,
    published_sdxl,
    text_encoder,
)

MANIFESTS = Path(__file__).resolve().parents[1] / "parity" / "manifests" / "mulan"
FAMILIES = {"sd15": SD15, "sd21": SD21, "sdxl": SDXL, "pixart": PIXART}
CAPTIONS = ("a red circle", "一个红色的圆", "ein sehr großer blauer Stern vor einem Haus")


def plan(family, width=4096, **changes) -> adapters.AdapterPlan:
    context_dim = 1152 if family is PIXART else family.context_dim
    return adapters.AdapterPlan(
        **{**dict(family=family, text_hidden_size=width, projection_dim=768, context_dim=context_dim), **changes}
    )


# --- the adapters ---


@pytest.mark.parametrize(
    "name, changes",
    [
        ("sd15", {}),
        ("sd15_direct", {"num_queries": 77}),
        ("sd21", {}),
        ("sd21_direct", {"num_queries": 77}),
        *((f"sdxl_{layout}", {"layout": layout}) for layout in adapters.LAYOUTS),
        ("pixart", {}),
    ],
)
def test_a_full_size_adapter_has_the_published_tensors(name, changes):
    published = json.loads((MANIFESTS / f"adapter_{name}.json").read_text("utf-8"))["tensors"]
    wanted = plan(FAMILIES[name.split("_")[0]], **changes)
    adapter = adapters.build_adapter(wanted.shape(), wanted.layout.startswith("embed"), "meta")
    ours = {key: list(tensor.shape) for key, tensor in to_published(adapter.state_dict()).items()}
    assert ours == {key: tensor["shape"] for key, tensor in published.items()}


def test_a_layout_that_the_text_encoder_cannot_serve_is_refused():
    with pytest.raises(ValueError, match="use --layout embed_attnpool"):
        plan(SDXL, projection_dim=None, layout="embed_textproj").shape()


# --- min-SNR and buckets ---


@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
def test_min_snr_weighs_the_clean_latents_error(prediction):
    """The same weight of the error in the latents, whatever is predicted: min(snr, 5)."""
    alpha = torch.tensor([0.0, 0.01, 0.5, 0.9, 0.999])
    snr = alpha / (1 - alpha)
    of_latents = snr if prediction == "epsilon" else snr + 1  # the loss per error of the latents
    weight = diffusion.min_snr_weight(alpha, prediction, 5.0)
    assert torch.allclose((weight * of_latents)[1:], snr.clamp(max=5)[1:], rtol=1e-4)
    if prediction == "v_prediction":
        assert weight[0] == 0, "pure noise shows nothing of the image"


def test_buckets_cover_all_ratios_with_no_more_pixels():
    buckets = latents.bucket_sizes(512, 64)
    assert buckets[0] == (512, 512) and (768, 320) in buckets and (320, 768) in buckets
    assert all(h % 64 == w % 64 == 0 and h * w <= 512 * 512 and max(h, w) <= 4 * min(h, w) for h, w in buckets)
    assert latents.nearest_bucket((1000, 1001), buckets) == (512, 512)
    assert latents.nearest_bucket((1080, 1920), buckets) == (384, 640)
    assert latents.nearest_bucket((5000, 100), buckets)[0] == 1024
    assert latents.time_ids((1000, 2000), (512, 512)) == [1000, 2000, 0, 256, 512, 512]


def test_batches_are_of_one_bucket_and_epochs_hold_every_image():
    groups = [0] * 5 + [1] * 3 + [2]
    examples = [
        {"latent": torch.full((1, 1 + group, 1), float(i)), "caption": str(i)} for i, group in enumerate(groups)
    ]
    stream = samples.SampleStream(examples, 10, 0, 0.0, 0.0, groups, 2)
    again = samples.SampleStream(examples, 10, 0, 0.0, 0.0, groups, 2)
    for epoch in range(3):
        seen = []
        for start in range(12 * epoch // 2 * 2, 12 * (epoch + 1), 2):
            batch, _, _, captions, _ = stream.batch(range(start, start + 2))
            assert len({groups[int(caption)] for caption in captions}) == 1 and len(batch) == 2
            assert captions == again.batch(range(start, start + 2))[3]
            seen += captions
        assert set(seen) == {str(i) for i in range(9)} and len(seen) == 12


# --- text states ---


@pytest.fixture(scope="module")
def encoders(tmp_path_factory) -> dict[int, Path]:
    """Text encoders with a projection, by their width."""
    folder = tmp_path_factory.mktemp("encoders")
    return {width: text_encoder(folder / f"wide_{width}.safetensors", width) for width in (64, 4096)}


def caption_encoder(encoders, family, width=None) -> CaptionEncoder:
    return CaptionEncoder(open_text_encoder(encoders[width or (4096 if family is PIXART else 64)]), family)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_stored_states_are_what_the_encoder_gives(family, encoders, tmp_path, monkeypatch):
    """Each caption once, the empty one too; later runs encode nothing; another encoder under the name does."""
    monkeypatch.setattr(text_states, "ENCODE_BATCH", 2)
    encoder, told = caption_encoder(encoders, family), []
    captions = [*CAPTIONS, CAPTIONS[0]]
    stored = store_captions(encoder, captions, tmp_path, Accelerator(), lambda *done: told.append(done))
    assert told == [(2, 4), (4, 4)]
    live = LiveCaptions(caption_encoder(encoders, family))
    for wanted in (["", *captions], [CAPTIONS[2]]):
        ours, theirs = stored(wanted), live(wanted)
        assert torch.allclose(ours.rows, theirs.rows, atol=2e-3)
        assert ours.is_empty.tolist() == [not caption for caption in wanted]
        assert (ours.pooled is not None) == (family is SDXL) and (ours.mask is not None) == (family is PIXART)
        if ours.mask is not None:
            assert torch.equal(ours.mask, theirs.mask) and not ours.rows[~ours.mask].any()
    monkeypatch.setattr(CaptionEncoder, "encode", lambda *_: pytest.fail("a caption was encoded again"))
    store_captions(caption_encoder(encoders, family), captions, tmp_path, Accelerator(), lambda *_: None)
    monkeypatch.undo()
    other = tmp_path / encoders[64].name
    tensors = load_file(encoders[64])
    metadata = {"config": json.dumps({"num_attention_heads": 2})}
    save_file({**tensors, "model.norm.weight": tensors["model.norm.weight"] * 1.01}, other, metadata)
    changed = CaptionEncoder(open_text_encoder(other), family)
    assert changed.file.fingerprint() != encoder.file.fingerprint()
    store_captions(changed, captions, tmp_path, Accelerator(), lambda *done: told.append(done))
    assert told[2:] == [(4, 4)], "those of the first encoder were taken"


def test_states_that_are_not_finite_are_refused(encoders, tmp_path):
    tensors = load_file(encoders[64])
    bad = tmp_path / "bad.safetensors"
    metadata = {"config": json.dumps({"num_attention_heads": 2})}
    save_file({**tensors, "model.norm.weight": tensors["model.norm.weight"] * float("inf")}, bad, metadata)
    with pytest.raises(ValueError, match="bad.safetensors gives numbers that are not finite for 'a red circle'"):
        list(CaptionEncoder(open_text_encoder(bad), SD15).encode(CAPTIONS))


@pytest.mark.parametrize("family", [SDXL, PIXART], ids=["sdxl", "pixart"])
def test_a_caption_takes_no_more_room_than_the_estimate_says(family, encoders):
    encoder = caption_encoder(encoders, family)
    (parts,) = encoder.encode(["red " * 100])
    assert sum(tensor.nbytes for tensor in parts.values()) == encoder.bytes_per_caption


def test_a_full_disk_is_told_before_anything_is_encoded(encoders, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(OSError, match="the states of 4 captions takes .*has 0.0 MB free"):
        store_captions(caption_encoder(encoders, SD15), CAPTIONS, tmp_path, Accelerator(), lambda *_: None)


# --- what the denoiser gets is what the nodes give ---


@pytest.mark.parametrize(
    "family, layout",
    [(SD15, ""), (SD21, ""), *((SDXL, layout) for layout in adapters.LAYOUTS), (PIXART, "")],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_context_of_training_is_that_of_the_nodes(family, layout, encoders, tmp_path):
    encoder = caption_encoder(encoders, family)
    made = plan(
        family, encoder.states_size, projection_dim=encoder.projection_dim, layout=layout or adapters.LAYOUTS[0]
    )
    embedding = adapters.SizeEmbedding(2816, 1280)
    adapter = adapters.fresh_adapter(made, 3, embedding)
    path = tmp_path / "adapter.safetensors"
    save_file(to_published(adapter.state_dict()), path)
    clip = load_clip(encoders[encoder.states_size], path)
    stored = store_captions(encoder, CAPTIONS, tmp_path, Accelerator(), lambda *_: None)
    sizes = torch.tensor([[640, 480, 0, 8, 512, 384]]).expand(len(CAPTIONS) + 1, -1)
    with torch.no_grad():
        ours = adapter(stored([*CAPTIONS, ""], sizes))
    for index, (prompt, of_side) in enumerate([*((c, clip) for c in CAPTIONS), ("", negative_view(clip))]):
        context, pooled = of_side.encode_from_tokens(of_side.tokenize(prompt), return_pooled=True)
        if family is PIXART:  # the projection is in the MODEL
            mask = ours.mask[index]
            context = diffusion.Context(super(adapters.Projection, adapter).forward(context)).rows.detach()
            assert int(mask.sum()) == context.shape[1] and mask[: context.shape[1]].all()
        rows = ours.rows[index, : context.shape[1]]
        assert (rows - context[0]).abs().max() < 5e-3 * context.abs().max(), prompt
        if family is SDXL:
            vector = comfy_vector(
                pooled, width=480, height=640, crop_w=8, crop_h=0, target_width=384, target_height=512
            )
            assert (ours.vector[index] - vector[0]).abs().max() < 5e-3 * max(1, pooled.abs().max()), prompt
            if layout.startswith("embed"):
                assert (ours.embedding[index] - adapter.add_embedding(vector)[0]).abs().max() < 1e-2


def comfy_vector(pooled: torch.Tensor, **sizes) -> torch.Tensor:
    """SDXL's vector by ComfyUI's own code."""
    import comfy.model_base

    sdxl = comfy.model_base.SDXL.__new__(comfy.model_base.SDXL)
    torch.nn.Module.__init__(sdxl)
    sdxl.embedder, sdxl.noise_augmentor = comfy.model_base.Timestep(256), None
    return sdxl.encode_adm(pooled_output=pooled, **sizes)


# --- bases ---


@torch.no_grad()
@pytest.mark.parametrize("embeds", [False, True])
def test_a_single_sdxl_file_computes_what_the_host_computes(embeds, tmp_path):
    unet = original_sdxl(tmp_path / "xl.safetensors")
    base = base_models.load_base(tmp_path / "xl.safetensors")
    assert (base.family, base.prediction, base.context_dim, base.side) == (SDXL, "epsilon", 2048, 1024)
    assert base.encoder_fingerprint.endswith(" 0.13025")
    vector, embedding = torch.randn(2, 2816), torch.randn(2, 1280) if embeds else None
    x, t, rows = torch.randn(2, 4, 16, 24), torch.tensor([7, 800]), torch.randn(2, 5, 2048)
    if embeds:  # an adapter's own stands in for the UNet's
        unet.label_emb = torch.nn.Sequential(torch.nn.Identity())
        theirs = unet(x, t, context=rows, y=embedding[:, : base.model.time_embedding.linear_2.out_features])
        embedding = embedding[:, : base.model.time_embedding.linear_2.out_features]
    else:
        theirs = unet(x, t, context=rows, y=vector)
    ours = base.denoiser(x, t, diffusion.Context(rows, vector=vector, embedding=embedding))
    assert (ours - theirs).abs().max() < 2e-5 * theirs.abs().max()
    assert base.encode_images(torch.zeros(1, 3, 16, 16)).shape == (1, 4, 8, 8)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["alpha", "sigma"])
def test_a_single_pixart_file_computes_what_the_host_computes(kind, tmp_path):
    """Prompts of other lengths in one batch: what the mask leaves out is what the nodes do not send."""
    transformer = original_pixart(tmp_path / "pixart.safetensors", micro_condition=kind == "alpha")
    original_vae(tmp_path / "vae.safetensors", prefix="")
    with pytest.raises(ValueError, match="holds PixArt's transformer alone: name its autoencoder with --vae"):
        base_models.load_base(tmp_path / "pixart.safetensors")
    base = base_models.load_base(tmp_path / "pixart.safetensors", vae=tmp_path / "vae.safetensors", side=1024)
    assert base.model.config.sample_size == 64, "its table of positions says so, whatever the images"
    assert (base.family, base.context_dim, base.text_hidden_size) == (PIXART, 1152, 4096)
    assert base.encoder_fingerprint.endswith("0.18215" if kind == "alpha" else "0.13025")
    assert base.alphas_cumprod[[0, 999]].tolist() == pytest.approx([0.9999, 4.036e-05], rel=1e-3)
    projection = adapters.Projection(4096, 1152)
    adapters.init_weights(projection, 0)
    own = transformer.y_embedder.y_proj
    for ours, theirs in ((projection.linear_1, own.fc1), (projection.linear_2, own.fc2)):
        theirs.load_state_dict(ours.state_dict())
    base.denoiser(torch.randn(1, 4, 64, 64), torch.tensor([1]), torch.randn(1, 3, 1152))
    for shape in ((64, 64), (48, 80)):
        x, t, states = torch.randn(2, 4, *shape), torch.tensor([7, 800]), torch.randn(2, 80, 4096)
        lengths = torch.tensor([5, 21])
        batch = text_states.TextStates(states, torch.zeros(2).bool(), mask=torch.arange(80) < lengths[:, None])
        ours = base.denoiser(x, t, projection(batch))
        scale = base.downscale_factor
        for index, length in enumerate(lengths.tolist()):
            sizes = {
                "c_size": torch.tensor([[shape[0] * scale, shape[1] * scale]]).float(),
                "c_ar": torch.tensor([[shape[0] / shape[1]]]),
            }
            one = slice(index, index + 1)
            theirs = transformer(x[one], t[one], states[one, :length], **sizes)
            assert (ours[one] - theirs).abs().max() < 5e-5 * theirs.abs().max()


@pytest.mark.parametrize("kind", ["sd15", "sd21", "sdxl", "alpha", "sigma"])
def test_a_diffusers_folder_of_every_family_teaches_an_adapter(kind, tmp_path):
    base = base_models.load_base(diffusers_folder(tmp_path, kind))
    family = FAMILIES.get(kind, PIXART)
    assert base.family is family and len(base.fingerprint) == 64
    adapter = adapters.fresh_adapter(
        plan(family, 4096 if family is PIXART else 16, layout="embed_textproj"), 0, base.size_embedding
    )
    before = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    frozen = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    settings = run.TrainSettings(
        steps=2, batch_size=2, learning_rate=1e-3, warmup_steps=0, empty_share=0.5, min_snr=5.0
    )
    examples = [{"latent": torch.randn(4, 16, 16), "caption": "x", "sizes": torch.tensor([9, 9, 0, 0, 8, 8])}] * 3

    def states(captions, sizes):
        count, rows = len(captions), 80
        return text_states.TextStates(
            torch.randn(count, rows, adapters_width(adapter)),
            torch.tensor([caption == "" for caption in captions]),
            torch.randn(count, 768),
            torch.ones(count, rows, dtype=torch.bool) if family is PIXART else None,
            sizes,
        )

    train_adapter(adapter, base.denoiser, states, examples, base.alphas_cumprod, settings, report=lambda *_: None)
    unchanged = [name for name, tensor in adapter.state_dict().items() if torch.equal(tensor, before[name])]
    assert not unchanged, "no gradient reaches them"
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in base.model.state_dict().items())


def adapters_width(adapter) -> int:
    shape = getattr(adapter, "shape", None)
    return adapter.linear_1.in_features if shape is None else shape.text_hidden_size


def test_the_published_sdxl_has_a_place_for_every_weight():
    """At full size, where only the shapes exist."""
    assert published_sdxl() == (2_567_463_684, 2_567_463_684)


@pytest.mark.parametrize("kind", ["alpha", "sigma"])
def test_the_published_pixart_has_a_place_for_every_weight(kind):
    ours, built = published_pixart(kind == "alpha")
    assert ours == built and len(ours) > 500


def test_special_bases_are_refused(tmp_path):
    original_sdxl(tmp_path / "xl.safetensors")
    tensors = load_file(tmp_path / "xl.safetensors")
    first, context = "model.diffusion_model.input_blocks.0.0.weight", "attn2.to_k.weight"
    wide = torch.cat([tensors[first], tensors[first], tensors[first][:, :1]], dim=1)
    save_file({**tensors, first: wide}, tmp_path / "inpainting.safetensors")
    with pytest.raises(ValueError, match="inpainting.safetensors denoises 9 channels.*not an inpainting"):
        base_models.load_base(tmp_path / "inpainting.safetensors")
    refiner = {name: t[:, :1280].contiguous() if name.endswith(context) else t for name, t in tensors.items()}
    save_file(refiner, tmp_path / "refiner.safetensors")
    with pytest.raises(ValueError, match="refiner.safetensors is SDXL's refiner.*use an SDXL base"):
        base_models.load_base(tmp_path / "refiner.safetensors")
    save_file({**tensors, "edm_mean": torch.zeros(4)}, tmp_path / "edm.safetensors")
    with pytest.raises(ValueError, match="noise of EDM"):
        base_models.load_base(tmp_path / "edm.safetensors")
    save_file({**tensors, "v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)}, tmp_path / "v.safetensors")
    base = base_models.load_base(tmp_path / "v.safetensors")
    assert base.prediction == "v_prediction" and base.alphas_cumprod[-1] == 0
    with pytest.raises(ValueError, match="holds no autoencoder in the original layout.*--vae"):
        save_file({"x": torch.zeros(1)}, tmp_path / "no_vae.safetensors")
        base_models.load_base(tmp_path / "xl.safetensors", vae=tmp_path / "no_vae.safetensors")
    folder = diffusers_folder(tmp_path / "other", "sigma")
    config = folder / "transformer" / "config.json"
    config.write_text(config.read_text().replace("PixArtTransformer2DModel", "FluxTransformer2DModel"))
    with pytest.raises(ValueError, match="transformer of another model .FluxTransformer2DModel."):
        base_models.load_base(folder)


def test_the_estimate_counts_weights_and_says_what_takes_less(tmp_path):
    base = base_models.load_base(diffusers_folder(tmp_path, "sd15"))
    made = plan(SD15, 16)
    adapter = adapters.fresh_adapter(made, 0)
    learning = sum(parameter.numel() for parameter in adapter.parameters())

    def estimated(base, **changes):
        settings = run.TrainSettings(**{**dict(steps=100, batch_size=1, learning_rate=1e-3), **changes})
        return estimate_training(adapter, base, made, (16, 32), settings, torch.device("cpu")), settings

    one, settings = estimated(base, gradient_accumulation=3)
    more, _ = estimated(base, batch_size=3, ema=0.9)
    assert one.base == sum(tensor.nbytes for tensor in base.model.parameters())
    assert (one.adapter, more.adapter) == (16 * learning, 20 * learning)
    assert 2 < more.activations / one.activations < 3.5
    assert one.total == one.base + one.autoencoder + one.adapter + one.activations
    assert all(parameter.grad is None for parameter in adapter.parameters())
    told = describe_estimate(replace(one, batch_seconds=40.0), settings, (16, 32), 2, 5_000_000)
    assert "120.00 s a step of 6 images; 100 steps: 3 h 20 min" in told
    assert "1 images of 32 x 16" in told and "up to 5.0 MB" in told

    def exhausted(*_):
        raise torch.OutOfMemoryError

    with pytest.raises(ValueError, match="1 images of 32 x 16 does not fit into the memory: lower --batch-size"):
        estimated(replace(base, denoiser=exhausted))


# --- several processes ---


def test_two_processes_train_sdxl_as_one_does(tmp_path):
    narrow_sdxl.run_on_two_processes(narrow_sdxl.__file__, tmp_path)
    alone, other, both = narrow_sdxl.train(), narrow_sdxl.train(seed=1), narrow_sdxl.fresh()
    both.load_state_dict(from_published(load_file(tmp_path / run.ADAPTER_FILE)))
    captions, sizes = ["", "x", "xxx"], torch.tensor([[9, 9, 0, 1, 8, 8]]).expand(3, -1)
    with torch.no_grad():
        ours, theirs, others = (each(narrow_sdxl.states(captions, sizes)) for each in (both, alone, other))
    for name in ("rows", "vector", "embedding"):
        one, two = getattr(ours, name), getattr(theirs, name)
        assert (one - two).abs().max() < 1e-4 * two.abs().max()
    assert (others.rows - theirs.rows).abs().max() > 1e-2


def test_processes_share_what_is_to_be_encoded(tmp_path):
    keys = [str(number) for number in range(7)]
    stores = [tensor_store.TensorStore(tmp_path) for _ in range(2)]  # both before either writes
    computed = []

    def compute(batch):
        computed.extend(batch)
        return [{"x": torch.tensor([float(index)])} for index in batch]

    for index, store in enumerate(stores):
        process = SimpleNamespace(
            process_index=index, num_processes=2, is_main_process=index == 0, wait_for_everyone=lambda: None
        )
        tensor_store.fill_store(store, keys, compute, lambda indices: [indices], process, lambda *_: None)
    assert sorted(computed) == list(range(7))
    assert [stores[1].read(key)["x"].item() for key in keys] == list(range(7))


# --- the command line ---


def draw_images(folder: Path) -> Path:
    """Six images of three shapes, each with a caption and a German one."""
    from PIL import Image

    folder.mkdir()
    for index, size in enumerate([(96, 64), (64, 64), (64, 64), (48, 96), (96, 64), (64, 64)]):
        Image.new("RGB", size, ("red", "blue", "green")[index % 3]).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"image {index}", "utf-8")
        (folder / f"{index}.de.txt").write_text(f"Bild {index}", "utf-8")
    return folder


def arguments(tmp_path: Path, encoder: Path, base: Path, *more: str) -> list[str]:
    data = tmp_path / "data"
    if not data.is_dir():
        draw_images(data)
    return [
        *("--base", str(base), "--text-encoder", str(encoder), "--data", str(data), "--precision", "fp32"),
        *("--size", "32", "--batch-size", "2", "--accumulate", "1", "--warmup", "0", "--steps", "2"),
        *("--validate-every", "0", "--prompt", "a red circle", "--language", "de", *more),
    ]


@pytest.mark.parametrize("kind", ["sd21", "sdxl", "alpha", "sigma"])
def test_the_command_line_trains_every_family(kind, encoders, tmp_path, capsys, monkeypatch):
    """The file says what it is of; its numbers are what MuLan Loader reads; a resumed run encodes nothing again."""
    monkeypatch.setattr(validation, "STEPS", 1)
    family = FAMILIES.get(kind, PIXART)
    encoder = encoders[4096 if family is PIXART else 64]
    base = diffusers_folder(tmp_path / "base", kind)
    command = arguments(tmp_path, encoder, base, "--min-snr", "5", "--buckets", "--ema", "0.9")
    command += ["--layout", "embed_attnpool"] if family is SDXL else []
    out = tmp_path / "out"
    assert main([*command, "--out", str(out), "--estimate"]) == 0
    told = capsys.readouterr().out
    assert "activations" in told and "2 steps: 0 h 00 min" in told and not out.exists()
    assert main([*command, "--out", str(out)]) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    assert "captions 14 of 14" in told and "latents 6 of 6" in told and "step 2 of 2" in told
    assert "images by size: " in told and "32 x 32: 3" in told
    trained = open_adapter(out / run.ADAPTER_FILE)
    assert trained.family is family and trained.patches_model == (family is PIXART or family is SDXL)
    says = dict(trained.file.metadata)
    settings = json.loads(says.pop("settings"))
    assert (settings["min_snr"], settings["buckets"], settings["batch_size"]) == (5.0, True, 2)
    assert len(says.pop("base_fingerprint")) == 64
    read_by = caption_encoder(encoders, family, 4096 if family is PIXART else 64)
    assert says.pop("text_encoder_fingerprint") == read_by.file.fingerprint()
    layout = {"layout": "embed_attnpool"} if family is SDXL else {}
    assert says == {
        "family": family.name, "base": "base", "text_encoder": encoder.name, "text_encoder_kind": "internvl_llama",
        "images": "6", "captions": "12", "languages": "de", "size": "32", "steps": "2", "seed": "0", **layout,
    }  # fmt: skip
    assert (out / "validation-000002.png").is_file()
    resumed = [*command, "--out", str(out), "--resume"]
    assert main(resumed) == 0
    assert "captions" not in (told := capsys.readouterr().out) and "latents 6" not in told
    assert main([*resumed, "--batch-size", "1", "--accumulate", "2"]) == 1
    assert "batch_size 2 -> 1" in capsys.readouterr().err, "it decides which images are in a batch of one size"
    if kind != "sigma":
        return
    on = [*command, "--out", str(tmp_path / "on"), "--adapter", str(out / run.ADAPTER_FILE), "--steps", "1"]
    assert main([*on, "--encode-while-training"]) == 0, capsys.readouterr().err
    assert not list((tmp_path / "on").glob("text-*"))


def test_what_does_not_fit_is_refused_in_words(encoders, tmp_path, capsys):
    pixart = diffusers_folder(tmp_path / "pixart", "sigma")
    out = ["--out", str(tmp_path / "out")]
    assert main([*arguments(tmp_path, encoders[64], pixart), *out]) == 1
    assert "gives states of width 64, but the projection in pixart" in capsys.readouterr().err
    sd15 = diffusers_folder(tmp_path / "sd15", "sd15")
    assert main([*arguments(tmp_path, encoders[64], sd15, "--min-snr", "5", "--high-noise-weight"), *out]) == 1
    assert "both weigh samples by their noise" in capsys.readouterr().err
    other = tmp_path / "adapter.safetensors"
    save_file(adapters.fresh_adapter(plan(PIXART), 0).state_dict(), other)
    assert main([*arguments(tmp_path, encoders[64], sd15, "--adapter", str(other)), *out]) == 1
    assert "is an adapter for PixArt, but the base is Stable Diffusion 1.5" in capsys.readouterr().err
    for kind, says in (
        (None, "reads states of width 4096"),
        ("qwen3", "was trained with the language model of an Int"),
    ):
        of_other = {} if kind is None else {"text_encoder_kind": kind}
        width = 4096 if kind is None else 64
        save_file(to_published(adapters.fresh_adapter(plan(SD15, width), 0).state_dict()), other, of_other)
        assert main([*arguments(tmp_path, encoders[64], sd15, "--adapter", str(other)), *out]) == 1
        assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
