/* SPDX-License-Identifier: MIT
 *
 * Threads that map and unmap a region, children that do so too, and a signal handler that does so
 * in between.
 *
 *     hammer FILE
 */
#define _GNU_SOURCE
#include "../../support/require.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

enum { THREADS = 4, ROUNDS = 1500, CHILDREN = 20, PAGE = 4096, SIZE = 16 * PAGE, WINDOW = PAGE };

static const char *file;
static volatile sig_atomic_t alarms;

static void map_once(unsigned how)
{
    int fd = open(file, O_RDWR | O_CLOEXEC);
    volatile char *base;

    REQUIRE(fd >= 0);
    base = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    REQUIRE(base != MAP_FAILED);
    REQUIRE(close(fd) == 0);
    REQUIRE(memcmp((const char *)base + WINDOW, "barf", 4) == 0);
    /* Refused while the mapping is known, whatever other threads unmap meanwhile. */
    REQUIRE(mprotect((char *)base, SIZE, PROT_READ | PROT_EXEC) == -1 && errno == EACCES);
    REQUIRE(msync((char *)base, SIZE, MS_SYNC) == 0);
    REQUIRE(msync((char *)base, SIZE, MS_SYNC | MS_ASYNC) == -1 && errno == EINVAL);
    switch (how % 3) {
    case 0: /* a hole */
        REQUIRE(munmap((char *)base + 2 * PAGE, PAGE) == 0);
        break;
    case 1: /* what was there is replaced */
        REQUIRE(mmap((char *)base + PAGE, PAGE, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
        REQUIRE(base[WINDOW] == 0);
        break;
    case 2:
        REQUIRE(mremap((char *)base, SIZE, 2 * PAGE, 0) == (void *)base);
        REQUIRE(base[WINDOW] == 'b');
        break;
    }
    REQUIRE(munmap((char *)base, SIZE) == 0);
}

static void on_alarm(int signum)
{
    int saved = errno;

    (void)signum;
    map_once((unsigned)alarms++);
    errno = saved;
}

static void *hammer(void *context)
{
    for (unsigned round = 0; round < ROUNDS; round++)
        map_once(round + (unsigned)(uintptr_t)context);
    return NULL;
}

static void fork_once(void)
{
    int status;
    pid_t child = fork();

    REQUIRE(child >= 0);
    if (child == 0) {
        map_once(0);
        _exit(7);
    }
    while (waitpid(child, &status, 0) < 0)
        REQUIRE(errno == EINTR);
    REQUIRE(WIFEXITED(status) && WEXITSTATUS(status) == 7);
}

int main(int count, char **words)
{
    struct itimerval often = {{0, 20000}, {0, 20000}}, never = {{0, 0}, {0, 0}};
    struct sigaction action = {.sa_handler = on_alarm};
    pthread_t threads[THREADS];

    REQUIRE(count == 2);
    file = words[1];
    REQUIRE(sigaction(SIGALRM, &action, NULL) == 0);
    REQUIRE(setitimer(ITIMER_REAL, &often, NULL) == 0);
    for (uintptr_t i = 0; i < THREADS; i++)
        REQUIRE(pthread_create(&threads[i], NULL, hammer, (void *)i) == 0);
    for (int i = 0; i < CHILDREN; i++)
        fork_once();
    for (int i = 0; i < THREADS; i++)
        REQUIRE(pthread_join(threads[i], NULL) == 0);
    REQUIRE(setitimer(ITIMER_REAL, &never, NULL) == 0);
    REQUIRE(alarms > 0);
    return 0;
}
