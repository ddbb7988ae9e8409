"""What the answers become on ComfyUI's wires and in files, and how they are drawn. Pure functions: nothing here knows a node or the server.

Box lists, keypoint records and documents hold one entry for each picture of the batch, in its order.
"""
