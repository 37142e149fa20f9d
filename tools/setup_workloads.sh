#!/bin/sh
# Makes .venv-workloads and installs Open MPI, LAMMPS, Slurm and what containers need: what examples and tests of jobs run. Needs `make setup` first.
# Does nothing when nothing changed since the last time. Fails, with what is missing, where it can't be had: those tests are skipped.
set -eu
cd "$(dirname "$0")/.."

TORCH=torch==2.13.0
FOLDER=.venv-workloads

say() { printf '%s\n' "workloads: $*"; }
fail() { printf '%s\n' "workloads: $* Tests of real workloads are NOT VERIFIED without it." >&2; exit 1; }

install_debian() {
    if [ "$(id -u)" -eq 0 ]; then sudo=; elif command -v sudo >/dev/null; then sudo=sudo; else
        fail "installing $* needs root or sudo: apt-get install $*."
    fi
    say "installing the Debian packages $*"
    $sudo apt-get update -qq && $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null ||
        fail "apt-get could not install $*."
}

[ -x .venv/bin/python ] || fail "there is no .venv: \`make setup\` makes it."
missing=
command -v mpirun >/dev/null || missing="openmpi-bin"
command -v lmp >/dev/null || missing="$missing lammps"
for program in skopeo umoci crun mmdebstrap; do command -v $program >/dev/null || missing="$missing $program"; done
command -v busybox >/dev/null && ! ldd "$(command -v busybox)" >/dev/null 2>&1 || missing="$missing busybox-static"
# a cluster of Slurm for tests, each of its machines a few namespaces; libpmix-dev holds the name by which Slurm looks for PMIx
command -v nft >/dev/null || missing="$missing nftables"
for program in slurmctld slurmd munge sudo; do command -v $program >/dev/null || missing="$missing $program"; done
command -v sbatch >/dev/null || missing="$missing slurm-client"
[ -x /usr/sbin/sshd ] || missing="$missing openssh-server"
[ -e "/usr/lib/$(uname -m)-linux-gnu/libpmix.so" ] || missing="$missing libpmix-dev"
# shellcheck disable=SC2086  # words on purpose
[ -z "$missing" ] || install_debian $missing

python=$(.venv/bin/python -c 'import os, sys; print(os.path.realpath(sys.executable))')
wanted=$( { "$python" --version; printf '%s\n' "$python"; cat examples/requirements.txt tools/setup_workloads.sh; } | sha256sum | cut -d' ' -f1)
if [ "$(cat $FOLDER/.setup-done 2>/dev/null || true)" = "$wanted" ]; then
    exit 0
fi

if [ -x .venv/bin/uv ]; then uv=.venv/bin/uv; else uv=uv; fi
say "making $FOLDER (about 320 MB downloaded, 1.4 GB on disk)"
"$uv" venv --quiet --clear --seed --python "$python" --no-python-downloads $FOLDER || fail "$FOLDER could not be made."
# torch by pip, which takes a build for CPUs where pip's settings know of one; PyPI's own asks for gigabytes of NVIDIA's libraries
$FOLDER/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $TORCH || fail "pip could not install $TORCH."
# deepspeed is built from its source, which looks at the torch that is there
grep -v '^deepspeed' examples/requirements.txt | "$uv" pip install --quiet --compile-bytecode --python $FOLDER/bin/python --no-deps -r - ||
    fail "the packages in examples/requirements.txt could not be installed."
"$uv" pip install --quiet --compile-bytecode --python $FOLDER/bin/python --no-deps --no-build-isolation \
    "$(grep '^deepspeed' examples/requirements.txt)" || fail "deepspeed could not be built."
if ! $FOLDER/bin/python -c 'import torch' 2>/dev/null; then
    say "this torch is built for NVIDIA's libraries: installing those too (about 3 GB)"
    $FOLDER/bin/python -m pip install --quiet --disable-pip-version-check $TORCH || fail "pip could not install what $TORCH needs."
fi
printf '%s\n' "$wanted" >$FOLDER/.setup-done
say "done: $FOLDER/bin/torchrun, $(command -v mpirun), $(command -v lmp)"
