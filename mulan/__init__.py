"""MuLan and InternVL in ComfyUI: text encoder, tokenizer, adapters, files, training and evaluation.

Nothing here imports a node or the server; model code takes ComfyUI's ``operations``.
"""

VERSION = "0.14.0"
