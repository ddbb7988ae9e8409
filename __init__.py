"""MuLan Nodes: prompts in 110+ languages for the checkpoints you have, VisionLLM v2 to ask about pictures, InternVL to label and rank them."""
import os

import folder_paths
from comfy_api.latest import ComfyExtension, io

from .nodes import NODES
from .visionllm_nodes.node_list import NODES as VISIONLLM_NODES

WEB_DIRECTORY = "./web"  # the nodes' help pages


def _add_model_folder(name: str) -> None:
    """models/<name>, beside what extra_model_paths.yaml has given; without the extensions every kind of file would be listed."""
    folder_paths.add_model_folder_path(name, os.path.join(folder_paths.models_dir, name))
    folders, extensions = folder_paths.folder_names_and_paths[name]
    folder_paths.folder_names_and_paths[name] = (folders, extensions | folder_paths.supported_pt_extensions)


for kind in ("mulan", "visionllm", "internvl", "internvl_chat"):
    _add_model_folder(kind)


class MulanNodes(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [*NODES, *VISIONLLM_NODES]


async def comfy_entrypoint() -> MulanNodes:
    return MulanNodes()
