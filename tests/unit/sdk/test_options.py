"""Every option of a function: its spellings, its canonical value, and what is refused with which words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import steelyard as sy
from steelyard.cli.quantities import parse_bytes, parse_seconds
from steelyard.sdk.options import ALIASES, read_bytes, read_options, read_seconds


def test_options_become_plain_values_with_their_units() -> None:
    read = read_options(
        {
            "cpu": 2,
            "memory": "8GB",
            "gpu": "H100:2",
            "timeout": "5m",
            "retries": 3,
            "idle_timeout": 60,
            "schedule": sy.Cron("*/5 * * * *"),
        },
        "f",
    )
    assert read == {
        "cpus": 2.0,
        "memory_bytes": 8_000_000_000,
        "gpus": "H100:2",
        "timeout_s": 300.0,
        "retries": 3,
        "idle_timeout_s": 60.0,
        "schedule": {"cron": "*/5 * * * *", "timezone": "UTC"},
    }


def test_secrets_are_named_and_never_held() -> None:
    read = read_options({"secrets": [sy.Secret.from_name("db"), sy.Secret.from_name("tls", as_files=True), "token"]}, "f")
    assert read["secrets"] == [
        {"name": "db", "as_files": False},
        {"name": "tls", "as_files": True},
        {"name": "token", "as_files": False},
    ]


def test_volumes_are_told_with_their_paths() -> None:
    data = sy.Volume.from_name("data", create_if_missing=True)
    read = read_options({"volumes": {"/data": data, "/models/": sy.Volume.from_name("weights").read_only()}}, "f")
    assert read["volumes"] == [
        {"path": "/data", "name": "data", "create_if_missing": True, "read_only": False},
        {"path": "/models", "name": "weights", "create_if_missing": False, "read_only": True},
    ]
    assert (data.commit(), data.reload()) == (None, None)


def test_modals_spellings_mean_the_same() -> None:
    written = {"min_containers": 1, "max_containers": 4, "buffer_containers": 2, "scaledown_window": 5, "memory": 512}
    assert read_options(written, "f") == {
        "replicas_min": 1,
        "replicas_max": 4,
        "buffer_replicas": 2,
        "idle_timeout_s": 5.0,
        "memory_bytes": 512 << 20,
    }
    assert all(ours not in ALIASES for ours in ALIASES.values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cpuu": 1}, "no option 'cpuu'. Did you mean 'cpu'"),
        ({"image": object()}, "it is an image, such as sy.Image.python"),
        ({"memory": 8 << 30}, "counts MiB. Write the unit"),
        ({"volumes": ["/data"]}, "a dict of paths"),
        ({"volumes": {"data": sy.Volume.from_name("data")}}, "no absolute path"),
        ({"volumes": {"/data": "data"}}, "is no sy.Volume.from_name"),
        ({"memory": "eight"}, "such as '512MB'"),
        ({"timeout": "soon"}, "such as '500ms'"),
        ({"timeout": True}, "a duration"),
        ({"retries": -1}, "whole number from 0 to 100"),
        ({"retries": True}, "whole number"),
        ({"min_replicas": 3, "max_replicas": 2}, "min_replicas 3 is more than max_replicas 2"),
        ({"min_replicas": 1, "keep_warm": 1}, "'min_replicas' and 'keep_warm' mean the same"),
        ({"secret": "db"}, "secrets are a list"),
        ({"secrets": "db"}, "it is a list, such as [sy.Secret.from_name('db')]"),
        ({"secrets": [{"PASSWORD": "x"}]}, "is no secret"),
        ({"secrets": ["db", sy.Secret.from_name("db")]}, "'db' is named twice"),
        ({"secrets": ["Data Base"]}, "can't be the name of a secret"),
        ({"schedule": "* * * * *"}, "sy.Cron"),
        ({"env": {"A": 1}}, "are texts"),
        ({"name": "Big Name"}, "can't be the name of a function"),
        ({"timing": "soon"}, "best-effort, dedicated"),
        ({"public": 1}, "True or False"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(options: dict[str, object], words: str) -> None:
    with pytest.raises(sy.DeclarationError, match="f: ") as caught:
        read_options(options, "f")
    assert words in str(caught.value)


@pytest.mark.parametrize("make", [lambda: sy.Cron("every day"), lambda: sy.Every(), lambda: sy.Every(days=1000)])
def test_nouns_refuse_what_they_cannot_be(make: object) -> None:
    with pytest.raises(sy.DeclarationError):
        make()  # type: ignore[operator]


def test_nouns_are_equal_by_content() -> None:
    assert sy.Every(minutes=1) == sy.Every(seconds=60) != sy.Every(seconds=61)
    assert len({sy.Cron("@daily"), sy.Cron("@daily"), sy.Cron("@hourly")}) == 2
    assert sy.Period is sy.Every


@given(st.text(alphabet="0123456789.kMGTiBsmhd ", max_size=9))
def test_sizes_and_durations_are_read_as_on_the_command_line(text: str) -> None:
    for ours, theirs in ((read_seconds, parse_seconds), (read_bytes, parse_bytes)):
        try:
            expected: float | None = theirs(text)
        except Exception:
            expected = None
        try:
            seen: float | None = ours(text)
        except sy.DeclarationError:
            seen = None
        assert seen == expected, text
