/* SPDX-License-Identifier: MIT
 *
 * A device belongs to the process that opened it, not to processes forked from that one.
 *
 * pthread_atfork(3) counts each fork in the child, so anything created under a different count
 * belongs to an ancestor.  An access compares two integers; getpid(2) would cost as much as the
 * access itself. (vfork(2) shares the memory, and the count with it, until the child execs.)
 */
#ifndef BARFS_FORKS_H
#define BARFS_FORKS_H

#pragma GCC visibility push(hidden)

/* The number of forks between the process that loaded barfs and this one.  Changes only in a child,
 * before its fork() returns. */
extern unsigned barfs_forks;

#pragma GCC visibility pop

#endif
