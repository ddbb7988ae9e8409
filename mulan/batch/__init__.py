"""A table of prompts over several ComfyUI servers.

Everything here is light: no torch, no ComfyUI. Ray is imported where its actors are made, pyarrow where a Parquet file
is read or written.
"""
