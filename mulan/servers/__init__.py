"""ComfyUI servers and the workflows that are sent to them; what batches and training share."""
