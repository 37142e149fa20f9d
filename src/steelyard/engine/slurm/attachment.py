"""Which cluster is this home attached to? `slurm.json` in it, written by `cluster attach`."""

from __future__ import annotations

import msgspec

from steelyard.config import Paths, write_file
from steelyard.errors import StoreDamaged
from steelyard.model.slurm import Attachment


def load_attachment(paths: Paths) -> Attachment | None:
    """None where no cluster is attached. StoreDamaged for a file that can't be read as one."""
    try:
        return msgspec.json.decode(paths.attachment.read_bytes(), type=Attachment)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as err:
        raise StoreDamaged(
            f"{paths.attachment} is damaged ({err}). Jobs on the cluster go on. `steelyard cluster attach` writes it anew.",
            code="attachment-damaged",
        ) from err


def save_attachment(paths: Paths, attachment: Attachment) -> None:
    write_file(paths.attachment, msgspec.json.format(msgspec.json.encode(attachment), indent=2), 0o644)
