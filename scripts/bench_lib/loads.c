/* SPDX-License-Identifier: MIT
 *
 * Measures 4-byte loads of mapped memory.  Prints a JSON list with nanoseconds for each target.
 *
 *     loads COUNT FD@OFFSET...      COUNT loads of the page at OFFSET of each open descriptor
 *
 * Rule 1: targets take turns in short blocks, so that other load on the machine affects all.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define MOST_TARGETS 8
#define BLOCK 100000

static int64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static const volatile uint32_t *map(char *target, size_t size)
{
    char *rest;
    int fd = (int)strtol(target, &rest, 0);
    off_t offset = *rest == '@' ? strtol(rest + 1, &rest, 0) : -1;
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);

    if (memory == MAP_FAILED) {
        perror(target);
        exit(1);
    }
    return memory;
}

static int64_t block(const volatile uint32_t *memory, size_t words)
{
    int64_t start = now_ns();

    for (size_t i = 0; i < BLOCK; i++)
        (void)memory[i & (words - 1)];
    return now_ns() - start;
}

int main(int argc, char **argv)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const volatile uint32_t *memory[MOST_TARGETS];
    int64_t spent[MOST_TARGETS] = {0};
    int targets = argc - 2;
    long blocks = argc > 1 ? strtol(argv[1], NULL, 0) / BLOCK : 0;

    if (targets < 1 || targets > MOST_TARGETS || blocks < 1) {
        fprintf(stderr, "loads: COUNT must be %d or more, with 1 to %d targets\n", BLOCK,
                MOST_TARGETS);
        return 2;
    }
    for (int i = 0; i < targets; i++)
        memory[i] = map(argv[i + 2], page);
    for (long round = 0; round < blocks; round++) {
        for (int i = 0; i < targets; i++) {
            int turn = (int)((round + i) % targets);

            spent[turn] += block(memory[turn], page / sizeof(uint32_t));
        }
    }
    for (int i = 0; i < targets; i++)
        printf("%s%.4f", i ? ", " : "[", (double)spent[i] / (double)(blocks * BLOCK));
    printf("]\n");
    return 0;
}
