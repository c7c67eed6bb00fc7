/* SPDX-License-Identifier: MIT
 *
 * Replies with random changes: one that passes the check can be followed blindly.
 */
#define _GNU_SOURCE
#include "../../support/require.h"
#include "preload/reply.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

enum { HEADER = offsetof(struct barfs_map_reply, window), PAGE = 4096, ROUNDS = 300000 };

static uint64_t state = 88172645463325252U;

static uint64_t chance(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static uint64_t odd_number(void)
{
    static const uint64_t values[] = {0,
                                      1,
                                      3,
                                      PAGE - 1,
                                      PAGE,
                                      3 * PAGE,
                                      UINT32_MAX,
                                      INT64_MAX,
                                      INT64_MAX - PAGE + 1,
                                      UINT64_MAX,
                                      UINT64_MAX - PAGE};

    return values[chance() % (sizeof(values) / sizeof(values[0]))];
}

static size_t valid(struct barfs_map_reply *reply)
{
    uint64_t offset = 0;

    memset(reply, 0, HEADER);
    memcpy(reply->magic, BARFS_MAP_MAGIC, 8);
    reply->version = BARFS_MAP_VERSION;
    reply->windows = (uint32_t)(chance() % 5);
    reply->descriptors = 2;
    for (uint32_t i = 0; i < reply->windows; i++) {
        offset += chance() % 3 * PAGE;
        reply->window[i] = (struct barfs_map_window){
            .offset = offset,
            .size = (1 + chance() % 3) * PAGE,
            .fd_offset = chance() % 9 * PAGE,
            .fd = (uint32_t)(chance() % 2),
            .access = (uint32_t)(1 + chance() % 3),
        };
        offset += reply->window[i].size;
    }
    reply->size = offset + chance() % 3 * 100;
    return HEADER + reply->windows * sizeof(reply->window[0]);
}

static void change(struct barfs_map_reply *reply, size_t length)
{
    struct barfs_map_window *window = &reply->window[chance() % 5];

    switch (chance() % 9) {
    case 0:
        ((char *)reply)[chance() % length] ^= (char)(1 << chance() % 8);
        break;
    case 1:
        reply->size = odd_number();
        break;
    case 2:
        reply->windows = (uint32_t)odd_number();
        break;
    case 3:
        reply->error = (uint32_t)odd_number();
        break;
    case 4:
        window->offset = odd_number();
        break;
    case 5:
        window->size = odd_number();
        break;
    case 6:
        window->fd_offset = odd_number();
        break;
    case 7:
        window->fd = (uint32_t)odd_number();
        break;
    case 8:
        window->access = (uint32_t)odd_number();
        break;
    }
}

static void follow(const struct barfs_map_reply *reply, size_t length)
{
    uint64_t after = 0;

    REQUIRE(length == HEADER + reply->windows * sizeof(reply->window[0]));
    for (uint32_t i = 0; i < reply->windows; i++) {
        const struct barfs_map_window *window = &reply->window[i];
        uint64_t end, fd_end;

        REQUIRE(!__builtin_add_overflow(window->offset, window->size, &end));
        REQUIRE(!__builtin_add_overflow(window->fd_offset, window->size + PAGE, &fd_end));
        REQUIRE(window->offset >= after && end <= reply->size && end > window->offset);
        REQUIRE(fd_end <= INT64_MAX && window->fd < 2 && window->access - 1 < 3);
        REQUIRE(window->offset % PAGE == 0 && window->fd_offset % PAGE == 0);
        REQUIRE(window->size % PAGE == 0 || end == reply->size);
        after = end;
    }
}

int main(void)
{
    struct barfs_map_reply *reply = calloc(1, sizeof(*reply));
    unsigned good = 0, bad = 0;

    REQUIRE(reply != NULL);
    for (unsigned round = 0; round < ROUNDS; round++) {
        size_t length = valid(reply);
        /* Of exactly its length, so that the sanitizer sees a read beyond it. */
        struct barfs_map_reply *sent;
        int error;

        REQUIRE(barfs_reply_check(reply, length, 2, PAGE) == 0);
        for (uint64_t changes = chance() % 3; changes > 0; changes--)
            change(reply, length);
        if (chance() % 8 == 0)
            length = chance() % (length + 1);
        sent = malloc(length + 1);
        REQUIRE(sent != NULL);
        memcpy(sent, reply, length);
        error = barfs_reply_check(sent, length, 2, PAGE);
        REQUIRE(error >= 0 && error <= 4095);
        if (error == 0) {
            good++;
            follow(sent, length);
        } else {
            bad++;
        }
        free(sent);
    }
    REQUIRE(good > ROUNDS / 10 && bad > ROUNDS / 10);
    REQUIRE(barfs_reply_check(reply, valid(reply), 1, PAGE) == EPROTO);
    free(reply);
    return 0;
}
