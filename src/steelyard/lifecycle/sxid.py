"""What does an SXid of an NVSwitch mean? Code -> its name and whether it is fatal always, sometimes or never.

"Sometimes" is decided by the log line itself, which says Fatal or Non-fatal. Codes, names and fatality are the driver's (93 of
its public list). Never reads a log.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Fatality(StrEnum):
    ALWAYS = "A"
    #: the line says
    SOMETIMES = "P"
    NEVER = "N"


class SxidMeaning(msgspec.Struct, frozen=True):
    code: int
    name: str
    fatality: Fatality


#: fatality, codes, name
_TABLE = """
P 10001 Host_priv_error
P 10002 Host_priv_timeout
A 10003 Host_unhandled_interrupt
P 10004 Host_thermal_event_start
P 10005 Host_thermal_event_end
P 11001 ingress invalid command
N 11004 Ingress invalid ACL
P 11009 ingress invalid VCSet
N 11012,11021,11022,11023,12021,12023,15008,15011,19049,19055 Single bit ECC errors
N 19057,19059,19062,19065,19068,19071,24001,24002,24003 Single bit ECC errors
P 11013 ingress header DBE
P 11018 ingress RID DBE
P 11019 ingress RLAN DBE
P 11020 ingress control parity
P 12001 egress crossbar overflow
P 12002 egress packet route
P 12020 egress sequence ID error
P 12022 egress input ECC DBE error
P 12024 egress output ECC DBE error
P 12025 egress credit overflow
P 12026 egress destination request ID error
P 12027 egress destination response ID error
N 12028 egress nonposted PRIV error
P 12030 egress control parity error
P 12031 egress credit parity error
P 12032 egress flit type mismatch
P 14017 TS ATO timeout
P 15001 route buffer over/underflow
P 15006 route transdone over/underflow
P 15009 route GLT DBE
P 15010 route parity
P 15012 route incoming DBE
P 15013 route credit parity
P 19047 NCISOC HDR ECC DBE Error
P 19048 NCISOC DAT ECC DBE Error
P 19054 HDR RAM ECC DBE Error
P 19056 DAT0 RAM ECC DBE Error
P 19058 DAT1 RAM ECC DBE Error
P 19060 CREQ RAM HDR ECC DBE Error
P 19061 CREQ RAM DAT ECC DBE Error
P 19063 Response RAM HDR ECC DBE Error
P 19064 Response RAM DAT ECC DBE Error
P 19066 COM RAM HDR ECC DBE Error
P 19067 COM RAM DAT ECC DBE Error
P 19069 RSP1 RAM HDR ECC DBE Error
P 19070 RSP1 RAM DAT ECC DBE Error
N 19084 AN1 Heartbeat Timeout Error
N 20001 TX Replay Error
N 20009 RX Short Error Rate
N 20012 Broken/inconsistent connection
P 20034 LTSSM Fault Up
P 22003 Minion Halt
P 22011 Minion exterror
P 22012 Minion Link NA interrupt
N 22013 Minion Link DLREQ interrupt
P 23001,23010 ingress SRC-VC buffer overflow
P 23002,23011 ingress SRC-VC buffer underflow
P 23003,23012 egress DST-VC credit overflow
P 23004,23013 egress DST-VC credit underflow
P 23005,23014 ingress packet burst error
P 23006,23015 ingress packet sticky error
P 23007,23016 possible bubbles at ingress
P 23008 ingress packet invalid dst error
P 23009 ingress packet parity error
P 23017 ingress credit parity error
P 24004 sourcetrack TCEN0 crubmstore DBE
P 24005 sourcetrack TCEN0 TD crubmstore DBE
P 24006 sourcetrack TCEN1 crubmstore DBE
P 24007 sourcetrack timeout error
"""


def _make_table() -> dict[int, SxidMeaning]:
    table: dict[int, SxidMeaning] = {}
    for line in _TABLE.strip().splitlines():
        fatality, codes, name = line.split(" ", 2)
        table |= {int(code): SxidMeaning(int(code), name, Fatality(fatality)) for code in codes.split(",")}
    return table


SXIDS = _make_table()
#: the switch mended it by itself
CORRECTED = frozenset(code for code, meaning in SXIDS.items() if meaning.name.startswith("Single bit"))
