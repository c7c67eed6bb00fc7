# SPDX-License-Identifier: MIT
"""Measures the speed of barfs against a libfuse server in C."""
