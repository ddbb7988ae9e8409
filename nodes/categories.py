"""Where the nodes stand in the editor's menu and library: one root, a subject each below it."""

ROOT = "MuLan Nodes"
MULAN = f"{ROOT}/MuLan"
VISIONLLM = f"{ROOT}/VisionLLM"
INTERNVL = f"{ROOT}/InternVL"
DETECTIONS = f"{ROOT}/Detections"
