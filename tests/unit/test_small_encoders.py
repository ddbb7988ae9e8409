"""Chat files as text encoders: states against transformers' own classes, windows, and which adapters fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mulan_nodes.mulan.checkpoints.tensor_files import WrongFileError
from mulan_nodes.mulan.conditioning.adapter import AdapterShape, LanguageAdapter, to_published
from mulan_nodes.mulan.conditioning.adapter_sdxl import TextProjection
from mulan_nodes.mulan.conditioning.clip import encode_prompts, load_clip, negative_view
from mulan_nodes.mulan.conditioning.encoder_files import check_pair, open_prompt_encoder, pair_warning
from mulan_nodes.mulan.conditioning.encoder_kinds import FINGERPRINT_KEY, KIND_KEY
from mulan_nodes.mulan.conditioning.families import SD15
from mulan_nodes.mulan.conditioning.inspection import format_report, inspect_prompt
from mulan_nodes.mulan.conditioning.model_files import open_adapter
from mulan_nodes.mulan.conditioning.prompt_memory import PromptMemory
from mulan_nodes.mulan.conditioning.prompt_words import prompt_words, unit_splitter
from mulan_nodes.mulan.conditioning.tokenizer import units
from mulan_nodes.mulan.conversion.converters import convert
from mulan_nodes.mulan.tiny_models.unpacking import CHAT, write_tiny_models
from mulan_nodes.mulan.training.text_states import CaptionEncoder, LiveCaptions
from mulan_nodes.tools.random_checkpoints import internvl_chat as random_chat

WIDTH = 48  # of the random language models
FORMS = [(kind, layout) for kind in random_chat.LANGUAGES for layout in ("opengvlab", "hf")]
TEXTS = ["the red circle", "红色的圆 (très petit:1.4) 😀", "", "a " * 90, "ligne\nligne <img> 1girl", "Ɵ‎é e\u0301"]


@pytest.fixture(scope="module")
def chats(tmp_path_factory) -> dict[tuple[str, str], Path]:
    root = tmp_path_factory.mktemp("chats")
    return {(kind, layout): random_chat.checkpoint(root / f"{kind}-{layout}", kind, layout) for kind, layout in FORMS}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> dict[str, Path]:
    """One SD1.5 adapter of random weights, said to be trained with each kind."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("adapters")
    shape = AdapterShape(text_hidden_size=WIDTH, context_dim=768, num_queries=8, intermediate_size=32)
    tensors = {name: tensor.clone() for name, tensor in to_published(LanguageAdapter(shape).state_dict()).items()}
    found = {}
    for kind in ("qwen2", "qwen3", "internlm2", "internvl_llama", "gpt9"):
        found[kind] = root / f"{kind}.safetensors"
        save_file(tensors, found[kind], metadata={KIND_KEY: kind})
    found["published"] = root / "published.safetensors"
    save_file(tensors, found["published"])
    return found


def clip_of(chats, adapters, kind: str = "qwen3", layout: str = "opengvlab", **options):
    return load_clip(chats[kind, layout], adapters[kind], device="cpu", **options)


def windows_of(clip, text: str) -> list[list[int]]:
    return [[row[0] for row in window] for window in clip.tokenize(text)["l"]]


@pytest.mark.parametrize(("kind", "layout"), FORMS)
def test_states_are_those_of_transformers(kind, layout, chats, adapters):
    clip = clip_of(chats, adapters, kind, layout)
    model, pad = clip.cond_stage_model, clip.cond_stage_model.frame.pad
    windows = [window for text in TEXTS for window in windows_of(clip, text)]
    language_model = random_chat.model(kind).model.language_model
    for window in windows:
        ids = torch.tensor([window])
        with torch.no_grad():
            mask, positions = (ids != pad).long(), torch.arange(len(window))[None]
            wanted = language_model(ids, attention_mask=mask, position_ids=positions).last_hidden_state[0]
            (states,) = model.internvl.hidden_states([window])
        assert (states - wanted).abs().max() < 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("kind", random_chat.LANGUAGES)
def test_a_window_is_bos_prefix_text_eos_padding(kind, chats, adapters):
    clip = clip_of(chats, adapters, kind)
    tokenizer, words = clip.tokenizer.tokenizer, random_chat.folder_words(kind)
    bos = 1 if kind == "internlm2" else words["<|im_start|>"]
    pad = 2 if kind == "internlm2" else words["<|endoftext|>"]
    prefix, text = [piece.id for piece in tokenizer.prefix], [piece.id for piece in tokenizer.encode("a cat")]
    assert tokenizer.decode(prefix) == "summarize:" and tokenizer.frame.prefix == tuple(prefix)
    (window,), (bare,) = windows_of(clip, "a cat"), windows_of(negative_view(clip), "a cat")
    inside = [*text, words["<|im_end|>"]]
    assert window == [bos, *prefix, *inside, *[pad] * (77 - 1 - len(inside))]  # 77 rows behind the prefix
    assert bare == [bos, *inside, *[pad] * (77 - 1 - len(inside))]
    assert windows_of(clip, "") == [[bos, words["<|im_end|>"], *[pad] * 75]]


