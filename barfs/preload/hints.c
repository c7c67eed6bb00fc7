/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "preload/hints.h"

#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>

#include "preload/tell.h"

static const struct hint {
    int error;
    const char *text;
} hints[] = {
    {ENXIO, "%w cannot be mapped: its mount was made without -o map"},
    {EHOSTUNREACH, "%w cannot be mapped: the root of its mount cannot be reached from here"},
    {ETIMEDOUT, "%w cannot be mapped: its mount does not answer"},
    {EPERM, "%w cannot be mapped: its mount lets only its owner and root do that"},
    {EPROTO, "%w cannot be mapped: its mount is of another version of barfs"},
    {ENODEV, "%n has no window there, and cannot be mapped; read it with: barfs md %w %x"},
};

void barfs_hint(int error, const char *path, uint64_t offset)
{
    static _Atomic unsigned given;

    for (size_t i = 0; i < sizeof(hints) / sizeof(hints[0]); i++)
        if (hints[i].error == error && !(atomic_fetch_or(&given, 1U << i) & 1U << i))
            barfs_tell(hints[i].text, path, path, offset);
}
