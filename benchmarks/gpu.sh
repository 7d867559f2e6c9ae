#!/bin/bash
# Measures on one NVIDIA GPU in a single call of under nine minutes, without a network: from the repository's root,
#   OUT=FOLDER bash benchmarks/gpu.sh
# writes FOLDER/tables.md and a JSON for each run. PyTorch's sides are left out, and this is said, where PyTorch with CUDA is not
# installed. A run that takes too long is ended, with what it measured kept, or is skipped; this is said too.
# Made for an H200, JAX 0.11 and Python 3.12; not yet run on one.
# PARTS="forward extract choices step batch": of these, in this order.
# TSP_BENCHMARK_SMALL=1: the same runs at their smallest, on any device, to see that they work.
set -u
out=${OUT:-benchmarks_gpu}
python=${PYTHON:-python3}
budget_sec=${BUDGET_SEC:-520}
mkdir -p "$out"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

backbones=(r2plus1d_34 r2plus1d_18 r3d_18)
dtypes=(bfloat16 float32)
batches=(64 128 256)      # of our forward pass, to choose one
batch=32                  # beside PyTorch
rivals=(released best)
turns=(--rounds 3 --seconds 1)
frames=(--clip 16 112 112)
forward=()                # of the choices: all of them
videos=(--synthetic 16 --length 60 60)
strides=(16 1)
if [ -n "${TSP_BENCHMARK_SMALL:-}" ]; then
  backbones=(r3d_18) dtypes=(float32) batches=(1) batch=2 strides=(7)
  turns=(--rounds 1 --seconds 0.05) rivals=(released best --variants channels_last) frames=(--clip 4 32 32)
  forward=(--forward 3-D 'folded and padded')
  videos=(--synthetic 1 --length 4 4 --clip_len 4)
fi
$python -c 'import torch, torchvision, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null ||
  [ -n "${TSP_BENCHMARK_SMALL:-}" ] ||
  { rivals=(); echo "PyTorch with CUDA is not installed: its sides are left out" | tee -a "$out/tables.md"; }

status=0
# run NAME SECONDS MODULE FLAGS…: one benchmark, of at most that many seconds
run() {
  local name=$1 seconds=$2 module=$3
  shift 3
  local left=$((budget_sec - SECONDS))
  [ "$left" -lt "$seconds" ] && seconds=$left
  echo "== $name" | tee -a "$out/tables.md"
  if [ "$seconds" -lt 20 ]; then
    echo "skipped: no time left" | tee -a "$out/tables.md"
    status=1
    return
  fi
  timeout "$seconds" "$python" -m "benchmarks.$module" "$@" "${turns[@]}" --json "$out/$name.json" | tee -a "$out/tables.md"
  local ended=${PIPESTATUS[0]}
  if [ "$ended" -ne 0 ]; then
    echo "ended with status $ended after at most $seconds s" | tee -a "$out/tables.md"
    status=1
  fi
}

# What matters most comes first. Together the limits are more than the budget: a run that ends early leaves its rest to the next.
for part in ${PARTS:-forward extract choices step batch}; do
  case $part in
    forward) run forward 180 model --mode forward --backbone "${backbones[@]}" --dtype "${dtypes[@]}" --batch "$batch" \
      "${frames[@]}" --rival "${rivals[@]}" ;;
    extract) run extract 120 extract --backbone "${backbones[0]}" --dtype "${dtypes[0]}" --stride "${strides[@]}" \
      --batch "$batch" "${videos[@]}" --rival "${rivals[@]}" ;;
    # 2-D or 3-D convolutions, BatchNorm folded, widths padded to multiples of 8, donation, asynchronous dispatch.
    choices) run choices 110 studies.choices --backbone "${backbones[0]}" --dtype "${dtypes[0]}" --batch "$batch" "${frames[@]}" \
      "${forward[@]}" ;;
    step) run step 120 model --mode step --backbone "${backbones[@]}" --dtype "${dtypes[0]}" --batch "$batch" \
      "${frames[@]}" --rival "${rivals[@]}" ;;
    batch) run batch 60 model --mode forward --backbone "${backbones[0]}" --dtype "${dtypes[0]}" --batch "${batches[@]}" \
      "${frames[@]}" --rival ;;
    *) echo "PARTS: expected some of forward, extract, choices, step, batch; got $part" >&2; exit 2 ;;
  esac
done
exit $status
