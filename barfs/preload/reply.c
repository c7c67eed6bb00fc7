/* SPDX-License-Identifier: MIT */
#include "preload/reply.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

enum { HEADER = offsetof(struct barfs_map_reply, window), MOST_ERRNO = 4095 };

static bool valid_window(const struct barfs_map_window *window, const struct barfs_map_reply *reply,
                         uint64_t after, uint64_t page)
{
    if (window->offset < after || window->offset > reply->size || window->size == 0 ||
        window->size > reply->size - window->offset || window->fd_offset > INT64_MAX - page ||
        window->size > INT64_MAX - page - window->fd_offset)
        return false;
    return (window->offset | window->fd_offset) % page == 0 &&
           (window->size % page == 0 || window->offset + window->size == reply->size) &&
           window->fd < reply->descriptors && window->access != 0 &&
           window->access <= (BARFS_MAP_READ | BARFS_MAP_WRITE);
}

int barfs_reply_check(const struct barfs_map_reply *reply, size_t length, uint32_t descriptors,
                      uint64_t page)
{
    uint64_t after = 0;

    if (length < HEADER || memcmp(reply->magic, BARFS_MAP_MAGIC, sizeof(reply->magic)) != 0 ||
        reply->version != BARFS_MAP_VERSION)
        return EPROTO;
    if (reply->error != 0)
        return reply->error <= MOST_ERRNO ? (int)reply->error : EPROTO;
    if (reply->windows > BARFS_MAP_MOST_WINDOWS || reply->size > INT64_MAX - page ||
        length != HEADER + reply->windows * sizeof(reply->window[0]) ||
        reply->descriptors != descriptors)
        return EPROTO;
    for (uint32_t i = 0; i < reply->windows; i++) {
        const struct barfs_map_window *window = &reply->window[i];

        if (!valid_window(window, reply, after, page))
            return EPROTO;
        after = window->offset + window->size;
    }
    return 0;
}
