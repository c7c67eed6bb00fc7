/* SPDX-License-Identifier: MIT
 *
 * A library that a program loads by dlopen().
 */
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

uint32_t first_word(int fd, off_t offset);

uint32_t first_word(int fd, off_t offset)
{
    const volatile uint32_t *base = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, offset);

    return base == MAP_FAILED ? 0 : *base;
}
