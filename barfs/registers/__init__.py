# SPDX-License-Identifier: MIT
"""Registers by name: descriptions of register maps, and what they say about an access."""
