"""MuLan: a ComfyUI CLIP made of InternVL's LLaMA and a language adapter."""
