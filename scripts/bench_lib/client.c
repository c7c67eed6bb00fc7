/* SPDX-License-Identifier: MIT
 *
 * Measures files.  Prints a JSON list with one object for each target.
 *
 *     client latency read|write|open COUNT TARGET...   4 bytes; open is open + pread + close
 *     client stream read|write COUNT TARGET...         1 MiB at a time, from a page-aligned buffer
 *     client many CLIENTS COUNT TARGET...              processes, COUNT 4-byte reads each
 *     client busy COUNT TARGET TARGET                  4-byte reads of the second, alone and then
 *                                                      while 1 MiB of the first is read
 *     client floor DIRECTORY                           the same machine without FUSE
 *
 * TARGET is PATH[@OFFSET[@PID]]; PATH may be fd:N, an open descriptor, and for `many` a list
 * (PATH,PATH...), over which the clients spread.  With PID, the CPU time of that server is counted.
 *
 * Rule 1: targets take turns in short blocks, so that other load on the machine affects all.
 * Rule 2: an operation that transfers fewer bytes than asked for ends the measurement.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MIB ((size_t)1 << 20)
#define MOST_TARGETS 8u
#define MOST_CLIENTS 16u

enum operation { READ, WRITE, OPEN };

struct target {
    char *path;
    off_t offset;
    pid_t pid;
    int fd;
    int64_t *samples;
    int64_t cpu_ns;
    size_t count;
};

static unsigned char *buffer; /* 1 MiB, page-aligned */

/* ---- Small things ---------------------------------------------------------------------------- */

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *format, ...)
{
    int error = errno;
    va_list arguments;

    va_start(arguments, format);
    fputs("client: ", stderr);
    vfprintf(stderr, format, arguments);
    fprintf(stderr, " (%s)\n", strerror(error));
    exit(1);
}

static int64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static size_t number(const char *text)
{
    char *end;
    size_t value = strtoull(text, &end, 0);

    if (!*text || *end)
        die("%s is no number", text);
    return value;
}

static void *shared_memory(size_t size)
{
    void *memory =
        mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

    if (memory == MAP_FAILED)
        die("mmap");
    return memory;
}

static int compare(const void *left, const void *right)
{
    int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;

    return (a > b) - (a < b);
}

/* Of sorted samples. */
static int64_t percentile(const int64_t *samples, size_t count, size_t percent)
{
    return samples[(count - 1) * percent / 100];
}

/* ---- Targets --------------------------------------------------------------------------------- */

static struct target parse_target(char *text)
{
    struct target target = {.path = text, .fd = -1};
    char *offset = strchr(text, '@');

    if (offset) {
        char *pid = strchr(offset + 1, '@');

        *offset = '\0';
        if (pid) {
            *pid = '\0';
            target.pid = (pid_t)number(pid + 1);
        }
        target.offset = (off_t)number(offset + 1);
    }
    return target;
}

static int open_path(const char *path, int flags)
{
    int fd;

    if (!strncmp(path, "fd:", 3))
        return (int)number(path + 3);
    fd = open(path, flags | O_CLOEXEC);
    if (fd < 0)
        die("%s", path);
    return fd;
}

static size_t parse_targets(struct target *targets, char **texts)
{
    size_t count = 0;

    for (; texts[count]; count++) {
        if (count == MOST_TARGETS)
            die("too many targets");
        targets[count] = parse_target(texts[count]);
    }
    if (!count)
        die("no target");
    return count;
}

static int64_t thread_cpu_ns(pid_t pid, const char *thread)
{
    char path[512];
    long long ran = 0;
    FILE *file;

    snprintf(path, sizeof path, "/proc/%d/task/%s/schedstat", (int)pid, thread);
    file = fopen(path, "r");
    if (!file)
        return 0; /* the thread has just ended */
    if (fscanf(file, "%lld", &ran) != 1)
        die("%s", path);
    fclose(file);
    return ran;
}

/* The CPU time of all threads of a process so far. */
static int64_t process_cpu_ns(pid_t pid)
{
    char path[64];
    struct dirent *entry;
    int64_t sum = 0;
    DIR *tasks;

    if (!pid)
        return 0;
    snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
    tasks = opendir(path);
    if (!tasks)
        die("%s", path);
    while ((entry = readdir(tasks)))
        if (entry->d_name[0] != '.')
            sum += thread_cpu_ns(pid, entry->d_name);
    closedir(tasks);
    return sum;
}

/* ---- Operations ------------------------------------------------------------------------------ */

