"""What makes the files of a Debian or Ubuntu of packages alone? A script for a container that has the machine's own programs,
read-only, and an empty folder. Pure.

mmdebstrap rather than debootstrap: it needs no device files and mounts nothing where it may not, so that it runs as root of a
user namespace, with what any step may do. From where packages come is asked of the machine's apt when it runs.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

from steelyard.model.built_image import DebianBase

#: inside: the empty folder
TARGET = "/target"
PROGRAM = "mmdebstrap"
_SUITE = re.compile(r"[a-z][a-z0-9-]*", re.ASCII)
_MIRROR = re.compile(r"deb (\[[^\]]*\] )?[a-z+]+:[^\s]+ [^\s].*|(https?|file|copy)://[^\s]+", re.ASCII)
_KEYS = "/usr/share/keyrings"
#: how the machine's apt reaches its mirrors; kept in the image, where later steps need it too
_ACQUIRE = r'^Acquire::(https?::(.*::)?Proxy|Check-Valid-Until|Check-Date|Max-FutureTime|Retries) "[^"]'
#: what packages wrote to devices that were not there goes; services are not started when packages are installed, as in other
#: images of Debian's
_FINISH = rf"""rm -rf {TARGET}/dev/*
printf '#!/bin/sh\nexit 101\n' >{TARGET}/usr/sbin/policy-rc.d
chmod 755 {TARGET}/usr/sbin/policy-rc.d"""


def check_debian(base: DebianBase) -> Iterable[str]:
    """What is wrong with it, a sentence each."""
    if not _SUITE.fullmatch(base.suite):
        yield f"{base.suite[:80]!r} is no release of Debian's or Ubuntu's: write for example bookworm"
    for each in base.mirrors:
        if not _MIRROR.fullmatch(each) or not each.isprintable():
            yield (
                f"{each[:80]!r} is no mirror: write an address such as http://deb.debian.org/debian, or a line of a sources.list"
            )


def make_script(base: DebianBase) -> str:
    """For /bin/sh. The folder has all files of the system afterwards."""
    mirrors = " ".join(map(shlex.quote, dict.fromkeys(base.mirrors)))
    return f"""apt-config dump --format '%F "%v";%n' | grep -E {shlex.quote(_ACQUIRE)} >/tmp/apt.conf || :
{f"set -- {mirrors}" if mirrors else _find_mirrors(base.suite)}
{PROGRAM} --mode=root --variant=minbase --format=directory --skip=check/empty --aptopt=/tmp/apt.conf {base.suite} {TARGET} "$@"
{_FINISH}"""


def _find_mirrors(suite: str) -> str:
    """The machine's own sources of that suite, with its updates, as arguments. Others' archives are left out: their keys would
    not be in the image. Where there are none mmdebstrap knows Debian's."""
    return rf"""set --
apt-get --print-uris update | sed -n "s|^'\(.*\)/dists/\(.*\)/InRelease'.*|\1 \2|p" >/tmp/sources || :
while read -r address release; do
    case "$address" in
    */debian | */debian-security) keys={_KEYS}/debian-archive-keyring.gpg components=main ;;
    */ubuntu) keys={_KEYS}/ubuntu-archive-keyring.gpg components="main universe" ;;
    *) continue ;;
    esac
    [ "${{release%%[-/]*}}" = {suite} ] || continue
    [ -e "$keys" ] && keys="[signed-by=$keys] " || keys=
    set -- "$@" "deb $keys$address $release $components"
done </tmp/sources"""
