/* SPDX-License-Identifier: MIT
 *
 * The yardstick for barfs: a minimal libfuse low-level server in C.
 *
 *     server [-m] [-n FILES] [-d NS] MOUNTPOINT      in the foreground, until SIGTERM; -m: several
 *                                                    threads; -d: each request on file0 sleeps so
 *                                                    long
 *
 * Its files, file0, file1 ..., are 1 MiB of anonymous memory each, read and written in 32-bit
 * words. They are opened, cached and permitted as region files of barfs are, so the kernel does the
 * same work for both.
 */
#define FUSE_USE_VERSION 312
#define _GNU_SOURCE
#include <errno.h>
#include <fuse_lowlevel.h>
#include <linux/fuse.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define FILE_SIZE ((size_t)1 << 20)
#define FIRST_INODE 2u

static const double TIMEOUT = 300;

static unsigned file_count = 1;
static struct timespec delay;
static unsigned char *memory;

static struct stat attributes(fuse_ino_t inode)
{
    struct stat status = {.st_ino = inode, .st_nlink = 1, .st_uid = getuid(), .st_gid = getgid()};

    if (inode == FUSE_ROOT_ID) {
        status.st_mode = S_IFDIR | 0755;
    } else {
        status.st_mode = S_IFREG | 0600;
        status.st_size = (off_t)FILE_SIZE;
        status.st_blksize = 4;
        status.st_blocks = (blkcnt_t)(FILE_SIZE / 512);
    }
    return status;
}

static void serve_lookup(fuse_req_t request, fuse_ino_t parent, const char *name)
{
    struct fuse_entry_param entry = {.attr_timeout = TIMEOUT, .entry_timeout = TIMEOUT};
    unsigned number;

    if (parent != FUSE_ROOT_ID || sscanf(name, "file%u", &number) != 1 || number >= file_count) {
        fuse_reply_err(request, ENOENT);
        return;
    }
    entry.ino = FIRST_INODE + number;
    entry.attr = attributes(entry.ino);
    fuse_reply_entry(request, &entry);
}

static void serve_getattr(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *info)
{
    struct stat status = attributes(inode);

    (void)info;
    fuse_reply_attr(request, &status, TIMEOUT);
}

/* The kernel's structure: older libfuse has no name for the second flag. */
static void serve_open(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *info)
{
    struct fuse_open_out out = {.open_flags = FOPEN_DIRECT_IO};

    (void)inode;
    (void)info;
#ifdef FOPEN_PARALLEL_DIRECT_WRITES
    out.open_flags |= FOPEN_PARALLEL_DIRECT_WRITES;
#endif
    fuse_reply_buf(request, (const char *)&out, sizeof out);
}

static void take_time(fuse_ino_t inode)
{
    if (inode == FIRST_INODE && delay.tv_nsec)
        nanosleep(&delay, NULL);
}

/* The memory of a request, and the part of its size that is inside the file. */
static unsigned char *place(fuse_ino_t inode, size_t *size, off_t offset)
{
    size_t start = (size_t)offset < FILE_SIZE ? (size_t)offset : FILE_SIZE;

    if (*size > FILE_SIZE - start)
        *size = FILE_SIZE - start;
    return memory + (inode - FIRST_INODE) * FILE_SIZE + start;
}

static void load(void *to, const volatile void *from, size_t size)
{
    const volatile uint32_t *words = from;
    uint32_t *out = to;

    for (size_t i = 0; i < size / sizeof *words; i++)
        out[i] = words[i];
}

static void store(volatile void *to, const void *from, size_t size)
{
    volatile uint32_t *words = to;
    const unsigned char *in = from;

    for (size_t i = 0; i < size / sizeof *words; i++) {
        uint32_t word;

        memcpy(&word, in + i * sizeof word, sizeof word); /* a load: the buffer may be misaligned */
        words[i] = word;
    }
}

static void serve_read(fuse_req_t request, fuse_ino_t inode, size_t size, off_t offset,
                       struct fuse_file_info *info)
{
    static _Thread_local _Alignas(4096) char buffer[FILE_SIZE];
    const unsigned char *from = place(inode, &size, offset);

    (void)info;
    take_time(inode);
    load(buffer, from, size);
    fuse_reply_buf(request, buffer, size);
}

static void serve_write(fuse_req_t request, fuse_ino_t inode, const char *data, size_t size,
                        off_t offset, struct fuse_file_info *info)
{
    unsigned char *to = place(inode, &size, offset);

    (void)info;
    take_time(inode);
    store(to, data, size);
    fuse_reply_write(request, size);
}

static const struct fuse_lowlevel_ops OPERATIONS = {
    .lookup = serve_lookup,
    .getattr = serve_getattr,
    .open = serve_open,
    .read = serve_read,
    .write = serve_write,
};

static int serve(const char *mountpoint, int threads)
{
    char *words[] = {"server", "-odefault_permissions,nosuid,nodev,noexec,fsname=barfs-bench",
                     NULL};
    struct fuse_args arguments = FUSE_ARGS_INIT(2, words);
    struct fuse_session *session =
        fuse_session_new(&arguments, &OPERATIONS, sizeof OPERATIONS, NULL);
    int status = 1;

    if (!session || fuse_set_signal_handlers(session))
        return status;
    if (!fuse_session_mount(session, mountpoint)) {
        status = threads ? fuse_session_loop_mt(session, NULL) : fuse_session_loop(session);
        fuse_session_unmount(session);
    }
    fuse_remove_signal_handlers(session);
    fuse_session_destroy(session);
    return status < 0 ? 1 : 0;
}

int main(int argc, char **argv)
{
    int threads = 0, option;

    while ((option = getopt(argc, argv, "mn:d:")) != -1) {
        if (option == 'm')
            threads = 1;
        else if (option == 'n')
            file_count = (unsigned)strtoul(optarg, NULL, 10);
        else if (option == 'd')
            delay.tv_nsec = strtol(optarg, NULL, 10);
        else
            return 2;
    }
    if (optind + 1 != argc)
        return 2;
    memory = mmap(NULL, file_count * FILE_SIZE, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    return serve(argv[optind], threads);
}
