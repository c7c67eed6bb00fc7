/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "preload/hints.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "preload/tell.h"

static bool first_time(enum barfs_hint hint)
{
    static _Atomic unsigned given;

    return !(atomic_fetch_or(&given, 1U << hint) & 1U << hint);
}

void barfs_hint(enum barfs_hint hint, const char *path, uint64_t offset)
{
    static const char *const texts[] = {
        [BARFS_HINT_NO_OPTION] = "%w cannot be mapped: its mount was made without -o map",
        [BARFS_HINT_NOT_REACHED] =
            "%w cannot be mapped: the root of its mount cannot be reached from here",
        [BARFS_HINT_NOT_ANSWERED] = "%w cannot be mapped: its mount does not answer",
        [BARFS_HINT_REFUSED] =
            "%w cannot be mapped: its mount lets only its owner and root do that",
        [BARFS_HINT_MALFORMED] = "%w cannot be mapped: its mount is of another version of barfs",
        [BARFS_HINT_NO_WINDOW] =
            "%n has no window there, and cannot be mapped; read it with: barfs md %w %x",
    };

    if (!first_time(hint))
        return;
    if (hint == BARFS_HINT_NO_WINDOW)
        barfs_tell(texts[hint], path, path, offset);
    else
        barfs_tell(texts[hint], path);
}

void barfs_hint_at_error(int error, const char *path)
{
    switch (error) {
    case ENXIO:
        barfs_hint(BARFS_HINT_NO_OPTION, path, 0);
        break;
    case EHOSTUNREACH:
        barfs_hint(BARFS_HINT_NOT_REACHED, path, 0);
        break;
    case ETIMEDOUT:
        barfs_hint(BARFS_HINT_NOT_ANSWERED, path, 0);
        break;
    case EACCES:
        barfs_hint(BARFS_HINT_REFUSED, path, 0);
        break;
    case EPROTO:
        barfs_hint(BARFS_HINT_MALFORMED, path, 0);
        break;
    }
}
