/* SPDX-License-Identifier: MIT
 *
 * Uses a mount fast enough to meet rare events.  Prints one JSON object.
 *
 *     client storm FAULTS SECONDS FD START END FILE
 *         4 readers and 4 writers of FILE, whose memory is START..END of the descriptor FD, which
 *         is truncated and grown again meanwhile; until FAULTS requests were cut short
 *     client waiters COUNT FILE OFFSET         COUNT reads of 4 bytes at once, each in a thread
 *     client reader PAUSE_US SECONDS PARTS FILE OFFSET...
 *         reads of 4 bytes one after the other, PAUSE_US between them; the figures of each part of
 *         the time; ends early on SIGTERM, and with the first error
 *     client mixed COUNT FILE WINDOW GAP TEXT  COUNT operations, those of a user, in turns
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static atomic_bool stopped;

static _Noreturn void die(const char *what)
{
    perror(what);
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void sleep_us(uint64_t us)
{
    const struct timespec time = {(time_t)(us / 1000000), (long)(us % 1000000) * 1000};

    nanosleep(&time, NULL);
}

static int open_or_die(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC);

    if (fd < 0)
        die(path);
    return fd;
}

static pthread_t start(void *(*run)(void *), void *argument)
{
    pthread_t thread;

    if (pthread_create(&thread, NULL, run, argument))
        die("pthread_create");
    return thread;
}

/* ---- storm ----------------------------------------------------------------------------------- */

/* A word tells its own place, and that a writer made it; it is 0 where the memory is new. */
enum { WORKERS = 8, PAGE = 4096, LONGEST = 4 * PAGE, MAGIC = 0x2a, INDEX_BITS = 18 };
enum { UNTOUCHED = 0xee };

static struct {
    const char *path;
    int memory;
    off_t begin, end;
    uint64_t faults_wanted, deadline;
    atomic_ulong requests, faults, whole, wrong, refused;
} storm;

static uint32_t word(uint32_t index, uint32_t generation)
{
    return (uint32_t)MAGIC << 26 | (generation & 0xff) << INDEX_BITS | index;
}

static int is_right(uint32_t value, uint32_t index)
{
    return value == 0 || word(index, value >> INDEX_BITS) == value;
}

static void check(const uint8_t *buffer, size_t done, size_t count, uint32_t first)
{
    uint32_t value;

    for (size_t at = 0; at < done; at += 4) {
        memcpy(&value, buffer + at, 4);
        storm.wrong += !is_right(value, first + (uint32_t)(at / 4));
    }
    for (size_t at = done; at < count; at++)
        storm.wrong += buffer[at] != UNTOUCHED;
}

static void judge(ssize_t done, size_t count)
{
    storm.requests++;
    if (done == (ssize_t)count)
        storm.whole++;
    else if ((done > 0 && done % 4 == 0) || (done < 0 && errno == EIO))
        storm.faults++;
    else
        storm.refused++; /* not the result of a fault */
}

static void *work(void *argument)
{
    const uintptr_t number = (uintptr_t)argument;
    const int writes = number % 2 != 0;
    const uint32_t words = (uint32_t)((storm.end - storm.begin) / 4);
    const int fd = open_or_die(storm.path, O_RDWR);
    unsigned seed = (unsigned)number;
    uint8_t buffer[LONGEST];

    while (!stopped && now_ns() < storm.deadline) {
        const size_t count = rand_r(&seed) % 2 ? 4 : 4 + 4 * ((size_t)rand_r(&seed) % 4095);
        const uint32_t first = (uint32_t)rand_r(&seed) % (words - (uint32_t)(count / 4));
        const off_t offset = (off_t)first * 4;
        ssize_t done;

        if (writes) {
            const uint32_t generation = (uint32_t)rand_r(&seed);

            for (uint32_t at = 0; at < count / 4; at++) {
                const uint32_t value = word(first + at, generation);

                memcpy(buffer + 4 * at, &value, 4);
            }
            done = pwrite(fd, buffer, count, offset);
        } else {
            memset(buffer, UNTOUCHED, count);
            done = pread(fd, buffer, count, offset);
        }
        judge(done, count);
        if (!writes)
            check(buffer, done < 0 ? 0 : (size_t)done, count, first);
    }
    close(fd);
    return NULL;
}

