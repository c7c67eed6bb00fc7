/* SPDX-License-Identifier: MIT
 *
 * Why a region cannot be mapped: mmap() itself only says ENODEV.
 */
#ifndef BARFS_PRELOAD_HINTS_H
#define BARFS_PRELOAD_HINTS_H

#include <stdint.h>

#pragma GCC visibility push(hidden)

/* Print what an error of barfs_ask(), or ENODEV for a range without a window, means for the file at
 * `path`; nothing for other errors.  Each is printed once in a process, however often it tries.
 */
void barfs_hint(int error, const char *path, uint64_t offset);

#pragma GCC visibility pop
#endif
