/* SPDX-License-Identifier: MIT
 *
 * Loads and stores of device memory.
 */
#ifndef BARFS_ACCESSES_H
#define BARFS_ACCESSES_H

#include <stdint.h>
#include <string.h>

/* A loop of one load and one store takes a third longer if it straddles a cache line (build.py
 * aligns loops, too). */
#define TIGHT __attribute__((noinline, aligned(64)))

/* `accesses` loads or stores of one width between the device and the buffer, which need not be
 * aligned. They are separate functions so that `volatile` alone decides what the compiler emits:
 * exactly one mov of the width for each access, in order. */
#define DEFINE_ACCESSES(bits)                                                                      \
    static TIGHT void load##bits(const volatile uint8_t *base, uint8_t *buffer, uint64_t accesses) \
    {                                                                                              \
        const volatile uint##bits##_t *device = (const volatile void *)base;                       \
                                                                                                   \
        for (uint64_t i = 0; i < accesses; i++) {                                                  \
            uint##bits##_t value = device[i];                                                      \
                                                                                                   \
            memcpy(buffer + i * sizeof(value), &value, sizeof(value));                             \
        }                                                                                          \
    }                                                                                              \
    static TIGHT void store##bits(volatile uint8_t *base, const uint8_t *buffer,                   \
                                  uint64_t accesses)                                               \
    {                                                                                              \
        volatile uint##bits##_t *device = (volatile void *)base;                                   \
                                                                                                   \
        for (uint64_t i = 0; i < accesses; i++) {                                                  \
            uint##bits##_t value;                                                                  \
                                                                                                   \
            memcpy(&value, buffer + i * sizeof(value), sizeof(value));                             \
            device[i] = value;                                                                     \
        }                                                                                          \
    }

DEFINE_ACCESSES(8)
DEFINE_ACCESSES(16)
DEFINE_ACCESSES(32)
DEFINE_ACCESSES(64)

static void load(const volatile uint8_t *base, uint8_t *buffer, uint32_t width, uint64_t accesses)
{
    switch (width) {
    case 1:
        load8(base, buffer, accesses);
        break;
    case 2:
        load16(base, buffer, accesses);
        break;
    case 4:
        load32(base, buffer, accesses);
        break;
    default:
        load64(base, buffer, accesses);
        break;
    }
}

static void store(volatile uint8_t *base, const uint8_t *buffer, uint32_t width, uint64_t accesses)
{
    switch (width) {
    case 1:
        store8(base, buffer, accesses);
        break;
    case 2:
        store16(base, buffer, accesses);
        break;
    case 4:
        store32(base, buffer, accesses);
        break;
    default:
        store64(base, buffer, accesses);
        break;
    }
}

#undef TIGHT

#endif
