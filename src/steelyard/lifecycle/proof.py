"""Is what the workload got what it asked for? Pure comparison of two dictionaries (keys: see `model.proof.Proof`).

`None` in `asked` means nothing was asked of that key, `None` (or a missing key) in `got` that it could not be read. Nothing is
rounded in the workload's favour beyond what the kernel's own units force: shares are stored as integers, memory in pages.
Never reads the kernel; `host/` does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import cast

from steelyard.model.proof import Proof, ProofState

#: cpu.shares and cpu.weight are integers of 1/1024 and 1/100 of a core: less than one unit apart is the same
SHARE_TOLERANCE = 0.01
#: memory limits are kept in pages (64 KiB on some machines)
MEMORY_TOLERANCE_BYTES = 65_536
#: isolation: a unix user without root's rights and any way to get them; a container whose walls all stand; less than both
PROCESS_TIER, CONTAINER_TIER, NO_TIER = "T0", "T1", "none"
_WALLS = frozenset(("cgroup", "ipc", "mnt", "pid", "user", "uts"))
#: worst first: what is wrong with one rank is wrong with the gang
_WORST = (ProofState.DRIFTED, ProofState.UNKNOWN, ProofState.PARTIAL, ProofState.MATCH)


def check_proof(
    asked: Mapping[str, object],
    got: Mapping[str, object],
    matched_before: bool,
    checked_at: int | None = None,
    forbidden: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> Proof:
    """`forbidden`: sentences, what was to be done beside the keys and this machine does not allow. MATCH when every asked key
    was read and fits; DRIFTED when one differs after all had fitted before; PARTIAL when one differs from the start or can't be
    read; UNKNOWN when nothing asked could be read."""
    wanted = {key: value for key, value in asked.items() if value is not None}
    unread = [key for key in wanted if got.get(key) is None]
    different = [key for key in wanted if key not in unread and not _fits(key, wanted[key], got[key])]
    differences = tuple(f"{key}: asked {_text(wanted[key])}, got {_text(got[key])}" for key in different) + tuple(
        f"{key}: asked {_text(wanted[key])}, could not be read here" for key in unread
    )
    differences += forbidden
    if wanted and len(unread) == len(wanted):
        state = ProofState.UNKNOWN
    elif different and matched_before:
        state = ProofState.DRIFTED
    elif differences:
        state = ProofState.PARTIAL
    else:
        state = ProofState.MATCH
    return Proof(state=state, asked=dict(asked), got=dict(got), differences=differences, checked_at=checked_at, notes=notes)


def judge_tier(got: Mapping[str, object]) -> str | None:
    """What the kernel's answers amount to, whatever was asked for. None when nothing could be read."""
    namespaces, uid = got.get("namespaces"), got.get("uid")
    if uid is None or got.get("no_new_privs") is None:
        return None
    # a list of users: they differ
    users = cast("list[int]", uid) if isinstance(uid, list) else [uid]
    if 0 in users or got["no_new_privs"] is not True:
        return NO_TIER
    apart = isinstance(namespaces, list) and set(cast("list[str]", namespaces)) >= _WALLS
    filtered = got.get("seccomp") == "filter" and got.get("capabilities") == "none"
    return CONTAINER_TIER if apart and filtered else PROCESS_TIER


def explain_tier(proof: Proof) -> str:
    """A sentence where less was got than is claimed; "" otherwise."""
    asked, got = proof.asked.get("tier"), proof.got.get("tier")
    if asked is None or asked == got:
        return ""
    shown = {key: proof.got.get(key) for key in ("uid", "no_new_privs", "namespaces", "seccomp", "capabilities")}
    walls = ", ".join(f"{key} {_text(value)}" for key, value in shown.items() if value is not None)
    return f"Isolation tier {asked} is claimed, and the kernel shows {got or 'none that could be read'}: {walls or 'no answer'}."


def _fits(key: str, asked: object, got: object) -> bool:
    if isinstance(asked, list | tuple) and isinstance(got, list | tuple):
        return sorted(cast("list[int]", asked)) == sorted(cast("list[int]", got))
    if isinstance(asked, bool) or isinstance(got, bool):
        return asked is got
    if isinstance(asked, int | float) and isinstance(got, int | float):
        if key == "share":
            return abs(asked - got) <= SHARE_TOLERANCE
        if key == "max_wakeup_us":
            return got <= asked
        if key in ("scratch_bytes", "cpu_count", "gpu_count"):
            return got >= asked
        if key == "memory_bytes":
            return abs(asked - got) < MEMORY_TOLERANCE_BYTES
    return asked == got


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return ",".join(str(item) for item in cast("list[object]", value)) or "none"
    return str(value)


def worst_state(proofs: Collection[Proof]) -> ProofState:
    return next(state for state in _WORST if any(proof.state is state for proof in proofs))


def merge_proofs(proofs: Mapping[int, Proof]) -> Proof:
    """One proof for a gang, of its ranks' (at least one). A key that says the same of all ranks stands once, any other as
    `cpus[0]`, `cpus[1]`, ..."""
    ranks = sorted(proofs)
    first = proofs[ranks[0]]
    if len(ranks) == 1:
        return first
    asked: dict[str, object] = {}
    got: dict[str, object] = {}
    for key in dict.fromkeys(key for rank in ranks for key in (*proofs[rank].asked, *proofs[rank].got)):
        pairs = [(proofs[rank].asked.get(key), proofs[rank].got.get(key)) for rank in ranks]
        same = all(pair == pairs[0] for pair in pairs)
        for rank, (wanted, had) in zip(ranks, pairs, strict=True):
            name = key if same else f"{key}[{rank}]"
            asked[name], got[name] = wanted, had
    return Proof(
        state=worst_state(proofs.values()),
        asked=asked,
        got=got,
        differences=tuple(f"rank {rank}: {text}" for rank in ranks for text in proofs[rank].differences),
        checked_at=max((proof.checked_at for proof in proofs.values() if proof.checked_at is not None), default=None),
        notes=tuple(dict.fromkeys(note for rank in ranks for note in proofs[rank].notes)),
    )
