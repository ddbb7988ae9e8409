"""VisionLLM v2 in ComfyUI: its library in `model`."""
