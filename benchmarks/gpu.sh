#!/usr/bin/env bash
# Checks the GPU code, then measures everything: under 25 minutes on one GPU with 16 cores, offline.
#
#     benchmarks/gpu.sh OUT [--device cuda|cpu] [--quick] [--only PART,PART...] [--seconds N]
#                           [--images FOLDER]
#     benchmarks/gpu.sh --limits
#
# Needs a checkout and its packages (python3 from PATH, 3.10 or newer; test extra: timm, scikit-image,
# scikit-learn, pytest). Writes JSON and a log of each part into OUT, and all of them into
# OUT/results.tar.gz, where the JSON bears the names that benchmarks/results has for a GPU.
#
# The parts come in the order of what they decide: is the machine as it should be and how are images
# decoded; do the kernels work; what does the loader reach, the training, the step; the rest. Each is
# a process of its own with a time limit; `--limits` lists them. One that fails, crashes or runs out
# of time does not keep the others from running, and of a benchmark the rounds that are complete are
# written. The last lines say PASS, FAIL or SKIPPED for each part; the exit code is 1 if a check or
# a benchmark failed. What time did not suffice for is named in the last line, for `--only`.
#
# `--seconds N` is the time for all parts together, for machines that are lent for less; `--images`
# keeps the images from one call to the next.
#
# `--device cpu --quick` is the dry run for machines without a GPU: the same parts with tiny
# settings. Its numbers mean nothing.
set -u

usage() {
    echo "usage: benchmarks/gpu.sh OUT [--device cuda|cpu] [--quick] [--only PART,PART...]" \
        "[--seconds N] [--images FOLDER]" >&2
    exit 2
}

# Part and time limit in seconds, in the order in which they run; together less than 25 minutes.
limits="
packages 30
dali_cpu 30
dali_gpu 45
jpeg_engine 30
decode_gpu_host 30
decode_gpu_full 30
decode_gpu_roi 30
bandwidth 40
images 90
decode 100
kernels 240
loader 130
train 120
step 80
step_compiled 200
parity 60
mix 30
loss 30
optimizer 40
budget 20
optimizer_compiled 90
"
declare -A limit_of
parts=()
while read -r name limit; do
    [ -n "$name" ] && parts+=("$name") && limit_of[$name]=$limit
done <<<"$limits"
probes="packages dali_cpu dali_gpu jpeg_engine decode_gpu_host decode_gpu_full decode_gpu_roi" # of dali_rsb.checks.machine.probe

only="" out="" device=cuda quick=0 total_s="" images=""
while [ $# -gt 0 ]; do
    case "$1" in
        --device) [ $# -ge 2 ] || usage; device=$2; shift 2 ;;
        --quick) quick=1; shift ;;
        --only) [ $# -ge 2 ] || usage; only=$2; shift 2 ;;
        --seconds) [ $# -ge 2 ] || usage; total_s=$2; shift 2 ;;
        --images) [ $# -ge 2 ] || usage; images=$2; shift 2 ;;
        --limits) for part in "${parts[@]}"; do echo "$part ${limit_of[$part]}"; done; exit ;;
        -*) usage ;;
        *) [ -z "$out" ] || usage; out=$1; shift ;;
    esac
done
[ -n "$out" ] || usage
[ "$device" = cuda ] || [ "$device" = cpu ] || usage
if [ -z "$total_s" ]; then
    total_s=1500
    [ "$quick" = 1 ] && total_s=5400
fi
[[ "$total_s" =~ ^[1-9][0-9]*$ ]] || usage
is_part() { [[ " ${parts[*]} " = *" $1 "* ]]; }
for part in ${only//,/ }; do
    is_part "$part" && continue
    echo "error: --only $part: there are ${parts[*]}" >&2
    exit 2
done
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
[ -z "$images" ] || { mkdir -p "$images" && images=$(cd "$images" && pwd); } || exit 2
cd "$(dirname "$0")/.." || exit 2

if [ "$device" = cuda ] && ! python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'
then
    echo "error: PyTorch sees no GPU here; give --device cpu --quick for a dry run" >&2
    exit 2
fi

if [ -z "$images" ]; then
    images=$(mktemp -d) || exit 2
    trap 'rm -rf "$images"' EXIT
fi
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

run() {  # PART COMMAND...: within the part's time limit, into its log
    local part=$1 limit_s=${limit_of[$1]} start_s=$SECONDS code took
    shift
    [ "$quick" = 1 ] && limit_s=900
    if [ $((total_s - SECONDS)) -lt 15 ]; then
        note SKIPPED "$part" "no time left"
        unfinished+=("$part")
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
                   unfinished+=("$part") ;;
        *) [ $code -gt 128 ] && code="$code, SIG$(kill -l $((code - 128)))"
           note FAIL "$part" "exit code $code after $took, see $out/$part.log"
           tail -n 5 "$out/$part.log" | sed 's/^/    /' ;;
    esac
    failed=1
    return 1
}

