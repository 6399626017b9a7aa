"""What to do about etcd's versions and sizes. Decides; calls nobody."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from replication.etcd.view import Surveyed

# Issue 14211 of etcd: what one member holds may differ from the others for ever, unnoticed. Older members are
# not defragmented by us either: an interrupted defragmentation could do the same.
CONSISTENT_SINCE = (3, 5, 14)
# Shares of the quota. At the quota etcd takes nothing at all, not even what would make room.
WARN_AT = 0.6  # of the file: free pages in it count, until it is defragmented
FULL_AT = 0.8  # of what is in use: proposals are refused, so that trimming goes on
FILE_FULL_AT = 0.95  # of the file: the same
DISARM_AT = 0.9  # of the file: below it an alarm has lost its reason


@dataclass(frozen=True, slots=True)
class Advice:
    """`full` is why nothing new should be proposed, or ""; `defragment` an endpoint that should be, or ""."""

    warnings: tuple[str, ...]
    full: str
    defragment: str
    disarm: bool


def advise(members: Sequence[Surveyed], *, no_space: bool) -> Advice:
    """Look at all members. `no_space`: whether the alarm of that name is raised."""
    known = [member for member in members if not member.problem]
    warnings = [f"{member.endpoint}: {member.problem}" for member in members if member.problem]
    old = sorted({member.version for member in known if _numbers(member.version) < CONSISTENT_SINCE})
    warnings += [
        f"etcd {version} may become inconsistent (issue 14211): run 3.5.14 or later" for version in old
    ]
    warnings += [_size(member) for member in known if member.size > WARN_AT * member.quota]
    full = "etcd has raised its alarm NOSPACE" if no_space else ""
    for member in known:
        used, size = member.size_in_use / member.quota, member.size / member.quota
        if not full and (used > FULL_AT or size > FILE_FULL_AT):
            full = _size(member)
    loose = [
        member
        for member in known
        if member.size > WARN_AT * member.quota
        and 2 * member.size_in_use < member.size
        and _numbers(member.version) >= CONSISTENT_SINCE
    ]
    return Advice(
        warnings=tuple(warnings + ([full] if no_space else [])),
        full=full,
        defragment=max(loose, key=lambda member: member.size).endpoint if loose else "",
        disarm=no_space
        and len(known) == len(members)
        and all(member.size < DISARM_AT * member.quota for member in known),
    )


def _size(member: Surveyed) -> str:
    mib = 1024 * 1024
    return (
        f"{member.endpoint}: its file has {member.size // mib} MiB, {member.size_in_use // mib} MiB of it in "
        f"use; at {member.quota // mib} MiB etcd takes nothing more"
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])
