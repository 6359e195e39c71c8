# Shared by the scripts beside it; sourced, never run. Needs bash.
# shellcheck shell=bash

say() { printf '%s\n' "$*"; }

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# Installs Debian packages, each only if what it brings is not there yet. Arguments are
# PROGRAM:PACKAGE pairs; what is not a program in PATH is named by a path that must exist, or by
# `python:MODULE`, as in `python:ensurepip:python3-venv`.
install_missing() {
    local need what package missing=()
    PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
    for need in "$@"; do
        package=${need##*:}
        what=${need%:*}
        case $what in
            /*) [ -e "$what" ] ;;
            python:*) python3 -c "import ${what#python:}" 2>/dev/null ;;
            *) command -v "$what" >/dev/null ;;
        esac || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null ||
        die "these packages are missing, and there is no apt-get to install them: ${missing[*]}. Install them, then try again"
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null ||
            die "these packages are missing, and installing them takes root or sudo: ${missing[*]}"
        as_root=(sudo)
    fi
    say "Installing with apt-get: ${missing[*]}"
    local log policy='' failed=''
    log=$(mktemp)
    local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=120)
    # Programs are wanted, not the services that come with some of them (invoke-rc.d(8)).
    if [ "$(id -u)" -eq 0 ] && [ ! -e /usr/sbin/policy-rc.d ]; then
        policy=/usr/sbin/policy-rc.d
        printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
    fi
    if ! "${apt[@]}" update >"$log" 2>&1; then
        failed="apt-get update failed; is there a network? Its last lines stand above"
    elif ! "${apt[@]}" install --no-install-recommends "${missing[@]}" >"$log" 2>&1; then
        failed="apt-get could not install ${missing[*]}; its last lines stand above"
    fi
    [ -z "$failed" ] || tail -n 12 "$log" >&2
    rm -f "$log" ${policy:+"$policy"}
    [ -z "$failed" ] || die "$failed"
}

# Sees to it that `cargo` can be run, or says what is missing. Rust itself is never installed here.
need_cargo() {
    local cargo beside home
    if ! command -v cargo >/dev/null; then
        home=${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)}
        if [ -x "$home/.cargo/bin/cargo" ]; then
            PATH=$home/.cargo/bin:$PATH
        elif [ -x "${CARGO_HOME:-/}/bin/cargo" ]; then
            PATH=$CARGO_HOME/bin:$PATH
        else
            die "Rust is not installed: there is no cargo in PATH. Install Rust $rust or later (with rustup, or your distribution's packages), then try again"
        fi
    fi
    if ! cargo --version >/dev/null 2>&1 && [ -z "${RUSTUP_HOME:-}" ]; then
        # rustup looks for its toolchains in $HOME; where HOME is another, they still lie beside
        # the .cargo that cargo is run from.
        cargo=$(command -v cargo)
        beside=${cargo%/.cargo/bin/cargo}/.rustup
        if [ "$beside" != "$cargo/.rustup" ] && [ -d "$beside" ]; then
            export RUSTUP_HOME=$beside
        fi
    fi
    local version
    version=$(cargo --version 2>&1) ||
        die "cargo is installed but does not run: $(printf '%s' "$version" | head -n 1). If it belongs to rustup, set RUSTUP_HOME to where its toolchains are"
    version=${version#cargo }
    version=${version%% *}
    if [ "$(printf '%s\n' "$rust" "${version%%-*}" | sort -V | head -n 1)" != "$rust" ]; then
        die "Rust $version is installed, and secretfs needs $rust or later; update it, then try again"
    fi
}

# The directory of builds, as an absolute path. A relative CARGO_TARGET_DIR is one below the sources, from
# where these scripts call cargo.
target_dir() {
    local target=${CARGO_TARGET_DIR:-target}
    case $target in
        /*) printf '%s\n' "$target" ;;
        *) printf '%s\n' "$root/$target" ;;
    esac
}

# Builds what is installed, in a way that whoever builds the same sources with the same compilers gets the
# same bytes (scripts/reproduce shows it): of where and when it was built nothing is in it. The program is
# $(target_dir)/release/secretfs afterwards.
build_release() (
    say "Building secretfs (cargo build --release; the first time takes minutes, most of them for the AWS SDK)"
    cd -P "$root" || die "cannot enter $root"
    home=${CARGO_HOME:-${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)}/.cargo}
    library=$(rustc --print sysroot)/lib/rustlib/src/rust
    compiler=$(rustc -vV | sed -n 's/^commit-hash: //p')
    # Of the prefixes of a path the last one counts. The standard library names its sources so by itself where
    # they are not installed.
    prefixes=("$PWD=/secretfs" "$(target_dir)=/target" "$home=/cargo" "$library=/rustc/$compiler")
    if [ -n "${CARGO_ENCODED_RUSTFLAGS:-}" ]; then
        IFS=$'\037' read -ra rust_flags <<<"$CARGO_ENCODED_RUSTFLAGS"
    else
        read -ra rust_flags <<<"${RUSTFLAGS:-}"
    fi
    c_flags=${CFLAGS:-}
    for prefix in "${prefixes[@]}"; do
        rust_flags+=("--remap-path-prefix=$prefix")
        # Blanks separate CFLAGS: they cannot hold a path that has some.
        [[ $prefix == *[[:space:]]* ]] || c_flags+=" -ffile-prefix-map=$prefix"
    done
    CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\037' && printf '%s' "${rust_flags[*]}")
    export CARGO_ENCODED_RUSTFLAGS CFLAGS=$c_flags
    export_source_date
    cargo build --release --locked --quiet ||
        die "the build failed; its output stands above. The first build needs the network"
)

# The time that stands in what is built is that of the last commit (reproducible-builds.org), or what is set.
export_source_date() {
    export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$root" log -1 --format=%ct 2>/dev/null || echo 0)}
}

# Makes the Python environment DIR, in which pip has installed what the further arguments name, unless it was
# made for the same WANTED. Whoever makes one at the same time waits.
make_venv() {
    local venv=$1 wanted=$2
    shift 2
    mkdir -p "$(dirname "$venv")"
    exec 9>>"$venv.lock"
    flock 9
    if [ "$(cat "$venv/complete" 2>/dev/null)" != "$wanted" ]; then
        say "Installing into $venv"
        rm -rf "$venv"
        python3 -m venv "$venv" || die "python3 -m venv failed; see above"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" ||
            die "pip could not install $wanted; is there a network?"
        printf '%s' "$wanted" >"$venv/complete"
    fi
    exec 9>&-
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
rust=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")
