#!/usr/bin/env bash
# Checks the GPU code, then measures everything: under 8 minutes on one GPU with 16 cores, offline.
#
#     benchmarks/gpu.sh OUT [--device cuda|cpu] [--quick] [--only PART,PART...]
#
# Needs a checkout and its packages (python3 from PATH; test extra: timm, scikit-image, scikit-learn,
# pytest). Writes JSON and a log of each part into OUT. The parts come in the order of their weight;
# each has a time limit. One that fails or runs out of time does not keep the others from running,
# and of a benchmark the rounds that are complete are written. The last lines say PASS, FAIL or
# SKIPPED for each part; the exit code is 1 if a check or a benchmark failed. What time did not
# suffice for is named in the last line, for `--only`.
#
# `--device cpu --quick` is the dry run for machines without a GPU: the same parts with tiny
# settings. Its numbers mean nothing.
set -u

usage() {
    echo "usage: benchmarks/gpu.sh OUT [--device cuda|cpu] [--quick] [--only PART,PART...]" >&2
    exit 2
}

parts=(parity kernels mix loss optimizer train budget loader step step_compiled
       optimizer_compiled decode)
only="" out="" device=cuda quick=0
while [ $# -gt 0 ]; do
    case "$1" in
        --device) [ $# -ge 2 ] || usage; device=$2; shift 2 ;;
        --quick) quick=1; shift ;;
        --only) [ $# -ge 2 ] || usage; only=$2; shift 2 ;;
        -*) usage ;;
        *) [ -z "$out" ] || usage; out=$1; shift ;;
    esac
done
[ -n "$out" ] || usage
[ "$device" = cuda ] || [ "$device" = cpu ] || usage
is_part() { [[ " ${parts[*]} " = *" $1 "* ]]; }
for part in ${only//,/ }; do
    is_part "$part" && continue
    echo "error: --only $part: there are ${parts[*]}" >&2
    exit 2
done
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/.." || exit 2

if [ "$device" = cuda ] && ! python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'
then
    echo "error: PyTorch sees no GPU here; give --device cpu --quick for a dry run" >&2
    exit 2
fi

images=$(mktemp -d) || exit 2
trap 'rm -rf "$images"' EXIT
total_s=470
[ "$quick" = 1 ] && total_s=1200
failed=0
summary=() unfinished=()

wanted() { [ -z "$only" ] || [[ ",$only," = *",$1,"* ]]; }
needs_images() { [[ " parity train loader decode " = *" $1 "* ]]; }

ready() {  # PART: is it wanted, and are there the images that it needs?
    wanted "$1" || return
    if needs_images "$1" && [ -z "$data" ]; then
        note SKIPPED "$1" "no images"
        return 1
    fi
}

note() {  # RESULT PART DETAIL
    summary+=("$(printf '%-8s %-18s %s' "$1" "$2" "$3")")
    echo "${summary[-1]}"
}

run() {  # PART LIMIT_S COMMAND...
    local part=$1 limit_s=$2 start_s=$SECONDS code took
    shift 2
    [ "$quick" = 1 ] && limit_s=400
    if [ $((total_s - SECONDS)) -lt 15 ]; then
        note SKIPPED "$part" "no time left"
        is_part "$part" && unfinished+=("$part")
        return 1
    fi
    [ "$limit_s" -gt $((total_s - SECONDS)) ] && limit_s=$((total_s - SECONDS))
    echo "== $part: $*"
    timeout --kill-after=10 "$limit_s" "$@" >"$out/$part.log" 2>&1
    code=$?
    took="$((SECONDS - start_s)) s"
    case $code in
        0) note PASS "$part" "$took"; return 0 ;;
        124 | 137) note FAIL "$part" "stopped after $took: out of time"
                   is_part "$part" && unfinished+=("$part") ;;
        *) note FAIL "$part" "exit code $code after $took, see $out/$part.log"
           tail -n 5 "$out/$part.log" | sed 's/^/    /' ;;
    esac
    failed=1
    return 1
}

benchmark() {  # PART LIMIT_S NAME ARGUMENTS...
    local part=$1 limit_s=$2 name=$3
    shift 3
    ready "$part" || return
    run "$part" "$limit_s" python3 -m "benchmarks.$name" "$@" --output "$out/$part.json"
}

