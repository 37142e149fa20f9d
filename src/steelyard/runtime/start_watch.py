"""What does a program write into its log while it starts? Follows the files that are our own stdout and stderr, which are the
program's too, and hands their lines to the pure `StartLog`. Never reads what stood there before, nor from anything but files."""

from __future__ import annotations

import contextlib
import os
import stat

from steelyard.lifecycle.start_log import LINE_MAX, StartLog

#: read at one look at most; a program that writes more tells its steps later
READ_MAX = 1 << 18


class StartWatch:
    def __init__(self) -> None:
        """Before the program is started: what is written from now on is its own."""
        self._log = StartLog()
        #: descriptor -> the beginning of a line that is not complete
        self._files: dict[int, bytes] = {}
        for fd in (1, 2):
            with contextlib.suppress(OSError):
                if stat.S_ISREG(os.fstat(fd).st_mode):
                    opened = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
                    os.lseek(opened, 0, os.SEEK_END)
                    self._files[opened] = b""

    def look(self, now_ns: int) -> None:
        for fd, begun in self._files.items():
            try:
                if os.fstat(fd).st_size < os.lseek(fd, 0, os.SEEK_CUR):
                    os.lseek(fd, 0, os.SEEK_SET)  # it grew too long, and was cut
                data = begun + os.read(fd, READ_MAX)
            except OSError:
                continue
            *lines, rest = data.replace(b"\r", b"\n").split(b"\n")  # bars of progress begin their line anew
            self._files[fd] = rest[:LINE_MAX]
            for line in lines:
                self._log.feed(now_ns, line.decode(errors="replace"))

    def end(self, begin_ns: int, now_ns: int) -> dict[str, float]:
        """The phases since `begin_ns`, in ms; nothing is watched any more."""
        self.look(now_ns)
        for fd in self._files:
            os.close(fd)
        self._files = {}
        return self._log.phases(begin_ns, now_ns)
