"""How do the stand-ins ask Steelyard? The REST API by urllib, with what the agent put into the job's environment.

`STEELYARD_API_URL` and `STEELYARD_TOKEN` say where and as whom; `STEELYARD_CA` may name the certificate that the API shows. Also
how Slurm's numbers of jobs and Steelyard's ids become each other.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import urllib.error
import urllib.request
import uuid
from typing import Any

#: as in `lifecycle/slurm_environment.py`: 12 * ELEMENT_STRIDE + 7 is element 7 of array 12
ELEMENT_STRIDE = 1_000_000_007
#: seconds for one call
PATIENCE_S = 60.0
_ID = re.compile(r"(?:j-)?(\d{1,18})(?:_(\d{1,9}|\*|\[[^\]]*\]))?(?:\.\S+)?", re.ASCII)
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class Failed(Exception):
    """A sentence for the person; `status` is HTTP's, 0 when nobody answered."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


def parse_id(text: str) -> str:
    """`12`, `12_3`, `12_[1-5]` and `12_*` (the whole array), `$SLURM_JOB_ID` of an element, or an id as Steelyard writes it."""
    match = _ID.fullmatch(text.strip())
    if match is None:
        raise Failed(f"Invalid job id {text[:40]}")
    number, element = int(match[1]), match[2] or ""
    if not element and number >= ELEMENT_STRIDE:
        number, index = divmod(number, ELEMENT_STRIDE)
        element = str(index)
    return f"j-{number:06d}" + (f"_{element}" if element.isdigit() else "")


def show_id(job: str) -> str:
    """`j-000012_3` -> `12_3`."""
    number, _, element = job.removeprefix("j-").partition("_")
    return (number.lstrip("0") or "0") + (f"_{element}" if element else "")


class Api:
    def __init__(self) -> None:
        self._url = os.environ.get("STEELYARD_API_URL", "").rstrip("/")
        self._token = os.environ.get("STEELYARD_TOKEN", "")
        if not self._url:
            raise Failed("this process was given no way to Steelyard's API (STEELYARD_API_URL is not set)")
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if ca := os.environ.get("STEELYARD_CA"):
            context = ssl.create_default_context()
            context.load_verify_locations(ca)
            handlers.append(urllib.request.HTTPSHandler(context=context))
        self._opener = urllib.request.build_opener(*handlers)

    def get(self, path: str) -> Any:
        return self._call("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self._call("POST", path, json.dumps(body).encode())

    def job(self, job: str) -> dict[str, Any]:
        return self.get(f"/v1/jobs/{job}")

    def jobs(self) -> list[dict[str, Any]]:
        return self.get("/v1/jobs?limit=10000")

    def _call(self, method: str, path: str, data: bytes | None) -> Any:
        headers = {"Authorization": f"Bearer {self._token}"}
        if data is not None:
            headers |= {"Content-Type": "application/json", "Idempotency-Key": uuid.uuid4().hex}
        request = urllib.request.Request(self._url + path, data=data, headers=headers, method=method)
        for last in (False, True):
            try:
                with self._opener.open(request, timeout=PATIENCE_S) as answer:
                    return json.loads(answer.read() or b"null")
            except urllib.error.HTTPError as err:
                with err:
                    raise Failed(_explain(err.read(), err.code), err.code) from None
            except (OSError, ValueError) as err:
                # once more, with the same key: a server that was just restarted is there again, and nothing is done twice
                if last:
                    raise Failed(f"Steelyard does not answer at {self._url} ({err})") from None
        return None


def _explain(body: bytes, status: int) -> str:
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return f"Steelyard answered {status}"