if [ "$quick" = 1 ]; then
    count=272 classes=8 # repeated augmentation needs 256
    model=(--model resnet18 --batch 16 optimizer.batch_size=32 augment.size=64 model.num_classes=8
           evaluation.size=64 evaluation.batch_per_device=16)
    loader=(--batch 16 --size 64 --repeats 1 --seconds 0 --batches 2 --only loader)
    decode=(--batch 16 --size 64 --rounds 1 --seconds 0 --batches 2 --threads 1)
    step=(--rounds 1 --seconds 0 --updates 1)
    train=(--rounds 1 --seconds 0 --updates 1)
    mix=(--batch 8 --size 64 --rounds 1 --seconds 0.01)
    kernel=(--rounds 1 --seconds 0.01)
    parity=(--num-images 8 --size 64)
else
    # The recipe A3 as it stands; as many images as two updates need.
    count=4096 classes=1000
    model=()
    loader=(--batch 256 --size 160 --repeats 2 --seconds 1.5 --batches 8 --only loader)
    decode=(--batch 256 --size 160 --rounds 2 --seconds 1 --batches 4 --threads "$(nproc)"
            --hw-loads 0 0.65 1)
    step=(--rounds 2 --seconds 1 --updates 2)
    train=(--rounds 2 --seconds 2 --updates 3)
    mix=(--batch 256 --size 160 --rounds 3 --seconds 0.3)
    kernel=(--rounds 3 --seconds 0.3)
    parity=(--num-images 64)
fi
[ "$device" = cpu ] && export CUDA_VISIBLE_DEVICES=""

data=""
for part in "${parts[@]}"; do
    if wanted "$part" && needs_images "$part"; then
        run images 150 python3 -m benchmarks.imagenet_like "$images/data" --images "$count" \
            --classes "$classes" && data=$images/data
        break
    fi
done
a3=(configs/a3.yaml "${model[@]}" --device "$device")
optimizer=("${kernel[@]}")
[ "$quick" = 1 ] && optimizer+=(--model resnet18)
graphs=run.cuda_graph=false,true
[ "$device" = cpu ] && graphs=run.cuda_graph=false # which a CPU has not

if ready parity; then
    run parity 70 python3 -m dali_rsb.parity "$data" "${parity[@]}" --device "$device" \
        --output "$out/parity"
fi
if wanted kernels && [ "$device" = cuda ]; then
    run kernels 120 python3 -m pytest -m gpu -q tests -p no:cacheprovider
elif wanted kernels; then
    # The tests are collected, so that a broken one is found here; none can run.
    run collect 60 python3 -m pytest -m gpu -q --collect-only tests -p no:cacheprovider
    note SKIPPED kernels "--device cpu: the tests were collected, none was run"
fi
benchmark mix 60 mix --device "$device" "${mix[@]}"
benchmark loss 60 loss --device "$device" "${kernel[@]}"
# Compiling the optimizer's twin takes longest of all: it has a part of its own.
benchmark optimizer 60 optimizer --device "$device" "${optimizer[@]}" --no-compile
benchmark train 120 train "${a3[@]}" data.train="$data" "${train[@]}"
if wanted budget && [ -f "$out/train.json" ]; then
    benchmark budget 30 budget configs/a3.yaml --rates "$out/train.json" $(
        [ "$quick" = 1 ] && echo model.name=resnet18 augment.size=64)
elif wanted budget; then
    note SKIPPED budget "no rates"
fi
benchmark loader 110 loader "$data" --device "$device" "${loader[@]}"
benchmark step 100 step "${a3[@]}" "${step[@]}" --vary "$graphs"
benchmark step_compiled 240 step "${a3[@]}" "${step[@]}" --vary run.compile=true "$graphs" \
    --peers timm
benchmark optimizer_compiled 180 optimizer --device "$device" "${optimizer[@]}"
benchmark decode 150 decode "$data" --device "$device" "${decode[@]}"

echo
echo "results in $out after $SECONDS s"
printf '%s\n' "${summary[@]}" | tee "$out/summary.txt"
if [ ${#unfinished[@]} -gt 0 ]; then
    echo "out of time; the rest: benchmarks/gpu.sh OUT --only $(IFS=,; echo "${unfinished[*]}")"
fi
exit $failed