@pytest.mark.parametrize("kind", random_chat.LANGUAGES)
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_the_text_again_and_know_where_they_stand(text, kind, chats, adapters):
    tokenizer = clip_of(chats, adapters, kind).tokenizer.tokenizer
    pieces, raw = tokenizer.encode(text), text.encode()
    together = "".join(unit.text for unit in units(pieces))
    assert together in (text, "Ɵ‎é é") and "\ufffd" not in together
    assert all(piece.offset is not None and piece.end is not None for piece in pieces)
    for piece in pieces:
        if piece.bytes is None and piece.text.strip("▁") and "\u0301" not in text:
            assert raw[piece.offset : piece.end].decode() == piece.text.lstrip("▁")


@pytest.mark.parametrize("kind", random_chat.LANGUAGES)
def test_weights_windows_and_break_act(kind, chats, adapters):
    clip = clip_of(chats, adapters, kind)
    plain, same, strong, broken, long = (
        context
        for ((context, _),) in encode_prompts(clip, ["a cat", "(a:1) cat", "(a:1.5) cat", "a BREAK cat", "a " * 90])
    )
    assert torch.equal(plain, same) and not torch.allclose(plain, strong, atol=1e-4)
    assert plain.shape == (1, 8, 768) and broken.shape[1] == 16 and long.shape[1] >= 16
    rows = clip.tokenize("a (cat:1.3) dog", return_word_ids=True)["l"][0]
    weighted = [token_id for token_id, weight, _ in rows if weight != 1]
    assert clip.tokenizer.decode(weighted).strip() == "cat"
    assert max(word for *_, word in rows) == 3


def test_prompts_together_are_what_each_is_alone(chats, adapters):
    clip = clip_of(chats, adapters)
    together = encode_prompts(clip, TEXTS, ["ugly"])
    alone = [clip.encode_from_tokens(clip.tokenize(text)) for text in TEXTS]
    alone.append(clip.encode_from_tokens(negative_view(clip).tokenize("ugly")))
    for ((context, values),), wanted in zip(together, alone, strict=True):
        assert torch.allclose(context, wanted, atol=2e-5)
        assert values["mulan"]["text_encoder"] == "qwen3-opengvlab"
    assert together[0][0][1]["mulan"]["prompt"] == "the red circle"


@pytest.mark.parametrize("kind", random_chat.LANGUAGES)
def test_the_inspector_shows_bytes_as_characters(kind, chats, adapters):
    clip = clip_of(chats, adapters, kind)
    report = format_report(
        inspect_prompt(
            clip.tokenizer, "a (红色:1.3) 😀 <|endoftext|>" if kind != "internlm2" else "a (红色:1.3) 😀 </s>"
        )
    )
    assert "prefix summarize:" in report and "×1.3" in report and "😀" in report and "is masked" in report


@pytest.mark.parametrize("kind", random_chat.LANGUAGES)
def test_words_of_scripts_without_spaces_are_pieces(kind, chats, adapters):
    split = unit_splitter(clip_of(chats, adapters, kind).tokenizer.tokenizer)
    words = prompt_words("红色的猫 cat", split)
    assert "".join(word.text for word in words) == "红色的猫cat" and words[-1].text == "cat"


def test_a_remembered_prompt_reads_no_weight(chats, adapters, tmp_path, monkeypatch):
    memory = PromptMemory(tmp_path)
    monkeypatch.setattr("mulan_nodes.mulan.checkpoints.file_content._is_settled", lambda version: True)
    first = encode_prompts(clip_of(chats, adapters, memory=memory), ["a cat"])[0][0][0]
    again = clip_of(chats, adapters, memory=memory)
    monkeypatch.setattr(type(again), "load_model", lambda *_: pytest.fail("the weights were loaded"))
    assert torch.equal(encode_prompts(again, ["a cat"])[0][0][0], first)


@pytest.mark.parametrize("kind", random_chat.LANGUAGES)
@pytest.mark.parametrize(("weight_format", "tolerance"), [("int8", 0.05), ("int4", 0.4), ("fp8", 0.2), ("fp16", 0.01)])
def test_converted_files_encode_alike_and_keep_their_fingerprint(
    kind, weight_format, tolerance, chats, adapters, tmp_path
):
    result = convert(chats[kind, "opengvlab"], tmp_path, weight_format=weight_format)
    source, converted = open_prompt_encoder(chats[kind, "opengvlab"]), open_prompt_encoder(result.path)
    assert converted.kind == source.kind == kind and converted.fingerprint() == source.fingerprint()
    states = [
        load_clip(file, adapters[kind], device="cpu").cond_stage_model.internvl.hidden_states([[1, 30, 40, 50, 2]])[0]
        for file in (source, converted)
    ]
    assert (states[1] - states[0]).norm() < tolerance * states[0].norm()


