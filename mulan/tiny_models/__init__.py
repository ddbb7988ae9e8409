"""Tiny models of a world of colored shapes, packed, and their unpacking into the files that ComfyUI loads."""
