# Sourced by the scripts in bench/: release binaries, processes that are stopped at the end, figures of /proc.
# shellcheck shell=bash
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=../deploy/ensure-tools.sh
. "$root/deploy/ensure-tools.sh"
ensure_build_tools
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$WEFT_CACHE/target}"
# WEFT_BIN measures another build, such as that of an earlier commit, with the same load generator; WEFT_LOAD_BIN is another one.
packages=$([ -n "${WEFT_LOAD_BIN:-}" ] || echo "-p weft-load") packages+=$([ -n "${WEFT_BIN:-}" ] || echo " -p weft")
# shellcheck disable=SC2086 # several words
[ -z "$packages" ] || (cd "$root" && cargo build --quiet --release --locked $packages)
weft="${WEFT_BIN:-$CARGO_TARGET_DIR/release/weft}"
load="${WEFT_LOAD_BIN:-$CARGO_TARGET_DIR/release/weft-load}"
work=$(mktemp -d)
pids=()

stop_all() {
    local pid
    # Some have ended by now: that must not keep the others running.
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
    rm -rf "$work"
}
trap stop_all EXIT

# start LOG CMD…: in the background; sets $started to its pid.
start() {
    local log=$1; shift
    "$@" >"$log" 2>&1 &
    started=$!
    pids+=("$started")
}

# wait_for LOG TEXT: at most 20 s.
wait_for() {
    local i
    for i in $(seq 200); do
        grep -q -- "$2" "$1" 2>/dev/null && return
        sleep 0.1
    done
    echo "no '$2' in $1:" >&2; cat "$1" >&2; exit 1
}

# ready KEY LOG: an address of the ready line.
ready() { sed -n 's/^ready //p' "$2" | python3 -c 'import json,sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }

# cpu_seconds PID…: user and system time used so far, in seconds.
cpu_seconds() {
    local pid total=0
    for pid in "$@"; do
        total=$((total + $(sed 's/.*) //' "/proc/$pid/stat" | awk '{print $12 + $13}')))
    done
    awk -v t="$total" -v hz="$(getconf CLK_TCK)" 'BEGIN { printf "%.2f", t / hz }'
}

# resident_mib PID
resident_mib() { awk '/^VmRSS/ { printf "%.1f", $2 / 1024 }' "/proc/$1/status"; }

median() { sort -n | awk '{ v[NR] = $1 } END { print (NR % 2) ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
