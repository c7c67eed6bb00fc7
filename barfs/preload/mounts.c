/* SPDX-License-Identifier: MIT
 *
 * /proc/self/mountinfo (proc_pid_mountinfo(5)) is read as it comes, without memory for a line:
 *
 *     36 35 0:52 / /mnt/my\040bar rw,nosuid - fuse.barfs 0000:01:00.0 rw
 */
#define _GNU_SOURCE
#include "preload/mounts.h"

#include <string.h>

#include "preload/calls.h"

enum { ROOT_INODE = 1, LONGEST_NAME = 1024 /* FUSE_NAME_MAX */ };

struct text {
    int fd;
    char last; /* what ended the last word: a blank, a newline, or 0 at the end of the file */
    uint32_t at, filled;
    char buffer[1024];
};

/* The next byte; 0, which mountinfo never contains, at the end. */
static char next(struct text *text)
{
    if (text->at == text->filled) {
        long count;

        do
            count = syscall(SYS_read, text->fd, text->buffer, sizeof(text->buffer));
        while (count < 0 && errno == EINTR);
        if (count <= 0)
            return 0;
        text->at = 0;
        text->filled = (uint32_t)count;
    }
    return text->buffer[text->at++];
}

static bool ends_word(char byte)
{
    return byte == ' ' || byte == '\n' || byte == 0;
}

/* Read a word, of which what fits is kept. */
static void read_word(struct text *text, char *word, uint32_t size)
{
    uint32_t count = 0;
    char byte;

    while (!ends_word(byte = next(text)))
        if (count + 1 < size)
            word[count++] = byte;
    word[count] = 0;
    text->last = byte;
}

static uint32_t read_number(struct text *text)
{
    uint32_t number = 0;
    char digit;

    while ((digit = next(text)) >= '0' && digit <= '9')
        number = number * 10 + (uint32_t)(digit - '0');
    text->last = digit;
    return number;
}

/* A byte of a path, in which the kernel writes blanks, newlines and backslashes in octal. */
static char next_of_path(struct text *text, bool *ended)
{
    char byte = next(text);
    int value = 0;

    *ended = ends_word(byte);
    if (byte != '\\')
        return byte;
    for (int digit = 0; digit < 3; digit++)
        value = value * 8 + (next(text) - '0');
    return (char)value;
}

static int enter(int folder, const char *name)
{
    int found = call_open(folder, name, O_PATH | O_DIRECTORY | O_NOFOLLOW);

    call_close(folder);
    return found;
}

/* Read a path, and open it name by name: it may be longer than PATH_MAX.  Returns a descriptor or
 * -errno.
 */
static int open_path(struct text *text)
{
    int folder = call_open(AT_FDCWD, "/", O_PATH | O_DIRECTORY);
    int error = errno;
    char name[LONGEST_NAME + 1];
    uint32_t count = 0;
    bool ended = false;

    while (!ended) {
        char byte = next_of_path(text, &ended);

        if (!ended && byte != '/') {
            name[count] = byte;
            count += count < LONGEST_NAME;
        } else if (count > 0) {
            name[count] = 0;
            count = 0;
            if (folder >= 0) {
                folder = enter(folder, name);
                error = errno;
            }
        }
        if (ended)
            text->last = byte;
    }
    return folder < 0 ? -error : folder;
}

static bool is_root(int fd, uint32_t major, uint32_t minor)
{
    struct statx found;

    return call_stat(fd, &found) && found.stx_dev_major == major && found.stx_dev_minor == minor &&
           found.stx_ino == ROOT_INODE;
}

/* Read a line of mountinfo, and what it says of the mount. */
static void read_line(struct text *text, uint32_t major, uint32_t minor,
                      struct barfs_found_mount *mount)
{
    char word[16];
    bool wanted;
    int root = -ENOENT;

    read_number(text);
    read_number(text);
    wanted = read_number(text) == major;
    wanted &= read_number(text) == minor;
    read_word(text, word, sizeof(word));
    if (wanted && strcmp(word, "/") == 0)
        root = open_path(text);
    else
        read_word(text, word, sizeof(word));
    while (text->last == ' ' && strcmp(word, "-") != 0)
        read_word(text, word, sizeof(word));
    if (text->last == ' ')
        read_word(text, word, sizeof(word));
    mount->is_barfs |= wanted && strcmp(word, "fuse.barfs") == 0;
    while (text->last == ' ')
        read_word(text, word, sizeof(word));

    if (root < 0) {
        if (wanted)
            mount->root = root;
    } else if (mount->is_barfs && is_root(root, major, minor)) {
        mount->root = root;
    } else {
        call_close(root);
    }
}

struct barfs_found_mount barfs_find_mount(uint32_t major, uint32_t minor)
{
    struct barfs_found_mount mount = {.root = -ENOENT};
    struct text text = {.last = '\n'};

    text.fd = call_open(AT_FDCWD, "/proc/thread-self/mountinfo", O_RDONLY);
    if (text.fd < 0)
        return mount;
    while (text.last == '\n' && mount.root < 0)
        read_line(&text, major, minor, &mount);
    call_close(text.fd);
    return mount;
}
