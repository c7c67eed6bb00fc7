/* SPDX-License-Identifier: MIT
 *
 * A program with handlers of its own for SIGSEGV and SIGBUS maps a region, and touches an offset.
 *
 *     handlers MODE FILE OFFSET
 *
 *     before    its handler, which leaves by siglongjmp(), is installed before it maps the region
 *     after     ... after it
 *     resigns   its handler, installed before, restores the default action, and returns
 *     raises    ... and raises the signal again
 *     chained   its handler says so, and calls the one that was there
 *     restored  it installs a handler, and then the one that was there
 *     elsewhere it touches address 0 instead
 *     sent      it sends itself the signal instead
 */
#define _GNU_SOURCE
#include "../../support/require.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static sigjmp_buf back;
static struct sigaction old_segv, old_bus;

static void leave(int signum)
{
    siglongjmp(back, signum);
}

static void chain(int signum, siginfo_t *info, void *context)
{
    const struct sigaction *old = signum == SIGBUS ? &old_bus : &old_segv;

    REQUIRE(write(STDOUT_FILENO, "chained\n", 8) == 8);
    if (old->sa_flags & SA_SIGINFO)
        old->sa_sigaction(signum, info, context);
    else
        REQUIRE(sigaction(signum, old, NULL) == 0);
}

static void resign(int signum)
{
    REQUIRE(write(STDOUT_FILENO, "resigned\n", 9) == 9);
    signal(signum, SIG_DFL);
}

static void resign_and_raise(int signum)
{
    resign(signum);
    raise(signum);
}

static void install(const struct sigaction *action)
{
    REQUIRE(sigaction(SIGSEGV, action, &old_segv) == 0);
    REQUIRE(sigaction(SIGBUS, action, &old_bus) == 0);
}

int main(int count, char **words)
{
    struct sigaction leaving = {.sa_handler = leave};
    struct sigaction resigning = {.sa_handler = resign};
    struct sigaction raising = {.sa_handler = resign_and_raise};
    struct sigaction chaining = {.sa_sigaction = chain, .sa_flags = SA_SIGINFO};
    const volatile char *base, *touched;
    struct stat found;
    int fd, signum;

    REQUIRE(count == 4);
    fd = open(words[2], O_RDWR);
    REQUIRE(fd >= 0 && fstat(fd, &found) == 0);
    if (strcmp(words[1], "before") == 0)
        install(&leaving);
    else if (strcmp(words[1], "resigns") == 0)
        install(&resigning);
    else if (strcmp(words[1], "raises") == 0)
        install(&raising);
    base = mmap(NULL, (size_t)found.st_size, PROT_READ, MAP_SHARED, fd, 0);
    REQUIRE(base != MAP_FAILED);
    if (strcmp(words[1], "after") == 0) {
        install(&leaving);
    } else if (strcmp(words[1], "chained") == 0) {
        install(&chaining);
    } else if (strcmp(words[1], "restored") == 0) {
        install(&leaving);
        REQUIRE(sigaction(SIGSEGV, &old_segv, NULL) == 0 && sigaction(SIGBUS, &old_bus, NULL) == 0);
    } else if (strcmp(words[1], "sent") == 0) {
        raise(SIGSEGV);
    }
    touched = strcmp(words[1], "elsewhere") == 0 ? NULL : base + strtoul(words[3], NULL, 0);
    for (int time = 0; time < 3; time++) {
        signum = sigsetjmp(back, 1);
        if (signum == 0)
            printf("read %d\n", *touched);
        else
            printf("caught %d\n", signum);
    }
    return 0;
}
