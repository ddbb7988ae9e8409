"""What several unit tests need."""

from __future__ import annotations

import threading
import time

import pytest


@pytest.fixture
def stop_soon():
    """Press Stop in a moment; the list gets the time."""
    from comfy.model_management import interrupt_current_processing  # behind the choice of the device

    pressed = []

    def press():
        pressed.append(time.monotonic())
        interrupt_current_processing(True)

    timer = threading.Timer(0.3, press)
    yield timer, pressed
    timer.cancel()
    interrupt_current_processing(False)
