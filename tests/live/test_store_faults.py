"""What becomes of the store when the disk, the file or the process fails? Real files, a real full disk, real kill -9."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from steelyard.errors import EdgeFailed, NoRoom, Refused, StoreDamaged
from steelyard.model.ids import DEFAULT_PROJECT, JobId
from steelyard.model.job import Job, JobSpec, JobState, Owner
from steelyard.store import Tx
from steelyard.store.driver import connect
from steelyard.store.faults import accept_path
from steelyard.store.mark import load_mark, mark_path
from steelyard.store.sql import SqlStore, open_store
from steelyard.store.tables import SCHEMA

PAGE_BYTES = 4096


def make_job(name: str, generation: int = 1, env: str = "x" * 200) -> Job:
    return Job(
        id=JobId(name),
        project=DEFAULT_PROJECT,
        owner=Owner("ann", 1000),
        generation=generation,
        attempt=0,
        spec=JobSpec(name=name, argv=("true",), cwd="/", env={"E": env}),
        state=JobState.QUEUED,
        submitted_at=1,
    )


def put_next(tx: Tx, env: str = "x" * 200) -> str:
    name = f"j{tx.bump('job')}"
    tx.put_job(make_job(name, env=env))
    return name


def with_store(path: Path, fn: Callable[[SqlStore], Any]) -> Any:
    """Open, do, close: each in the order a server does it."""

    async def use() -> Any:
        store = open_store(path)
        try:
            return await fn(store)
        finally:
            await store.close()

    return asyncio.run(use())


def fill(path: Path, jobs: int) -> None:
    async def put(store: SqlStore) -> None:
        await asyncio.gather(*(store.write(put_next) for _ in range(jobs)))

    with_store(path, put)


def read_jobs(path: Path) -> list[Job]:
    return with_store(path, lambda store: store.read(lambda tx: tx.jobs()))


def digests(folder: Path) -> dict[str, str]:
    """Content of every file that a person would restore from (an empty WAL, the WAL's index and the lock are not)."""
    kept = [file for file in folder.iterdir() if file.suffix in (".db", ".db-wal", ".mark") and file.stat().st_size]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in kept}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "server" / "steelyard.db"


def refused(path: Path) -> StoreDamaged:
    """Opening is refused as damaged, changes nothing, and tells the path and the way out."""
    before = digests(path.parent)
    with pytest.raises(StoreDamaged) as caught:
        open_store(path)
    assert digests(path.parent) == before
    assert str(path) in caught.value.public
    assert f"touch {accept_path(path)}" in caught.value.public
    return caught.value


