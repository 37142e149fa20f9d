"""Is the machine set up well for this work? Platform facts, memory errors, disks and the management log in, findings out.

Settings that cost speed are INFO or WARNING; only what endangers work is CRITICAL. What could not be read is UNKNOWN.
"""

from __future__ import annotations

from collections.abc import Sequence

from steelyard.model.health import NODE, Finding, Remedy, Severity
from steelyard.model.health_facts import DiskFact, EccFact, PlatformFact, SelFact

#: kernels before this lack what memory limits and pidfds rest on
KERNEL_MIN = (5, 10)
#: a clock that is off by more than this confuses people and certificates
OFFSET_MAX_US = 100_000
STEAL_WARN_PERCENT = 1.0
#: NUMA nodes whose memory differs by more than this share lack modules
IMBALANCE = 0.10
FREE_WARN, FREE_CRITICAL = 0.10, 0.02
FREE_CRITICAL_BYTES = 1 << 30
CORRECTED_MANY = 100

#: what each program is for
PURPOSES = {
    "crun": "containers",
    "runc": "containers where crun can't",
    "numactl": "looking at NUMA policies by hand",
    "cyclictest": "measuring jitter",
    "stress-ng": "noise for jitter measurements",
    "nvidia-smi": "health of NVIDIA GPUs",
    "ibstat": "looking at InfiniBand by hand",
    "ipmitool": "the management controller's log",
    "nvme": "health of NVMe disks",
    "dmidecode": "counting memory modules",
    "skopeo": "fetching container images",
}


def judge_platform(facts: PlatformFact) -> list[Finding]:
    return [
        *_judge_kernel(facts),
        _judge_bare_metal(facts),
        *_judge_clock(facts),
        _judge_governor(facts),
        *_judge_numa(facts),
        *_judge_memory_settings(facts),
        _judge_iommu(facts),
        *_judge_heat(facts),
        *_judge_packages(facts),
    ]


def _judge_kernel(facts: PlatformFact) -> list[Finding]:
    findings: list[Finding] = []
    if facts.kernel is None:
        findings.append(_unknown("kernel", "The kernel's release could not be read."))
    else:
        parts = facts.kernel.split(".")
        numbers = tuple(int(part) for part in parts[:2] if part.isdecimal() and len(part) < 6)
        old = len(numbers) == 2 and numbers < KERNEL_MIN
        findings.append(
            Finding(
                "kernel",
                NODE,
                Severity.WARNING if old else Severity.PASS,
                f"Linux {facts.kernel}" + (f", older than {KERNEL_MIN[0]}.{KERNEL_MIN[1]}." if old else "."),
                "Use a newer kernel." if old else "",
                Remedy.CONFIGURE if old else Remedy.NONE,
            )
        )
    if facts.cgroups_missing is None:
        findings.append(_unknown("cgroups", "Control groups were not looked at."))
    elif facts.cgroups_missing:
        severity = Severity.WARNING if facts.cgroups == "none" else Severity.INFO
        for sentence in facts.cgroups_missing:
            findings.append(Finding("cgroups", NODE, severity, sentence, remedy=Remedy.CONFIGURE))
    else:
        findings.append(Finding("cgroups", NODE, Severity.PASS, f"All control groups that we use are there ({facts.cgroups})."))
    return findings


def _judge_bare_metal(facts: PlatformFact) -> Finding:
    verdict, evidence = facts.virtualisation, facts.virtualisation_detail
    if verdict in (None, "unknown"):
        return _unknown("bare-metal", evidence or "Nothing tells whether this is bare metal.")
    steal = facts.steal_percent
    stolen = "" if steal is None else f" {steal:.2f} % of CPU time was stolen by other guests since boot."
    if verdict == "bare metal":
        return Finding("bare-metal", NODE, Severity.PASS, f"Bare metal. {evidence}")
    if steal is not None and steal >= STEAL_WARN_PERCENT:
        action = "Use bare metal, or a guest whose CPUs are its own."
        return Finding(
            "bare-metal", NODE, Severity.WARNING, f"A guest, not bare metal. {evidence}{stolen}", action, Remedy.CONFIGURE
        )
    action = "Timing promises hold only as far as the hypervisor keeps them."
    return Finding("bare-metal", NODE, Severity.INFO, f"A guest, not bare metal. {evidence}{stolen}", action)


