// SPDX-License-Identifier: GPL-2.0-only
//
// What a guest's kernel does for its programs, done in a loop and checked. Static, for any x86-64 Linux:
//
//     torture MODE SECONDS
//
// prints one line, "torture: MODE: ok, N rounds" or "torture: MODE: FAILED: why", and returns 0 or 1.
// The modes aim at what a PV kernel asks of its hypervisor: address spaces made and thrown away (fork), page faults
// that copy or protect (mmap), exceptions that come back as signals (signal), sleeping and waking (pipe, thread), and
// registers that must survive all of it (fpu).

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *mode;
static const char *self;
static int round_number;

static void fail(const char *format, ...)
{
    char why[200];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(why, sizeof why, format, arguments);
    va_end(arguments);
    printf("torture: %s: FAILED: %s (process %d, round %d)\n", mode, why, getpid(), round_number);
    fflush(stdout);
    _exit(1);
}

#define must(what) ((what) ? (void)0 : fail("line %d: %s: %s", __LINE__, #what, strerror(errno)))

// A child's end: every child checks its own things and says so by this status.
enum { CHILD_IS_FINE = 42 };

static void reap(pid_t child)
{
    int status;

    must(waitpid(child, &status, 0) == child);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != CHILD_IS_FINE)
        fail("child %d ended with status %#x", child, status);
}

// fork: a child runs another program, with an environment and a pipe; another one only exits.

static void fork_round(void)
{
    char word[32];
    int ends[2];
    pid_t child;
    ssize_t got;

    must(pipe(ends) == 0);
    snprintf(word, sizeof word, "round-%d", round_number);
    child = fork();
    must(child >= 0);
    if (child == 0) {
        char *arguments[] = {(char *)self, "child", word, NULL};
        char *environment[] = {"TORTURE=yes", NULL};

        must(dup2(ends[1], 1) == 1);
        execve(self, arguments, environment);
        _exit(1);
    }
    close(ends[1]);
    memset(word, 0, sizeof word);
    got = read(ends[0], word, sizeof word - 1);
    close(ends[0]);
    reap(child);
    if (got < 7 || atoi(word + 6) != round_number)
        fail("the child said %s", word);
    child = fork();
    must(child >= 0);
    if (child == 0)
        _exit(CHILD_IS_FINE);
    reap(child);
}

static int be_child(const char *word)
{
    const char *variable = getenv("TORTURE");

    if (!variable || strcmp(variable, "yes"))
        return 1;
    return write(1, word, strlen(word)) == (ssize_t)strlen(word) ? CHILD_IS_FINE : 1;
}

// pipe: 1000 round trips of 8 bytes, then 4 MB in uneven pieces, each byte checked.

static void fill(unsigned char *at, size_t size, uint32_t seed)
{
    for (size_t i = 0; i < size; i++) {
        seed = seed * 1664525 + 1013904223;
        at[i] = seed >> 24;
    }
}

static void pipe_child(int in, int out)
{
    uint64_t token;

    while (read(in, &token, sizeof token) == sizeof token) {
        token++;
        if (write(out, &token, sizeof token) != sizeof token)
            _exit(1);
        if (token >= 2000)
            break;
    }
    static unsigned char sent[4 << 20];
    size_t at = 0, piece = 1;

    fill(sent, sizeof sent, 7);
    while (at < sizeof sent) {
        ssize_t count = write(out, sent + at, piece < sizeof sent - at ? piece : sizeof sent - at);

        if (count <= 0)
            _exit(1);
        at += count;
        piece = piece * 3 % 70001 + 1;
    }
    _exit(CHILD_IS_FINE);
}

static void pipe_round(void)
{
    static unsigned char got[4 << 20], expected[4 << 20];
    int there[2], back[2];
    uint64_t token = 0;
    size_t at = 0;
    pid_t child;

    must(pipe(there) == 0 && pipe(back) == 0);
    child = fork();
    must(child >= 0);
    if (child == 0) {
        close(there[1]);
        close(back[0]);
        pipe_child(there[0], back[1]);
    }
    close(there[0]);
    close(back[1]);
    while (token < 2000) {
        uint64_t sent = token + 1;

        must(write(there[1], &sent, sizeof sent) == sizeof sent);
        must(read(back[0], &token, sizeof token) == sizeof token);
        if (token != sent + 1)
            fail("sent %llu, %llu came back", (unsigned long long)sent, (unsigned long long)token);
    }
    while (at < sizeof got) {
        ssize_t count = read(back[0], got + at, sizeof got - at);

        must(count > 0);
        at += count;
    }
    fill(expected, sizeof expected, 7);
    for (at = 0; at < sizeof got; at++)
        if (got[at] != expected[at])
            fail("byte %zu of a pipe is %#x, not %#x", at, got[at], expected[at]);
    close(there[1]);
    close(back[0]);
    reap(child);
}

// signal: from timers, from another process, and from the processor, on a stack of their own.

static volatile sig_atomic_t alarms, messages, last_value;
static volatile uintptr_t fault_address;
static sigjmp_buf after_fault;