static void access_file(const struct target *target, enum operation operation, size_t size)
{
    ssize_t done;
    int fd;

    switch (operation) {
    case READ:
        done = pread(target->fd, buffer, size, target->offset);
        break;
    case WRITE:
        done = pwrite(target->fd, buffer, size, target->offset);
        break;
    default:
        fd = open_path(target->path, O_RDONLY);
        done = pread(fd, buffer, size, target->offset);
        close(fd);
    }
    if (done != (ssize_t)size)
        die("%s: %zd of %zu bytes", target->path, done, size);
}

static enum operation parse_operation(const char *text)
{
    if (!strcmp(text, "read"))
        return READ;
    if (!strcmp(text, "write"))
        return WRITE;
    if (!strcmp(text, "open"))
        return OPEN;
    die("%s is no operation", text);
}

/* ---- latency --------------------------------------------------------------------------------- */

static void run_block(struct target *target, enum operation operation, size_t size, size_t count)
{
    int64_t cpu = process_cpu_ns(target->pid);

    for (size_t i = 0; i < count; i++) {
        int64_t start = now_ns();

        access_file(target, operation, size);
        target->samples[target->count++] = now_ns() - start;
    }
    target->cpu_ns += process_cpu_ns(target->pid) - cpu;
}

static void prepare(struct target *target, enum operation operation, size_t size, size_t count)
{
    target->fd = open_path(target->path, operation == WRITE ? O_RDWR : O_RDONLY);
    target->samples = shared_memory((count + 1) * sizeof *target->samples);
    access_file(target, operation, size);
}

static void take_turns(struct target *targets, size_t target_count, enum operation operation,
                       size_t size, size_t count, size_t block)
{
    for (size_t t = 0; t < target_count; t++)
        prepare(&targets[t], operation, size, count);
    for (size_t done = 0; done < count; done += block)
        for (size_t t = 0; t < target_count; t++)
            run_block(&targets[t], operation, size, count - done < block ? count - done : block);
}

static void print_latency(struct target *target, const char *before)
{
    qsort(target->samples, target->count, sizeof *target->samples, compare);
    printf("%s{\"p50\": %lld, \"p99\": %lld, \"cpu\": %lld}", before,
           (long long)percentile(target->samples, target->count, 50),
           (long long)percentile(target->samples, target->count, 99),
           (long long)(target->cpu_ns / (int64_t)target->count));
}

static void measure_latency(char **words)
{
    struct target targets[MOST_TARGETS];
    size_t target_count = parse_targets(targets, words + 2);

    take_turns(targets, target_count, parse_operation(words[0]), 4, number(words[1]), 200);
    for (size_t t = 0; t < target_count; t++)
        print_latency(&targets[t], t ? ", " : "[");
    puts("]");
}

/* ---- stream ---------------------------------------------------------------------------------- */

static void measure_stream(char **words)
{
    struct target targets[MOST_TARGETS];
    size_t target_count = parse_targets(targets, words + 2), count = number(words[1]);

    take_turns(targets, target_count, parse_operation(words[0]), MIB, count, 8);
    for (size_t t = 0; t < target_count; t++) {
        int64_t sum = 0;

        for (size_t i = 0; i < count; i++)
            sum += targets[t].samples[i];
        printf("%s{\"mib_s\": %.1f}", t ? ", " : "[", (double)count * 1e9 / (double)sum);
    }
    puts("]");
}

/* ---- many ------------------------------------------------------------------------------------ */

__attribute__((noreturn)) static void run_client(struct target target, size_t count, int gate,
                                                 int64_t *end)
{
    char byte;

    target.fd = open_path(target.path, O_RDONLY);
    access_file(&target, READ, 4);
    /* Wait until all are started and the parent has closed the pipe. */
    while (read(gate, &byte, 1) < 0)
        ;
    for (size_t i = 0; i < count; i++)
        access_file(&target, READ, 4);
    *end = now_ns();
    _exit(0);
}

/* `target` with the `index`th path of its list. */
static struct target choose_path(struct target target, size_t index)
{
    char *state, *list = strdup(target.path), *path;
    size_t count = 1;

    for (const char *at = list; *at; at++)
        count += *at == ',';
    path = strtok_r(list, ",", &state);
    for (size_t skip = index % count; skip; skip--)
        path = strtok_r(NULL, ",", &state);
    target.path = path;
    return target;
}

static void wait_for_children(size_t count)
{
    int status;

    while (count--)
        if (wait(&status) < 0 || status)
            die("a client failed");
}

/* Returns the time that `clients` processes take together. */
static int64_t race(const struct target *target, size_t clients, size_t count)
{
    int64_t *ends = shared_memory(clients * sizeof *ends), start, last = 0;
    int gate[2];

    if (pipe(gate))
        die("pipe");
    for (size_t c = 0; c < clients; c++) {
        pid_t child = fork();

        if (child < 0)
            die("fork");
        if (!child) {
            close(gate[1]);
            run_client(choose_path(*target, c), count, gate[0], &ends[c]);
        }
    }
    close(gate[0]);
    usleep(20000);
    start = now_ns();
    close(gate[1]);
    wait_for_children(clients);
    for (size_t c = 0; c < clients; c++)
        last = ends[c] > last ? ends[c] : last;
    munmap(ends, clients * sizeof *ends);
    return last - start;
}

