"""As whom, and with which basic environment, does a workload run? Pure."""

from __future__ import annotations

from steelyard.config import Settings
from steelyard.model.job import Owner

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def choose_ids(owner: Owner, as_root: bool, settings: Settings, euid: int) -> tuple[int, int] | None:
    """(uid, gid) for the owner's work; None where Steelyard is not root and can't be anybody else. Root's own work runs as the
    unprivileged work uid unless an admin asked for root."""
    if euid != 0:
        return None
    if owner.uid != 0:
        return owner.uid, owner.uid
    return (0, 0) if as_root else (settings.work_uid, settings.work_gid)


def explain_start(text: str, ids: tuple[int, int] | None, owner: Owner) -> str:
    """The kernel's refusal of a start, with what to do where it comes from running as somebody else than the submitter."""
    if ids is None or ids[0] == owner.uid or "Permission denied" not in text:
        return text
    return (
        f"{text}. Work that {owner.user} submits runs as the unprivileged uid {ids[0]}, which may not go there. Use a place that "
        "everybody may enter and read (not below /root), or --as-root."
    )


def make_env(user_env: dict[str, str], home: str, ids: tuple[int, int] | None, owner: Owner) -> dict[str, str]:
    """The user's variables over a small base. The agent's own environment (it may hold secrets) is never passed on."""
    base = {"PATH": PATH, "LANG": "C.UTF-8", "HOME": home, "USER": owner.user, "LOGNAME": owner.user}
    env = base | user_env
    if ids is not None and ids[0] != owner.uid:
        # Not the submitting user: their home is out of reach, and programs that look for it would fail in odd ways.
        env |= {"HOME": home, "USER": f"uid{ids[0]}", "LOGNAME": f"uid{ids[0]}"}
    return env
