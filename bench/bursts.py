"""What becomes of many requests at once: at a sleeping function, at a full one, and around the moment it falls asleep?"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from bench.figures import Figure
from bench.installation import Installation, installation
from bench.load import Result, Target, request_once

Say = Callable[[str], None]

SLOW_APP = """
import asyncio, json, os, time
inside = most = 0

async def app(scope, receive, send):
    global inside, most
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    inside += 1
    most = max(most, inside)
    began = time.monotonic()
    await asyncio.sleep(SECONDS)
    inside -= 1
    body = json.dumps({"pid": os.getpid(), "most": most, "began": began}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})
"""

#: appends the request's body to a file, one write each; a body that begins with "crash" ends the process after it
EFFECT_APP = """
import os

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    body = (await receive())["body"]
    fd = os.open(os.environ["EFFECTS"], os.O_WRONLY | os.O_APPEND)
    os.write(fd, body + b"\\n")
    os.close(fd)
    if body.startswith(b"crash"):
        os._exit(9)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
"""


async def _crowd(target: Target, count: int, later: int = 0, pause_s: float = 0.0) -> list[Result]:
    """`count` requests at once, then `later` more, one each `pause_s`."""
    tasks = [asyncio.create_task(request_once(target)) for _ in range(count)]
    for _ in range(later):
        await asyncio.sleep(pause_s)
        tasks.append(asyncio.create_task(request_once(target)))
    return await asyncio.gather(*tasks)


def measure_crowd(say: Say, quick: bool) -> list[Figure]:
    """200 parallel requests to a sleeping function with concurrency 8, at most 2 replicas, 20 ms each."""
    rounds, codes, slowest = (2 if quick else 10), Counter[int](), 0.0
    with installation() as steelyard:
        app = steelyard.write_app("crowd", SLOW_APP.replace("SECONDS", "0.02"))
        steelyard.deploy(app, "crowd", "--concurrency", "8", "--max-replicas", "2", "--idle-timeout", "300ms", "--public")
        target = Target(path="/crowd/", port=steelyard.gateway_port)
        for at in range(rounds):
            say(f"crowd {at + 1}/{rounds}")
            steelyard.wait_asleep("crowd", wakes=at)
            results = asyncio.run(_crowd(target, 200))
            codes.update(result.status for result in results)
            slowest = max(slowest, *(result.whole_s for result in results))
    wrong = sum(count for status, count in codes.items() if status not in (200, 429))
    more = {f"answered {status}" if status else "hung or cut": float(count) for status, count in sorted(codes.items())}
    return [
        Figure(
            "crowd",
            "200 requests at once to a sleeping function (concurrency 8, max_replicas 2): other than 200, 429",
            float(wrong),
            "requests",
            "0: none hangs, none 5xx",
            wrong == 0,
            f"{rounds} rounds of 200, each asleep at first, 20 ms of work a request.",
            more | {"slowest answer (s)": slowest},
        )
    ]


def measure_takeover(say: Say, quick: bool) -> list[Figure]:
    """300 requests for a sleeping function that may have two replicas: time beside the ideal."""
    rounds, work_s, concurrency = (2 if quick else 5), 0.05, 8
    ratios: list[float] = []
    shares: list[float] = []
    totals: list[float] = []
    seconds: list[float] = []
    ideals: list[float] = []
    most = 0
    with installation() as steelyard:
        app = steelyard.write_app("takeover", SLOW_APP.replace("SECONDS", str(work_s)))
        steelyard.deploy(
            app, "takeover", "--concurrency", str(concurrency), "--max-replicas", "2", "--idle-timeout", "500ms", "--public"
        )
        target = Target(path="/takeover/", port=steelyard.gateway_port)
        for at in range(rounds):
            say(f"takeover {at + 1}/{rounds}")
            steelyard.wait_asleep("takeover", wakes=at)
            begin = time.monotonic()
            results = asyncio.run(_crowd(target, 180, later=120, pause_s=0.006))
            total_s = time.monotonic() - begin
            answers = [json.loads(result.body) for result in results if result.status == 200]
            if len(answers) != 300:
                raise RuntimeError(f"answers: {Counter(result.status for result in results)}")
            by_replica = Counter(answer["pid"] for answer in answers)
            most = max(most, *(answer["most"] for answer in answers))
            firsts = sorted(min(each["began"] for each in answers if each["pid"] == pid) for pid in by_replica)
            second_s = (firsts[1] - begin) if len(firsts) > 1 else total_s
            # until the second one serves, one serves alone: it has done half of what both would have done
            ideal_s = -(-300 // (2 * concurrency)) * work_s + second_s / 2
            totals.append(total_s)
            seconds.append(second_s)
            ideals.append(ideal_s)
            ratios.append(total_s / ideal_s)
            shares.append(min(by_replica.values()) / 300 if len(by_replica) > 1 else 0.0)
    ratio = statistics.median(ratios)
    more = {
        "total (s)": statistics.median(totals),
        "ideal (s)": statistics.median(ideals),
        "the second replica served after (s)": statistics.median(seconds),
        "smaller replica's share": statistics.median(shares),
        "most at once in one replica": float(most),
    }
    what = (
        "180 requests at once to a sleeping function, 120 more within 0.7 s (200 may wait for two replicas), 50 ms each. "
        "The platform adds the second replica by itself; the ideal counts one replica until it serves and both from then on, "
        "without any cost of waking, connecting or moving bytes."
    )
    held = ratio <= 1.1 and min(shares) > 0.2 and most <= concurrency
    return [
        Figure(
            "takeover",
            "300 waiting requests, a second replica takes over, time / ideal",
            ratio,
            "x",
            "<= 1.1 x ideal, both share, never more than concurrency in one",
            held,
            what,
            more,
        )
    ]


def measure_idle_moment(say: Say, quick: bool) -> list[Figure]:
    """600 POSTs timed around the idle moment; then POSTs whose handler crashes after its side effect."""
    count, idle_s = (60 if quick else 600), 0.3
    with installation() as steelyard:
        effects = steelyard.folder / "effects"
        effects.touch()
        effects.chmod(0o666)
        app = steelyard.write_app("effect", EFFECT_APP)
        steelyard.deploy(app, "effect", "--idle-timeout", "300ms", "--public", "--env", f"EFFECTS={effects}")
        say(f"{count} POSTs")
        results = asyncio.run(_around_idle(steelyard, count, idle_s))
        done = Counter(effects.read_text().split())
        lost = sum(1 for name, status in results.items() if status != 200 or not done[name])
        twice = sum(1 for name in results if done[name] > 1)
        crash_twice, crash_lost = _crashes(steelyard, effects, 5 if quick else 30, say)
    what = (
        "4 clients, each waiting about 0.3 s between two POSTs on new connections, so that many meet the replica as it "
        "retires. A POST whose handler ends the process after its side effect must have run once."
    )
    more = {
        "POSTs": float(count),
        "lost": float(lost),
        "twice": float(twice),
        "crashing POSTs run twice": float(crash_twice),
        "crashing POSTs that never ran": float(crash_lost),
    }
    wrong = lost + twice + crash_twice + crash_lost
    return [
        Figure(
            "idle moment",
            f"{count} POSTs around the idle moment, handlers that crash: lost or done twice",
            float(wrong),
            "requests",
            "0 lost, 0 executed twice",
            wrong == 0,
            what,
            more,
        )
    ]


async def _around_idle(steelyard: Installation, count: int, idle_s: float) -> dict[str, int]:
    statuses: dict[str, int] = {}
    chance = random.Random(7)

    async def client(number: int) -> None:
        for at in range(count // 4):
            name = f"p{number}-{at}"
            statuses[name] = (await request_once(_post(steelyard, name))).status
            # together: a lone client's pause decides, so all four aim at the same moment
            await asyncio.sleep(max(0.0, idle_s + chance.uniform(-0.01, 0.02)))

    await asyncio.gather(*(client(number) for number in range(4)))
    return statuses


def _crashes(steelyard: Installation, effects: Path, count: int, say: Say) -> tuple[int, int]:
    names = [f"crash-{at}" for at in range(count)]
    for name in names:
        say(name)
        asyncio.run(request_once(_post(steelyard, name)))
    done = Counter(effects.read_text().split())
    return sum(done[name] > 1 for name in names), sum(done[name] == 0 for name in names)


def _post(steelyard: Installation, name: str) -> Target:
    return Target(path="/effect/", port=steelyard.gateway_port, method="POST", body=name.encode())
