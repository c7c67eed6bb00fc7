/* SPDX-License-Identifier: MIT
 *
 * FUSE_INIT on its way between the kernel and libfuse: what neither may agree to with a gate between
 * them is taken out.
 */
#ifndef BARFS_HANDSHAKE_H
#define BARFS_HANDSHAKE_H

#include <stddef.h>

#pragma GCC visibility push(hidden)

/* Look over the body of the request, which has at least its `flags`. */
void barfs_handshake_request(void *body);

/* Look over the body of the reply, `size` bytes; an error has none. */
void barfs_handshake_reply(void *body, size_t size);

#pragma GCC visibility pop

#endif