def _judge_clock(facts: PlatformFact) -> list[Finding]:
    findings: list[Finding] = []
    source = facts.clocksource
    if source is None:
        findings.append(_unknown("clocksource", "The clock source could not be read."))
    elif source in ("hpet", "acpi_pm", "jiffies", "pit", "refined-jiffies"):
        better = " TSC was given up; see the kernel's log for why." if "tsc" not in facts.clocksources else ""
        sentence = f"The clock source is {source}: reading the time takes a hundred times longer than with tsc.{better}"
        action = "Boot with tsc=reliable where the firmware keeps the TSCs in step."
        findings.append(Finding("clocksource", NODE, Severity.WARNING, sentence, action, Remedy.CONFIGURE))
    else:
        findings.append(Finding("clocksource", NODE, Severity.PASS, f"The clock source is {source}."))
    if facts.clock_synced is None:
        findings.append(_unknown("clock", "Whether a time service holds the clock could not be asked."))
    elif not facts.clock_synced:
        action = "Run chrony, systemd-timesyncd or a PTP service."
        sentence = "No time service holds the clock."
        findings.append(Finding("clock", NODE, Severity.WARNING, sentence, action, Remedy.CONFIGURE))
    elif facts.clock_offset_us is not None and facts.clock_offset_us > OFFSET_MAX_US:
        sentence = f"The clock may be off by {facts.clock_offset_us / 1000:.0f} ms."
        findings.append(Finding("clock", NODE, Severity.WARNING, sentence, "Look at the time service.", Remedy.CONFIGURE))
    else:
        findings.append(Finding("clock", NODE, Severity.PASS, "A time service holds the clock."))
    return findings


def _judge_governor(facts: PlatformFact) -> Finding:
    if facts.governors is None:
        return _unknown("governor", "The CPUs' governors could not be read.")
    if not facts.governors:
        return Finding(
            "governor", NODE, Severity.INFO, "The machine lets nobody set its CPUs' speed (guests, or firmware in charge)."
        )
    slow = {name: count for name, count in facts.governors.items() if name not in ("performance", "schedutil")}
    words = ", ".join(f"{name} on {count} CPUs" for name, count in sorted(facts.governors.items()))
    if slow:
        action = "`realtime` work holds them fast while it runs; for all work: cpupower frequency-set -g performance."
        return Finding("governor", NODE, Severity.INFO, f"CPU governors: {words}.", action, Remedy.CONFIGURE)
    return Finding("governor", NODE, Severity.PASS, f"CPU governors: {words}.")


def _judge_numa(facts: PlatformFact) -> list[Finding]:
    nodes = facts.nodes
    if not nodes:
        return [_unknown("numa", "The NUMA nodes could not be read.")]
    findings: list[Finding] = []
    compute = [node for node in nodes if node.cpus]
    for node in compute:
        if node.memory_bytes == 0:
            sentence = f"NUMA node {node.id} has CPUs but no memory: all its accesses go elsewhere."
            action = "Put memory modules into that socket's slots."
            findings.append(Finding("numa", f"numa:{node.id}", Severity.WARNING, sentence, action, Remedy.REPLACE))
    filled = [node for node in compute if node.memory_bytes]
    most = max((node.memory_bytes for node in filled), default=0)
    for node in filled:
        if node.memory_bytes < most * (1 - IMBALANCE):
            sentence = f"NUMA node {node.id} has {_gib(node.memory_bytes)}, another has {_gib(most)}: is a module missing?"
            action = "Compare the modules that firmware lists with those that were bought."
            findings.append(Finding("numa", f"numa:{node.id}", Severity.WARNING, sentence, action, Remedy.REPLACE))
    bare = [node for node in nodes if not node.cpus and node.memory_bytes]
    if bare:
        ids = ", ".join(str(node.id) for node in bare)
        findings.append(Finding("numa", NODE, Severity.INFO, f"Memory without CPUs in NUMA node {ids} (GPU or CXL memory)."))
    if facts.numa_balancing and len(compute) > 1:
        sentence = "The kernel moves pages between NUMA nodes by itself, which costs pinned work page faults."
        action = "sysctl kernel.numa_balancing=0"
        findings.append(Finding("numa", NODE, Severity.INFO, sentence, action, Remedy.CONFIGURE))
    if not any(finding.severity is Severity.WARNING for finding in findings):
        noun = "1 NUMA node" if len(nodes) == 1 else f"{len(nodes)} NUMA nodes, evenly filled"
        findings.append(Finding("numa", NODE, Severity.PASS, f"{noun}."))
    return findings


