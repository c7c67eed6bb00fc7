/* SPDX-License-Identifier: MIT
 *
 * What is said of a program that dies of a region that it mapped.
 */
#ifndef BARFS_PRELOAD_FAULTS_H
#define BARFS_PRELOAD_FAULTS_H

#pragma GCC visibility push(hidden)

/* From now on, a touch of a mapping where there is no window, or where the device does not answer,
 * is told before it ends the program.  Only for signals that the program leaves at their default:
 * a handler of its own stays, and one that it installs later replaces this.
 */
void barfs_faults_watch(void);

#pragma GCC visibility pop
#endif