static int run_storm(char **arguments)
{
    pthread_t threads[WORKERS];
    unsigned seed = 1;
    unsigned truncations = 0;

    storm.faults_wanted = strtoull(arguments[0], NULL, 0);
    storm.deadline = now_ns() + strtoull(arguments[1], NULL, 0) * 1000000000u;
    storm.memory = atoi(arguments[2]);
    storm.begin = strtoll(arguments[3], NULL, 0);
    storm.end = strtoll(arguments[4], NULL, 0);
    storm.path = arguments[5];
    for (uintptr_t i = 0; i < WORKERS; i++)
        threads[i] = start(work, (void *)i);
    while (storm.faults < storm.faults_wanted && now_ns() < storm.deadline) {
        /* Truncate all of it, or from some page on. */
        const off_t kept = truncations % 2 ? rand_r(&seed) % (storm.end - storm.begin) / PAGE : 0;

        if (ftruncate(storm.memory, storm.begin + kept * PAGE))
            die("ftruncate");
        truncations++;
        sleep_us(1000);
        if (ftruncate(storm.memory, storm.end))
            die("ftruncate");
        sleep_us(300);
    }
    stopped = true;
    for (int i = 0; i < WORKERS; i++)
        pthread_join(threads[i], NULL);
    printf("{\"requests\": %lu, \"faults\": %lu, \"whole\": %lu, \"wrong\": %lu, \"refused\": %lu, "
           "\"truncations\": %u}\n",
           storm.requests, storm.faults, storm.whole, storm.wrong, storm.refused, truncations);
    return 0;
}

/* ---- waiters --------------------------------------------------------------------------------- */

enum { MOST_WAITERS = 1024 };

static struct {
    int fd;
    off_t offset;
    struct {
        int error;
        uint32_t value;
        double seconds;
    } results[MOST_WAITERS];
} waiters;

static void *wait_for_read(void *argument)
{
    const uintptr_t number = (uintptr_t)argument;
    const uint64_t begin = now_ns();
    uint32_t value = 0;
    const ssize_t done = pread(waiters.fd, &value, 4, waiters.offset);

    waiters.results[number].error = done == 4 ? 0 : done < 0 ? errno : EPROTO;
    waiters.results[number].seconds = (double)(now_ns() - begin) / 1e9;
    waiters.results[number].value = value;
    return NULL;
}

