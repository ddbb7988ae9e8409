"""MuLan Nodes: MuLan, VisionLLM v2 and InternVL for ComfyUI.

ComfyUI is imported only when it calls `comfy_entrypoint`: tests and command lines use the library without a server.
"""

import os
from contextlib import suppress

WEB_DIRECTORY = "./web"  # help pages, and scripts of the editor
MODEL_FOLDERS = ("mulan", "visionllm", "internvl", "internvl_chat")


async def comfy_entrypoint():
    """Register the model folders and return the extension with every node."""
    from comfy_api.latest import ComfyExtension

    from .nodes.node_list import NODES
    from .visionllm_nodes.node_list import NODES as VISIONLLM_NODES

    class MulanNodes(ComfyExtension):
        async def on_load(self):
            for name in MODEL_FOLDERS:
                _add_model_folder(name)

        async def get_node_list(self):
            return [*NODES, *VISIONLLM_NODES]

    return MulanNodes()


def _add_model_folder(name: str) -> None:
    """Add models/<name> behind the folders of extra_model_paths.yaml, listing model files only; make it."""
    import folder_paths

    folder = os.path.join(folder_paths.models_dir, name)
    with suppress(OSError):  # one that cannot be made lists nothing
        os.makedirs(folder, exist_ok=True)
    folder_paths.add_model_folder_path(name, folder)
    folders, extensions = folder_paths.folder_names_and_paths[name]
    folder_paths.folder_names_and_paths[name] = (folders, extensions | folder_paths.supported_pt_extensions)
