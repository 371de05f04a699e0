# Sourced by ./weft and ./test: installs what is missing beyond Rust, with a line for each.
# shellcheck shell=bash

WEFT_CACHE="${XDG_CACHE_HOME:-$HOME/.cache}/weft"
mkdir -p "$WEFT_CACHE"

say() { echo "$(basename "$0"): $*" >&2; }

# as_root CMD…: runs a command as root, directly or through sudo.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else say "need root or sudo for: $*"; return 1
    fi
}

# install_packages WHY PACKAGE…: with the system's package manager.
install_packages() {
    local why=$1; shift
    say "installing $* ($why)"
    if command -v apt-get >/dev/null; then
        # A stale package list is the usual reason for a failed install, so refresh it once and try again.
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >"$WEFT_CACHE/apt.log" 2>&1 && return
        as_root apt-get update -qq >>"$WEFT_CACHE/apt.log" 2>&1
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >>"$WEFT_CACHE/apt.log" 2>&1 && return
        tail -n 5 "$WEFT_CACHE/apt.log" >&2
    elif command -v brew >/dev/null; then brew install "$@" >&2 && return
    elif command -v dnf >/dev/null; then as_root dnf install -y -q "$@" >&2 && return
    fi
    say "cannot install $* here: please install it by hand ($why)"
    return 1
}

# What building needs: Rust itself, a C compiler and cmake.
ensure_build_tools() {
    if ! command -v cargo >/dev/null; then
        say "Rust is missing: install it with rustup (https://rustup.rs), then run this again"
        exit 1
    fi
    command -v cc >/dev/null || install_packages "a C compiler, for aws-lc and zlib" gcc g++ libc6-dev
    command -v c++ >/dev/null || install_packages "a C++ compiler, for cmake projects" g++
    command -v make >/dev/null || install_packages "for building zlib" make
    command -v cmake >/dev/null || install_packages "for building zlib-ng, which pingora needs" cmake
}

# cargo_tool NAME CRATE: a cargo subcommand, built without optimisation because it runs for seconds.
cargo_tool() {
    command -v "$1" >/dev/null && return
    say "installing $2 (a cargo subcommand that the tests use; takes some minutes)"
    CARGO_TARGET_DIR="$WEFT_CACHE/tools" cargo install --quiet --locked --debug "$2"
}

# What testing needs on top.
ensure_test_tools() {
    ensure_build_tools
    command -v curl >/dev/null || install_packages "an HTTP client that the tests use" curl
    command -v ip >/dev/null || install_packages "network namespaces, for the tests of faults" iproute2
    command -v iptables >/dev/null || install_packages "rules for captured connections, which the tests set in namespaces" iptables
    command -v nft >/dev/null || install_packages "the same with nftables" nftables
    command -v etcdctl >/dev/null || install_packages "etcdctl, the stock client that the tests use" etcd-client
    command -v valgrind >/dev/null || install_packages "counts the instructions of a request" valgrind
    cargo fmt --version >/dev/null 2>&1 || { say "adding rustfmt"; rustup component add rustfmt; }
    cargo clippy --version >/dev/null 2>&1 || { say "adding clippy"; rustup component add clippy; }
    cargo_tool cargo-nextest cargo-nextest
    cargo_tool cargo-deny cargo-deny
}
