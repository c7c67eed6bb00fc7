/* SPDX-License-Identifier: MIT
 *
 * Survives SIGBUS: a load or store on a mapping whose page the device (or a vfio-user server) took
 * away ends that transfer, not the process.
 *
 * Rule 1: the handler takes only the fault of an armed access: this thread is armed, the kernel
 *         raised the signal for an access, and its address lies in the armed range or is unknown
 *         (an external abort on Arm).  Every other SIGBUS goes to the handler that was installed
 *         before, or kills the process as if barfs were not loaded.
 * Rule 2: armed code does only volatile accesses and plain copies: no call, no lock, no allocation.
 *         siglongjmp() would leave any of those half done.
 * Rule 3: the caller owns the frame, so frames nest (a Python call that reads another table).
 *
 * The whole pattern, once per transfer:
 *
 *     struct barfs_sigbus_frame frame;
 *     barfs_sigbus_prepare_thread();
 *     if (sigsetjmp(frame.env, 0) == 0) {
 *         barfs_sigbus_arm(&frame, base, size);
 *         ... volatile accesses in ascending order, in a noinline function ...
 *         barfs_sigbus_disarm();
 *     } else {
 *         ... disarmed; barfs_sigbus_done(&frame) bytes precede the access that faulted ...
 *     }
 *
 * barfs_sigbus_install() installs the handler.  It remains installed unless other code in the
 * process installs a SIGBUS handler later, which barfs cannot prevent:
 *   - a handler that reports, restores ours and raises the signal again, as faulthandler.enable()
 *     does: the fault is survived at the price of its report, and ours is installed again;
 *   - faulthandler.disable(), if faulthandler was enabled before barfs_sigbus_install(), silently
 *     removes ours, as any other sigaction() may: the next fault is fatal unless
 *     barfs_sigbus_install() is called again.  The Python side calls it before the next access if
 *     faulthandler's state has changed; other code that changes the handler must call it itself.
 * Each thread unblocks SIGBUS once, at its first transfer; the kernel kills a thread that blocks it
 * later and then faults.
 */
#ifndef BARFS_SIGBUS_H
#define BARFS_SIGBUS_H

#include <setjmp.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#pragma GCC visibility push(hidden)

struct barfs_sigbus_frame {
    sigjmp_buf env;
    uintptr_t base;       /* of the accesses */
    uintptr_t start, end; /* the pages they lie in */
    volatile uintptr_t fault;
};

/* A handler may touch only thread-local storage that needs no allocation: initial-exec. */
#define BARFS_THREAD_LOCAL _Thread_local __attribute__((tls_model("initial-exec")))

extern BARFS_THREAD_LOCAL struct barfs_sigbus_frame *volatile barfs_sigbus_current;
extern BARFS_THREAD_LOCAL bool barfs_sigbus_unblocked;
extern uintptr_t barfs_sigbus_page_mask; /* page size - 1; set by install */

/* Install the handler on top of the present one.  Idempotent and thread-safe; one system call if it
 * is installed already.  Returns 0 or -errno. */
int barfs_sigbus_install(void);

/* Unblock SIGBUS in the calling thread. */
void barfs_sigbus_unblock(void);

/* Prepare the calling thread for armed accesses; costs nothing after the first call. */
static inline void barfs_sigbus_prepare_thread(void)
{
    if (!barfs_sigbus_unblocked)
        barfs_sigbus_unblock();
}

/* Take faults in [base, base + size), rounded out to pages, until disarmed.  frame->env is set. */
static inline void barfs_sigbus_arm(struct barfs_sigbus_frame *frame, const volatile void *base,
                                    size_t size)
{
    frame->base = (uintptr_t)base;
    frame->start = (uintptr_t)base & ~barfs_sigbus_page_mask;
    frame->end = ((uintptr_t)base + size + barfs_sigbus_page_mask) & ~barfs_sigbus_page_mask;
    atomic_signal_fence(memory_order_seq_cst);
    barfs_sigbus_current = frame;
    atomic_signal_fence(memory_order_seq_cst);
}

static inline void barfs_sigbus_disarm(void)
{
    atomic_signal_fence(memory_order_seq_cst);
    barfs_sigbus_current = NULL;
    atomic_signal_fence(memory_order_seq_cst);
}

/* After a fault: its distance from `base`.  A counter stored beside each access would give the same
 * and halve the speed of RAM.  The kernel reports the address of the access; only for a memory
 * error (BUS_MCEERR_AR) may it report that of the page, which is too low, never too high. */
static inline uint64_t barfs_sigbus_done(const struct barfs_sigbus_frame *frame)
{
    return frame->fault > frame->base ? frame->fault - frame->base : 0;
}

#pragma GCC visibility pop

#endif
