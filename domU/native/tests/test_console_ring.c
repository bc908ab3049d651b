// SPDX-License-Identifier: GPL-2.0-only
// Tests: the console ring under load: 2000 numbered lines of 64 bytes, faster than the other side reads.
// SUCCESS: all could be written; whoever reads the log checks that none is missing or damaged ("line <n> " followed by
// the same letter up to 62 columns, letters in turn from a to z). FAILURE, ERROR: never.
#include <guest/test.h>

XEN_NOTES

#define LINES 2000
#define WIDTH 62

void test_main(void)
{
    char line[WIDTH + 1];

    for (u32 n = 0; n < LINES; n++) {
        u64 length = format_text(line, sizeof(line), "line %u ", n);

        memset(line + length, 'a' + (int)(n % 26), WIDTH - length);
        line[WIDTH] = '\n';
        console_write(line, sizeof(line));
    }
    console_flush();
    CHECK(true);
}
