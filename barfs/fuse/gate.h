/* SPDX-License-Identifier: MIT
 *
 * The gate answers FUSE requests on region files and forwards all others to libfuse.
 *
 *     /dev/fuse --> read_loop --> regions: the engine, on this thread or in a lane (workers.h)
 *         ^             |
 *         |             +-------> forward socket --> libfuse, pyfuse3, Python
 *         |                                              |
 *         +--- reply_loop <------------------------------+   (edits the reply to FUSE_INIT)
 *         +--- notify_loop <-- reply_loop                    (messages with unique == 0)
 *
 * Rule 1: each request is answered in one place.  The gate answers READ, WRITE, OPEN and RELEASE of
 *         a region, and INTERRUPT, since no other handler takes long; libfuse answers the rest.
 * Rule 2: the gate keeps no open files.  It knows regions by node id; node ids are never reused.
 * Rule 3: nothing blocks the reader but one access of a window or an fd: a request that uses up its
 *         budget of time goes on in a lane, and a device that was slow is in its lanes from the
 *         first byte until it is quick again.  The reader waits for the reply to a message only
 *         while there is no other request.
 * Rule 4: a notification may block in the kernel on a directory lock whose holder waits for a
 *         reply, so a thread of its own writes it.
 * Rule 5: a read from the page cache (no FUSE_READ_LOCKOWNER) would read more than the client asked
 *         for, and keep it: the gate answers -EOPNOTSUPP without touching the device.
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
 * libfuse has the other).  The caller keeps both.  NULL, with errno, if it cannot be made. */
struct barfs_gate *barfs_gate_new(int fuse_fd, int forward_fd);

/* No thread may be inside any of its functions.  Free tables after the gate, not before. */
void barfs_gate_free(struct barfs_gate *gate);

/* The lanes of a new device; the gate owns them.  NULL, with errno, if they cannot be made.  Only
 * one thread at a time may add devices and regions.  Call barfs_lanes_stop() after removing the
 * device's regions and closing its accesses. */
struct barfs_lanes *barfs_gate_add_device(struct barfs_gate *gate);

/* Answer requests for `node_id`.  `permission` limits opens.  Returns 0 or -errno. */
int barfs_gate_add_region(struct barfs_gate *gate, uint64_t node_id,
                          const struct barfs_table *table, uint32_t permission,
                          struct barfs_lanes *lanes);

/* From now on, answer the region's requests with -ENODEV and opens with -ENXIO. */
void barfs_gate_remove_region(struct barfs_gate *gate, uint64_t node_id);

/* The threads' functions.  Each returns once the gate is stopped; read_loop and reply_loop also
 * return at the end of their descriptor, with 0 or -errno. */
int barfs_gate_read_loop(struct barfs_gate *gate);
int barfs_gate_reply_loop(struct barfs_gate *gate);
void barfs_gate_notify_loop(struct barfs_gate *gate);
void barfs_gate_watch_loop(struct barfs_gate *gate);
struct barfs_lane *barfs_gate_next_lane(struct barfs_gate *gate);
bool barfs_gate_next_error(struct barfs_gate *gate, struct barfs_logged_error *logged);

/* Make every thread leave; returns whether the reader did within `timeout_ns`.  Shuts down the
 * forward socket.  May be called again. */
bool barfs_gate_stop(struct barfs_gate *gate, int64_t timeout_ns);

/* After a stop that left a thread inside an access: answer its request, so that its late return
 * writes to no descriptor (its number may be another file's by then).  Never free such a gate. */
void barfs_gate_abandon(struct barfs_gate *gate);

#pragma GCC visibility pop

#endif
