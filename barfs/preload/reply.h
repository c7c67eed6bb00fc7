/* SPDX-License-Identifier: MIT
 *
 * Checks a reply; pure.
 */
#ifndef BARFS_PRELOAD_REPLY_H
#define BARFS_PRELOAD_REPLY_H

#include <stddef.h>

#include "preload/protocol.h"

#pragma GCC visibility push(hidden)

/* Whether the `length` bytes of a message that came with `descriptors` file descriptors are a reply
 * that can be followed blindly.  Returns 0, the reply's own error, or EPROTO.
 */
int barfs_reply_check(const struct barfs_map_reply *reply, size_t length, uint32_t descriptors,
                      uint64_t page);

#pragma GCC visibility pop
#endif
