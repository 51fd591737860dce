#!/usr/bin/env bash
# Extraction, selection and generation on one GPU beside the plain code, on random models of the 1.5B and 8B shapes.
#
#     bash benchmarks/gpu.sh [OUT]          needs torch with CUDA and this repository; at most 8 minutes
#
# One line of JSON per measurement in OUT (default: gpu.jsonl). Each shape ends after its share of the time.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD/src:$PWD/benchmarks" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
out=${1:-${OUT:+$OUT/}gpu.jsonl}
timeout 150 "$python" benchmarks/gpu.py 1.5B --seconds 120 --out "$out" || echo "1.5B ended with $?" >&2
timeout 300 "$python" benchmarks/gpu.py 8B --seconds 260 --out "$out" || echo "8B ended with $?" >&2
cat "$out"
