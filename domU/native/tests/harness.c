// SPDX-License-Identifier: GPL-2.0-only
// Counts checks and prints the verdict; its guest_main() runs the one test_main() of each test kernel.
#include <guest/test.h>
#include <xen/sched.h>

static u32 checks;
static u32 failures;
static char first_failure[160];

static void fail(const char *text)
{
    if (failures++ == 0)
        format_text(first_failure, sizeof(first_failure), "%s", text);
    print("failed: %s\n", text);
}

void test_check(bool ok, const char *file, int line, const char *what)
{
    char text[160];

    checks++;
    if (ok)
        return;
    format_text(text, sizeof(text), "%s:%d: %s", file, line, what);
    fail(text);
}

void test_equal(long got, long want, const char *file, int line, const char *what)
{
    char text[160];

    checks++;
    if (got == want)
        return;
    format_text(text, sizeof(text), "%s:%d: %s is %ld (%lx), not %ld", file, line, what, got, (u64)got, want);
    fail(text);
}

void test_error(const char *why)
{
    print("--- Xen-py Test Result: ERROR: %s\n", why);
    machine_shutdown(SHUTDOWN_poweroff);
}

void test_expect_crash(const char *why)
{
    print("--- Xen-py Test Expects: CRASH: %s\n", why);
    console_flush();
}


void guest_main(void)
{
    test_main();
    if (failures)
        print("--- Xen-py Test Result: FAILURE: %s (%u of %u checks)\n", first_failure, failures, checks);
    else
        print("--- Xen-py Test Result: SUCCESS: %u checks\n", checks);
}
