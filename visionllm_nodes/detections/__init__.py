"""Detections on ComfyUI's sockets and in files, and how they are drawn: pure functions that know no node and no server.

Box lists, keypoint records and documents have one entry per image of the batch, in its order.
"""
