"""Can a revision be reached the way it was asked for? Pure checks at the door; findings, never exceptions."""

from __future__ import annotations

from collections.abc import Mapping

from steelyard.api.door import Finding
from steelyard.model.function import Function
from steelyard.model.ids import NAME, FunctionName


def check_traffic(name: str, percent: int, tag: str, functions: Mapping[FunctionName, Function]) -> list[Finding]:
    """Of a deploy. `functions`: all that there are."""
    findings: list[Finding] = []
    if percent == 0 and not tag:
        findings.append(Finding("no-way-in", "a revision without traffic is reached by a tag: give one, or a share"))
    if tag:
        findings += check_tag(name, tag, functions)
    owner, _, rest = name.partition("--")
    while rest:
        # the address of a tag, `<tag>--<function>`, is a host name like that of a function
        other = functions.get(FunctionName(rest))
        if other is not None and any(owner in each.tags for each in other.live.values()):
            findings.append(Finding("bad-name", f"{name} is the address of the tag {owner} of {rest}: choose another name"))
        more, _, rest = rest.partition("--")
        owner = f"{owner}--{more}"
    return findings


def check_tag(name: str, tag: str, functions: Mapping[FunctionName, Function]) -> list[Finding]:
    if not NAME.fullmatch(tag):
        return [Finding("bad-tag", f"{tag[:80]!r} can't be a tag: small letters, digits and dashes, no dash at either end")]
    label = f"{tag}--{name}"
    if not NAME.fullmatch(label):
        return [Finding("bad-tag", f"the tag {tag} is too long: its host name {label} may have 63 characters")]
    if label in functions:
        return [Finding("bad-tag", f"the tag {tag} would have the address of the function {label}: choose another tag")]
    return []
