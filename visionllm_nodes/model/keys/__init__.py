"""The published checkpoint's names, part by part: which of its tensors each of ours is made of."""
