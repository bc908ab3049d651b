// SPDX-License-Identifier: GPL-2.0-only
// Tests: a kernel that describes itself by the old __xen_guest section instead of ELF notes is built and started.
// SUCCESS: it runs, at the entry point that the section names. FAILURE, ERROR: never; the domain is not built.
#include <guest/test.h>

XEN_GUEST_SECTION

void test_main(void)
{
    CHECK(text_equal(start_info->magic, "xen-3.0-x86_64"));
}
