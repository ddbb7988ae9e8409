"""The sheet of images: what its labels say."""

from __future__ import annotations

import numpy as np
import pytest

from mulan_nodes.mulan.images.text_drawing import TextRenderer
from mulan_nodes.tools.contact_sheet import SheetRow, contact_sheet


def sheet(own_name: str) -> np.ndarray:
    row = SheetRow("Bangla", own_name, [np.zeros((96, 96, 3), np.uint8)])
    return np.asarray(contact_sheet("One word", "", ["lion"], {"With MuLan": [row]}, cell=96))


@pytest.mark.parametrize(("own_name", "has_font"), [("বাংলা", False), ("Bangla", True), ("中文", False)])
def test_a_name_that_no_font_has_is_left_out(own_name, has_font, monkeypatch):
    monkeypatch.setattr(TextRenderer, "draws", lambda self, text: has_font)
    is_drawn = has_font or own_name == "中文"  # which was drawn once for all machines
    assert np.array_equal(sheet(own_name), sheet("")) is not is_drawn
