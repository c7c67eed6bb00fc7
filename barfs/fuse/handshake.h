/* SPDX-License-Identifier: MIT
 *
 * Edits FUSE_INIT between the kernel and libfuse: removes features that cannot work through a gate.
 */
#ifndef BARFS_HANDSHAKE_H
#define BARFS_HANDSHAKE_H

#include <stddef.h>

#pragma GCC visibility push(hidden)

/* Edit the body of the request, which is long enough for its `flags`. */
void barfs_handshake_request(void *body);

/* Edit the body of the reply, `size` bytes long; an error has no body. */
void barfs_handshake_reply(void *body, size_t size);

#pragma GCC visibility pop

#endif