def test_a_truncated_store_is_refused_with_the_offset(path: Path) -> None:
    fill(path, 300)
    length = path.stat().st_size
    for kept in (length - 100, length // 2 // PAGE_BYTES * PAGE_BYTES, 3 * PAGE_BYTES + 7, 50):
        os.truncate(path, kept)
        assert f"byte offset {kept if kept > 100 else 0}" in refused(path).public


def test_a_store_cut_to_nothing_is_lost_and_does_not_start_empty(path: Path) -> None:
    fill(path, 3)
    os.truncate(path, 0)
    assert refused(path).code == "store-lost"


def test_a_page_of_random_bytes_is_refused_with_its_page(path: Path) -> None:
    fill(path, 300)
    whole = path.read_bytes()
    noise = random.Random(4)
    told = 0
    for page in range(len(whole) // PAGE_BYTES):
        path.write_bytes(whole[: page * PAGE_BYTES] + noise.randbytes(PAGE_BYTES) + whole[(page + 1) * PAGE_BYTES :])
        text = refused(path).public
        told += f"page {page + 1} " in text or "byte offset 0 " in text
    assert told > 0.8 * len(whole) / PAGE_BYTES
    path.write_bytes(whole)
    assert len(read_jobs(path)) == 300


def test_a_damaged_row_in_a_sound_page_is_never_given_out(path: Path) -> None:
    fill(path, 50)
    whole = bytearray(path.read_bytes())
    for sound, noise in ((b'"submitted_at"', b'"submitted__"'), (b"xxxx", b"xxxy"), (b"xxxx", b"\xff\xfe\xfd\xfc")):
        path.write_bytes(whole.replace(sound, noise))
        with pytest.raises(StoreDamaged, match=r"steelyard\.db is damaged: .*row"):
            read_jobs(path)
    path.write_bytes(whole)
    assert len(read_jobs(path)) == 50


def test_a_deleted_store_is_refused_until_the_loss_is_accepted(path: Path) -> None:
    fill(path, 3)
    path.unlink()
    assert refused(path).code == "store-lost"
    assert not path.exists()
    accept_path(path).touch()
    assert with_store(path, lambda store: store.write(put_next)) == "j4"
    assert not accept_path(path).exists()
    assert [job.id for job in read_jobs(path)] == ["j4"]


def test_an_older_copy_in_its_place_is_refused_until_accepted(path: Path) -> None:
    fill(path, 3)
    shutil.copy(path, path.with_name("backup"))
    fill(path, 2)
    shutil.copy(path.with_name("backup"), path)
    err = refused(path)
    assert err.code == "store-rolled-back"
    assert "job 3 (was 5)" in err.public
    accept_path(path).touch()
    assert with_store(path, lambda store: store.write(put_next)) == "j6"
    assert [job.id for job in read_jobs(path)] == ["j1", "j2", "j3", "j6"]


def test_a_lost_wal_is_a_rollback(path: Path) -> None:
    """Whoever copies a running store without its -wal gets an older one, which only the mark tells."""
    fill(path, 3)

    async def write_and_copy() -> None:
        store = open_store(path)
        await store.write(put_next)
        copied = path.read_bytes()
        await store.close()
        path.write_bytes(copied)

    asyncio.run(write_and_copy())
    assert refused(path).code == "store-rolled-back"


def test_a_store_without_its_mark_opens_and_gets_a_new_one(path: Path) -> None:
    fill(path, 3)
    mark_path(path).unlink()
    assert len(read_jobs(path)) == 3
    mark = load_mark(path)
    assert mark is not None
    assert mark.counters["job"] == 3


def test_a_damaged_mark_is_refused(path: Path) -> None:
    fill(path, 3)
    mark_path(path).write_bytes(b'{"counters": {"jo')
    with pytest.raises(StoreDamaged, match="mark is damaged"):
        open_store(path)


def test_a_newer_schema_is_refused_naming_both(path: Path) -> None:
    fill(path, 1)
    writing = connect(path, readonly=False)
    writing.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    writing.close()
    before = digests(path.parent)
    with pytest.raises(Refused, match=f"schema 9999.*up to {SCHEMA}") as caught:
        open_store(path)
    assert caught.value.code == "store-newer"
    assert digests(path.parent) == before


def test_other_files_are_not_taken_for_a_store(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"hello, this is no database\n" * 200)
    assert "no SQLite header" in refused(path).public
    path.unlink()
    other = connect(path, readonly=False)
    other.exec_driver_sql("CREATE TABLE songs (title TEXT)")
    other.close()
    assert "not one of Steelyard" in refused(path).public


def test_a_folder_that_cannot_be_made_is_told(path: Path) -> None:
    path.parent.write_bytes(b"a file stands where the folder should")
    with pytest.raises(EdgeFailed) as caught:
        open_store(path)
    assert caught.value.code == "store-failed"


def test_a_second_server_is_refused_and_the_first_goes_on(path: Path) -> None:
    async def both(store: SqlStore) -> str:
        with pytest.raises(Refused) as caught:
            open_store(path)
        assert caught.value.code == "store-in-use"
        return await store.write(put_next)

    assert with_store(path, both) == "j1"


def test_the_store_holds_secrets_and_is_its_owners_alone(path: Path) -> None:
    async def modes(store: SqlStore) -> dict[str, int]:
        await store.write(put_next)
        return {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}

    found = with_store(path, modes)
    assert {"steelyard.db", "steelyard.db-wal", "steelyard.db.mark"} <= set(found)
    assert set(found.values()) == {0o600}


def test_alembic_is_not_loaded_when_nothing_is_to_be_migrated(path: Path) -> None:
    fill(path, 1)
    program = (
        "import sys; from pathlib import Path; from steelyard.store.sql import open_store; open_store(Path(sys.argv[1]));"
        "print('alembic' in sys.modules, 'sqlalchemy.orm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["False", "False"]


# A disk that fails


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        pytest.skip(f"NOT TESTED: no tmpfs can be mounted here ({made.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def take_all_room(ballast: Path) -> None:
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"b" * 4096)
    assert os.statvfs(ballast.parent).f_bavail == 0


def test_a_full_disk_is_no_room_and_recovers_without_a_restart(tiny_disk: Path) -> None:
    path = tiny_disk / "server" / "steelyard.db"

    async def fill_up(store: SqlStore) -> list[str]:
        acknowledged: list[str] = []

        async def put_until_full() -> None:
            while True:
                acknowledged.append(await store.write(lambda tx: put_next(tx, "y" * 20_000)))

        with pytest.raises(NoRoom) as caught:
            await put_until_full()
        assert caught.value.code == "disk-full"
        assert str(path) in caught.value.public
        ballast.unlink()
        for _ in range(3):
            acknowledged.append(await store.write(put_next))
        assert [job.id for job in await store.read(lambda tx: tx.jobs())] == acknowledged
        return acknowledged

    path.parent.mkdir()
    ballast = tiny_disk / "ballast"
    ballast.write_bytes(b"b" * 500_000)
    acknowledged = with_store(path, fill_up)
    assert len(acknowledged) > 3
    assert [job.id for job in read_jobs(path)] == acknowledged


def test_all_of_a_batch_hear_of_a_full_disk_and_none_is_half_there(tiny_disk: Path) -> None:
    path = tiny_disk / "server" / "steelyard.db"

    async def together(store: SqlStore) -> None:
        outcomes = await asyncio.gather(
            store.write(put_next),
            store.write(lambda tx: put_next(tx, "y" * 4_000_000)),
            store.write(put_next),
            return_exceptions=True,
        )
        refused = [outcome for outcome in outcomes if isinstance(outcome, NoRoom)]
        assert outcomes[1] in refused
        kept = [outcome for outcome in outcomes if isinstance(outcome, str)]
        assert len(kept) + len(refused) == 3
        assert [job.id for job in await store.read(lambda tx: tx.jobs())] == kept

    with_store(path, together)


def test_a_disk_full_from_the_start_is_no_room(tiny_disk: Path) -> None:
    path = tiny_disk / "server" / "steelyard.db"
    path.parent.mkdir()
    take_all_room(tiny_disk / "ballast")
    with pytest.raises(NoRoom):
        open_store(path)
    (tiny_disk / "ballast").unlink()
    assert with_store(path, lambda store: store.write(put_next)) == "j1"


def test_another_write_error_is_store_failed_and_passes(path: Path) -> None:
    """EFBIG stands for any error of write(2) that is not a full disk."""

    async def limited(store: SqlStore) -> list[str]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        kept = [await store.write(put_next)]
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
        try:
            with pytest.raises(EdgeFailed) as caught:
                await store.write(lambda tx: put_next(tx, "z" * 400_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert caught.value.code == "store-failed"
        return [*kept, await store.write(put_next)]

    assert with_store(path, limited) == [job.id for job in read_jobs(path)] == ["j1", "j2"]


SYNC_FAILS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
static int fails(void) { return access(getenv("SYNC_FAILS"), F_OK) == 0; }
int fsync(int fd) { if (fails()) { errno = EIO; return -1; } return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd); }
int fdatasync(int fd) { if (fails()) { errno = EIO; return -1; } return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd); }
"""

SYNC_WRITER = """
import asyncio, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_store_faults import put_next
from steelyard.errors import EdgeFailed
from steelyard.store.sql import open_store

async def main():
    flag = Path(os.environ["SYNC_FAILS"])
    store = open_store(Path(sys.argv[1]))
    print(await store.write(put_next))
    flag.touch()
    for _ in range(3):
        try:
            print(await store.write(put_next))
        except EdgeFailed as err:
            print(err.code)
    print(len(await store.read(lambda tx: tx.jobs())))
    flag.unlink()
    print(await store.write(put_next))
    await store.close()

asyncio.run(main())
"""


def test_a_failed_fsync_is_never_acknowledged(path: Path, tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("NOT TESTED: no C compiler here to make fsync fail with")
    (tmp_path / "sync.c").write_text(SYNC_FAILS)
    library = tmp_path / "sync.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "sync.c", "-ldl"], check=True, timeout=60)
    done = subprocess.run(
        [sys.executable, "-c", SYNC_WRITER, str(path), str(Path(__file__).parent)],
        env={**os.environ, "LD_PRELOAD": str(library), "SYNC_FAILS": str(tmp_path / "flag")},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == ["j1", "store-failed", "store-failed", "store-failed", "1", "j2"]
    assert [job.id for job in read_jobs(path)] == ["j1", "j2"]


# A process that dies

WRITER = """
import asyncio, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_store_faults import make_job, put_next
from msgspec.structs import replace
from steelyard.store.sql import open_store

async def client(store):
    while True:
        name = await store.write(put_next)
        os.write(1, f"{name} 1\\n".encode())
        for generation in (2, 3):
            await store.write(lambda tx: tx.put_job(replace(tx.job(name), generation=generation)))
            os.write(1, f"{name} {generation}\\n".encode())

async def main():
    store = open_store(Path(sys.argv[1]))
    await asyncio.gather(*(client(store) for _ in range(8)))

asyncio.run(main())
"""


@pytest.mark.parametrize("seed", range(8))
def test_kill_minus_9_loses_no_acknowledged_write(path: Path, seed: int) -> None:
    """The moment is random: after some number of acknowledged writes, in the middle of the next ones."""
    acknowledged: dict[str, int] = {}
    for life in range(2):
        wanted = random.Random(seed * 2 + life).randint(1, 1500)
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(Path(__file__).parent)], stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            for _ in range(wanted):
                _note(acknowledged, writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            for line in writer.stdout:
                _note(acknowledged, line)
        assert writer.returncode == -signal.SIGKILL
        found = {str(job.id): job.generation for job in read_jobs(path)}
        assert {name: found.get(name, 0) for name, least in acknowledged.items() if found.get(name, 0) < least} == {}


def _note(acknowledged: dict[str, int], line: bytes) -> None:
    assert line, "the writer ended by itself"
    name, generation = line.decode().split()
    acknowledged[name] = int(generation)


MIGRATOR = """
import os, signal, sys
from pathlib import Path
import sqlalchemy as sa
from steelyard.store.sql import open_store

left = int(sys.argv[2])

@sa.event.listens_for(sa.Engine, "before_cursor_execute")
def die(connection, cursor, statement, *rest):
    global left
    if statement.lstrip().startswith(("CREATE", "INSERT INTO alembic", "COMMIT")):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

open_store(Path(sys.argv[1]))
print("migrated")
"""


def test_an_interrupted_migration_is_rolled_back_and_done_at_the_next_start(path: Path) -> None:
    for step in range(1, 80, 4):
        done = subprocess.run(
            [sys.executable, "-c", MIGRATOR, str(path), str(step)], capture_output=True, text=True, timeout=60, check=False
        )
        if done.stdout.strip() == "migrated":
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
    else:
        pytest.fail("the migration never came to an end")
    assert step > 8, "killed less often than the migration has steps"
    fill(path, 2)
    assert [job.id for job in read_jobs(path)] == ["j1", "j2"]
