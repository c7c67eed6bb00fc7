# SPDX-License-Identifier: MIT
"""How fast barfs is, measured against a libfuse server in C."""
