/* SPDX-License-Identifier: MIT
 *
 * The gate: FUSE requests on region files are answered here, everything else goes to libfuse.
 *
 *     /dev/fuse --> read_loop --> regions: the engine, right there or in a lane (workers.h)
 *         ^             |
 *         |             +-------> forward socket --> libfuse, pyfuse3, Python
 *         |                                              |
 *         +--- reply_loop <------------------------------+   (INIT's answer is looked at on the way)
 *         +--- notify_loop <-- reply_loop                    (messages with unique == 0)
 *
 * Rule 1: a request is answered in one place.  READ, WRITE, OPEN and RELEASE of a region are the
 *         gate's; INTERRUPT is too, since no other handler takes long; the rest is libfuse's.
 * Rule 2: the gate keeps no open files.  It knows regions by node id, which is never used again.
 * Rule 3: nothing blocks the reader but a short access of a window or an fd.
 * Rule 4: a notification may block in the kernel on a directory lock whose holder waits for a reply;
 *         so it is written by a thread of its own.
 * Rule 5: a read that the page cache makes (no FUSE_READ_LOCKOWNER) would read more than was asked
 *         for, and keep it: -EOPNOTSUPP, and the device is not touched.
 *
 * The structures are those of linux/fuse.h.
 */
#ifndef BARFS_GATE_H
#define BARFS_GATE_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/transfer.h"
#include "fuse/error_log.h"
#include "fuse/inodes.h"
#include "fuse/workers.h"

#pragma GCC visibility push(hidden)

struct barfs_gate;

/* A gate between `fuse_fd` (/dev/fuse) and `forward_fd` (one end of an AF_UNIX SOCK_SEQPACKET pair,
 * libfuse on the other).  Both stay the caller's.  NULL, with errno, when there is no memory. */
struct barfs_gate *barfs_gate_new(int fuse_fd, int forward_fd);

/* Free it.  No thread is inside any of its functions; tables may go after that, not before. */
void barfs_gate_free(struct barfs_gate *gate);

/* The lanes of a device; they are the gate's.  NULL, with errno, when there is no memory.  One thread
 * at a time adds devices and regions.  barfs_lanes_stop() once its regions have been removed and its
 * accesses are closed. */
struct barfs_lanes *barfs_gate_add_device(struct barfs_gate *gate);

/* Answer for `node_id` from now on.  `permission` is what an open may ask for.  0, or -errno. */
int barfs_gate_add_region(struct barfs_gate *gate, uint64_t node_id,
                          const struct barfs_table *table, uint32_t permission,
                          struct barfs_lanes *lanes);

/* From now on the region's requests are answered -ENODEV, and opens -ENXIO. */
void barfs_gate_remove_region(struct barfs_gate *gate, uint64_t node_id);

/* The threads' functions.  Each returns once the gate is stopped; read_loop and reply_loop also when
 * their descriptor ends, with 0 or -errno. */
int barfs_gate_read_loop(struct barfs_gate *gate);
int barfs_gate_reply_loop(struct barfs_gate *gate);
void barfs_gate_notify_loop(struct barfs_gate *gate);
void barfs_gate_watch_loop(struct barfs_gate *gate);
struct barfs_lane *barfs_gate_next_lane(struct barfs_gate *gate);
bool barfs_gate_next_error(struct barfs_gate *gate, struct barfs_logged_error *logged);

/* Make every thread leave; returns whether the reader has within `timeout_ns`.  Shuts the forward
 * socket down.  May be called again. */
bool barfs_gate_stop(struct barfs_gate *gate, int64_t timeout_ns);

/* After a stop that left a thread inside an access: answer for it, so that its late return writes to
 * no descriptor (the number may be another file's by then).  The gate is never freed. */
void barfs_gate_abandon(struct barfs_gate *gate);

#pragma GCC visibility pop

#endif
