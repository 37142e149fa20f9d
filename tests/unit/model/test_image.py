"""What `--image` may say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.errors import Refused
from steelyard.model.image import Image, ImageSource, UserIds, choose_argv, find_user, parse_image

HEX = "a" * 64


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("ghcr.io/org/app:1.2", "ghcr.io/org/app:1.2"),
        ("ghcr.io/org/app", "ghcr.io/org/app:latest"),
        ("docker://nginx:1.27", "docker.io/library/nginx:1.27"),
        ("docker://bitnami/redis", "docker.io/bitnami/redis:latest"),
        ("docker://ghcr.io/org/app", "ghcr.io/org/app:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/a/b/c:x", "localhost:5000/a/b/c:x"),
        (f"quay.io/a/b:1@sha256:{HEX}", f"quay.io/a/b@sha256:{HEX}"),
        ("oci:/srv/image", "oci:/srv/image"),
        ("oci:/srv/image:v1", "oci:/srv/image:v1"),
        ("docker-archive:/srv/saved.tar", "docker-archive:/srv/saved.tar"),
    ],
)
def test_every_spelling_of_an_image_has_one_short_form(text: str, short: str) -> None:
    assert parse_image(text).text == short
    assert parse_image(short) == parse_image(text)


@pytest.mark.parametrize(
    "text",
    ["", "nginx", "library/nginx", "NGINX", "docker://", "docker://UPPER", "oci:relative", "oci:", "docker-archive:x.tar",
     "ghcr.io/a b", "ghcr.io/a:", "ghcr.io/a@sha256:12", "ghcr.io/../x", "ghcr.io/a\nb", "-x/y.z", "dir:/tmp/x", "x" * 2000,
     "containers-storage:x", "oci-archive:/x.tar", "docker-daemon:x:y", "ghcr.io/--help", "oci:/a:b:c"],
)  # fmt: skip
def test_what_does_not_say_from_where_is_refused(text: str) -> None:
    with pytest.raises(Refused) as refusal:
        parse_image(text)
    assert refusal.value.code == "bad-image"


def test_only_registries_of_this_machine_may_do_without_a_certificate() -> None:
    names = ("localhost:5000/a", "127.0.0.1:5000/a", "localhost/a", "127.0.0.1.evil.io/a", "localhost.evil.io/a", "ghcr.io/a/b")
    assert [parse_image(name).on_loopback for name in names] == [True, True, True, False, False, False]


@given(st.text(max_size=60))
def test_no_text_is_taken_for_an_option_of_another_program(text: str) -> None:
    try:
        found = parse_image(text)
    except Refused:
        return
    assert not found.text.startswith("-")
    assert found.source is not ImageSource.REGISTRY or "/" in found.text


def test_the_entry_point_gets_the_words_given_or_the_images_own() -> None:
    image = Image("d", "r", entrypoint=("/entry", "-x"), command=("serve",))
    assert choose_argv(image, ()) == ("/entry", "-x", "serve")
    assert choose_argv(image, ("other", "words")) == ("/entry", "-x", "other", "words")
    assert choose_argv(Image("d", "r"), ("ls",)) == ("ls",)
    with pytest.raises(Refused, match="names no command"):
        choose_argv(Image("d", "r"), ())


PASSWD = "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102:Web:/var/www:/bin/false\nbig:x:99999:1::/:/bin/sh\nbroken\n"
GROUP = "root:x:0:\nweb:x:102:\nlog:x:4:web,other\nvideo:x:44:web\n"


@pytest.mark.parametrize(
    ("user", "ids"),
    [
        ("", UserIds(0, 0, (), "/root")),
        ("root", UserIds(0, 0, (), "/root")),
        ("web", UserIds(101, 102, (4, 44), "/var/www")),
        ("101", UserIds(101, 102, (4, 44), "/var/www")),
        ("web:log", UserIds(101, 4, (), "/var/www")),
        ("1000", UserIds(1000, 0, (), "/")),
        ("1000:1001", UserIds(1000, 1001, (), "/")),
        ("nobody-here", None),
        ("web:nobody-here", None),
        ("big", None),
        ("65536", None),
        ("-1", None),
        ("١", None),
    ],
)
def test_a_user_is_the_one_that_the_images_own_files_name(user: str, ids: UserIds | None) -> None:
    assert find_user(user, PASSWD, GROUP) == ids


def test_an_image_without_files_of_users_runs_as_numbers_or_root() -> None:
    assert find_user("", "", "") == UserIds()
    assert find_user("7:8", "", "") == UserIds(7, 8)
    assert find_user("web", "", "") is None
