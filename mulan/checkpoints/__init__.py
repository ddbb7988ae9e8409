"""Model files: opened lazily, identified by their tensors, quantized and written; what all three models share."""
