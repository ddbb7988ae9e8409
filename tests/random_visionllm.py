"""A VisionLLM v2 with random weights as a published folder: everything of the real one but its size and its wits."""
from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path

import sentencepiece
from safetensors.torch import save_file

PARITY = Path(__file__).parent / "parity"
PIECES = 320
ADDED = 26
SETTINGS = {"tiles": 4, "short": 96, "long": 160, "semantic_short": 96, "semantic_long": 160}

WORDS = ("A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to "
         "the user's questions. USER: ASSISTANT: Can you analyze the image and identify the red circle, blue square present? Yes, here are the "
         "results for in the image. Where can we locate the")


def sentencepiece_model(pieces: int) -> bytes:
    """A LLaMA-like tokenizer model of exactly so many pieces, with bytes for whatever its letters lack (at least 300)."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS.split() * 20), model_writer=model, vocab_size=pieces, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", add_dummy_prefix=True, remove_extra_whitespaces=False, character_coverage=1.0,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1, hard_vocab_limit=False, minloglevel=2, num_threads=1)
    return model.getvalue()


def checkpoint(folder: Path, **told) -> Path:
    """A published folder with the golden model's sizes and recipe weights, but a vocabulary for a real tokenizer; `told` goes into config.json."""
    spec = importlib.util.spec_from_file_location("visionllm_case", PARITY / "visionllm_case.py")
    cases = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cases)
    golden = cases.Case(PARITY / "goldens" / "visionllm", "model")
    known, manifest = golden.facts["config"], dict(golden.facts["weights"])
    tokenizer = sentencepiece_model(PIECES)
    rows = sentencepiece.SentencePieceProcessor(model_proto=tokenizer).get_piece_size() + ADDED
    words = {name: [rows, shape[1]] for name, shape in manifest["tensors"].items() if name in ("llm.model.embed_tokens.weight", "llm.lm_head.weight")}
    manifest["tensors"] = {**manifest["tensors"], **words}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in golden.weights(manifest).items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({
        **known["model"], "llm_config": known["llm"], "vis_encoder_config": known["clip"], "unipose_config": known["unipose"],
        "gdino_config": {**known["gdino"], "backbone_config": known["gdino_backbone"]}, "picture_settings": SETTINGS, **told,
    }), "utf-8")
    (folder / "tokenizer.model").write_bytes(tokenizer)
    return folder
