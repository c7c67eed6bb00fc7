/* SPDX-License-Identifier: MIT
 *
 * Reads or writes one register as tools for sysfs's resourceN do: by a shared mapping of the page
 * that it is in.
 *
 *     peek FILE OFFSET WIDTH [VALUE]
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static uint64_t load(const volatile void *place, int width)
{
    switch (width) {
    case 1:
        return *(const volatile uint8_t *)place;
    case 2:
        return *(const volatile uint16_t *)place;
    case 4:
        return *(const volatile uint32_t *)place;
    default:
        return *(const volatile uint64_t *)place;
    }
}

static void store(volatile void *place, int width, uint64_t value)
{
    switch (width) {
    case 1:
        *(volatile uint8_t *)place = (uint8_t)value;
        break;
    case 2:
        *(volatile uint16_t *)place = (uint16_t)value;
        break;
    case 4:
        *(volatile uint32_t *)place = (uint32_t)value;
        break;
    default:
        *(volatile uint64_t *)place = value;
    }
}

int main(int count, char **words)
{
    off_t page = sysconf(_SC_PAGESIZE), offset;
    volatile char *base;
    int fd, width;

    if (count < 4)
        return 2;
    offset = (off_t)strtoull(words[2], NULL, 0);
    width = atoi(words[3]);
    fd = open(words[1], O_RDWR | O_SYNC);
    if (fd < 0) {
        perror(words[1]);
        return 1;
    }
    base = mmap(NULL, (size_t)page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset & -page);
    if (base == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    close(fd);
    if (count > 4)
        store(base + offset % page, width, strtoull(words[4], NULL, 0));
    else
        printf("0x%" PRIx64 "\n", load(base + offset % page, width));
    munmap((void *)base, (size_t)page);
    return 0;
}
