// SPDX-License-Identifier: GPL-2.0-only
// The PV console ring, both directions.
#ifndef GUEST_CONSOLE_H
#define GUEST_CONSOLE_H

#include <xen/types.h>

void console_init(void);
void console_write(const char *bytes, u64 length); // waits for room; every line end becomes CR LF
bool console_read(char *byte);                     // false: nothing there
bool console_has_input(void);
void console_flush(void); // waits until the other side has taken all

#endif