static int run_waiters(char **arguments)
{
    const int count = atoi(arguments[0]);
    pthread_t threads[MOST_WAITERS];

    if (count > MOST_WAITERS)
        return 2;
    waiters.fd = open_or_die(arguments[1], O_RDONLY);
    waiters.offset = strtoll(arguments[2], NULL, 0);
    for (uintptr_t i = 0; i < (uintptr_t)count; i++)
        threads[i] = start(wait_for_read, (void *)i);
    for (int i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    printf("{\"results\": [");
    for (int i = 0; i < count; i++)
        printf("%s[%d, %u, %.6f]", i ? ", " : "", waiters.results[i].error,
               waiters.results[i].value, waiters.results[i].seconds);
    printf("]}\n");
    return 0;
}

/* ---- reader ---------------------------------------------------------------------------------- */

enum { MOST_PARTS = 64, BUCKETS = 100000, BUCKET_NS = 100 };

static uint32_t buckets[BUCKETS + 1]; /* the last one is for longer times */

static double percentile_us(uint64_t reads, double part)
{
    uint64_t seen = 0;
    const uint64_t wanted = (uint64_t)((double)reads * part);

    for (size_t i = 0; i <= BUCKETS; i++) {
        seen += buckets[i];
        if (seen > wanted)
            return (double)(i * BUCKET_NS) / 1e3;
    }
    return 0;
}

static void stop_on_signal(int number)
{
    (void)number;
    stopped = true;
}

static int run_reader(char **arguments, int count)
{
    const uint64_t pause = strtoull(arguments[0], NULL, 0);
    const uint64_t length = (uint64_t)(strtod(arguments[1], NULL) * 1e9);
    const uint64_t parts = strtoull(arguments[2], NULL, 0);
    const int fd = open_or_die(arguments[3], O_RDONLY);
    const uint64_t begin = now_ns();
    uint64_t turn = 0;
    int error = 0;

    signal(SIGTERM, stop_on_signal);
    printf("{\"parts\": [");
    for (uint64_t part = 0; part < parts; part++) {
        const uint64_t end = begin + length / parts * (part + 1);
        uint64_t reads = 0, longest = 0;

        memset(buckets, 0, sizeof buckets);
        for (uint64_t time = now_ns(); !stopped && !error && time < end;) {
            const off_t offset = strtoll(arguments[4 + turn++ % (uint64_t)(count - 4)], NULL, 0);
            uint32_t value;
            const ssize_t done = pread(fd, &value, 4, offset);
            const uint64_t taken = now_ns() - time;

            if (done != 4)
                error = done < 0 ? errno : EPROTO;
            buckets[taken / BUCKET_NS < BUCKETS ? taken / BUCKET_NS : BUCKETS]++;
            longest = taken > longest ? taken : longest;
            reads++;
            if (pause)
                sleep_us(pause);
            time = now_ns();
        }
        printf("%s{\"reads\": %lu, \"p50_us\": %.1f, \"p99_us\": %.1f, \"longest_us\": %.1f}",
               part ? ", " : "", reads, percentile_us(reads, 0.5), percentile_us(reads, 0.99),
               (double)longest / 1e3);
    }
    printf("], \"error\": %d}\n", error);
    return 0;
}

/* ---- mixed ----------------------------------------------------------------------------------- */

static void require(ssize_t done, ssize_t wanted, const char *what)
{
    if (done != wanted)
        die(what);
}

static int run_mixed(char **arguments)
{
    const uint64_t count = strtoull(arguments[0], NULL, 0);
    const int fd = open_or_die(arguments[1], O_RDWR);
    const off_t window = strtoll(arguments[2], NULL, 0);
    const off_t gap = strtoll(arguments[3], NULL, 0);
    uint32_t value = 0;
    char text[4096];
    struct stat status;

    for (uint64_t i = 0; i < count; i++) {
        switch (i % 8) {
        case 0:
        case 1:
            require(pread(fd, &value, 4, window), 4, "a read of the window");
            break;
        case 2:
        case 3:
            require(pwrite(fd, &value, 4, window), 4, "a write to the window");
            break;
        case 4:
            require(pread(fd, &value, 4, gap), 4, "a read of the gap");
            break;
        case 5:
            require(pwrite(fd, &value, 4, gap), 4, "a write to the gap");
            break;
        case 6:
            require(fstat(fd, &status), 0, "a stat");
            break;
        case 7: {
            const int file = open_or_die(arguments[4], O_RDONLY);

            require(read(file, text, sizeof text) > 0, 1, "a read of the text");
            close(file);
        }
        }
    }
    printf("{\"operations\": %lu}\n", count);
    return 0;
}

int main(int count, char **arguments)
{
    const char *mode = count > 1 ? arguments[1] : "";

    if (!strcmp(mode, "storm") && count == 8)
        return run_storm(arguments + 2);
    if (!strcmp(mode, "waiters") && count == 5)
        return run_waiters(arguments + 2);
    if (!strcmp(mode, "reader") && count >= 7)
        return run_reader(arguments + 2, count - 2);
    if (!strcmp(mode, "mixed") && count == 7)
        return run_mixed(arguments + 2);
    fprintf(stderr, "client: see the top of client.c\n");
    return 2;
}