def _judge_memory_settings(facts: PlatformFact) -> list[Finding]:
    findings: list[Finding] = []
    if facts.hugepages_total is None:
        findings.append(_unknown("hugepages", "Huge pages could not be read."))
    else:
        reserved = (
            f"{facts.hugepages_total} reserved, {facts.hugepages_free or 0} free" if facts.hugepages_total else "none reserved"
        )
        thp = f"; transparent ones: {facts.transparent_hugepages}" if facts.transparent_hugepages else ""
        findings.append(Finding("hugepages", NODE, Severity.PASS, f"Huge pages: {reserved}{thp}."))
    if facts.swap_total_bytes is None:
        findings.append(_unknown("swap", "Swap could not be read."))
    elif facts.swap_used_bytes:
        sentence = f"{_gib(facts.swap_used_bytes)} of memory is swapped out: such work waits for disks."
        findings.append(
            Finding("swap", NODE, Severity.WARNING, sentence, "Switch swap off, or give work memory limits.", Remedy.CONFIGURE)
        )
    elif facts.swap_total_bytes:
        sentence = f"{_gib(facts.swap_total_bytes)} of swap is on, none used."
        findings.append(
            Finding("swap", NODE, Severity.INFO, sentence, "Switch it off for even timing: swapoff -a", Remedy.CONFIGURE)
        )
    else:
        findings.append(Finding("swap", NODE, Severity.PASS, "No swap."))
    dimms = facts.dimms
    if dimms is None:
        findings.append(_unknown("memory-slots", "Memory modules could not be counted: that needs dmidecode and root."))
    elif len(dimms.sizes) > 1:
        words = ", ".join(f"{count} x {_gib(size)}" for size, count in sorted(dimms.sizes.items()))
        findings.append(Finding("memory-slots", NODE, Severity.INFO, f"Modules of unlike size: {words}; channels may be uneven."))
    else:
        findings.append(Finding("memory-slots", NODE, Severity.PASS, f"{dimms.filled} of {dimms.slots} memory slots are filled."))
    return findings


def _judge_iommu(facts: PlatformFact) -> Finding:
    if facts.iommu_groups is None or facts.cmdline is None:
        return _unknown("iommu", "Whether the IOMMU is on could not be read.")
    words = facts.cmdline.split()
    passthrough = "iommu=pt" in words or "iommu.passthrough=1" in words
    if facts.iommu_groups == 0:
        return Finding("iommu", NODE, Severity.INFO, "The IOMMU is off: devices reach all memory, at full speed and unfenced.")
    if passthrough:
        return Finding("iommu", NODE, Severity.PASS, f"The IOMMU is on in passthrough mode, {facts.iommu_groups} groups.")
    sentence = (
        f"The IOMMU translates every access ({facts.iommu_groups} groups): transfers between GPUs and network cards slow down."
    )
    return Finding("iommu", NODE, Severity.INFO, sentence, "Boot with iommu=pt where guests need no fence.", Remedy.CONFIGURE)


def _judge_heat(facts: PlatformFact) -> list[Finding]:
    findings: list[Finding] = []
    if facts.throttled is None:
        findings.append(_unknown("cpu-heat", "This CPU does not tell how often it was slowed down by heat."))
    elif facts.throttled:
        sentence = f"CPUs were slowed down by heat {facts.throttled} times since boot."
        findings.append(
            Finding("cpu-heat", NODE, Severity.WARNING, sentence, "Look at fans, dust and inlet air.", Remedy.CHECK_POWER)
        )
    else:
        findings.append(Finding("cpu-heat", NODE, Severity.PASS, "No CPU was slowed down by heat since boot."))
    if facts.crash_records is None:
        findings.append(_unknown("crash-records", "Records of earlier crashes (pstore) could not be read."))
    elif facts.crash_records:
        sentence = f"An earlier crash left records in /sys/fs/pstore ({len(facts.crash_records)})."
        action = "Read and keep them, then delete them so that the next crash has room."
        findings.append(Finding("crash-records", NODE, Severity.WARNING, sentence, action, Remedy.WATCH, facts.crash_records[:5]))
    else:
        findings.append(Finding("crash-records", NODE, Severity.PASS, "No records of earlier crashes."))
    if facts.offline_cpus:
        sentence = f"{len(facts.offline_cpus)} CPUs are offline."
        findings.append(Finding("cpus", NODE, Severity.INFO, sentence, "Bring them online, or leave them if that is meant."))
    return findings


