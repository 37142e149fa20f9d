"""What a machine's answer means, whatever is in it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from steelyard.engine.bringup.seen import Answer, make_script, read_answer

ANSWER = """
=== steelyard clock
1000.500000000

=== steelyard uid
1000

=== steelyard root
yes

=== steelyard release
PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
ID=debian
VERSION_ID="12"

=== steelyard systemd
yes

=== steelyard name
n1

=== steelyard address
127.0.1.1

=== steelyard installed
slurmd 22.05.8-4+deb12u3 installed
munge 0.5.15-2 config-files

=== steelyard running
munged
cron

=== steelyard started
slurmd abc

=== steelyard file:/etc/slurm/slurm.conf
ClusterName=x

SlurmUser=slurm

=== steelyard gpus
/dev/nvidia0 0000:0F:00.0
/dev/dri/renderD128 0000:0f:00.0

=== steelyard nvidia
<nvidia_smi_log><cluster_uuid>0A000000-0000-0000-0000-000000000001</cluster_uuid><clique_id>3</clique_id></nvidia_smi_log>

=== steelyard tree
Path: /proc/mounts
Lines: 2
cgroup /sys/fs/cgroup/cpuset cgroup rw,relatime,cpuset 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0

=== steelyard end
"""


def read(text: str, asked_at_s: float = 1000.0, answered_at_s: float = 1001.0) -> Answer | str:
    return read_answer(text, "n1", "10.0.0.1", asked_at_s, answered_at_s)


def test_facts_are_read() -> None:
    answer = read(ANSWER)
    assert isinstance(answer, Answer)
    seen = answer.seen
    assert (seen.distribution, seen.slurm, seen.missing) == ("debian 12", (22, 5), ("slurmctld", "slurm-client", "munge"))
    assert (seen.root, seen.uid, seen.systemd, seen.name_is_public, seen.clock_ahead_s) == (True, 1000, True, False, 0.0)
    assert seen.files == {"/etc/slurm/slurm.conf": "ClusterName=x\n\nSlurmUser=slurm\n"}
    assert (seen.running, seen.started) == (frozenset({"munged"}), {"slurmd": "abc"})
    assert (seen.cgroups, seen.controllers) == ("v1", frozenset({"cpuset"}))
    assert seen.gpu_files == {"0000:0f:00.0": "/dev/nvidia0"}
    assert seen.domain == "0a000000-0000-0000-0000-000000000001.3"


def test_a_clock_is_only_off_by_what_the_answers_way_does_not_explain() -> None:
    ahead, behind = read(ANSWER, 900.0, 901.0), read(ANSWER, 1100.0, 1101.0)
    assert isinstance(ahead, Answer) and ahead.seen.clock_ahead_s == 99.5
    assert isinstance(behind, Answer) and behind.seen.clock_ahead_s == -99.5


def test_an_answer_that_was_cut_off_is_none() -> None:
    for at in range(0, len(ANSWER) - 20, 7):
        assert isinstance(read(ANSWER[:at]), str)


@given(st.text(max_size=300), st.integers(0, len(ANSWER)))
def test_any_text_is_an_answer_or_a_sentence(text: str, at: int) -> None:
    for each in (text, ANSWER[:at] + text + ANSWER[at:]):
        assert isinstance(read(each), Answer | str)


def test_a_program_with_a_quote_in_its_path_stays_one_word() -> None:
    assert "'/opt/a'\\''b/steelyard'" in make_script("/opt/a'b/steelyard")
