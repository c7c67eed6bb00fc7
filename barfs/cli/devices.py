# SPDX-License-Identifier: MIT
"""The commands that prepare devices for a mount: `list`, `bind`, `unbind`, `doctor`."""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterable

from barfs.attached.mounts import mountpoints_by_device
from barfs.cli.accounts import find_group, find_user
from barfs.cli.edge import tell
from barfs.cli.exit_codes import EXIT_FAILED
from barfs.cli.help import explain
from barfs.host import inventory
from barfs.host.binding import VFIO_PCI, Binder
from barfs.host.doctor import Doctor
from barfs.host.executor import Executor
from barfs.host.steps import Owner, Step
from barfs.host.sysfs import Machine
from barfs.pci import Bdf
from barfs.text import printable, printable_lines


def add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON with plain integers")
    explain(
        parser,
        "barfs list",
        "barfs list --json",
        details="Prints a line for each function: its IDs, its driver, its IOMMU group, what "
        "binds it at boot, where barfs has mounted it, and why it cannot be mounted yet.",
    )
    parser.set_defaults(run=_list)


def _list(choice: argparse.Namespace) -> int:
    found = inventory.functions(Machine(), mountpoints_by_device())
    sys.stdout.write(inventory.to_json(found) if choice.json else inventory.to_table(found))
    return 0


def _add_binding(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bdfs", metavar="BDF", nargs="+", help="0000:01:00.0 or 01:00.0; it is all of them or none"
    )
    parser.add_argument(
        "-n", "--dry-run", action="store_true", help="print the writes to sysfs without making them"
    )


def add_bind(parser: argparse.ArgumentParser) -> None:
    _add_binding(parser)
    parser.add_argument(
        "--group-members",
        action="store_true",
        help="also every other endpoint of their IOMMU groups, which VFIO takes only as a whole",
    )
    parser.add_argument(
        "--persist",
        action="store_true",
        help="also at each boot and hot-plug, by a udev rule, until barfs unbind",
    )
    parser.add_argument("--driver", metavar="NAME", default=VFIO_PCI, help="use a variant driver")
    parser.add_argument(
        "--user", metavar="USER", help="let this user open the devices, to mount without root"
    )
    parser.add_argument("--group", metavar="GROUP", help="let this group open the devices")
    parser.add_argument(
        "--force",
        action="store_true",
        help="bind even devices that carry a file system, swap or the network",
    )
    explain(
        parser,
        "barfs bind --user alice 0000:01:00.0",
        "barfs bind --dry-run 01:00.0 01:00.1",
        "barfs bind --group-members --persist 0000:01:00.0",
        "barfs bind --driver nvgrace_gpu_vfio_pci --group vfio 0000:01:00.0",
        details="Refuses bridges, devices without an IOMMU group, and devices that carry a mounted "
        "file system, swap or the default route. The binding lasts until barfs unbind or the next "
        "boot; with --persist, until barfs unbind.",
    )
    parser.set_defaults(run=_bind)


def add_unbind(parser: argparse.ArgumentParser) -> None:
    _add_binding(parser)
    explain(parser, "barfs unbind 0000:01:00.0", "barfs unbind --dry-run 01:00.0 01:00.1")
    parser.set_defaults(run=_unbind)


def _bind(choice: argparse.Namespace) -> int:
    machine, bdfs = Machine(), _addresses(choice.bdfs)
    owner = Owner(find_user(choice.user), find_group(choice.group))
    binder = Binder(machine, Executor())
    persist = choice.persist
    with contextlib.nullcontext() if choice.dry_run else binder.exclusive():
        if choice.group_members:
            bdfs = binder.with_group_members(bdfs, choice.driver)
        binder.check_bind(bdfs, choice.driver, force=choice.force, persist=persist)
        if choice.dry_run:
            return _print_steps(binder.rehearse_bind(bdfs, choice.driver, owner, persist=persist))
        binder.bind(bdfs, choice.driver, owner, persist=persist)
    for bdf in bdfs:
        nodes = " ".join(map(str, machine.device_nodes(bdf)))
        print(f"{bdf} is bound to {choice.driver}{', at boot too' if persist else ''}: {nodes}")
    bridges = binder.bridges(bdfs) if choice.group_members else []
    _tell_notes([*bridges, *binder.notes(bdfs, owner)])
    return 0


def _tell_notes(notes: Iterable[str]) -> None:
    for note in notes:
        tell(f"barfs: note: {note}")


def _unbind(choice: argparse.Namespace) -> int:
    machine, bdfs = Machine(), _addresses(choice.bdfs)
    binder = Binder(machine, Executor())
    with contextlib.nullcontext() if choice.dry_run else binder.exclusive():
        binder.check_unbind(bdfs)
        if choice.dry_run:
            return _print_steps(binder.rehearse_unbind(bdfs))
        binder.unbind(bdfs)
    for bdf in bdfs:
        if machine.pci_device(bdf).is_dir():
            print(printable(f"{bdf} {machine.driver_state(bdf)}"))
        else:
            print(f"{bdf} is absent, and will not be bound at boot")
    _tell_notes(binder.notes_of_unbind(bdfs))
    return 0


def _print_steps(steps: Iterable[Step]) -> int:
    for step in steps:
        print(printable_lines(str(step)))
    return 0


def _addresses(texts: Iterable[str]) -> list[Bdf]:
    return list(dict.fromkeys(map(Bdf.parse, texts)))


def add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bdf", metavar="BDF", nargs="?", help="default: every device of a VFIO driver"
    )
    explain(
        parser,
        "barfs doctor",
        "barfs doctor 0000:01:00.0",
        details="Prints a line for each finding, and exits with 1 if one of them is a FAIL.",
    )
    parser.set_defaults(run=_doctor)


def _doctor(choice: argparse.Namespace) -> int:
    bdf = None if choice.bdf is None else Bdf.parse(choice.bdf)
    findings = Doctor(Machine(), os.geteuid(), mountpoints_by_device()).examine(bdf)
    for finding in findings:
        print(printable(finding))
    return EXIT_FAILED if any(finding.level == "FAIL" for finding in findings) else 0
