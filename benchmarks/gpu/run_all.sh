#!/usr/bin/env bash
# Everything worth measuring on one GPU, in order of value; see README.md.
#
#     bash benchmarks/gpu/run_all.sh --out DIR [--seconds 570] [--parts "smoke layer ..."] [--dry-run]
#
# Each part has a time limit of its own and ends nothing but itself. Rows are added to DIR/rows.jsonl as they come; what
# stands there already is skipped, so that a call goes on where the last one stopped. --seconds: for this whole call.
# --dry-run: the same on a CPU, tiny, kernels in Triton's interpreter. Ends with 1 when anything failed or is left.
set -u

out="" budget="" device=cuda scale=1
parts="smoke layer fp8_linears pi3 stream_steps vggt da3-large train sanitizer one_step"
while [ $# -gt 0 ]; do
    case "$1" in
        --out) out=$2; shift 2 ;;
        --seconds) budget=$2; shift 2 ;;
        --parts) parts=$2; shift 2 ;;
        --dry-run) device=cpu; shift ;;
        *) echo "unknown option $1; see the head of $0" >&2; exit 2 ;;
    esac
done
[ -n "$out" ] || { echo "--out DIR is missing" >&2; exit 2; }
mkdir -p "$out"
out=$(realpath "$out")
cd "$(dirname "$0")/../.." || exit 2
here=benchmarks/gpu
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
if [ $device = cpu ]; then
    export TRITON_INTERPRET=1 OMP_NUM_THREADS=1
    scale=20 # a slow or busy processor is no failure
    parts=${parts/sanitizer/} # its rows are those of smoke
fi

# Rows of a dry run or of another card would pass for those of this one, and their parts for done.
name=cpu
if [ $device = cuda ]; then
    name=$(python3 -c 'import torch; print(torch.cuda.get_device_name())') || { echo "torch finds no GPU" >&2; exit 2; }
fi
foreign=$(grep -o '"device": "[^"]*"' "$out/rows.jsonl" 2>/dev/null | sort -u | grep -vxF "\"device\": \"$name\"")
if [ -n "$foreign" ]; then
    echo "$out has rows of $foreign, this is $name: each device needs a folder of its own" >&2
    exit 2
fi

[ -n "$budget" ] || budget=$((570 * scale))

limit_of() { # seconds that a part may take
    case $1 in
        smoke) echo 90 ;; layer) echo 300 ;; fp8_linears) echo 60 ;; pi3) echo 240 ;; vggt | da3-large) echo 180 ;;
        train) echo 520 ;; sanitizer) echo 150 ;; one_step) echo 200 ;;
        stream_steps) echo 120 ;; *) echo 0 ;;
    esac
}

least_of() { # seconds below which a part is left for the next call; a short training is worth nothing
    if [ "$1" = train ] && [ $device = cuda ]; then echo 240; else echo 15; fi
}

set_command() { # part, seconds it has
    case $1 in
        pi3 | vggt | da3-large) command=(whole_models.py --model "$1") ;;
        train) command=(train_nano.py --seconds $(($2 - 20))) ;;
        sanitizer) command=(smoke.py --part sanitizer) ;;
        *) command=("$1.py") ;;
    esac
    command=(python3 "$here/${command[0]}" "${command[@]:1}" --out "$out" --device $device)
}

note() { # part, exit code, seconds; on a line of its own even after one that was cut off
    [ -z "$(tail -c 1 "$out/rows.jsonl" 2>/dev/null)" ] || echo >>"$out/rows.jsonl"
    echo "{\"part\": \"$1\", \"exit\": $2, \"seconds\": $3}" >>"$out/rows.jsonl"
}

for part in $parts; do
    limit=$((scale * $(limit_of "$part")))
    [ "$limit" -gt 0 ] || { echo "unknown part $part" >&2; exit 2; }
    if grep -qF "{\"part\": \"$part\", \"exit\": 0," "$out/rows.jsonl" 2>/dev/null; then continue; fi
    echo "== part $part" | tee -a "$out/log.txt"
    watch=()
    if [ "$part" = sanitizer ] && [ $device = cuda ]; then
        watch=(env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 9 --target-processes all)
        if ! command -v compute-sanitizer >/dev/null; then
            echo '{"part": "sanitizer", "row": "all", "failed": "compute-sanitizer is absent"}' >>"$out/rows.jsonl"
            continue
        fi
    fi
    began=$SECONDS code=3
    while [ $code = 3 ]; do # 3: the process lost its device; a new one goes on behind the row that did it
        left=$((limit - SECONDS + began))
        [ $((budget - SECONDS)) -ge $left ] || left=$((budget - SECONDS))
        if [ $left -lt "$(least_of "$part")" ]; then code='"left"'; break; fi
        set_command "$part" $left
        timeout --kill-after=10 $left "${watch[@]}" "${command[@]}" </dev/null 2>&1 | tee -a "$out/log.txt"
        code=${PIPESTATUS[0]}
    done
    note "$part" "$code" $((SECONDS - began))
done
python3 $here/rows.py "$out"
