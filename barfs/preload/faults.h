/* SPDX-License-Identifier: MIT
 *
 * What is said of a program that dies of a region that it mapped.
 */
#ifndef BARFS_PRELOAD_FAULTS_H
#define BARFS_PRELOAD_FAULTS_H

#pragma GCC visibility push(hidden)

/* From now on, a touch of a mapping where there is no window, or where the device does not answer,
 * is told before it ends the program.
 *
 * A handler of the program is called first, and nothing is told unless it returns and has restored
 * the default action.  One that the program installs later replaces ours, and may call it.  This is
 * done once: a second time, ours could become one that is called by itself.
 */
void barfs_faults_watch(void);

#pragma GCC visibility pop
#endif
