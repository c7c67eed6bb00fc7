/* SPDX-License-Identifier: MIT
 *
 * Records every instruction that touches a window, in order, with its offset and width.
 *
 * The window's page has no permissions.  An instruction that touches it faults; the handler notes
 * the address and the width encoded in the instruction, opens the page, lets just this one
 * instruction run (the trap flag), and closes the page again.  Accesses of the gaps on both sides,
 * which are calls, are noted in the same list.
 *
 *   window_trace WIDTH BASE STEP    a line "r|w OFFSET COUNT: OFFSET+WIDTH..." per STEPth request
 */
#define _GNU_SOURCE
#include "../support/require.h"
#include "engine/sigbus.h"
#include "engine/transfer.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

enum { PAGE = 4096, WINDOW = 64, END = 192, REGION = 256, MOST = 256 };
enum { OFFSETS = 65, COUNTS = 64, TRAP_FLAG = 0x100, WRITE_FAULT = 2 };

static struct access {
    uint64_t offset;
    unsigned width;
    enum barfs_direction direction;
} accesses[MOST];
static volatile int access_count;

static uint8_t *page;
static uint8_t ram[REGION];
static struct barfs_inflight inflight;

static void note(uint64_t offset, unsigned width, enum barfs_direction direction)
{
    REQUIRE(access_count < MOST);
    accesses[access_count++] = (struct access){offset, width, direction};
}

/* The width of a plain mov between a register and memory; 0 for any other instruction. */
static unsigned width_of(const uint8_t *code)
{
    bool half = false, whole = false;

    if (*code == 0x66) {
        half = true;
        code++;
    }
    if ((*code & 0xf0) == 0x40)
        whole = *code++ & 8;
    if (code[0] == 0x0f)
        return code[1] == 0xb6 ? 1 : code[1] == 0xb7 ? 2 : 0;
    if (*code == 0x8a || *code == 0x88)
        return 1;
    if (*code == 0x8b || *code == 0x89)
        return whole ? 8 : half ? 2 : 4;
    return 0;
}

static void on_touch(int number, siginfo_t *info, void *context)
{
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    uint8_t *place = info->si_addr;
    const uint8_t *code = (const uint8_t *)(uintptr_t)registers[REG_RIP];
    unsigned width = width_of(code);

    (void)number;
    REQUIRE(place >= page + WINDOW && place < page + END);
    REQUIRE(width != 0);
    note((uint64_t)(place - page), width,
         registers[REG_ERR] & WRITE_FAULT ? BARFS_WRITE : BARFS_READ);
    REQUIRE(mprotect(page, PAGE, PROT_READ | PROT_WRITE) == 0);
    registers[REG_EFL] |= TRAP_FLAG;
}

static void on_step(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)info;
    REQUIRE(mprotect(page, PAGE, PROT_NONE) == 0);
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_EFL] &= ~(greg_t)TRAP_FLAG;
}

static int call(void *context, uint64_t offset, uint32_t width, enum barfs_direction direction,
                void *data)
{
    uint8_t *place = (uint8_t *)context + offset;

    note(offset, width, direction);
    memcpy(direction == BARFS_READ ? data : place, direction == BARFS_READ ? place : data, width);
    return 0;
}

static void request(const struct barfs_table *table, uint64_t offset, uint64_t count,
                    enum barfs_direction direction)
{
    uint8_t buffer[COUNTS];

    memset(buffer, 0x5a, sizeof buffer);
    access_count = 0;
    REQUIRE(barfs_transfer(table, offset, buffer, count, direction, NULL) == (int64_t)count);
    printf("%c %lu %lu:", direction == BARFS_READ ? 'r' : 'w', offset, count);
    for (int i = 0; i < access_count; i++) {
        REQUIRE(accesses[i].direction == direction);
        printf(" %lu+%u", accesses[i].offset, accesses[i].width);
    }
    putchar('\n');
}

int main(int argc, char **argv)
{
    struct sigaction touch = {.sa_sigaction = on_touch, .sa_flags = SA_SIGINFO};
    struct sigaction step = {.sa_sigaction = on_step, .sa_flags = SA_SIGINFO};
    const uint32_t may = BARFS_MAY_READ | BARFS_MAY_WRITE;

    REQUIRE(argc == 4);
    page = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(page != MAP_FAILED);
    REQUIRE(barfs_sigbus_install() == 0);
    REQUIRE(sigaction(SIGSEGV, &touch, NULL) == 0 && sigaction(SIGTRAP, &step, NULL) == 0);

    const struct barfs_table_entry entries[] = {
        {.start = 0,
         .end = WINDOW,
         .kind = BARFS_CALL,
         .permission = may,
         .widths = 15,
         .call = call,
         .context = ram},
        {.start = WINDOW,
         .end = END,
         .kind = BARFS_MEMORY,
         .permission = may,
         .widths = 15,
         .base = page + WINDOW},
        {.start = END,
         .end = REGION,
         .kind = BARFS_CALL,
         .permission = may,
         .widths = 7,
         .call = call,
         .context = ram},
    };
    const struct barfs_table table = {
        .inflight = &inflight,
        .size = REGION,
        .width = (uint32_t)atoi(argv[1]),
        .entry_count = sizeof entries / sizeof *entries,
        .entries = entries,
    };
    const uint64_t base = (uint64_t)atoi(argv[2]);
    const int every = atoi(argv[3]);
    int number = 0;

    for (uint64_t offset = base; offset < base + OFFSETS; offset++)
        for (uint64_t count = 1; count <= COUNTS; count++)
            for (enum barfs_direction direction = BARFS_READ; direction <= BARFS_WRITE; direction++)
                if (number++ % every == 0)
                    request(&table, offset, count, direction);
    return 0;
}
