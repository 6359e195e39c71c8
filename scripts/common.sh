# Shared by the scripts beside it; sourced, never run. Needs bash.

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
    local log
    log=$(mktemp)
    # Without RUNLEVEL, a package with a service would start it.
    local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -q -y -o DPkg::Lock::Timeout=120)
    if ! "${apt[@]}" update >"$log" 2>&1; then
        tail -n 5 "$log" >&2
        rm -f "$log"
        die "apt-get update failed; is there a network? Its last lines stand above"
    fi
    if ! "${apt[@]}" install --no-install-recommends "${missing[@]}" >"$log" 2>&1; then
        tail -n 15 "$log" >&2
        rm -f "$log"
        die "apt-get could not install ${missing[*]}; its last lines stand above"
    fi
    rm -f "$log"
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

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
rust=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")
