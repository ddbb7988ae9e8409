"""mulankit 1.0.2 as a side of the comparison, through its public `transform` on a Stable Diffusion 1.5 pipeline of tiny
parts.

Runs in an environment of its own: nothing of this repository but `cases` and `worker` is imported.
"""

# pyright: reportMissingImports=false, reportPrivateImportUsage=false, reportArgumentType=false
# (mulankit is not in our environment, and diffusers' declared types are narrower than what it takes)
from __future__ import annotations

import argparse

# A script in an environment without this package: its own folder is on sys.path.
from cases import CASES, Case
from worker import CallCounter, memory, profiled, serve, take_stdout, timed  # noqa: E402

ANSWERS = take_stdout()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel  # noqa: E402
from mulankit import transform  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel  # noqa: E402


class Upstream:
    def __init__(self, options: argparse.Namespace):
        self._options = options
        self._dtype = getattr(torch, options.dtype)
        self._pipe = tiny_pipeline().to(self._dtype)
        self._pipe.set_progress_bar_config(disable=True)

    def imported(self) -> dict:
        return memory()

    def load(self, profile: bool = False):
        """Load as a user does: the text encoder comes in the dtype of the pipeline's own."""

        def work():
            transform(self._pipe, adapter_path=self._options.adapter, text_encoder_path=self._options.text_encoder)

        if profile:
            return profiled(work)
        times, _ = timed(work)
        return {**times, **memory()}

    def encode(self, case: str, output: str | None = None, profile: bool = False):
        """Prompts -> the contexts that the cross-attention reads. One pass of the adapter is counted; a pipeline
        repeats it at every step.
        """
        work = lambda: self._contexts(CASES[case])  # noqa: E731
        if profile:
            return profiled(work)
        times, contexts = timed(work)
        if output:
            np.save(output, contexts.float().numpy())
        return {**times, **memory()}

    def sample(self, steps: int) -> dict:
        """The adapter's calls while a picture is denoised, encoding not counted."""
        case = CASES["empty_negative"]
        with torch.no_grad():
            positive, negative = self._pipe.encode_prompt(case.prompts[0], "cpu", 1, True, "")
        counter = CallCounter(self._pipe.unet.adapter)
        self._pipe.encode_prompt, original = lambda *_, **__: (positive, negative), self._pipe.encode_prompt
        try:
            self._pipe(
                case.prompts[0],
                num_inference_steps=steps,
                height=64,
                width=64,
                output_type="latent",
                guidance_scale=7.5,
            )
        finally:
            self._pipe.encode_prompt = original
            counter.remove()
        return {"calls": counter.calls, "seconds": counter.seconds}

    @torch.no_grad()
    def _contexts(self, case: Case) -> torch.Tensor:
        """-> [positives then negatives, 120, 768]."""
        if case.theirs == "singly":
            return torch.cat([self._call([prompt], [])[0] for prompt in case.prompts])
        return torch.cat(self._call(list(case.prompts), list(case.negatives)))

    def _call(self, prompts: list[str], negatives: list[str]) -> list[torch.Tensor]:
        positive, negative = self._pipe.encode_prompt(prompts, "cpu", 1, bool(negatives), negatives or None)
        if not negatives:
            return [self._pipe.unet.adapter(positive)]
        return list(self._pipe.unet.adapter(torch.cat([negative, positive])).chunk(2))[::-1]


def tiny_pipeline() -> StableDiffusionPipeline:
    """All but the text is as small as diffusers builds it: it is not measured."""
    torch.manual_seed(0)
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=1, vocab_size=1000
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=768,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 64),
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=None,
        unet=unet,
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--text-encoder", required=True)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--dtype", choices=("float32", "float16"), required=True)
    side = Upstream(parser.parse_args())
    serve(ANSWERS, {"imported": side.imported, "load": side.load, "encode": side.encode, "sample": side.sample})


if __name__ == "__main__":
    main()
