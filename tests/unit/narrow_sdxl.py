"""A training of an SDXL adapter of few channels. A program too, which two processes run together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from mulan_nodes.mulan.conditioning.adapter import AdapterShape
from mulan_nodes.mulan.conditioning.adapter_sdxl import AdapterShapeXL
from mulan_nodes.mulan.training import adapters, run, text_states
from mulan_nodes.mulan.training.trainer import train_adapter


def fresh() -> adapters.TwoAdapters:
    halves = (AdapterShape(12, width, num_queries=6, intermediate_size=32) for width in (16, 8))
    adapter = adapters.TwoAdapters(AdapterShapeXL(*halves, pooled_dim=16, text_embeds_dim=None), embeds=True)
    adapters.init_weights(adapter, 1)
    return adapter


def states(captions, sizes) -> text_states.TextStates:
    rows = [torch.randn(7, 12, generator=torch.Generator().manual_seed(len(caption))) for caption in captions]
    return text_states.TextStates(torch.stack(rows), torch.tensor([c == "" for c in captions]), sizes=sizes)


def train(**changes) -> adapters.TwoAdapters:
    """An adapter with a size embedding of its own, against a denoiser that reads all it gives."""

    def denoiser(x, t, context):
        given = torch.cat([context.rows.mean(1), context.embedding[:, :40]], dim=1)
        return 0.5 * x + given.view(len(x), 4, 4, 4)

    latent = torch.randn(5, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([[9, 9, 0, 1, 8, 8]])
    examples = [{"latent": latent[i], "caption": "x" * i, "sizes": sizes[0] * (1 + i)} for i in range(5)]
    settings = run.TrainSettings(
        **{**dict(steps=3, batch_size=8, learning_rate=1e-2, warmup_steps=0, result_dtype="fp32"), **changes}
    )
    alphas = torch.linspace(0.999, 0.005, 1000)
    return train_adapter(fresh(), denoiser, states, examples, alphas, settings, report=lambda *_: None)


def run_on_two_processes(program: str, folder: Path) -> None:
    """Run a program as two processes of one training, on the CPU, with a folder as its argument."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", program, str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )
    assert done.returncode == 0, done.stderr[-3000:]


if __name__ == "__main__":
    train(batch_size=4, out_dir=Path(sys.argv[1]))
