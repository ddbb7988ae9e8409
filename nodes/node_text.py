"""Text that a node shows about its result: below its widgets in the editor, and under "text" in the history that headless clients read."""
from __future__ import annotations

from comfy_api.latest import io, ui
from server import PromptServer


def show(node: type[io.ComfyNode], text: str) -> ui.PreviewText:
    """For `NodeOutput(ui=...)`; the node's schema must have ``io.Hidden.unique_id``."""
    PromptServer.instance.send_progress_text(text, node.hidden.unique_id)
    return ui.PreviewText(text)
