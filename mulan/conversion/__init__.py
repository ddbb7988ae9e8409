"""Published checkpoints converted to single files for ComfyUI.

Run as a command from ComfyUI's folder: `python -m custom_nodes.mulan-nodes.mulan.conversion --help`.
"""
