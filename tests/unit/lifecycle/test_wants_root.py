"""What programs say when they expected to be root becomes the step and what to do; any other refusal is left alone."""

from __future__ import annotations

import pytest

from steelyard.lifecycle.wants_root import LINE_MAX, explain_root


@pytest.mark.parametrize(
    "said",
    [
        "chown: /var/lib/data: Operation not permitted",
        "chown: changing ownership of '/var/lib/postgresql/data': Operation not permitted",
        'nginx: [emerg] chown("/var/cache/nginx/client_temp", 101) failed (1: Operation not permitted)',
        "2026/11/29 12:00:00 [emerg] 7#7: setgid(33) failed (1: Operation not permitted)",
        "E: setgroups 65534 failed - setgroups (1: Operation not permitted)",
        "E: seteuid 100 failed - seteuid (1: Operation not permitted)",
        "su: cannot set groups: Operation not permitted",
        "su: can't set groups: Operation not permitted",
        'error: failed switching to "redis": operation not permitted',
        "setpriv: setresuid failed: Operation not permitted",
        "mount: /mnt: permission denied.",
        "mount: permission denied (are you root?)",
        "mknod: /tmp/kmsg: Operation not permitted",
        "unshare: unshare failed: Operation not permitted",
        "This script must be run as root",
        "Fatal: this program has to be run as root.",
    ],
)
def test_a_step_that_wants_root_is_quoted_with_what_to_do(said: str) -> None:
    told = explain_root(f"starting\n{said}\n\nbye\n")
    assert repr(said) in told
    assert "name an image that runs as a user" in told


@pytest.mark.parametrize(
    "said",
    [
        "nginx: [emerg] bind() to 0.0.0.0:80 failed (13: Permission denied)",
        "listen tcp :80: bind: permission denied",
        "Error: listen EACCES: permission denied 0.0.0.0:443",
        "(13)Permission denied: AH00072: make_sock: could not bind to address [::]:80",
    ],
)
def test_a_port_of_roots_is_told_apart(said: str) -> None:
    told = explain_root(said)
    assert repr(said) in told
    assert "listen on one above" in told


def test_of_a_traceback_the_call_is_quoted_too() -> None:
    told = explain_root(
        'Traceback (most recent call last):\n  File "/app.py", line 3, in <module>\n    os.setuid(33)\n'
        "PermissionError: [Errno 1] Operation not permitted\n"
    )
    assert "'os.setuid(33): PermissionError: [Errno 1] Operation not permitted'" in told


def test_the_last_step_is_the_one_that_ended_it() -> None:
    assert "'chown: /b: Operation not permitted'" in explain_root(
        "chown: /a: Operation not permitted\nchown: /b: Operation not permitted\n"
    )


def test_a_long_line_is_cut() -> None:
    assert len(explain_root("chown: " + "x" * 5000 + ": Operation not permitted")) < LINE_MAX + 500


@pytest.mark.parametrize(
    "said",
    [
        "",
        "sh: can't create /etc/x: Permission denied",
        "cat: /data/secret: Permission denied",
        "PermissionError: [Errno 13] Permission denied: '/data/x'",
        "git: Permission denied (publickey).",
        "chown: unknown user web",
        "mounting the model took 3 s",
        "ValueError: root of a negative number",
    ],
)
def test_other_failures_are_not_guessed_at(said: str) -> None:
    assert explain_root(said) == ""
