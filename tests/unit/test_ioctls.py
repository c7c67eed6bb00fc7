# SPDX-License-Identifier: MIT
"""The numbers of VFIO's ioctls are those of the kernel's header, as far as this host's has them."""

import subprocess

from barfs.vfio import ioctls

NAMES = {name: value for name, value in vars(ioctls).items() if name.startswith("VFIO_")}
ENUMERATORS = {"VFIO_PCI_ERR_IRQ_INDEX", "VFIO_PCI_REQ_IRQ_INDEX"}


def test_numbers_agree_with_the_header() -> None:
    lines = ["#include <linux/vfio.h>"]
    for name, value in NAMES.items():
        check = f'_Static_assert({name} == {value}, "{name}");'
        lines += [check] if name in ENUMERATORS else [f"#ifdef {name}", check, "#endif"]
    command = ["gcc", "-fsyntax-only", "-x", "c", "-"]
    result = subprocess.run(command, input="\n".join([*lines, ""]), capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert len(NAMES) > 20