static void measure_many(char **words)
{
    static const size_t TURNS = 3;
    struct target targets[MOST_TARGETS];
    size_t target_count = parse_targets(targets, words + 2);
    size_t clients = number(words[0]), count = number(words[1]);
    int64_t sums[MOST_TARGETS] = {0};

    if (!clients || clients > MOST_CLIENTS)
        die("%zu clients", clients);
    for (size_t turn = 0; turn < TURNS; turn++)
        for (size_t t = 0; t < target_count; t++)
            sums[t] += race(&targets[t], clients, count);
    for (size_t t = 0; t < target_count; t++)
        printf("%s{\"ops_s\": %.1f}", t ? ", " : "[",
               (double)(TURNS * clients * count) * 1e9 / (double)sums[t]);
    puts("]");
}

/* ---- busy ------------------------------------------------------------------------------------ */

/* One 1 MiB read after the other.  A read that times out counts as well. */
__attribute__((noreturn)) static void keep_reading(const struct target *target)
{
    for (;;) {
        ssize_t done = pread(target->fd, buffer, MIB, target->offset);

        if (done <= 0 && !(done < 0 && errno == ETIMEDOUT))
            die("%s: %zd bytes", target->path, done);
    }
}

static void run_busy_block(const struct target *load, struct target *target, size_t count)
{
    pid_t child = fork();
    int status;

    if (child < 0)
        die("fork");
    if (!child)
        keep_reading(load);
    usleep(20000);
    run_block(target, READ, 4, count);
    if (waitpid(child, &status, WNOHANG))
        die("the long read ended");
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
}

static void measure_busy(char **words)
{
    static const size_t TURNS = 4;
    struct target targets[MOST_TARGETS], idle, busy;
    size_t count = number(words[0]);

    if (parse_targets(targets, words + 1) != 2)
        die("two targets");
    targets[0].fd = open_path(targets[0].path, O_RDONLY);
    idle = busy = targets[1];
    prepare(&idle, READ, 4, count);
    prepare(&busy, READ, 4, count);
    for (size_t turn = 0; turn < TURNS; turn++) {
        run_block(&idle, READ, 4, count / TURNS);
        run_busy_block(&targets[0], &busy, count / TURNS);
    }
    print_latency(&idle, "[");
    print_latency(&busy, ", ");
    puts("]");
}

/* ---- floor ----------------------------------------------------------------------------------- */

static void ask_nothing(int fd)
{
    (void)fd;
    syscall(SYS_getppid);
}

static void copy_mib(int fd)
{
    static unsigned char *other;

    (void)fd;
    if (!other)
        other = shared_memory(MIB);
    memcpy(other, buffer, MIB);
    __asm__ volatile("" : : "r"(other) : "memory");
}

static void read_word(int fd)
{
    if (pread(fd, buffer, 4, 0) != 4)
        die("tmpfs");
}

/* Nanoseconds of one call: the median of the blocks. */
static long long cost(void (*call)(int), int fd, size_t block)
{
    int64_t samples[101];
    size_t count = sizeof samples / sizeof *samples;

    for (size_t i = 0; i < count; i++) {
        int64_t start = now_ns();

        for (size_t j = 0; j < block; j++)
            call(fd);
        samples[i] = (now_ns() - start) / (int64_t)block;
    }
    qsort(samples, count, sizeof *samples, compare);
    return percentile(samples, count, 50);
}

static void measure_floor(char **words)
{
    int fd = open(words[0], O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);

    if (fd < 0 || write(fd, buffer, 4096) != 4096)
        die("%s", words[0]);
    printf("[{\"getppid\": %lld, \"memcpy\": %lld, \"tmpfs\": %lld}]\n",
           cost(ask_nothing, -1, 1000), cost(copy_mib, -1, 1), cost(read_word, fd, 1000));
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int least;
        void (*measure)(char **words);
    } modes[] = {{"latency", 5, measure_latency},
                 {"stream", 5, measure_stream},
                 {"many", 5, measure_many},
                 {"busy", 5, measure_busy},
                 {"floor", 3, measure_floor}};

    buffer = shared_memory(MIB);
    for (size_t i = 0; argc > 1 && i < sizeof modes / sizeof *modes; i++) {
        if (!strcmp(argv[1], modes[i].name) && argc >= modes[i].least) {
            modes[i].measure(argv + 2);
            return 0;
        }
    }
    fputs("client: the comment at the top of client.c says how it is called\n", stderr);
    return 2;
}
