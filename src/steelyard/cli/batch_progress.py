"""How far is a batch, how fast is it, and when will it be done? Pure: time is an argument."""

from __future__ import annotations

from collections import deque

BAR_WIDTH = 24
#: the rate is that of the last so many seconds
WINDOW_S = 30.0


class Meter:
    """Rows done over time. `done` at the start are those of earlier runs: they count for the bar, not for the rate."""

    def __init__(self, total: int, done: int, now_ns: int) -> None:
        self._total = total
        self._seen: deque[tuple[int, int]] = deque([(now_ns, done)])
        self._failed = 0

    def note(self, done: int, failed: int, now_ns: int) -> None:
        self._seen.append((now_ns, done))
        self._failed = failed
        while len(self._seen) > 2 and now_ns - self._seen[1][0] > WINDOW_S * 1e9:
            self._seen.popleft()

    @property
    def rate(self) -> float:
        """Rows per second, 0.0 while nothing has been measured."""
        (first_ns, first), (last_ns, last) = self._seen[0], self._seen[-1]
        return (last - first) * 1e9 / (last_ns - first_ns) if last_ns > first_ns else 0.0

    @property
    def left_s(self) -> float | None:
        return (self._total - self._seen[-1][1]) / self.rate if self.rate > 0 else None

    def render(self, *, bar: bool) -> str:
        done = self._seen[-1][1]
        filled, percent = (done * whole // self._total if self._total else whole for whole in (BAR_WIDTH, 100))
        picture = f"{'█' * filled}{'░' * (BAR_WIDTH - filled)} " if bar else ""
        left = "" if self.left_s is None or done == self._total else f", {render_duration(self.left_s)} left"
        failed = f", {self._failed:,} failed" if self._failed else ""
        return f"{picture}{done:,} of {self._total:,} rows ({percent} %), {_rate(self.rate)} rows/s{left}{failed}"


def render_duration(seconds: float) -> str:
    """3725 -> "1h02m", 65 -> "1m05s", 7 -> "7s"."""
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours >= 100:
        return f"{hours // 24} days"
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{whole % 60:02d}s" if minutes else f"{whole}s"


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
