"""Which login a registry is asked with: the closest name wins, whatever wrote the file; what is no login is said so."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.errors import Refused
from steelyard.lifecycle.registry_login import Login, choose_login, login_of_secret, render_login, user_files


def auth(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def choose(name: str, *files: dict[str, Any]) -> Login | None:
    return choose_login([(f"/f{number}", json.dumps(file).encode()) for number, file in enumerate(files)], name)


def test_the_closest_name_wins() -> None:
    auths = {"r.io": auth("host", "1"), "r.io/team": auth("team", "2"), "r.io/team/app": auth("app", "3"), "x.io": auth("x", "4")}
    found = [choose(name, {"auths": auths}) for name in ("r.io/team/app", "r.io/team/other", "r.io/a", "other.io/a")]
    assert [login and login.user for login in found] == ["app", "team", "host", None]


@pytest.mark.parametrize(
    "key", ["https://index.docker.io/v1/", "docker.io", "index.docker.io", "https://registry-1.docker.io/v2/"]
)
def test_docker_hub_is_found_under_all_its_names(key: str) -> None:
    assert choose("docker.io/library/nginx", {"auths": {key: auth("me", "p:w")}}) == Login("me", "p:w")


def test_the_first_file_with_a_login_wins_and_an_empty_entry_is_none() -> None:
    login = choose("r.io/app", {"auths": {"r.io": {}}}, {"auths": {"r.io": auth("a", "1")}}, {"auths": {"r.io": auth("b", "2")}})
    assert login == Login("a", "1")
    assert choose("r.io/app", {"auths": {"r.io": {}}}, {}) is None


def test_a_token_stands_in_for_a_password() -> None:
    login = choose("r.io/app", {"auths": {"r.io": {**auth("00", ""), "identitytoken": "t"}}})
    assert login == Login("00", "", "t")
    assert json.loads(render_login(login, "r.io/app"))["auths"]["r.io"]["identitytoken"] == "t"


def test_a_program_that_keeps_logins_is_named_where_no_file_has_one() -> None:
    stored = {"credsStore": "desktop", "auths": {"r.io": {}}}
    assert choose("r.io/app", stored) == Login(helper="docker-credential-desktop")
    assert choose("x.io/app", stored) is None
    assert choose("r.io/app", {"credHelpers": {"r.io": "ecr"}}) == Login(helper="docker-credential-ecr")
    assert choose("r.io/app", stored, {"auths": {"r.io": auth("a", "1")}}) == Login("a", "1")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"auths": 1}', b'{"auths": {"r.io": {"auth": "!"}}}', b"\xff"])
def test_a_damaged_file_is_named(content: bytes) -> None:
    with pytest.raises(Refused, match="/f "):
        choose_login([("/f", content)], "r.io/app")


def test_a_secret_is_a_login_by_its_two_keys() -> None:
    assert login_of_secret("ghcr", {"USERNAME": "me", "PASSWORD": "x"}) == Login("me", "x")
    with pytest.raises(Refused, match="USERNAME and PASSWORD"):
        login_of_secret("ghcr", {"TOKEN": "x"})


def test_a_users_files_are_their_own() -> None:
    assert all("1000" in path or path.startswith("/home/eve/") for path in user_files(1000, "/home/eve"))


TEXTS = st.text(st.characters(exclude_characters=":\0", codec="utf-8"), min_size=1)


@given(TEXTS, st.text(st.characters(exclude_characters="\0", codec="utf-8")))
def test_what_is_rendered_is_read_again(user: str, password: str) -> None:
    rendered = render_login(Login(user, password), "r.io/app")
    assert choose_login([("/f", rendered)], "r.io/app") == Login(user, password)


@given(st.binary(max_size=200))
def test_no_content_does_more_than_be_refused(content: bytes) -> None:
    with contextlib.suppress(Refused):
        choose_login([("/f", content)], "r.io/app")