def _judge_packages(facts: PlatformFact) -> list[Finding]:
    if facts.packages is None:
        return []
    absent = sorted(name for name, there in facts.packages.items() if not there)
    if not absent:
        return [Finding("packages", NODE, Severity.PASS, "All programs that we can use are installed.")]
    words = ", ".join(f"{name} ({PURPOSES.get(name, 'optional')})" for name in absent)
    return [Finding("packages", NODE, Severity.INFO, f"Not installed: {words}.", "Install those whose use you want.")]


def judge_ecc(counts: Sequence[EccFact]) -> list[Finding]:
    findings: list[Finding] = []
    for each in counts:
        gpu = ":" in each.subject
        blocks = (each.subject,) if gpu else (NODE,)
        if each.uncorrected is None and each.corrected is None:
            findings.append(Finding("ecc", each.subject, Severity.UNKNOWN, "Its memory errors can't be read; ECC may be off."))
        elif each.remap_failed:
            action = "Run diagnostics on the GPU and plan to replace it."
            findings.append(
                Finding(
                    "ecc",
                    each.subject,
                    Severity.CRITICAL,
                    "Bad memory could not be set aside.",
                    action,
                    Remedy.REPLACE,
                    (),
                    blocks,
                )
            )
        elif each.uncorrected:
            sentence = f"{each.uncorrected} memory errors could not be corrected."
            action = "Reset the GPU." if gpu else "Find the memory module by its EDAC label and replace it."
            remedy = Remedy.RESET_GPU if gpu else Remedy.REPLACE
            findings.append(Finding("ecc", each.subject, Severity.CRITICAL, sentence, action, remedy, (), blocks))
        elif each.pending:
            sentence, action = "Bad memory waits for a reset to be set aside.", "Reset the GPU when it is idle."
            findings.append(Finding("ecc", each.subject, Severity.WARNING, sentence, action, Remedy.RESET_GPU))
        elif (each.corrected or 0) >= CORRECTED_MANY:
            action = "Plan to replace the memory module." if not gpu else "Watch it; run diagnostics at the next maintenance."
            findings.append(
                Finding(
                    "ecc", each.subject, Severity.WARNING, f"{each.corrected} memory errors were corrected.", action, Remedy.WATCH
                )
            )
    if counts and not findings:
        findings.append(Finding("ecc", "memory", Severity.PASS, f"No memory errors in {len(counts)} counters that matter."))
    return findings


def judge_disks(disks: Sequence[DiskFact]) -> list[Finding]:
    findings: list[Finding] = []
    for disk in disks:
        findings += _judge_disk(disk)
    if disks and not findings:
        findings.append(Finding("disk", "disks", Severity.PASS, f"Nothing wrong with {len(disks)} disks and file systems."))
    return findings


