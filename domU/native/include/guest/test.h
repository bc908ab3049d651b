// SPDX-License-Identifier: GPL-2.0-only
// Frame of a guest-side test: checks are counted, failures told, and the last line is the verdict.
//   --- Xen-py Test Result: SUCCESS: <n> checks
//   --- Xen-py Test Result: FAILURE: <first check that failed>
//   --- Xen-py Test Result: ERROR: <why the test could not be made>
// A test whose success is the death of the domain says so first, and reports FAILURE when it lives on:
//   --- Xen-py Test Expects: CRASH: <why>
#ifndef GUEST_TEST_H
#define GUEST_TEST_H

#include <guest/console.h>
#include <guest/events.h>
#include <guest/hypercall.h>
#include <guest/machine.h>
#include <guest/notes.h>
#include <guest/pages.h>
#include <guest/text.h>
#include <guest/traps.h>

// The test itself, instead of guest_main().
void test_main(void);

void test_check(bool ok, const char *file, int line, const char *what);
void test_equal(long got, long want, const char *file, int line, const char *what);
__attribute__((noreturn)) void test_error(const char *why);
void test_expect_crash(const char *why);

#define CHECK(condition) test_check((condition), __FILE_NAME__, __LINE__, #condition)
#define CHECK_EQUAL(got, want) test_equal((long)(got), (long)(want), __FILE_NAME__, __LINE__, #got)

// The record says vector `v` with error code `e`.
#define CHECK_TRAP(record, v, e)                                                                                       \
    do {                                                                                                               \
        struct trap_record r_ = (record);                                                                              \
        CHECK_EQUAL(r_.trapped ? r_.vector : -1, v);                                                                   \
        CHECK_EQUAL(r_.error, e);                                                                                      \
    } while (0)

#define CHECK_NO_TRAP(record) CHECK(!(record).trapped)

#endif