static void on_alarm(int number)
{
    (void)number;
    alarms++;
}

static void on_message(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)context;
    messages++;
    last_value = info->si_value.sival_int;
}

static void on_fault(int number, siginfo_t *info, void *context)
{
    (void)context;
    fault_address = (uintptr_t)info->si_addr;
    siglongjmp(after_fault, number);
}

static void handle(int number, void (*handler)(int, siginfo_t *, void *))
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK};

    must(sigaction(number, &action, NULL) == 0);
}

static void expect_fault(int expected, const volatile char *address, void (*cause)(void))
{
    int number = sigsetjmp(after_fault, 1);

    if (number == 0) {
        cause();
        fail("no signal %d", expected);
    }
    if (number != expected || (address && fault_address != (uintptr_t)address))
        fail("signal %d at %#lx, expected %d at %p", number, (long)fault_address, expected, (void *)address);
}

static volatile char *const nowhere = (volatile char *)0x10000;
static volatile int zero;

static void touch_nowhere(void) { *nowhere = 1; }
static void divide(void) { zero = 12345 / zero; }
static void undefined(void) { __asm__ volatile("ud2"); }
static void privileged(void) { __asm__ volatile("hlt"); }
static void breakpoint(void) { __asm__ volatile("int3"); }
static void non_canonical(void) { *(volatile char *)0x8000000000000000 = 1; }

static void signal_round(void)
{
    static char stack[64 << 10];
    stack_t own = {.ss_sp = stack, .ss_size = sizeof stack};
    struct itimerval fast = {{0, 2000}, {0, 2000}}, none = {{0, 0}, {0, 0}};
    union sigval value;
    sigset_t blocked, old;
    pid_t child;

    must(sigaltstack(&own, NULL) == 0);
    signal(SIGALRM, on_alarm);
    handle(SIGUSR1, on_message);
    handle(SIGSEGV, on_fault);
    handle(SIGFPE, on_fault);
    handle(SIGILL, on_fault);
    handle(SIGTRAP, on_fault);

    alarms = 0;
    must(setitimer(ITIMER_REAL, &fast, NULL) == 0);
    for (int i = 0; i < 20; i++) {
        expect_fault(SIGSEGV, nowhere, touch_nowhere);
        expect_fault(SIGFPE, NULL, divide);
        expect_fault(SIGILL, NULL, undefined);
        expect_fault(SIGSEGV, NULL, privileged);
        expect_fault(SIGTRAP, NULL, breakpoint);
        expect_fault(SIGSEGV, NULL, non_canonical);
    }
    while (alarms < 5)
        pause();
    must(setitimer(ITIMER_REAL, &none, NULL) == 0);

    messages = 0;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    must(sigprocmask(SIG_BLOCK, &blocked, &old) == 0);
    child = fork();
    must(child >= 0);
    if (child == 0) {
        value.sival_int = round_number;
        _exit(sigqueue(getppid(), SIGUSR1, value) == 0 ? CHILD_IS_FINE : 1);
    }
    while (messages == 0)
        sigsuspend(&old);
    must(sigprocmask(SIG_SETMASK, &old, NULL) == 0);
    reap(child);
    if (messages != 1 || last_value != round_number)
        fail("%d messages, the last %d", (int)messages, (int)last_value);
}

// mmap: copy-on-write between a parent and three children, shared memory, protection, moving and unmapping.

enum { PAGES = 2048, PAGE = 4096 };

static void check_pages(const unsigned char *at, int who, int step)
{
    for (int page = 0; page < PAGES; page++) {
        uint32_t expected = who >= 0 && page % step == 0 ? 0xC0000000u + who * PAGES + page : (uint32_t)page;

        if (*(const uint32_t *)(at + (size_t)page * PAGE + page % 1000 * 4) != expected)
            fail("page %d of process %d changed under it", page, who);
    }
}

static void mmap_child(unsigned char *memory, uint32_t *shared, int who)
{
    int step = who + 2;

    check_pages(memory, -1, 1);
    for (int page = 0; page < PAGES; page += step)
        *(uint32_t *)(memory + (size_t)page * PAGE + page % 1000 * 4) = 0xC0000000u + who * PAGES + page;
    for (int page = who; page < PAGES; page += 3)
        shared[page] = page + round_number;
    sched_yield();
    check_pages(memory, who, step);
    _exit(CHILD_IS_FINE);
}

static volatile char *protected_page;

static void touch_protected(void) { *protected_page = 1; }

