/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "preload/tell.h"

#include <limits.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/statfs.h>

#include "preload/calls.h"

#ifndef FUSE_SUPER_MAGIC /* linux/magic.h has it since 5.15 */
#define FUSE_SUPER_MAGIC 0x65735546
#endif

/* One for all threads, and not on the stack, which may be a small one for signals.  `\xNN` is the
 * longest that a byte of a path becomes.
 */
static char line[4 * PATH_MAX + 4 * NAME_MAX + 512];
static size_t count;
static atomic_flag in_use = ATOMIC_FLAG_INIT;

static void add_byte(char byte)
{
    if (count < sizeof(line) - 1)
        line[count++] = byte;
}

static void add(const char *text)
{
    while (*text != 0)
        add_byte(*text++);
}

static void add_digits(uint64_t number, unsigned least)
{
    unsigned digits = 1;

    while (digits < 16 && number >> (4 * digits) != 0)
        digits++;
    for (digits = digits < least ? least : digits; digits > 0; digits--)
        add_byte("0123456789abcdef"[number >> (4 * (digits - 1)) & 0xf]);
}

static bool is_plain(char byte)
{
    return (byte >= '0' && byte <= '9') || (byte >= 'A' && byte <= 'Z') ||
           (byte >= 'a' && byte <= 'z') || (byte != 0 && strchr("+,-./:=@_", byte) != NULL);
}

/* In $'...', which also keeps what a terminal would act on from it. */
static void add_word(const char *path)
{
    const char *byte = path;

    while (is_plain(*byte))
        byte++;
    if (*byte == 0) {
        add(path);
        return;
    }
    add("$'");
    for (byte = path; *byte != 0; byte++) {
        if (is_plain(*byte) || *byte == ' ') {
            add_byte(*byte);
        } else {
            add("\\x");
            add_digits((uint8_t)*byte, 2);
        }
    }
    add("'");
}

static const char *last_name(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash == NULL ? path : slash + 1;
}

static void add_all(const char *text, va_list arguments)
{
    for (; *text != 0; text++) {
        if (*text != '%') {
            add_byte(*text);
            continue;
        }
        switch (*++text) {
        case 's':
            add(va_arg(arguments, const char *));
            break;
        case 'w':
            add_word(va_arg(arguments, const char *));
            break;
        case 'n':
            add_word(last_name(va_arg(arguments, const char *)));
            break;
        case 'x':
            add("0x");
            add_digits(va_arg(arguments, uint64_t), 1);
            break;
        }
    }
}

static bool may_print(void)
{
    struct statfs found;

    return syscall(SYS_fstatfs, STDERR_FILENO, &found) == 0 && found.f_type != FUSE_SUPER_MAGIC;
}

/* Without the SIGPIPE that the program would otherwise not get. */
static void print(void)
{
    static const struct timespec at_once;
    sigset_t pipe, before, waiting;

    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe, &before);
    sigpending(&waiting);
    if (syscall(SYS_write, STDERR_FILENO, line, count) < 0 && errno == EPIPE &&
        !sigismember(&waiting, SIGPIPE))
        syscall(SYS_rt_sigtimedwait, &pipe, NULL, &at_once, _NSIG / 8);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void barfs_tell(const char *text, ...)
{
    va_list arguments;

    if (atomic_flag_test_and_set(&in_use))
        return;
    count = 0;
    add("barfs run: ");
    va_start(arguments, text);
    add_all(text, arguments);
    va_end(arguments);
    add_byte('\n');
    if (may_print())
        print();
    atomic_flag_clear(&in_use);
}
