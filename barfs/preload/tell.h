/* SPDX-License-Identifier: MIT
 *
 * Lines on standard error.
 */
#ifndef BARFS_PRELOAD_TELL_H
#define BARFS_PRELOAD_TELL_H

#pragma GCC visibility push(hidden)

/* Print "barfs run: ", the text and a newline, in one write.  In the text, %s is text, %w is a path
 * as a word that a shell reads, %n is its last name, %x is a uint64_t.
 *
 * Nothing is printed on a file of a FUSE mount: descriptor 2 may by now be a region, in which a
 * line would be stores to registers.
 */
void barfs_tell(const char *text, ...);

#pragma GCC visibility pop
#endif
