#!/bin/sh
# Makes the root of another Debian, so that tests of Slurm run with the Slurm of that one. Needs root, mmdebstrap (`make workloads`),
# a minute and 350 MB. FOLDER is to lie elsewhere than below /etc, /root, /usr or /var: the machines of tests cover those.
#
#     tools/other_slurm.sh trixie /srv/trixie
#     SLURM_BED_ROOT=/srv/trixie make test ARGS="-k 'direct or conformance or pool or cluster_'"
set -eu
[ $# -eq 2 ] || { echo "usage: $0 SUITE FOLDER" >&2; exit 2; }
# a mirror that is behind will do
mmdebstrap --variant=minbase --aptopt='Acquire::Check-Valid-Until "false"' --include=slurmctld,slurmd,slurm-client,munge,openssh-server,iproute2,nftables,perl,python3,util-linux,procps,sudo,libpmix-dev \
    "$1" "$2" http://deb.debian.org/debian
echo "made: $2 with $(chroot "$2" slurmctld -V)"
