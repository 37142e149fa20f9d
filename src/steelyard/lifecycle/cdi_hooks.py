"""What would the hooks of a CDI specification have done, and how is the same had without running them? Pure.

A hook is a program that runs as root in the middle of a container's start, over files that an image chose; we run none. What
those of NVIDIA's toolkit are there for is done otherwise:

    create-symlinks                    the file that the link would lead to is bound at the link's own path
    update-ldcache                     the libraries are bound where the image's own loader looks (its libc lies there), under
                                       every name that links give them; no cache is written, no LD_LIBRARY_PATH set
    chmod                              not needed: a container's device files are made for it, open to all in it
    disable-device-node-modification   not needed: nothing in a container may make or change device files

Any other is named as not done.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from steelyard.model.cdi import CdiHook, CdiMount

_TOOLS = ("nvidia-ctk", "nvidia-cdi-hook")
_LINKS, _LIBRARIES = "create-symlinks", "update-ldcache"
_NEEDLESS = ("chmod", "disable-device-node-modification")


class Effects(msgspec.Struct, frozen=True):
    #: path of each link -> what is written in it
    links: dict[str, str] = {}
    #: folders of the container whose libraries the loader must find
    lib_folders: frozenset[str] = frozenset()
    #: hooks whose effect is had, and those whose effect is not
    done: tuple[str, ...] = ()
    not_done: tuple[str, ...] = ()


def read_hooks(hooks: Iterable[CdiHook]) -> Effects:
    links: dict[str, str] = {}
    folders: set[str] = set()
    done: dict[str, None] = {}
    not_done: dict[str, None] = {}
    for hook in hooks:
        tool = posixpath.basename(hook.path)
        words = [word for at, word in enumerate((hook.args or ())[1:]) if at or word != "hook"]
        verb = words[0] if tool in _TOOLS and words else tool
        if tool not in _TOOLS or verb not in (_LINKS, _LIBRARIES, *_NEEDLESS):
            not_done[verb] = None
            continue
        done[verb] = None
        if verb == _LINKS:
            pairs = (value.partition("::") for value in _values(words, "--link"))
            links |= {posixpath.normpath(path): target for target, found, path in pairs if found and path.startswith("/")}
        elif verb == _LIBRARIES:
            folders.update(posixpath.normpath(value) for value in _values(words, "--folder"))
    return Effects(links, frozenset(folders), tuple(done), tuple(not_done))


def _values(words: Sequence[str], option: str) -> Iterable[str]:
    """Of `--option VALUE` and `--option=VALUE`."""
    for at, word in enumerate(words):
        if word == option and at + 1 < len(words):
            yield words[at + 1]
        elif word.startswith(f"{option}="):
            yield word.removeprefix(f"{option}=")


def find_libraries(
    effects: Effects, mounts: Sequence[CdiMount], aliases: Mapping[str, tuple[str, ...]]
) -> tuple[dict[str, str], dict[str, str]]:
    """(file name -> file of the machine, of all that the loader must find; path of each link -> file of the machine). A link that
    leads to nothing that is mounted, such as to a device file, is left out. `aliases`: as in `CdiFacts`."""
    mounted = {mount.container_path: mount.host_path for mount in mounts}
    placed = dict(mounted)
    for mount in mounts:
        folder = posixpath.dirname(mount.container_path)
        if folder in effects.lib_folders:
            for name in aliases.get(mount.host_path, ()):
                placed.setdefault(posixpath.join(folder, name), mount.host_path)
    links: dict[str, str] = {}
    for path in effects.links:
        source = _follow(path, effects.links, placed)
        if source is not None and path not in mounted:
            links[path] = source
    found = {
        posixpath.basename(path): source
        for path, source in (placed | links).items()
        if posixpath.dirname(path) in effects.lib_folders and _is_library(path)
    }
    return found, links


def _follow(path: str, links: Mapping[str, str], placed: Mapping[str, str]) -> str | None:
    """The file of the machine that is met there; links may lead to links, and in circles."""
    seen: set[str] = set()
    while path in links and path not in seen:
        seen.add(path)
        path = posixpath.normpath(posixpath.join(posixpath.dirname(path), links[path]))
    above = next((target for target in placed if path == target or path.startswith(f"{target}/")), None)
    return None if above is None else placed[above] + path[len(above) :]


def _is_library(path: str) -> bool:
    name = posixpath.basename(path)
    return name.startswith("lib") and ".so" in name
