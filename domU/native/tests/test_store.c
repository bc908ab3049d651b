// SPDX-License-Identifier: GPL-2.0-only
// Tests: XenStore through the ring: relative paths, own and foreign nodes, errors, long values, watches, and a thousand
// requests in a row.
// SUCCESS: as xenstored does it for an unprivileged domain. FAILURE: the named check. ERROR: never.
#include <guest/store.h>
#include <guest/test.h>

XEN_NOTES

static char value[1024], long_value[900];

static bool has_event(void *unused)
{
    (void)unused;
    return store_has_event();
}

static void expect_event(const char *path, const char *token)
{
    char got_path[128] = "", got_token[64] = "";

    events_wait_until(has_event, NULL);
    CHECK(store_next_event(got_path, sizeof(got_path), got_token, sizeof(got_token)));
    if (!text_equal(got_path, path) || !text_equal(got_token, token))
        print("event %s %s, not %s %s\n", got_path, got_token, path, token);
    CHECK(text_equal(got_path, path));
    CHECK(text_equal(got_token, token));
}

void test_main(void)
{
    char path[128], domid[16];

    CHECK(store_read("name", value, sizeof(value)) > 0);
    CHECK(text_starts(value, "test_store"));
    CHECK(store_read("domid", domid, sizeof(domid)) > 0);
    // An absolute path to the same.
    format_text(path, sizeof(path), "/local/domain/%s/name", domid);
    CHECK(store_read(path, value, sizeof(value)) > 0);
    CHECK(text_starts(value, "test_store"));
    CHECK(store_read("console/ring-ref", value, sizeof(value)) > 0);
    CHECK(store_read("store/port", value, sizeof(value)) > 0);
    CHECK(store_read("memory/target", value, sizeof(value)) > 0);

    // Errors.
    CHECK_EQUAL(store_read("no/such/node", value, sizeof(value)), -1);
    CHECK(text_equal(store_error, "ENOENT"));
    CHECK_EQUAL(store_write("name", "other"), -1);
    CHECK(text_equal(store_error, "EACCES"));
    CHECK_EQUAL(store_write("/local/domain/0/x", "other"), -1);
    CHECK(text_equal(store_error, "EACCES"));
    CHECK_EQUAL(store_write("/tool/x", "other"), -1);
    CHECK(text_equal(store_error, "EACCES"));
    CHECK_EQUAL(store_read("data//x", value, sizeof(value)), -1);
    CHECK(text_equal(store_error, "EINVAL"));
    CHECK_EQUAL(store_read("", value, sizeof(value)), -1);
    CHECK_EQUAL(store_remove("data/none"), 0); // its parent is there: no error
    CHECK_EQUAL(store_remove("data/none/deeper"), -1);
    CHECK(text_equal(store_error, "ENOENT"));

    // Our own place.
    CHECK_EQUAL(store_write("data/a", "one"), 0);
    CHECK_EQUAL(store_read("data/a", value, sizeof(value)), 3);
    CHECK(text_equal(value, "one"));
    CHECK_EQUAL(store_write("data/a", ""), 0);
    CHECK_EQUAL(store_read("data/a", value, sizeof(value)), 0);
    memset(long_value, 'v', sizeof(long_value) - 1);
    CHECK_EQUAL(store_write("data/long", long_value), 0);
    CHECK_EQUAL(store_read("data/long", value, sizeof(value)), sizeof(long_value) - 1);
    CHECK(text_equal(value, long_value));
    CHECK_EQUAL(store_remove("data/long"), 0);
    CHECK_EQUAL(store_read("data/long", value, sizeof(value)), -1);

    // Watches: once when set, then for each change below; paths come as they were given.
    CHECK_EQUAL(store_watch("data", "first"), 0);
    expect_event("data", "first");
    CHECK_EQUAL(store_watch("data", "first"), -1);
    CHECK(text_equal(store_error, "EEXIST"));
    CHECK_EQUAL(store_write("data/b/c", "x"), 0);
    expect_event("data/b/c", "first");
    CHECK_EQUAL(store_remove("data/b"), 0);
    expect_event("data/b", "first");

    for (u32 n = 0; n < 1000; n++) {
        if (store_read("domid", value, sizeof(value)) <= 0 || !text_equal(value, domid)) {
            CHECK(!"a read in a row of a thousand");
            break;
        }
    }
}
