"""VisionLLM v2 as plain torch modules that take ComfyUI's `operations`.

Source: OpenGVLab/VisionLLM, folder VisionLLMv2 (Wu et al. 2024, "VisionLLM v2: An End-to-End Generalist Multimodal Large Language Model for
Hundreds of Vision-Language Tasks").
"""
