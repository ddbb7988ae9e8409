"""Where models that see images compute, and what the log says of it."""

from __future__ import annotations

import logging

import pytest
import torch
from comfy import model_management
from comfy.model_management import VRAMState

from mulan_nodes.mulan.checkpoints.devices import choose_devices, log_device

CARD, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture
def card(monkeypatch):
    """Let ComfyUI see a GPU, in a memory state."""

    def in_state(state: VRAMState, fast: bool = True):
        monkeypatch.setattr(model_management, "get_torch_device", lambda: CARD)
        monkeypatch.setattr(model_management, "vram_state", state)
        monkeypatch.setattr(model_management, "should_use_fp16", lambda *_, **__: fast)

    return in_state


@pytest.mark.parametrize("state", [VRAMState.HIGH_VRAM, VRAMState.NORMAL_VRAM, VRAMState.LOW_VRAM, VRAMState.NO_VRAM])
def test_on_a_gpu_they_compute_there_however_little_memory_it_has(card, state):
    card(state)
    assert choose_devices(sees_images=True) == (CARD, CPU)
    assert choose_devices("cpu", sees_images=True) == (CPU, CPU)
    assert choose_devices() == (model_management.text_encoder_device(), CPU)


@pytest.mark.parametrize("state", [VRAMState.NORMAL_VRAM, VRAMState.LOW_VRAM, VRAMState.NO_VRAM])
def test_a_gpu_too_old_for_text_encoders_is_not_used(card, state):
    card(state, fast=False)
    assert choose_devices(sees_images=True) == (CPU, CPU)


@pytest.mark.parametrize("state", [VRAMState.SHARED, VRAMState.DISABLED])
def test_elsewhere_comfyui_s_choice_stands(card, state):
    card(state)
    assert choose_devices(sees_images=True) == (model_management.text_encoder_device(), CPU) == (CPU, CPU)


def test_the_log_says_where(card, caplog):
    caplog.set_level(logging.INFO)
    log_device("M", CPU, torch.float32)
    card(VRAMState.SHARED)
    log_device("M", CARD, torch.bfloat16)
    log_device("M", CPU, torch.float32)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "M computes on cpu in float32"),
        ("INFO", "M computes on cuda:0 in bfloat16"),
        ("WARNING", "M computes on cpu in float32, not on the GPU"),
    ]
