// SPDX-License-Identifier: MIT
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

int main(void)
{
    // MANUAL
    uint8_t byte = 0x5a;
    pwrite(fd, &byte, 1, 0x05);
    pread(fd, &byte, 1, 0x05);
    uint64_t wide = 0x0123456789abcdef;
    pwrite(fd, &wide, 8, 0x00);
    pread(fd, &wide, 8, 0x00);
    printf("%" PRIx8 " %" PRIx64 "\n", byte, wide);
}
