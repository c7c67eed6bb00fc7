# SPDX-License-Identifier: MIT
"""What `scripts/package` makes, built and tried as somebody without this source would."""