benchmark() {  # PART NAME ARGUMENTS...
    local part=$1 name=$2
    shift 2
    ready "$part" || return
    run "$part" python3 -m "benchmarks.$name" "$@" --output "$out/$part.json"
}

probe() {  # NAME: its answer is the last line of its log, JSON; one with an error is a failure
    wanted "$1" || return
    if [ "$device" = cpu ] && [[ "$1" = *_gpu* || "$1" = jpeg_engine ]]; then
        note SKIPPED "$1" "--device cpu"
        return
    fi
    run "$1" python3 -m dali_rsb.checks.machine.probe --ask "$1" || return
    tail -n 1 "$out/$1.log" | tee "$out/$1.json" | sed 's/^/    /'
    if grep -q '^{"error"' "$out/$1.json"; then
        note FAIL "$1" "see the answer above"
        failed=1
    fi
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

for name in $probes; do probe "$name"; done
dtype=float16
[ "$device" = cpu ] && dtype=float32
benchmark bandwidth bandwidth --device "$device" --dtype "$dtype"

data=""
if wanted images; then wants_images=1; else wants_images=0; fi
for part in "${parts[@]}"; do
    if wanted "$part" && needs_images "$part"; then wants_images=1; fi
done
if [ "$wants_images" = 1 ]; then
    if [ -e "$images/data/manifest.json" ]; then
        data=$images/data
    else
        run images python3 -m benchmarks.imagenet_like "$images/data" --images "$count" \
            --classes "$classes" && data=$images/data
    fi
fi
a3=(configs/a3.yaml "${model[@]}" --device "$device")
optimizer=("${kernel[@]}")
[ "$quick" = 1 ] && optimizer+=(--model resnet18)
graphs=run.cuda_graph=false,true
[ "$device" = cpu ] && graphs=run.cuda_graph=false # which a CPU has not

benchmark decode decode "$data" --device "$device" "${decode[@]}"
# The files that have tests for a GPU, and no others: some of those need packages that a machine
# for measuring lacks.
mapfile -t gpu_tests < <(grep -rl --include='test_*.py' 'mark\.gpu' tests)
pytest=(python3 -m pytest -m gpu -p no:cacheprovider --continue-on-collection-errors)
if wanted kernels && [ "$device" = cuda ]; then
    run kernels "${pytest[@]}" -v --timeout 100 "${gpu_tests[@]}"
    grep -E '(PASSED|FAILED|ERROR|SKIPPED)' "$out/kernels.log"
elif wanted kernels; then
    # The tests are collected, so that a broken one is found here; none can run.
    run kernels "${pytest[@]}" -q --collect-only "${gpu_tests[@]}" &&
        note SKIPPED kernels "--device cpu: the tests were collected, none was run"
fi
benchmark loader loader "$data" --device "$device" "${loader[@]}"
benchmark train train "${a3[@]}" data.train="$data" "${train[@]}"
# The step eager, captured as a CUDA graph, compiled, and both; timm's beside it.
benchmark step step "${a3[@]}" "${step[@]}" --vary run.compile=false "$graphs"
benchmark step_compiled step "${a3[@]}" "${step[@]}" --vary run.compile=true "$graphs" --peers timm
if ready parity; then
    run parity python3 -m dali_rsb.parity "$data" "${parity[@]}" --device "$device" \
        --output "$out/parity"
fi
benchmark mix mix --device "$device" "${mix[@]}"
benchmark loss loss --device "$device" "${kernel[@]}"
# Compiling the optimizer's reference takes longest of all: it has a part of its own.
benchmark optimizer optimizer --device "$device" "${optimizer[@]}" --no-compile
if wanted budget && [ -f "$out/train.json" ]; then
    benchmark budget budget configs/a3.yaml --rates "$out/train.json" $(
        [ "$quick" = 1 ] && echo model.name=resnet18 augment.size=64)
elif wanted budget; then
    note SKIPPED budget "no rates"
fi
benchmark optimizer_compiled optimizer --device "$device" "${optimizer[@]}"

echo
echo "results in $out after $SECONDS s"
printf '%s\n' "${summary[@]}" | tee "$out/summary.txt"
where=gpu
[ "$device" = cpu ] && where=dry_run
(cd "$out" && find . -maxdepth 2 -name '*.json' -o -maxdepth 2 -name '*.log' -o -name summary.txt |
    tar -czf results.tar.gz --transform "s/\.json\$/_$where.json/" -T -)
if [ ${#unfinished[@]} -gt 0 ]; then
    echo "out of time; the rest: benchmarks/gpu.sh OUT --only $(IFS=,; echo "${unfinished[*]}")"
fi
exit $failed
