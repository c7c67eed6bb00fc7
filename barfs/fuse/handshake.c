/* SPDX-License-Identifier: MIT */
#include "fuse/handshake.h"

#include <linux/fuse.h>
#include <stdint.h>
#include <unistd.h>

#include "fuse/workers.h"

/* A socket cannot be spliced.  With ATOMIC_O_TRUNC the kernel takes the size of an opened file for
 * 0, and an append would write register 0. */
static const uint32_t REFUSED_FLAGS =
    FUSE_SPLICE_READ | FUSE_SPLICE_WRITE | FUSE_SPLICE_MOVE | FUSE_ATOMIC_O_TRUNC;

/* The number of asynchronous requests, over all devices, that the kernel sends before it queues
 * further ones: with its default of 12, a device that hangs would soon block the others. */
static const uint16_t MOST_BACKGROUND = UINT16_MAX;

void barfs_handshake_request(void *body)
{
    struct fuse_init_in *in = body;

    in->flags &= ~REFUSED_FLAGS;
}

void barfs_handshake_reply(void *body, size_t size)
{
    struct fuse_init_out *out = body;
    const size_t most_pages = BARFS_MOST_DATA / (size_t)sysconf(_SC_PAGESIZE);

    if (size < offsetof(struct fuse_init_out, max_pages) + sizeof out->max_pages)
        return;
    out->flags &= ~REFUSED_FLAGS;
    if (out->max_write > BARFS_MOST_DATA)
        out->max_write = BARFS_MOST_DATA;
    if (out->max_pages > most_pages) /* limits READ, too */
        out->max_pages = (uint16_t)most_pages;
    out->max_background = MOST_BACKGROUND;
    out->congestion_threshold = MOST_BACKGROUND;
}
