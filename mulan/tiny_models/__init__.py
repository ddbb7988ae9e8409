"""Tiny models of colored shapes and of 130 things, packed, and their unpacking into the files that ComfyUI loads."""
