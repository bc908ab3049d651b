// SPDX-License-Identifier: GPL-2.0-only
// Tests: console_io. A release build of Xen keeps an unprivileged guest from writing; others let it.
// SUCCESS: one of the two, and errors for what is wrong. FAILURE: the named check. ERROR: never.
#include <guest/test.h>

XEN_NOTES

void test_main(void)
{
    static char text[] = "console_io: a line of the test\n";
    long result = hyp_console_io(CONSOLEIO_write, sizeof(text) - 1, text);

    CHECK(result == 0 || result == -EPERM);
    CHECK_EQUAL(hyp_console_io(CONSOLEIO_write, 10, (char *)HYPERVISOR_START), result ? -EPERM : -EFAULT);
    CHECK_EQUAL(hyp_console_io(CONSOLEIO_write, 0, text), result);
    CHECK(hyp_console_io(99, 1, text) < 0);
}