def _judge_disk(disk: DiskFact) -> list[Finding]:
    findings: list[Finding] = []

    def add(severity: Severity, sentence: str, action: str, remedy: Remedy, *, block: bool = False) -> None:
        blocks = ((NODE,) if disk.mount == "/" else (disk.name,)) if block else ()
        findings.append(Finding("disk", disk.mount or disk.name, severity, sentence, action, remedy, (), blocks))

    if disk.mount == "/" and disk.read_only:
        add(
            Severity.CRITICAL,
            "The root file system is mounted read-only.",
            "Look for disk errors in the log.",
            Remedy.REPLACE,
            block=True,
        )
    if disk.size_bytes and disk.free_bytes is not None and not disk.read_only:
        share = disk.free_bytes / disk.size_bytes
        words = f"{_gib(disk.free_bytes)} of {_gib(disk.size_bytes)} free ({100 * share:.0f} %)."
        # Full disks end work all by themselves; the machine is not broken, so it is not drained.
        if share < FREE_CRITICAL or (disk.mount == "/" and disk.free_bytes < FREE_CRITICAL_BYTES):
            add(Severity.CRITICAL, f"Nearly full: {words}", "Delete what is not needed.", Remedy.CONFIGURE)
        elif share < FREE_WARN:
            add(Severity.WARNING, f"Getting full: {words}", "Delete what is not needed.", Remedy.CONFIGURE)
    if disk.state is not None and disk.state not in ("live", "new", "resetting", "connecting"):
        add(Severity.CRITICAL, f"The controller is {disk.state}.", "Replace the disk.", Remedy.REPLACE, block=True)
    if disk.critical_warning:
        add(
            Severity.CRITICAL,
            f"The disk warns of itself (bits {disk.critical_warning:#x}).",
            "Replace the disk.",
            Remedy.REPLACE,
            block=True,
        )
    if disk.media_errors:
        add(Severity.WARNING, f"The disk counted {disk.media_errors} media errors.", "Plan to replace the disk.", Remedy.REPLACE)
    if disk.life_used_percent is not None and disk.life_used_percent >= 90:
        add(
            Severity.WARNING,
            f"{disk.life_used_percent} % of its rated life is used.",
            "Plan to replace the disk.",
            Remedy.REPLACE,
        )
    return findings


def judge_sel(records: Sequence[SelFact]) -> list[Finding]:
    """The newest record about each sensor and event decides: what was asserted and later taken back is history."""
    newest: dict[tuple[str, str], SelFact] = {}
    for record in records:
        newest[record.sensor, record.event] = record
    findings = [finding for record in newest.values() if record.asserted and (finding := _judge_sel(record)) is not None]
    past = sum(not record.asserted for record in newest.values())
    if past:
        noun = "1 event that is" if past == 1 else f"{past} events that are"
        findings.append(Finding("sel", NODE, Severity.INFO, f"The management log tells of {noun} over."))
    if not findings:
        findings.append(Finding("sel", NODE, Severity.PASS, f"Nothing wrong in {len(records)} records of the management log."))
    return findings


#: words of a sensor or event -> how bad, and what to do
_SEL_WORDS: tuple[tuple[str, Severity, Remedy, str], ...] = (
    ("uncorrectable", Severity.CRITICAL, Remedy.REPLACE, "Replace the memory module that it names."),
    ("non-recoverable", Severity.CRITICAL, Remedy.REPLACE, "Replace the part that it names."),
    ("critical interrupt", Severity.CRITICAL, Remedy.RUN_DIAGNOSTICS, "Run the maker's diagnostics."),
    ("thermal trip", Severity.CRITICAL, Remedy.CHECK_POWER, "Look at fans, dust and inlet air."),
    ("ierr", Severity.CRITICAL, Remedy.RUN_DIAGNOSTICS, "Run the maker's diagnostics."),
    ("ac lost", Severity.WARNING, Remedy.CHECK_POWER, "Look at the power supply and its feed."),
    ("failure", Severity.WARNING, Remedy.REPLACE, "Replace the part that it names."),
    ("redundancy lost", Severity.WARNING, Remedy.CHECK_POWER, "Bring the redundancy back."),
    ("critical", Severity.WARNING, Remedy.CHECK_POWER, "Look at the sensor that it names."),
    ("correctable", Severity.WARNING, Remedy.REPLACE, "Plan to replace the memory module that it names."),
    ("power off", Severity.INFO, Remedy.NONE, ""),
)


def _judge_sel(record: SelFact) -> Finding | None:
    text = f"{record.sensor} {record.event}".lower()
    for word, severity, remedy, action in _SEL_WORDS:
        if word in text:
            sentence = f"{record.sensor}: {record.event}, since {record.at}."
            blocks = (NODE,) if severity is Severity.CRITICAL else ()
            return Finding("sel", NODE, severity, sentence, action, remedy, (f"record {record.record:#x}",), blocks)
    return None


def _unknown(check: str, sentence: str) -> Finding:
    return Finding(check, NODE, Severity.UNKNOWN, sentence)


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
