/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "engine/inflight.h"
#include "engine/common.h"
#include "engine/forks.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

static const unsigned CLOSED = 1u << 31;

bool barfs_inflight_enter(struct barfs_inflight *inflight)
{
    if (inflight->forks != barfs_forks)
        return false;
    if (atomic_fetch_add(&inflight->state, 1) & CLOSED) {
        barfs_inflight_leave(inflight);
        return false;
    }
    return true;
}

int barfs_inflight_error(const struct barfs_inflight *inflight)
{
    return inflight->forks != barfs_forks ? -ECHILD : -ENODEV;
}

void barfs_inflight_leave(struct barfs_inflight *inflight)
{
    /* The last transfer wakes the drainer, which may free the structure as soon as the count drops:
     * from then on the address is only a key for the kernel. */
    if (atomic_fetch_sub(&inflight->state, 1) == (CLOSED | 1))
        syscall(SYS_futex, &inflight->state, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

uint32_t barfs_inflight_inside(struct barfs_inflight *inflight)
{
    return atomic_load(&inflight->state) & ~CLOSED;
}

bool barfs_inflight_closed(struct barfs_inflight *inflight)
{
    return atomic_load(&inflight->state) & CLOSED;
}

void barfs_inflight_close(struct barfs_inflight *inflight)
{
    atomic_fetch_or(&inflight->state, CLOSED);
}

bool barfs_inflight_drain(struct barfs_inflight *inflight, int64_t timeout_ns)
{
    int64_t deadline = barfs_now_ns() + timeout_ns;

    barfs_inflight_close(inflight);
    for (;;) {
        unsigned state = atomic_load(&inflight->state);
        int64_t left = deadline - barfs_now_ns();
        struct timespec wait = barfs_timespec(left);

        if (state == CLOSED)
            return true;
        if (left <= 0)
            return false;
        syscall(SYS_futex, &inflight->state, FUTEX_WAIT_PRIVATE, state, &wait, NULL, 0);
    }
}
