/* SPDX-License-Identifier: MIT
 *
 * Whose a device is: it belongs to the process that opened it, not to those forked from that.
 *
 * A fork is counted in the child, by pthread_atfork(3).  What was made under another count belongs to
 * an ancestor.  So an access compares two integers, where getpid(2) would cost as much as the access.
 * (vfork(2) shares the memory, and the count with it, until the child execs.)
 */
#ifndef BARFS_FORKS_H
#define BARFS_FORKS_H

#pragma GCC visibility push(hidden)

/* How many forks there are between the process that loaded barfs and this one.  Changes in a child
 * only, before its fork() returns. */
extern unsigned barfs_forks;

#pragma GCC visibility pop

#endif
