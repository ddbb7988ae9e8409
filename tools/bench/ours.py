"""This pack as a side of the comparison: `load_clip` and `encode_prompts`, the code that the nodes run, on ComfyUI's
classes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mulan_nodes.tools.bench.cases import CASES, Case
from mulan_nodes.tools.bench.worker import CallCounter, LeastFree, memory, profiled, serve, take_stdout, timed  # noqa: E402

ANSWERS = take_stdout()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from mulan_nodes.tools import comfyui  # noqa: E402


class Ours:
    """One CLIP in one process. `comfyui_arguments` go to ComfyUI's command line; the clip modules are imported behind
    them.
    """

    def __init__(self, options: argparse.Namespace):
        comfyui.open_comfyui(*options.comfyui_arguments)
        self.dynamic = _dynamic_memory()
        from mulan_nodes.mulan.conditioning import clip

        self._options, self._clip_module = options, clip
        self._clip: Any = None  # until `load`

    def imported(self) -> dict:
        return memory()

    @torch.inference_mode()
    def load(self, profile: bool = False):
        def work():
            self._clip = self._clip_module.load_clip(self._options.text_encoder, self._options.adapter, "upstream")

        if profile:
            return profiled(work)
        times, _ = timed(work)
        return {**times, **memory()}

    @torch.inference_mode()
    def encode(self, case: str, output: str | None = None, profile: bool = False):
        work = lambda: self._contexts(CASES[case])  # noqa: E731
        if profile:
            return profiled(work)
        times, contexts = timed(work)
        if output:
            np.save(output, contexts.float().numpy())
        return {**times, **memory()}

    @torch.inference_mode()
    def floor(self, rows: int) -> dict:
        """The text encoder's linear layers on so many rows, and nothing else: no ComfyUI, no norms, no attention, no
        adapter.
        """
        layers = self._clip.cond_stage_model.internvl.transformer.model.layers
        narrow = torch.randn(rows, self._width())
        wide = torch.randn(rows, layers[0].mlp.down_proj.weight.shape[1])

        def work():
            for layer in layers:
                attention, mlp = layer.self_attn, layer.mlp
                for linear in (
                    attention.q_proj,
                    attention.k_proj,
                    attention.v_proj,
                    attention.o_proj,
                    mlp.gate_proj,
                    mlp.up_proj,
                ):
                    torch.nn.functional.linear(narrow, linear.weight)
                torch.nn.functional.linear(wide, mlp.down_proj.weight)

        return timed(work)[0]

    @torch.inference_mode()
    def sample(self, steps: int, checkpoint: str) -> dict:
        """The adapter's calls while a picture is denoised by ComfyUI's sampler, encoding not counted."""
        import comfy.sample
        import comfy.sd

        from mulan_nodes.mulan.conditioning.adapter import LanguageAdapter

        model = comfy.sd.load_checkpoint_guess_config(checkpoint, output_vae=False, output_clip=False)[0]
        positive, negative = self._encode(CASES["empty_negative"])
        adapter = next(
            module for module in self._clip.cond_stage_model.modules() if isinstance(module, LanguageAdapter)
        )
        counter = CallCounter(adapter)
        try:
            latent = torch.zeros(1, 4, 8, 8)
            noise = comfy.sample.prepare_noise(latent, 1)
            comfy.sample.sample(
                model, noise, steps, 7.5, "ddim", "normal", positive, negative, latent, disable_pbar=True, seed=1
            )
        finally:
            counter.remove()
        return {"calls": counter.calls, "seconds": counter.seconds}

    def card(self) -> dict:
        """The accelerator: its name, bytes in all and bytes free now."""
        import comfy.model_management as management

        device = management.get_torch_device()
        return {
            "name": str(management.get_torch_device_name(device)),
            "total": management.get_total_memory(device),
            "free": self._free(),
            "dynamic": self.dynamic,
        }

    @torch.inference_mode()
    def encode_watched(self, case: str) -> dict:
        """As `encode`, synchronized; with the bytes of the card taken at the peak, the process's context included."""
        before = self._options.free_before
        with LeastFree(self._free) as least:

            def work():
                contexts = self._contexts(CASES[case])
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                return contexts

            times, contexts = timed(work)
        return {**times, "peak": before - least.value, "finite": bool(contexts.isfinite().all())}

    @staticmethod
    def _free() -> int:
        if torch.cuda.is_available():
            return torch.cuda.mem_get_info()[0]
        import psutil

        return psutil.virtual_memory().available

    def _width(self) -> int:
        return self._clip.cond_stage_model.internvl.config.hidden_size

    def _contexts(self, case: Case) -> torch.Tensor:
        """-> [positives then negatives, 120, 768]."""
        return torch.cat([conditioning[0][0] for conditioning in self._encode(case)])

    def _encode(self, case: Case) -> list:
        return self._clip_module.encode_prompts(self._clip, list(case.prompts), list(case.negatives))


def _dynamic_memory() -> bool:
    """Switch ComfyUI's dynamic VRAM on where its own start would; whether it is on."""
    import comfy_aimdo.control
    from comfy.cli_args import args, enables_dynamic_vram

    if not enables_dynamic_vram():
        return False
    comfy_aimdo.control.init(simple_vram_headroom=None, nvml_pressure=not args.disable_nvml_pressure)
    import comfy.memory_management
    import comfy.model_management
    import comfy.model_patcher

    if not comfy.model_management.is_nvidia():
        return False
    devices = [(device.index, 0) for device in comfy.model_management.get_all_torch_devices()]
    if not comfy_aimdo.control.init_devices(devices):
        return False
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True
    return True


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--text-encoder", required=True)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--free-before", type=int, default=0, help="bytes of the card free before this process")
    parser.add_argument("--comfyui-arguments", nargs=argparse.REMAINDER, default=[])
    side = Ours(parser.parse_args())
    serve(
        ANSWERS,
        {
            name: getattr(side, name)
            for name in ("imported", "load", "encode", "floor", "sample", "card", "encode_watched")
        },
    )


if __name__ == "__main__":
    main()
