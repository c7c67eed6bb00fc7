# SPDX-License-Identifier: MIT
set -euo pipefail

# MANUAL
printf 'Z' | dd of=$bar bs=1 seek=5 conv=notrunc status=none
dd if=$bar bs=1 skip=5 count=1 status=none | od -An -tx1
printf '\xef\xcd\xab\x89\x67\x45\x23\x01' | dd of=$bar bs=8 conv=notrunc status=none
dd if=$bar bs=8 count=1 status=none | od -An -tx8
