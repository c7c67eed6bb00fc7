# SPDX-License-Identifier: MIT
"""The command `layout`: the windows and gaps of a device."""

import argparse
import sys

from barfs.attached.mounts import find_device, layouts_in
from barfs.cli.edge import tell
from barfs.cli.help import explain
from barfs.errors import UsageError
from barfs.layout import Layout, layouts_to_json
from barfs.opening import DeviceName
from barfs.pci import region_index
from barfs.text import printable_lines


def add_layout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("device", metavar="DEVICE", help="as for barfs mount")
    parser.add_argument("region", metavar="REGION", nargs="?", help="bar0, rom, config, ...")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print a JSON list, with numbers also as hexadecimal text",
    )
    explain(
        parser,
        "barfs layout demo bar0",
        "barfs layout --json 0000:01:00.0",
        "barfs layout vfio-user:/run/device.sock",
        details="Does not touch a device that barfs has mounted. Opens any other, and the kernel "
        "may reset it.",
    )
    parser.set_defaults(run=_layout)


def _layout(choice: argparse.Namespace) -> int:
    name = DeviceName.parse(choice.device)
    if choice.region is not None:
        region_index(choice.region)
    directory = find_device(name.source)
    layouts = _layouts_of_opened(name) if directory is None else layouts_in(directory)
    if choice.region is not None:
        if choice.region not in layouts:
            raise UsageError(f"{name.source} has no {choice.region}; it has {', '.join(layouts)}")
        layouts = {choice.region: layouts[choice.region]}
    if choice.json:
        sys.stdout.write(layouts_to_json(layouts.values()))
    else:
        text = "\n".join(layout.to_text() for layout in layouts.values())
        sys.stdout.write(printable_lines(text))
    return 0


def _layouts_of_opened(name: DeviceName) -> dict[str, Layout]:
    from barfs.daemon.logs import log_to_stderr
    from barfs.opening import open_implicitly

    log_to_stderr()
    with open_implicitly(name, tell) as device:
        return {region: device[region].layout for region in device}
