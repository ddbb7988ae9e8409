"""VisionLLM v2 in ComfyUI: its library in `model`, what answers become in `formats`, and the nodes (`node_list`)."""
