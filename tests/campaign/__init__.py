# SPDX-License-Identifier: MIT
"""What barfs promises when hardware, peers and users misbehave: a test each, with its figure.

The same tests run short with all others, and in full from `scripts/soak`. The figures are printed
at the end of the run; times among them are there to be read, only deadlines are asserted.
"""