def test_a_fingerprint_tells_encoders_of_one_kind_apart(chats, tmp_path):
    first, hf = (open_prompt_encoder(chats["qwen3", layout]) for layout in ("opengvlab", "hf"))
    assert first.fingerprint() == hf.fingerprint()
    other = shutil.copytree(chats["qwen3", "opengvlab"], tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["language_model.model.norm.weight"] += 0.1
    save_file(tensors, other / "model.safetensors")
    assert open_prompt_encoder(other).fingerprint() != first.fingerprint()


def test_adapters_fit_the_kind_they_were_trained_with(chats, adapters):
    encoder = open_prompt_encoder(chats["qwen3", "opengvlab"])
    check_pair(encoder, open_adapter(adapters["qwen3"]))
    for name in ("qwen2", "internlm2", "internvl_llama", "published"):
        with pytest.raises(
            WrongFileError, match="was trained with .*, but the text encoder qwen3-opengvlab is .*Qwen3"
        ):
            check_pair(encoder, open_adapter(adapters[name]))
    with pytest.raises(WrongFileError, match="of the kind 'gpt9'.*update MuLan Nodes"):
        open_adapter(adapters["gpt9"])
    with pytest.raises(WrongFileError, match="a whole MuLan PixArt model was trained with"):
        load_clip(chats["qwen3", "opengvlab"], None)


def test_pixart_takes_no_other_width(chats, tmp_path):
    tensors = {name: tensor.clone() for name, tensor in TextProjection(WIDTH, 1152).state_dict().items()}
    save_file(tensors, tmp_path / "pixart.safetensors", metadata={KIND_KEY: "qwen3"})
    with pytest.raises(WrongFileError, match="for PixArt, whose MODEL takes states of width 4096, but .* gives 48"):
        check_pair(open_prompt_encoder(chats["qwen3", "opengvlab"]), open_adapter(tmp_path / "pixart.safetensors"))


def test_another_encoder_of_the_kind_is_a_warning(chats, adapters, tmp_path, caplog):
    encoder = open_prompt_encoder(chats["qwen3", "opengvlab"])
    for fingerprint, warns in ((encoder.fingerprint(), False), ("0" * 16, True)):
        path = tmp_path / f"{warns}.safetensors"
        labels = {KIND_KEY: "qwen3", FINGERPRINT_KEY: fingerprint, "text_encoder": "InternVL3_5-1B"}
        save_file(load_file(adapters["qwen3"]), path, metadata=labels)
        assert bool(pair_warning(encoder, open_adapter(path))) is warns
        load_clip(encoder, path, device="cpu")
        assert ("(InternVL3_5-1B)" in caplog.text) is warns


def test_a_tokenizer_that_lacks_what_a_window_needs_is_named(chats, adapters, tmp_path):
    folder = shutil.copytree(chats["qwen2", "hf"], tmp_path / "chat")
    text = (folder / "tokenizer.json").read_text("utf-8").replace("<|endoftext|>", "<|nothing|>")
    (folder / "tokenizer.json").write_text(text, "utf-8")
    with pytest.raises(WrongFileError, match=r"chat .*no token <\|endoftext\|> or </s>"):
        load_clip(folder, adapters["qwen2"])


@pytest.mark.parametrize("kind", random_chat.LANGUAGES)
def test_what_clip_save_writes_loads_again(kind, chats, adapters, tmp_path):
    clip = clip_of(chats, adapters, kind)
    tensors = {name: tensor.contiguous() for name, tensor in clip.get_sd().items()}
    save_file(tensors, tmp_path / "saved.safetensors")
    again = open_prompt_encoder(tmp_path / "saved.safetensors")
    assert open_adapter(tmp_path / "saved.safetensors").encoder_kind == kind
    assert again.kind == kind and again.fingerprint() == open_prompt_encoder(chats[kind, "opengvlab"]).fingerprint()
    loaded = load_clip(again, adapters[kind], device="cpu")
    wanted, context = (encode_prompts(each, ["红 circle"])[0][0][0] for each in (clip, loaded))
    assert torch.equal(wanted, context)


def test_training_states_are_what_the_adapter_reads(chats):
    encoder = CaptionEncoder(open_prompt_encoder(chats["qwen3", "opengvlab"]), SD15)
    states = LiveCaptions(encoder)(["a cat", "", "红色的圆"]).rows
    assert states.shape == (3, 77, WIDTH) and encoder.states_size == WIDTH and encoder.file.kind == "qwen3"
    assert encoder.file.fingerprint() == open_prompt_encoder(chats["qwen3", "hf"]).fingerprint()


def test_the_shipped_tiny_chat_is_a_text_encoder(tmp_path):
    path = tmp_path / CHAT.name
    write_tiny_models({CHAT: path})
    encoder = open_prompt_encoder(path)
    assert encoder.kind == "qwen3"
    assert LiveCaptions(CaptionEncoder(encoder, SD15))(["un chat"]).rows.isfinite().all()
