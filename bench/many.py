"""What do a thousand sleeping functions cost, and how fast does one of them wake? The memory bill of the tree of templates.

Functions are spread over environments (installed packages x variables) and called by Zipf's law, most of them asleep when they
are called. The same arrivals are played again with less and less memory for templates: the curve of budget against wake time.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import itertools
import json
import random
import statistics
import sys
import tarfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bench.figures import Figure, percentile
from bench.installation import Installation, installation
from bench.load import Target, request_once
from bench.warm import cpu_seconds
from steelyard.host.proc import observe_memory, rss_bytes

Say = Callable[[str], None]

WORKLOADS_PYTHON = Path(__file__).resolve().parent.parent / ".venv-workloads" / "bin" / "python"
#: what the modules of an environment import; five of twenty have torch
PACKAGES = (
    "torch", "numpy", "pydantic", "scipy.sparse", "jinja2", "sympy", "networkx", "numpy, pydantic", "fsspec", "numpy, einops"
)  # fmt: skip
APP = """
import json, os
import {packages}
TABLE = {{number: str(number) for number in range(2000)}}
class Item:
    def __init__(self, name, price): self.name, self.price = name, price
ITEMS = [Item(f"item {{number}}", number) for number in range(200)]
async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({{"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}})
    await send({{"type": "http.response.body", "body": b"ok"}})
"""
#: the same by the SDK
DECLARED = """
import json, os
import {packages}
import steelyard as sy
app = sy.App("bench")

@app.function(cpu=0.5, memory="512MB", idle_timeout=60)
def score(items: list[float], weight: float = 1.0) -> float:
    return sum(items) * weight

@app.function(public=True)
@sy.endpoint(method="GET")
def answer(number: int = 1, name: str | None = None) -> dict[str, str]:
    return {{"answer": str(number)}}
"""
#: arrivals per second, and the exponent of Zipf's law
RATE, EXPONENT = 8.0, 1.1
IDLE_S = 1.0
#: a spare goes 60 s after the last order
QUIET_S = 65.0


class Scale(NamedTuple):
    functions: int
    environments: int
    #: of the arrivals with each budget
    seconds: float
    budgets: tuple[str, ...]


FULL = Scale(1000, 20, 60.0, ("8GB", "4GB", "2GB", "1GB"))
QUICK = Scale(40, 4, 10.0, ("8GB",))


def measure_many(say: Say, quick: bool, scale: Scale | None = None) -> list[Figure]:
    if not WORKLOADS_PYTHON.exists():
        raise RuntimeError("There is no .venv-workloads: `make workloads` makes it.")
    scale = scale or (QUICK if quick else FULL)
    random.seed(5)
    with installation() as steelyard:
        steelyard.cli("down")
        up(steelyard, scale.budgets[0])
        bundle = put_bundle(steelyard, scale)
        deploy(steelyard, bundle, 0, scale)
        alone = wake_rounds(steelyard, say)
        rss, cpu = agent_cost(steelyard)
        begin = time.monotonic()
        for at in range(1, scale.functions):
            if at % 10 == 0:
                say(f"deployed {at}/{scale.functions}")
            deploy(steelyard, bundle, at, scale)
        deploy_ms = (time.monotonic() - begin) / max(1, scale.functions - 1) * 1000
        wait_deployed(steelyard, scale, say)
        among = wake_rounds(steelyard, say)
        settle(steelyard, say)
        rss_after, idle = agent_cost(steelyard)
        bill = memory_bill(steelyard, scale)
        curve = [play(steelyard, scale, budget, say, restart=at > 0) for at, budget in enumerate(scale.budgets)]
    return figures(scale, alone, among, (rss_after - rss) / max(1, scale.functions - 1), cpu, idle, bill, deploy_ms, curve)


def up(steelyard: Installation, budget: str) -> None:
    ports = ("--port", str(steelyard.api_port), "--gateway-port", str(steelyard.gateway_port))
    steelyard.cli("up", "--detach", *ports, "--template-memory", budget)


def put_bundle(steelyard: Installation, scale: Scale) -> str:
    """One bundle, a file per environment: plain ASGI apps in the first half, the same packages with the SDK in the other."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for at in range(scale.environments):
            packages = PACKAGES[at % max(1, scale.environments // 2) % len(PACKAGES)]
            text = (DECLARED if is_declared(at, scale) else APP).format(packages=packages).encode()
            member = tarfile.TarInfo(f"app{at}.py")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    data = packed.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    request(steelyard, "PUT", f"/v1/bundles/{digest}", data)
    return digest


def is_declared(at: int, scale: Scale) -> bool:
    """With the SDK: the function of that number."""
    return at % scale.environments >= scale.environments / 2


def deploy(steelyard: Installation, bundle: str, at: int, scale: Scale) -> None:
    environment = at % scale.environments
    spec = {
        "file": f"app{environment}.py",
        "attr": "answer" if is_declared(at, scale) else "app",
        "bundle": bundle,
        "python": str(WORKLOADS_PYTHON),
        "env": {"BENCH_ENVIRONMENT": str(environment)},
        "resources": {"cpus": 0.01},
        "idle_timeout_s": IDLE_S,
        "public": True,
    }
    request(steelyard, "PUT", f"/v1/functions/f{at}", json.dumps({"spec": spec}).encode())
    if at % 4 == 0:  # as many at once as a person's script would have under way
        steelyard.api("GET", f"/v1/functions/f{at}?wait_s=60")


def request(steelyard: Installation, method: str, path: str, data: bytes) -> Any:
    headers = {"Authorization": f"Bearer {steelyard.token}", "Idempotency-Key": hashlib.sha256(path.encode() + data).hexdigest()}
    headers["Content-Type"] = "application/gzip" if "bundles" in path else "application/json"
    asked = urllib.request.Request(f"http://127.0.0.1:{steelyard.api_port}{path}", method=method, data=data, headers=headers)
    with urllib.request.urlopen(asked, timeout=120) as answer:
        return answer.read()


def wait_deployed(steelyard: Installation, scale: Scale, say: Say, timeout_s: float = 300.0) -> None:
    end = time.monotonic() + timeout_s
    while True:
        states = [view["state"] for view in steelyard.api("GET", "/v1/functions")]
        asleep = states.count("SLEEPING")
        say(f"{asleep}/{scale.functions} asleep")
        if asleep == scale.functions:
            return
        if "FAILED" in states or time.monotonic() > end:
            failed = [view for view in steelyard.api("GET", "/v1/functions") if view["state"] != "SLEEPING"]
            raise RuntimeError(f"{len(failed)} are not asleep, such as {failed[0]}")
        time.sleep(1.0)


def wake_rounds(steelyard: Installation, say: Say, rounds: int = 20) -> list[float]:
    """Seconds to the first byte of f0, asleep each time."""
    found: list[float] = []
    target = Target(path="/f0/", port=steelyard.gateway_port)
    for at in range(rounds + 1):
        say(f"wake {at}/{rounds} of one function")
        answer = asyncio.run(request_once(target))
        assert answer.status == 200, answer
        found.append(answer.first_byte_s)
        time.sleep(IDLE_S + 0.4)
    return found[1:]


def settle(steelyard: Installation, say: Say, timeout_s: float = 600.0) -> None:
    """Until no template has come or gone for so long that spares, and what the deploys left to do, are gone too."""
    end, quiet_since, before = time.monotonic() + timeout_s, time.monotonic(), live_templates(steelyard)
    while (quiet_s := time.monotonic() - quiet_since) < QUIET_S:
        if time.monotonic() > end:
            raise RuntimeError(f"templates still come and go after {timeout_s:g} s: {before} of them now")
        say(f"{before} templates, quiet for {quiet_s:.0f} of {QUIET_S:g} s")
        time.sleep(5)
        found = live_templates(steelyard)
        if found != before:
            quiet_since, before = time.monotonic(), found


def live_templates(steelyard: Installation) -> int:
    """Of revisions."""
    return len(list((steelyard.folder / "home" / "agent" / "handles").glob("tmpl.*.json")))


def agent_cost(steelyard: Installation, seconds: float = 10.0) -> tuple[float, float]:
    """(bytes resident, share of a core in percent) of the agent with nothing to do."""
    pid = int(steelyard.programs()["agent"]["pid"])
    before, begin = cpu_seconds(pid), time.monotonic()
    time.sleep(seconds)
    return float(rss_bytes(pid) or 0), (cpu_seconds(pid) - before) / (time.monotonic() - begin) * 100


class Bill(NamedTuple):
    """Bytes of templates by role: count, private in the median, and of all the proportional sum and the page tables."""

    revisions: int
    #: of plain apps, and of those that were declared with the SDK
    revision_private: float
    declared_private: float
    environments: int
    environment_private: float
    proportional: float
    page_tables: float


def memory_bill(steelyard: Installation, scale: Scale) -> Bill:
    private: dict[str, list[int]] = {"tmpl": [], "declared": [], "tmpl-environment": [], "tmpl-base": []}
    proportional = tables = 0
    for path in (steelyard.folder / "home" / "agent" / "handles").glob("tmpl*.json"):
        pid = json.loads(path.read_bytes())["pid"]
        memory = observe_memory(pid)
        if memory is None:
            continue
        role, function = path.name.split(".")[:2]
        if role == "tmpl" and is_declared(int(function[1:]), scale):
            role = "declared"
        private[role].append(memory.private)
        proportional += memory.proportional
        status = Path(f"/proc/{pid}/status").read_text()
        tables += int(status.partition("VmPTE:")[2].split()[0]) * 1024
    environments = private["tmpl-environment"]
    return Bill(
        len(private["tmpl"]) + len(private["declared"]),
        statistics.median(private["tmpl"] or [0]),
        statistics.median(private["declared"] or [0]),
        len(environments),
        statistics.median(environments or [0]),
        proportional,
        tables,
    )


class Point(NamedTuple):
    """One budget of the curve. Milliseconds of wakes; counts by road."""

    budget: str
    wakes: list[float]
    roads: dict[str, int]
    failed: int
    templates: int


def play(steelyard: Installation, scale: Scale, budget: str, say: Say, *, restart: bool) -> Point:
    if restart:
        steelyard.cli("down")
        up(steelyard, budget)
        settle(steelyard, say)
    say(f"{scale.seconds:.0f} s of arrivals with {budget}")
    since = time.time_ns() // 1000
    failed = asyncio.run(arrivals(steelyard.gateway_port, scale))
    time.sleep(IDLE_S + 1)
    rows = read_wakes(steelyard, scale, since)
    roads: dict[str, int] = {}
    for row in rows:
        roads[row["road"]] = roads.get(row["road"], 0) + 1
    return Point(budget, [row["wall_ms"] for row in rows], roads, failed, live_templates(steelyard))


async def arrivals(port: int, scale: Scale) -> int:
    """Poisson arrivals over functions by Zipf's law; how many were not answered 200."""
    order = random.sample(range(scale.functions), scale.functions)
    weights = list(itertools.accumulate(1 / rank**EXPONENT for rank in range(1, scale.functions + 1)))
    end = time.monotonic() + scale.seconds
    asked: list[asyncio.Task[Any]] = []
    while time.monotonic() < end:
        (name,) = random.choices(order, cum_weights=weights)
        asked.append(asyncio.create_task(request_once(Target(path=f"/f{name}/", port=port))))
        await asyncio.sleep(random.expovariate(RATE))
    answers = await asyncio.gather(*asked)
    return sum(answer.status != 200 for answer in answers)


def read_wakes(steelyard: Installation, scale: Scale, since_us: int) -> list[Any]:
    """Ledger rows of this time, of all functions."""
    rows: list[Any] = steelyard.api("GET", "/v1/coldstarts?limit=1000")
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(since_us / 1e6))
    return [row for row in rows if row["at"] >= stamp]


def figures(
    scale: Scale,
    alone: list[float],
    among: list[float],
    agent_bytes: float,
    cpu_before: float,
    cpu: float,
    bill: Bill,
    deploy_ms: float,
    curve: list[Point],
) -> list[Figure]:
    count, first = scale.functions, curve[0]
    slower = statistics.median(among) / statistics.median(alone)
    p50, p99 = percentile(first.wakes, 0.5), percentile(first.wakes, 0.99)
    more: dict[str, float] = {"answers that failed": sum(point.failed for point in curve)}
    for point in curve:
        more |= {
            f"{point.budget}: wakes": len(point.wakes),
            f"{point.budget}: p50 (ms)": percentile(point.wakes, 0.5),
            f"{point.budget}: p99 (ms)": percentile(point.wakes, 0.99),
            f"{point.budget}: templates of revisions": point.templates,
            **{f"{point.budget}: by {road}": number for road, number in sorted(point.roads.items())},
        }
    where = f"{count} functions over {scale.environments} environments, a quarter with torch or scipy, half declared with the SDK"
    return [
        Figure(
            "wake among many",
            f"wake of one function among {count}, as a multiple of alone",
            slower,
            "x",
            "<= 1.25 x",
            slower <= 1.25,
            f"{where}. 20 wakes of the same function each time, to the first byte.",
            {"alone p50 (ms)": statistics.median(alone) * 1000, "among p50 (ms)": statistics.median(among) * 1000},
        ),
        Figure(
            "sleeping function",
            f"agent memory per sleeping function, {count} of them",
            agent_bytes / 1024,
            "KiB",
            "< 64 KiB",
            agent_bytes < 64 * 1024,
            f"{where}. Resident memory of the agent with {count} less that with one.",
            {"agent idle (% of a core)": cpu, "with one function (%)": cpu_before, "deploy (ms each)": deploy_ms},
        ),
        Figure(
            "memory bill",
            f"private memory of a sleeping revision, {count} functions",
            bill.revision_private / 1e6,
            "MB",
            "<= 2 MB",
            bill.revision_private <= 2e6,
            f"{where}. Median of the private bytes of the templates of plain ASGI apps, as all were before November 29th, 2026; "
            "all templates together by proportional shares.",
            {
                "templates of revisions": bill.revisions,
                "environments": bill.environments,
                "private of an environment, median (MB)": bill.environment_private / 1e6,
                "all templates (MB)": bill.proportional / 1e6,
                "their page tables (MB)": bill.page_tables / 1e6,
            },
        ),
        Figure(
            "memory bill sdk",
            f"private memory of a sleeping revision that is declared with the SDK, {count} functions",
            bill.declared_private / 1e6,
            "MB",
            "<= 2 MB",
            bill.declared_private <= 2e6,
            f"{where}. Median of the private bytes of the templates of those: a typed function and an endpoint in a file.",
        ),
        Figure(
            "wakes by Zipf",
            f"wake of {count} functions by Zipf's law, {first.budget} for templates",
            p99,
            "ms p99",
            "p50 <= 15 ms, p99 <= 300 ms",
            p50 <= 15 and p99 <= 300,
            f"{where}. {RATE:g} requests a second, exponent {EXPONENT:g}, asleep after {IDLE_S:g} s; the same with less memory.",
            {"p50 (ms)": p50, **more},
        ),
    ]


if __name__ == "__main__":  # a size of one's own: python -m bench.many FUNCTIONS ENVIRONMENTS SECONDS BUDGET...
    functions, environments, seconds, *budgets = sys.argv[1:]
    chosen = Scale(int(functions), int(environments), float(seconds), tuple(budgets) or FULL.budgets)
    for each in measure_many(lambda text: print(text, file=sys.stderr, flush=True), False, chosen):
        print(each)
