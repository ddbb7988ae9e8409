#!/bin/bash
# The GPU check, from anywhere: bash tools/gpu_check/gpu_check.sh. See README.md for the variables.
set -u
HERE="$(cd "$(dirname "$0")" && pwd)"
ROOT="$(cd "$HERE/../.." && pwd)"
CARRY="${CARRY:-$ROOT/.gpu/gpu_check.tar.xz}"
WORK="${WORK:-$ROOT/.cache/gpu_check}"
OUT="${OUT:-$WORK/out}"
PY="${PY:-python3}"
mkdir -p "$WORK/path" "$OUT"
WORK="$(cd "$WORK" && pwd)"
OUT="$(cd "$OUT" && pwd)"
start=$(date +%s)
if [ -z "${COMFYUI_DIR:-}" ]; then
  # where the archive brought the repository too, all is unpacked already
  if [ -d "$ROOT/../comfyui" ] && [ -d "$ROOT/../site" ]; then
    ln -sfn "$ROOT/../comfyui" "$WORK/comfyui"
    ln -sfn "$ROOT/../site" "$WORK/site"
  else
    tar -C "$WORK" -xf "$CARRY" || exit 1
  fi
  COMFYUI_DIR="$WORK/comfyui"
  PYTHONPATH="$WORK/site${PYTHONPATH:+:$PYTHONPATH}"
  ln -sfn "$ROOT" "$COMFYUI_DIR/custom_nodes/MuLan-Nodes"
fi
ln -sfn "$ROOT" "$WORK/path/mulan_nodes"
export PYTHONPATH="$WORK/path:$COMFYUI_DIR${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1 KINETO_LOG_LEVEL=99
echo "unpacked in $(( $(date +%s) - start )) s"
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>/dev/null
exec "$PY" "$HERE/gpu_check.py" --comfyui "$COMFYUI_DIR" --out "$OUT" --work "$WORK" --device "${GPU_DEVICE:-cuda}" \
  --seconds "${SECONDS_MAX:-530}" ${QUICK:+--quick} ${ONLY:+--only $ONLY}
