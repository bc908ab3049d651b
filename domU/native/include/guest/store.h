// SPDX-License-Identifier: GPL-2.0-only
// XenStore over the shared ring: one request at a time, watch events queued on the way.
#ifndef GUEST_STORE_H
#define GUEST_STORE_H

#include <xen/types.h>

void store_init(void);

// Each returns 0, or the negated length of nothing useful: any error of the store is -1 with its name in store_error.
long store_read(const char *path, char *value, u64 size); // length of the value, or -1
long store_write(const char *path, const char *value);
long store_remove(const char *path);
long store_watch(const char *path, const char *token);
extern char store_error[32];

// Next watch event, if any: copies path and token.
bool store_next_event(char *path, u64 path_size, char *token, u64 token_size);
bool store_has_event(void);

#endif