static void mmap_round(void)
{
    size_t size = (size_t)PAGES * PAGE;
    unsigned char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint32_t *shared = mmap(NULL, PAGES * 4, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t children[3];

    must(memory != MAP_FAILED && shared != MAP_FAILED);
    for (int page = 0; page < PAGES; page++)
        *(uint32_t *)(memory + (size_t)page * PAGE + page % 1000 * 4) = page;
    for (int who = 0; who < 3; who++) {
        children[who] = fork();
        must(children[who] >= 0);
        if (children[who] == 0)
            mmap_child(memory, shared, who);
    }
    for (int who = 0; who < 3; who++)
        reap(children[who]);
    check_pages(memory, -1, 1);
    for (int page = 0; page < PAGES; page++)
        if (shared[page] != (uint32_t)(page + round_number))
            fail("shared word %d is %u", page, shared[page]);

    handle(SIGSEGV, on_fault);
    protected_page = (char *)memory + 5 * PAGE;
    must(mprotect(memory, size, PROT_READ) == 0);
    expect_fault(SIGSEGV, protected_page, touch_protected);
    must(mprotect(memory, size, PROT_READ | PROT_WRITE) == 0);
    touch_protected();
    must(munmap(memory, size / 2) == 0);
    expect_fault(SIGSEGV, protected_page, touch_protected);
    memory = mremap(memory + size / 2, size / 2, size, MREMAP_MAYMOVE);
    must(memory != MAP_FAILED);
    for (int page = PAGES / 2; page < PAGES; page++)
        if (*(uint32_t *)(memory + (size_t)(page - PAGES / 2) * PAGE + page % 1000 * 4) != (uint32_t)page)
            fail("page %d was lost on the move", page);
    must(madvise(memory, size, MADV_DONTNEED) == 0);
    for (size_t at = 0; at < size; at += PAGE)
        if (memory[at])
            fail("a page given back is not zero");
    must(munmap(memory, size) == 0 && munmap(shared, PAGES * 4) == 0);
}

// fpu: three processes count in floating point and SSE registers, each its own sequence, while the kernel switches.

static double series(int seed)
{
    double sum = seed, x87 = 1;

    for (int i = 1; i < 200000; i++) {
        sum = sum * 1.0000001 + 1.0 / (i + seed);
        x87 = (double)((long double)x87 + (long double)seed / i);
    }
    return sum + x87;
}

static void fpu_round(void)
{
    static double expected[3];
    pid_t children[3];

    for (int who = 0; who < 3; who++)
        if (round_number == 0)
            expected[who] = series(who);
    for (int who = 0; who < 3; who++) {
        children[who] = fork();
        must(children[who] >= 0);
        if (children[who] == 0)
            for (int i = 0;; i++) {
                double got = series(who);

                if (got != expected[who])
                    fail("series %d is %.17g, not %.17g", who, got, expected[who]);
                if (i == 4)
                    _exit(CHILD_IS_FINE);
            }
    }
    for (int who = 0; who < 3; who++)
        reap(children[who]);
}

// thread: four threads hand a counter round under a mutex and a condition variable.

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turn = PTHREAD_COND_INITIALIZER;
static int counter;
static uint64_t total;

enum { THREADS = 4, TURNS = 400 };

static void *thread_body(void *argument)
{
    int who = (int)(intptr_t)argument;

    for (int i = 0; i < TURNS; i++) {
        pthread_mutex_lock(&mutex);
        while (counter % THREADS != who)
            pthread_cond_wait(&turn, &mutex);
        counter++;
        pthread_cond_broadcast(&turn);
        pthread_mutex_unlock(&mutex);
        for (int n = 0; n < 100; n++)
            __atomic_fetch_add(&total, 1, __ATOMIC_SEQ_CST);
    }
    return NULL;
}

static void thread_round(void)
{
    pthread_t threads[THREADS];

    counter = 0;
    total = 0;
    for (int who = 0; who < THREADS; who++)
        must(pthread_create(&threads[who], NULL, thread_body, (void *)(intptr_t)who) == 0);
    for (int who = 0; who < THREADS; who++)
        must(pthread_join(threads[who], NULL) == 0);
    if (counter != THREADS * TURNS || total != (uint64_t)THREADS * TURNS * 100)
        fail("counted to %d and %llu", counter, (unsigned long long)total);
}

static const struct {
    const char *name;
    void (*round)(void);
} modes[] = {
    {"fork", fork_round}, {"pipe", pipe_round}, {"signal", signal_round},
    {"mmap", mmap_round}, {"fpu", fpu_round},   {"thread", thread_round},
};

static time_t now(void)
{
    struct timespec time;

    must(clock_gettime(CLOCK_MONOTONIC, &time) == 0);
    return time.tv_sec;
}

int main(int count, char **arguments)
{
    self = "/proc/self/exe";
    if (count == 3 && !strcmp(arguments[1], "child"))
        return be_child(arguments[2]);
    for (size_t i = 0; count == 3 && i < sizeof modes / sizeof *modes; i++) {
        if (strcmp(arguments[1], modes[i].name))
            continue;
        mode = arguments[1];
        time_t end = now() + atoi(arguments[2]);
        do {
            modes[i].round();
            round_number++;
        } while (now() < end);
        printf("torture: %s: ok, %d rounds\n", mode, round_number);
        return 0;
    }
    fprintf(stderr, "usage: torture fork|pipe|signal|mmap|fpu|thread SECONDS\n");
    return 2;
}
