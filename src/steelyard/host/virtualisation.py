"""Is this bare metal or a guest, and how do we know?

Answers ("bare metal" | "guest" | "unknown", the evidence in one sentence). Evidence in the order of its weight: what the firmware
calls itself (DMI), a hypervisor's own files, the CPUID hypervisor bit, time stolen by another guest. A container is neither:
it says nothing about the machine below and is named beside.
"""

from __future__ import annotations

from pathlib import Path

from steelyard.host.sysfs import read_text

#: words in the DMI vendor or product that only virtual machines carry
GUEST_WORDS = (
    "qemu",
    "kvm",
    "vmware",
    "virtualbox",
    "innotek",
    "xen",
    "bochs",
    "parallels",
    "bhyve",
    "openstack",
    "virtual machine",
    "google compute engine",
    "alibaba cloud ecs",
    "digitalocean",
    "vserver",
    "rhev",
    "ovirt",
    "nutanix ahv",
    "firecracker",
    "cloud hypervisor",
)
#: the inode number that Linux gives the first process namespace (PROC_PID_INIT_INO)
INITIAL_PID_NAMESPACE = "pid:[4026531836]"


def observe_virtualisation(root: Path) -> tuple[str, str]:
    verdict, evidence = _machine(root)
    return verdict, evidence + _container(root)


def _machine(root: Path) -> tuple[str, str]:
    vendor = read_text(root / "sys/class/dmi/id/sys_vendor") or ""
    product = read_text(root / "sys/class/dmi/id/product_name") or ""
    firmware = product if vendor and product.startswith(vendor) else f"{vendor} {product}".strip()
    cpuinfo = read_text(root / "proc/cpuinfo") or ""
    flagged = _flagged(cpuinfo)
    bare_instance = _bare_instance(vendor, product)
    if bare_instance and not flagged:
        return "bare metal", f"The firmware calls itself {firmware}, which is that cloud's bare-metal kind."
    if any(word in firmware.lower() for word in GUEST_WORDS) or (vendor == "Amazon EC2" and not bare_instance):
        return "guest", f"The firmware calls itself {firmware}" + (
            ", and the CPU has its hypervisor bit set." if flagged else "."
        )
    other = _hypervisor_files(root, cpuinfo)
    if other is not None:
        return other
    if flagged:
        stolen = _stolen_s(root)
        more = f", and {stolen:.0f} s were stolen by other guests" if stolen >= 1 else ""
        named = f" Firmware: {firmware}." if firmware else ""
        return "guest", f"The CPU has its hypervisor bit set (CPUID leaf 1){more}.{named}"
    if flagged is False:
        named = f"; the firmware calls itself {firmware}" if firmware else ""
        return "bare metal", f"The CPU's hypervisor bit is clear (CPUID leaf 1){named}."
    if firmware:
        return "bare metal", f"The firmware calls itself {firmware}; this CPU has no hypervisor bit to confirm it."
    return "unknown", "Neither the firmware nor the CPU says what this machine is."


def _flagged(cpuinfo: str) -> bool | None:
    """CPUID leaf 1, ECX bit 31; None where the CPU has no such thing (only x86 lists `flags`)."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return "hypervisor" in value.split()
    return None


def _bare_instance(vendor: str, product: str) -> bool:
    """Clouds that rent whole machines: EC2 `.metal` types, Google's `-metal`, Oracle's BM shapes name a real vendor anyway."""
    return (vendor == "Amazon EC2" and ".metal" in product) or (vendor == "Google" and product.endswith("-metal"))


def _hypervisor_files(root: Path, cpuinfo: str) -> tuple[str, str] | None:
    kind = read_text(root / "sys/hypervisor/type")
    if kind:
        if "control_d" in (read_text(root / "proc/xen/capabilities") or ""):
            return "guest", "This is Xen's control domain: a hypervisor runs below it."
        return "guest", f"/sys/hypervisor says {kind}."
    tree = root / "proc/device-tree"
    compatible = read_text(tree / "hypervisor/compatible")
    if compatible:
        return "guest", f"The device tree names a hypervisor ({compatible.split(chr(0))[0]})."
    platform = next((line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("platform")), "")
    if platform.startswith("PowerNV"):
        return "bare metal", "The platform is PowerNV: no hypervisor below."
    if platform.startswith("pSeries"):
        return "guest", f"The platform is {platform}: a partition of a POWER hypervisor."
    return None


def _stolen_s(root: Path) -> float:
    """Seconds since boot that the hypervisor gave to others, over all CPUs (8th number of /proc/stat's first line, 1/100 s)."""
    fields = (read_text(root / "proc/stat") or "").partition("\n")[0].split()
    return int(fields[8]) / 100 if len(fields) > 8 and fields[0] == "cpu" and fields[8].isdigit() else 0.0


def _container(root: Path) -> str:
    """A process namespace of its own is what containers have in common; files such as /.dockerenv stay behind in images."""
    try:
        own = (root / "proc/self/ns/pid").readlink().name
    except OSError:
        return ""
    return "" if own == INITIAL_PID_NAMESPACE else " Steelyard itself runs in a container."
