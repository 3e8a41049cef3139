#!/bin/sh
# Install torch's CPU build: pip's configured sources first, then PyTorch's CPU index when it answers, so that
# nobody downloads CUDA for a demo. Usage: install_torch.sh PYTHON VERSION
set -eu
python=$1
version=$2
"$python" -c 'import torch' 2>/dev/null && exit 0
if "$python" -m pip install --quiet "torch==$version+cpu" 2>/dev/null; then
  exit 0
fi
index="https://download.pytorch.org/whl/cpu"
if "$python" -m pip install --quiet --index-url "$index" "torch==$version+cpu" 2>/dev/null; then
  exit 0
fi
echo "torch $version: no CPU build was found; installing the default build" >&2
exec "$python" -m pip install --quiet "torch==$version"
