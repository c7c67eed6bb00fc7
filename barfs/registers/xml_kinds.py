# SPDX-License-Identifier: MIT
"""Which language an .xml file is in: IP-XACT has components, CMSIS-SVD has devices."""

from pathlib import Path

from barfs.registers.ipxact import import_component
from barfs.registers.report import Compiled, Report
from barfs.registers.svd import import_device
from barfs.registers.xml_reader import read


def compile_xml(path: Path) -> Compiled:
    """Raises DescriptionError."""
    report = Report(path)
    root = read(path, report)
    name = root.tag.rpartition("}")[2]
    if name == "component":
        return import_component(root, report)
    if name == "device":
        return import_device(root, report)
    raise report.fail(
        root.line, f"must be an IP-XACT component or a CMSIS-SVD device, not <{name}>"
    )
