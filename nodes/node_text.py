"""Text that a node shows about its result: below its widgets in the editor, and under "text" in the history that headless clients read."""
from __future__ import annotations

from comfy_api.latest import io, ui
from server import PromptServer


def show(node: type[io.ComfyNode], text: str, record: str | None = None) -> ui.PreviewText:
    """For `NodeOutput(ui=...)`; the node's schema must have ``io.Hidden.unique_id``. `record`: what the history gets instead of the text."""
    show_meanwhile(node, text)
    return ui.PreviewText(text if record is None else record)


def show_meanwhile(node: type[io.ComfyNode], text: str) -> None:
    """Below the node in the editor, while it works."""
    PromptServer.instance.send_progress_text(text, node.hidden.unique_id)
